"""Policies: which rule decides, and what a policy file may say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracereplay.comparator.numbers.policy_file import load_policy, policy_text
from tracereplay.comparator.numbers.tolerance import DEFAULTS, PEAKS, Policy, Rule, tally_for, tolerance_for
from tracereplay.errors import UsageError


def write(path: Path, text: str) -> Path:
    (path / "policy.toml").write_text(text)
    return path / "policy.toml"


def test_the_first_rule_that_fits_decides() -> None:
    rules = (Rule(site="*.mlp.*", a=1, b=1), Rule(operator="RMSNorm", a=2, b=2), Rule(dtype="float16", a=3, b=3))
    policy = Policy(rules=rules)

    def a(site: str, operator: str, dtype: str) -> float:
        tolerance = tolerance_for(policy, site, operator, dtype, "operator")
        assert tolerance is not None
        return tolerance.a

    assert a("model.layers.0.mlp.act_fn", "RMSNorm", "float16") == 1
    assert a("model.norm", "RMSNorm", "float16") == 2
    assert a("model.norm", "SiluAndMul", "float16") == 3
    assert a("model.norm", "SiluAndMul", "bfloat16") == DEFAULTS["bfloat16"][0]


def test_a_calibration_never_goes_below_the_defaults() -> None:
    policy = Policy(calibration=(Rule(operator="RMSNorm", a=0.1, b=9.0, because="measured"),))
    tolerance = tolerance_for(policy, "model.norm", "RMSNorm", "bfloat16", "operator")
    assert tolerance is not None
    assert (tolerance.a, tolerance.b) == (3.0, 9.0)
    assert tolerance.source == "calibration for operator RMSNorm (measured)"


@pytest.mark.parametrize("dtype", DEFAULTS)
def test_neither_factor_of_any_dtype_goes_below_its_default(dtype: str) -> None:
    a, b = DEFAULTS[dtype]
    for low, high in ((0.0, 1e3), (1e3, 0.0), (0.0, 0.0)):
        found = tolerance_for(Policy(calibration=(Rule(a=low, b=high),)), "x", "Y", dtype, "edge")
        assert found is not None
        assert (found.a, found.b) == (max(a, low), max(b, high))


def test_a_rule_may_speak_of_leans_alone(tmp_path: Path) -> None:
    policy = load_policy(write(tmp_path, '[[rule]]\noperator = "GeluAndMul"\nmax_ulp = 0.4\n'))
    tolerance = tolerance_for(policy, "x", "GeluAndMul", "bfloat16", "operator")
    assert tolerance is not None
    assert (tolerance.a, tolerance.b) == DEFAULTS["bfloat16"]
    assert policy.max_lean("x", "GeluAndMul", "bfloat16", "operator") == 0.4
    assert policy.max_lean("x", "RMSNorm", "bfloat16", "operator") == policy.bias_max_ulp


PEAK = PEAKS["experts", "bfloat16"]


def test_single_elements_of_experts_may_be_off_by_more() -> None:
    def peak(policy: Policy, role: str, dtype: str = "bfloat16", kind: str = "operator") -> float:
        tolerance = tolerance_for(policy, "mlp.experts", "FusedMoE", dtype, kind, role)
        assert tolerance is not None
        found = tally_for(policy, tolerance, "mlp.experts", "FusedMoE", kind, role).peak
        assert (f"single elements up to {found:g} times as much" in tolerance.source) == (found != 1)
        return found

    base = Policy()
    assert peak(base, "experts") == PEAK
    assert peak(base, "linear") == peak(base, "") == 1  # kernels have no role
    assert peak(base, "experts", "float16") == peak(base, "experts", "float32") == 1  # do not need it
    assert peak(base, "experts", kind="edge") == 1
    assert peak(Policy(rules=(Rule(operator="FusedMoE", a=1, b=1),)), "experts") == PEAK
    assert peak(Policy(rules=(Rule(operator="FusedMoE", peak=1),)), "experts") == 1
    assert peak(Policy(rules=(Rule(operator="FusedMoE", peak=2.5),)), "") == 2.5
    assert peak(Policy(calibration=(Rule(operator="FusedMoE", a=9, b=9),)), "experts") == PEAK


def test_strict_leaves_single_elements_nothing() -> None:
    strict = Policy(rules=(Rule(peak=9.0),)).made_strict()
    tolerance = tolerance_for(strict, "mlp.experts", "FusedMoE", "bfloat16", "operator", "experts")
    assert tolerance is not None
    assert (tolerance.a, tolerance.b, tolerance.source) == (0, 0, "strict")
    assert tally_for(strict, tolerance, "mlp.experts", "FusedMoE", "operator", "experts").limit == 0


def test_rules_of_yours_come_before_what_was_calibrated_and_may_be_tighter(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [[calibrated]]
        operator = "RMSNorm"
        a = 30
        b = 30
        [[rule]]
        site = "model.norm"
        a = 1
        b = 1
        """,
    )
    policy = load_policy(path)

    def a(site: str) -> float:
        tolerance = tolerance_for(policy, site, "RMSNorm", "bfloat16", "operator")
        assert tolerance is not None
        return tolerance.a

    assert (a("model.norm"), a("model.layers.0.input_layernorm")) == (1, 30)


numbers = st.floats(0, 1e6, allow_nan=False)
texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
rules = st.builds(
    Rule, site=texts, operator=texts, dtype=texts, kind=st.sampled_from([None, "operator", "edge"]), a=numbers,
    b=numbers, because=texts, max_ulp=st.none() | numbers, peak=st.none() | st.floats(1, 1e6),
)  # fmt: skip


