"""Traces of the toy engine, reduced: what is left shows the same, is small, and can be replayed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tracereplay.comparator import Policy, compare_traces
from tracereplay.engines import toy
from tracereplay.engines.toy import Flaw
from tracereplay.errors import UsageError
from tracereplay.reduction import Reduced, reduce
from tracereplay.reduction.shown import shown_by
from tracereplay.trace import SegmentWriter, open_trace, segment_path
from tracereplay.trace.cut_steps import Cut, Rules, StepCutter
from tracereplay.trace.verify import verify

PROMPTS = [[(7 * seed + 3 * i) % 128 for i in range(20 + 5 * seed)] for seed in range(6)]
ACT = "model.layers.0.mlp.act_fn"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six requests of 20 to 45 tokens, ten generated tokens each."""
    return toy.record(toy.workload(PROMPTS, max_tokens=10), tmp_path_factory.mktemp("golden") / "golden.trace")


Narrow = Callable[..., Reduced]


@pytest.fixture
def narrow(golden: Path, tmp_path: Path) -> Narrow:
    """Replays golden with the toy's options, and reduces both."""

    def reduced(policy: Policy | None = None, *, of: Path = golden, **options: Any) -> Reduced:
        candidate = toy.replay(of, tmp_path / "whole.trace", **options)
        return reduce(of, candidate, tmp_path / "small", policy=policy)

    return reduced


def size(path: Path) -> int:
    with open_trace(path) as trace:
        return trace.size


def shape(path: Path) -> tuple[int, int, int]:
    """Requests, steps and operators that are called."""
    with open_trace(path) as trace:
        sites = {call.site for step in trace.steps("record") for call in step.calls}
        return len(trace.run.prompts), len(trace), len(sites)


PLACES: dict[str, dict[str, Any]] = {
    "operator": {"flaw": Flaw(ACT, "scale")},
    "late": {"flaw": Flaw("model.layers.1.mlp.act_fn", "element")},
    "last": {"flaw": Flaw("model.layers.1.mlp.down_proj", "nan")},
    "edge": {"flaw": Flaw("model.layers.1.post_attention_layernorm", "scaled_edge", 1)},
    "positions": {"flaw": Flaw("model.layers.0.self_attn.rotary_emb", "positions")},
    "attention": {"flaw": Flaw("model.layers.1.self_attn.attn", "stale")},
    "biased": {"flaw": Flaw("model.layers.1.mlp.gate_up_proj", "floor")},
    "sampler": {"flaw": Flaw("sampler", "second")},
    "over rounding": {"flaw": Flaw(ACT, "scale"), "rounding": "twice", "max_rows": 16},
}


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_left_shows_the_same_place_and_so_does_a_replay_of_it(
    narrow: Narrow, golden: Path, tmp_path: Path, kind: str
) -> None:
    found = narrow(**PLACES[kind])
    whole = compare_traces(golden, tmp_path / "whole.trace")
    again = compare_traces(found.golden, toy.replay(found.golden, tmp_path / "again.trace", **PLACES[kind]))
    assert found.same, found.what
    for verdict in (whole, found.verdict, again):
        first = verdict.first_divergence
        assert first is not None
        assert (verdict.verdict, verdict.cause) == ("diverged", whole.cause)
        expected = whole.first_divergence
        assert expected is not None
        assert (first.kind, first.site, first.error_class) == (
            expected.kind, expected.site, expected.error_class
        )  # fmt: skip
    assert size(found.golden) < size(golden) / (2 if kind == "biased" else 10)
    for path in (found.golden, found.candidate):
        with open_trace(path) as trace:
            assert {report.state for report in verify(trace)} == {"complete"}


