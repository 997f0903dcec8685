"""Policies: which rule decides, and what a policy file may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracereplay.comparator.tolerance import DEFAULTS, Policy, Rule, load_policy, tolerance_for
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
    policy = Policy(calibration=(Rule(operator="RMSNorm", a=0.1, b=9.0),))
    tolerance = tolerance_for(policy, "model.norm", "RMSNorm", "bfloat16", "operator")
    assert tolerance is not None
    assert (tolerance.a, tolerance.b, tolerance.source) == (3.0, 9.0, "calibration")


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
        ('[[rule]]\na = 1\nb = 1\n\n[[rule]]\na = "1"\nb = 1\n', "'a' in line 6 .* not of the right type"),
        ("[[rule]]\na = -1\nb = 1\n", "'a' in line 2 .* at least 0"),
        ("[[rule]]\na = nan\nb = 1\n", "'a' in line 2 .* at least 0"),
        ("[[rule]]\na = true\nb = 1\n", "'a' in line 2 .* not of the right type"),
        ('[[rule]]\nkind = "node"\na = 1\nb = 1\n', "kind 'node'"),
        ("[rule]\na = 1\nb = 1\n", "double brackets"),
        ("tokens = 3\n", "'tokens' in line 1 .* must be a table"),
        ("[tokens\n", "is not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_policy(write(tmp_path, text))


def test_a_missing_policy_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_policy(tmp_path / "none.toml")