def calibrated(rule: Rule) -> Rule:
    """What a calibration may say of it."""
    return replace(rule, max_ulp=None, peak=None)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        Policy, rules=st.lists(rules, max_size=2).map(tuple),
        calibration=st.lists(rules.map(calibrated), max_size=2).map(tuple),
        logprob_max_abs=numbers, bias_max_ulp=numbers, bias_sign_max_ulp=numbers,
    ),
    st.dictionaries(st.sampled_from(["golden", "date"]), texts),
    st.lists(texts, max_size=2),
)  # fmt: skip
def test_reading_a_policy_gives_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, policy: Policy, about: dict[str, str], runs: list[str]
) -> None:
    path = write(tmp_path_factory.mktemp("policy"), policy_text(policy, {**about, "runs": runs}))
    assert load_policy(path) == policy


def test_a_policy_file_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [tokens]
        differing = 2
        [logprobs]
        max_abs = 0.1
        [bias]
        max_ulp = 0.6
        [coverage]
        min = 0.5
        [[rule]]
        site = "model.layers.*.mlp.*"
        dtype = "bfloat16"
        kind = "operator"
        a = 2
        b = 6.5
        because = "measured"
        [[rule]]
        operator = "FusedMoE"
        ignore = true
        """,
    )
    policy = load_policy(path)
    assert (policy.differing_tokens, policy.logprob_max_abs, policy.min_coverage) == (2, 0.1, 0.5)
    assert policy.bias_max_ulp == 0.6
    assert policy.rules[0].describe() == "rule for site model.layers.*.mlp.*, dtype bfloat16 (measured)"
    assert tolerance_for(policy, "x", "FusedMoE", "bfloat16", "edge") is None
    strict = policy.made_strict()
    assert (strict.strict, strict.differing_tokens, strict.logprob_max_abs) == (True, 0, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tokens]\ndiffering = 1\nmost = 3\n", "'most' in line 3 .* is unknown"),
        ("[logprob]\nmax_abs = 1\n", "'logprob' in line 1 .* is unknown"),
        ('[[rule]]\na = 1\nb = 1\n[[rule]]\nsit = "x"\na = 1\nb = 1\n', "'sit' in line 5"),
        ("[[rule]]\na = 1\n", "line 1 .* must give a and b together"),
        ('[[rule]]\na = 1\nb = 1\n\n[[rule]]\na = "1"\nb = 1\n', "'a' in line 6 .* is '1'; it must be a number"),
        ("[[rule]]\na = -1\nb = 1\n", "'a' in line 2 .* at least 0"),
        ("[[rule]]\na = nan\nb = 1\n", "'a' in line 2 .* at least 0"),
        ("[[rule]]\na = true\nb = 1\n", "'a' in line 2 .* is True; it must be a number"),
        ('[[rule]]\nkind = "node"\na = 1\nb = 1\n', "kind 'node'"),
        ("[rule]\na = 1\nb = 1\n", "double brackets"),
        ("[calibrated]\na = 1\nb = 1\n", r"\[\[calibrated\]\], in double brackets"),
        ("[[calibrated]]\na = 1\nb = 1\nignore = true\n", "'ignore' in line 4 .* is unknown; calibrated knows"),
        ("[[calibrated]]\na = 1\nb = 1\n[[calibrated]]\nb = 1\n", "line 4 .* must give a and b together"),
        ('[[rule]]\na = 1\nb = 1\n[[calibrated]]\na = 1\nb = 1\ndtypes = "x"\n', "'dtypes' in line 7"),
        ('[calibration]\ngolden = "x"\nwhen = "now"\n', "'when' in line 3 .* is unknown"),
        ("[[rule]]\nsite = 3\na = 1\nb = 1\n", "'site' in line 2 .* is 3; it must be text, in quotes"),
        ("[tokens]\ndiffering = 1.5\n", "'differing' in line 2 .* is 1.5; it must be a whole number"),
        ("[calibration]\nruns = 3\n", "'runs' in line 2 .* is 3; it must be a list"),
        ("[[calibrated]]\na = 1\nb = 1\nmax_ulp = 1\n", "'max_ulp' in line 4 .* is unknown; calibrated knows"),
        ("[[calibrated]]\na = 1\nb = 1\npeak = 1\n", "'peak' in line 4 .* is unknown; calibrated knows"),
        ("[[rule]]\npeak = 2\n[[rule]]\npeak = 0.5\n", "'peak' in line 4 .* is 0.5; it must .* at least 1"),
        ("[[rule]]\na = 1\npeak = 2\n", "line 1 .* must give a and b together, or peak, or max_ulp, or ignore"),
        ("[[rule]]\na = 1\nmax_ulp = 1\n", "line 1 .* must give a and b together, or peak, or max_ulp, or ignore"),
        ("[bias]\nmax_ulps = 1\n", "'max_ulps' in line 2 .* is unknown"),
        ("[coverage]\nmin = 0.5\n[coverages]\nmin = 1\n", "'coverages' in line 3 .* is unknown"),
        ("tokens = 3\n", "'tokens' in line 1 .* must be a table"),
        ("[tokens\n", "is not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_policy(write(tmp_path, text))


def test_a_missing_policy_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no policy file .*; give the path of one"):
        load_policy(tmp_path / "none.toml")