def test_one_request_one_token_and_the_operators_up_to_the_fault_are_left(narrow: Narrow) -> None:
    found = narrow(flaw=Flaw(ACT, "scale"))
    requests, steps, sites = shape(found.golden)
    assert (requests, steps) == (1, 1)
    with open_trace(found.golden) as trace:
        called = [call.site for call in trace.steps("record")[0].calls]
        assert called[-1] == ACT
        assert {len(call.rows_out) for call in trace.steps("record")[0].calls} == {1}
        assert trace.run.prompts[0].token_ids in map(tuple, PROMPTS)  # whole, however few rows are left of it
        assert trace.run.prompts[0].sampling["max_tokens"] == 1
        assert any(note.startswith("Reduced from a trace with the digest") for note in trace.run.notes)
        assert "operators at" in " ".join(trace.run.notes)
    assert sites < 12
    assert found.what[0].startswith("Of 6 requests, 10 tokens, ")
    assert "there are 1 request, 1 token" in found.what[0]


def test_a_token_that_differs_is_still_the_one(narrow: Narrow, golden: Path, tmp_path: Path) -> None:
    found = narrow(rounding="twice", settings={})
    whole = compare_traces(golden, tmp_path / "whole.trace")
    at, there = whole.tokens.first_divergence, found.verdict.tokens.first_divergence
    assert at is not None, "choose prompts whose tokens part"
    assert there is not None
    assert (whole.cause, found.verdict.cause, found.same) == ("rounding", "rounding", True)
    assert (there.position, there.golden, there.candidate) == (at.position, at.golden, at.candidate)
    assert shape(found.golden)[0] == 1
    again = compare_traces(found.golden, toy.replay(found.golden, tmp_path / "again.trace", rounding="twice"))
    assert again.tokens.first_divergence == there
    assert size(found.golden) < size(golden) / 10


def test_a_logprob_beyond_the_limit_is_still_the_one(narrow: Narrow, golden: Path, tmp_path: Path) -> None:
    policy = Policy(differing_tokens=99, logprob_max_abs=0.01)
    found = narrow(policy, rounding="twice")
    assert (found.verdict.verdict, found.verdict.cause, found.same) == ("diverged", "rounding", True)
    assert (found.verdict.tokens.logprob_max or 0) > 0.01
    with open_trace(golden) as mine, open_trace(tmp_path / "whole.trace") as theirs:
        at = shown_by(compare_traces(mine, theirs, policy), mine, theirs).token
    assert at is not None
    assert at.golden == at.candidate  # not a token that differs: 99 of these are allowed
    with open_trace(found.golden) as trace:
        last = max(s.key.position for step in trace.steps("record") for s in step.sampled)
        assert trace.run.prompts[0].token_ids == tuple(PROMPTS[at.request])
        assert last == at.position
    assert shape(found.golden)[0] == 1
    assert size(found.golden) < size(golden) / 10


def test_where_nothing_differs_a_request_and_a_token_are_left(narrow: Narrow) -> None:
    found = narrow()
    assert (found.verdict.verdict, found.same) == ("match", True)
    assert shape(found.golden) == (1, 1, 1)


def test_two_ranks_are_cut_alike(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(PROMPTS, max_tokens=4), tmp_path / "golden.trace", tensor_parallel=2)
    flaw = Flaw("model.layers.1.mlp.down_proj", "scale")
    candidate = toy.replay(golden, tmp_path / "whole.trace", tensor_parallel=2, flaw=flaw)
    found = reduce(golden, candidate, tmp_path / "small")
    assert found.same, found.what
    assert found.verdict.first_divergence is not None
    assert found.verdict.first_divergence.site == flaw.site
    with open_trace(found.golden) as trace:
        assert trace.ranks("record") == (0, 1)
        assert len({len(trace.steps("record", rank)) for rank in (0, 1)}) == 1
    assert size(found.golden) < size(golden) / 10


def test_operators_that_are_paired_stay_together(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(PROMPTS, max_tokens=4), tmp_path / "golden.trace", naming="split")
    flaw = Flaw("model.layers.1.self_attn.qkv_proj", "scale")  # of which golden has three
    found = reduce(golden, toy.replay(golden, tmp_path / "whole.trace", flaw=flaw), tmp_path / "small")
    assert found.same, found.what
    assert found.verdict.first_divergence is not None
    assert found.verdict.first_divergence.site == flaw.site
    with open_trace(found.golden) as trace:
        called = [call.site for call in trace.steps("record")[0].calls]
        assert len(called) < len(trace.sites("record"))
        assert len({site for site in called if ".1." in site} & set(called[-3:])) == 3, called
    again = compare_traces(found.golden, toy.replay(found.golden, tmp_path / "again.trace", flaw=flaw))
    assert again.first_divergence is not None
    assert again.first_divergence.site == flaw.site


def test_two_recordings_are_reduced_too(golden: Path, tmp_path: Path) -> None:
    work = toy.workload(PROMPTS, max_tokens=10)
    other = toy.record(work, tmp_path / "other.trace", flaw=Flaw("model.layers.1.mlp.down_proj", "nan"))
    whole = compare_traces(golden, other)
    found = reduce(golden, other, tmp_path / "small")
    assert (found.verdict.mode, found.verdict.verdict, found.same) == ("compare", whole.verdict, True)
    assert size(found.golden) < size(golden) / 3


def test_samples_of_a_request_stay_together(tmp_path: Path) -> None:
    work = toy.workload(PROMPTS, max_tokens=4, sampling={"n": 2, "temperature": 0.8, "seed": 3})
    golden = toy.record(work, tmp_path / "golden.trace")
    flaw = Flaw(ACT, "element")
    found = reduce(golden, toy.replay(golden, tmp_path / "whole.trace", flaw=flaw), tmp_path / "small")
    assert found.same, found.what
    with open_trace(found.golden) as trace:
        assert {(r["request"], r["sequence"]) for r in trace.results["record"]["requests"]} == {(0, 0), (0, 1)}


def test_the_same_is_found_each_time(golden: Path, tmp_path: Path) -> None:
    candidate = toy.replay(golden, tmp_path / "whole.trace", flaw=Flaw("model.norm", "floor"))
    lines: list[list[str]] = [[], []]
    digests = set()
    for number, said in enumerate(lines):
        found = reduce(golden, candidate, tmp_path / str(number), progress=said.append)
        digests.add((open_trace(found.golden).digest(), open_trace(found.candidate).digest()))
    assert len(digests) == 1
    assert lines[0] == lines[1]
    assert sum(line.startswith("Try ") for line in lines[0]) > 2


def test_a_search_that_is_cut_short_gives_what_it_has(golden: Path, tmp_path: Path) -> None:
    candidate = toy.replay(golden, tmp_path / "whole.trace", flaw=Flaw("model.layers.1.mlp.gate_up_proj", "floor"))
    found = reduce(golden, candidate, tmp_path / "small", tries=2)
    assert found.same, found.what
    assert found.what[-1].startswith("The search was ended after 2 tries")
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["candidate.trace", "golden.trace"]


def test_less_than_a_replay_needs_is_kept_only_where_the_size_asks_for_it(golden: Path, tmp_path: Path) -> None:
    flaw = Flaw("model.layers.1.mlp.down_proj", "scale")
    candidate = toy.replay(golden, tmp_path / "whole.trace", flaw=flaw)
    fed = reduce(golden, candidate, tmp_path / "fed")
    least = reduce(golden, candidate, tmp_path / "least", max_size=1)
    assert fed.same
    assert least.same
    assert shape(least.golden) == (1, 1, 1)
    assert shape(fed.golden)[2] > 15
    assert any("run unfed" in sentence for sentence in least.what)
    assert any("more than the 1 bytes that were asked for" in sentence for sentence in least.what)
    assert not any("run unfed" in sentence for sentence in fed.what)


def test_what_is_in_the_way_stays(golden: Path, tmp_path: Path) -> None:
    candidate = toy.replay(golden, tmp_path / "whole.trace")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "candidate.trace").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        reduce(golden, candidate, tmp_path / "small")
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["candidate.trace"]


def test_an_interrupted_recording_stays_one(golden: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.trace"
    shutil.copytree(golden, cut)
    segment = cut / "record-rank0.seg"
    segment.write_bytes(segment.read_bytes()[:-100])
    candidate = toy.replay(cut, tmp_path / "whole.trace", flaw=Flaw(ACT, "scale"))
    found = reduce(cut, candidate, tmp_path / "small")
    assert found.same, found.what
    with open_trace(found.golden) as trace:
        assert not trace.complete


def test_a_replay_of_another_golden_trace_is_still_told_from_one_of_this(golden: Path, tmp_path: Path) -> None:
    other = toy.record(toy.workload(PROMPTS, max_tokens=10), tmp_path / "other.trace", rounding="twice")
    candidate = toy.replay(other, tmp_path / "whole.trace", flaw=Flaw(ACT, "scale"))
    whole = compare_traces(golden, candidate)
    found = reduce(golden, candidate, tmp_path / "small")
    assert whole.verdict == found.verdict.verdict == "inconclusive"
    assert found.same, found.what


# -- other causes ----------------------------------------------------------------------------------------------


def without_a_layer(golden: Path, path: Path) -> Path:
    """A replay whose engine has no second layer, and so computes something else after it."""
    flawed = toy.replay(golden, path / "into.trace", flaw=Flaw("model.norm", "scaled_edge", 1))
    shutil.copytree(flawed, path / "less.trace")
    with open_trace(flawed) as trace:
        sites = {site.name: site for site in trace.sites("injected").values() if ".layers.1." not in site.name}
        (path / "less.trace" / "injected-rank0.seg").unlink()
        writer = SegmentWriter(segment_path(path / "less.trace", "injected", 0), {})
        writer.sites(sites.values())
        slots = {site.name: site.slot for site in sites.values()}
        every = tuple(range(len(trace.run.prompts)))
        cutter = StepCutter(Rules(Cut(every, sites=frozenset(sites)), [0] * 6), slots, frozenset(), writer)
        for step in trace.steps("injected"):
            cutter.add(step)
        writer.close({})
    return path / "less.trace"


def with_another_rerun(golden: Path, path: Path) -> Path:
    """A replay whose operators are golden's, and whose tokens are not."""
    good = toy.replay(golden, path / "good.trace")
    bad = toy.replay(golden, path / "bad.trace", flaw=Flaw(ACT, "element"))
    shutil.copy(bad / "rerun-rank0.seg", good / "rerun-rank0.seg")
    return good


def unstable(golden: Path, path: Path) -> Path:
    return toy.replay(golden, path / "noisy.trace", noise=0.002, passes=("rerun", "injected", "injectedtwice"))


def swapped(golden: Path, path: Path) -> Path:
    return toy.replay(golden, path / "swapped.trace", flaw=Flaw("model.layers.0", "swap"))


def of_another_dtype(golden: Path, path: Path) -> Path:
    return toy.replay(golden, path / "coarse.trace", settings={"dtype": "float16"})


def of_other_weights(golden: Path, path: Path) -> Path:
    return toy.replay(golden, path / "other.trace", model="another")


LENIENT = Policy(logprob_max_abs=99.0, differing_tokens=99)
CAUSES: dict[str, tuple[Callable[[Path, Path], Path], Policy | None, tuple[str, str | None]]] = {
    "structure": (without_a_layer, None, ("diverged", "structure")),
    "unobserved": (with_another_rerun, Policy(logprob_max_abs=0.01), ("diverged", "unobserved")),
    "unstable": (unstable, LENIENT, ("inconclusive", None)),
    "swapped": (swapped, None, ("diverged", "edge")),
    "dtype": (of_another_dtype, None, ("diverged", "setting")),
    "weights": (of_other_weights, None, ("inconclusive", "setting")),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_stays(golden: Path, tmp_path: Path, cause: str) -> None:
    make, policy, expected = CAUSES[cause]
    candidate = make(golden, tmp_path)
    whole = compare_traces(golden, candidate, policy)
    found = reduce(golden, candidate, tmp_path / "small", policy=policy)
    assert (whole.verdict, whole.cause) == expected, whole.reasons
    assert (found.verdict.verdict, found.verdict.cause, found.same) == (*expected, True), found.what
    assert size(found.golden) < size(golden) / 3
