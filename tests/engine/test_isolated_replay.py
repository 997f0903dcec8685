"""Recorded kernels, executed in isolation in real environments: where they should be, they are identical.

No engine is started here but the one that records; a child process with torch and vLLM's libraries is enough.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_support import ROOT, TINY, find_engine
from typer.testing import CliRunner

from tracereplay import open_trace
from tracereplay.alone.constants import Constants
from tracereplay.alone.kernels import KernelRunner
from tracereplay.alone.permitted import refusal
from tracereplay.alone.replay import Selection, replay_isolated
from tracereplay.alone.sandbox import Sandbox, alone_of
from tracereplay.cli.main import app
from tracereplay.comparator import compare_traces
from tracereplay.event import Kernel, Named, Value
from tracereplay.passes import ISOLATED, REFERENCE
from tracereplay.trace import Trace
from tracereplay.verdict import Verdict
from tracereplay.verdict.isolated import Isolated

pytestmark = pytest.mark.engine

KERNELS = ROOT / "fixtures" / "tiny-llama-v0-kernels.trace"
RANDOM = "aten.exponential_.default"


def isolated(verdict: Verdict) -> Isolated:
    assert verdict.isolated is not None
    return verdict.isolated


def classes(verdict: Verdict) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in isolated(verdict).kernels:
        found.setdefault(finding.kernel, set()).add(finding.error_class)
    return found


@pytest.fixture(scope="module")
def under_v1(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """The committed kernels of vLLM 0.8.5 V0, executed in the environment of 0.32.0, with references."""
    out = tmp_path_factory.mktemp("isolated") / "v1.trace"
    return open_trace(replay_isolated(find_engine("v1"), KERNELS, out, model=TINY, reference=True))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    engine = find_engine("v1")
    family = alone_of(engine)
    kernels = {"libraries": family.libraries, "describe": family.describe}
    with Sandbox(engine, setup={"kernel": kernels}) as found:
        yield found


def test_v0s_kernels_give_what_they_gave_under_v0(kernels_v0: Trace, tmp_path: Path) -> None:
    """In the environment that recorded them, on the machine that did, every call gives back every bit."""
    out = replay_isolated(find_engine("v0"), Path(kernels_v0.path), tmp_path / "v0.trace", model=TINY)
    verdict = compare_traces(kernels_v0, out)
    assert verdict.verdict == "match"
    assert {c for found in classes(verdict).values() for c in found} == {"identical"}
    assert "_C.fused_add_rms_norm.default" in classes(verdict)
    assert isolated(verdict).compared > 500


def test_v0s_kernels_under_v1_are_identical_where_they_are(under_v1: Trace) -> None:
    verdict = compare_traces(open_trace(KERNELS), under_v1)
    found = classes(verdict)
    for exact in (
        "aten.embedding.default",
        "aten.index_select.default",
        "aten._to_copy.default",
        "aten.argmax.default",
    ):
        assert found[exact] == {"identical"}
    for rounding in ("_C.rms_norm.default", "_C.fused_add_rms_norm.default", "_C.silu_and_mul.default"):
        assert found[rounding] <= {"identical", "rounding"}  # by processor: on AVX2 both truncate
    # From a generator in the same state, torch 2.13 draws other numbers than torch 2.6.
    assert found[RANDOM] == {"exceeds"}
    assert {name for name, c in found.items() if not c <= {"identical", "rounding"}} == {RANDOM}
    first = verdict.first_divergence
    assert first is not None
    assert (first.kernel, first.site) == (RANDOM, "sampler")


def test_every_call_is_compared_or_has_a_reason(under_v1: Trace) -> None:
    verdict = compare_traces(open_trace(KERNELS), under_v1)
    recorded = Counter(k.name for s in open_trace(KERNELS).steps("record") for k in s.kernels)
    told: Counter[str] = Counter()
    for left in isolated(verdict).not_replayed:
        assert left.reason.startswith(("not replayable: ", "nothing to compare: "))
        told[left.kernel] += left.calls
    assert isolated(verdict).calls == recorded.total()
    assert isolated(verdict).compared == recorded.total() - told.total() > 300
    assert {n.removesuffix(".default") for n in told if told[n] == recorded[n]} == {
        "_C.paged_attention_v1", "_C_cache_ops.reshape_and_cache", "vllm.unified_attention", "aten.detach",
        "aten.empty.memory_format", "aten.empty_like", "aten.t",
    }  # fmt: skip


def test_v1s_kernels_give_what_they_gave(kernels_v1: Trace, tmp_path: Path) -> None:
    out = replay_isolated(find_engine("v1"), Path(kernels_v1.path), tmp_path / "v1.trace", model=TINY)
    verdict = compare_traces(kernels_v1, out)
    assert verdict.verdict == "match"
    assert {c for found in classes(verdict).values() for c in found} == {"identical"}
    reasons = {left.kernel: left.reason for left in isolated(verdict).not_replayed}
    packed = "_C.onednn_mm.default"  # used by processor: vLLM packs weights where oneDNN is worth it
    assert packed not in classes(verdict)
    assert "address of a packed weight" in reasons.get(packed, "address of a packed weight")
    assert "metadata" in reasons["vllm.unified_attention_with_output.default"]


def test_arguments_that_an_older_version_lacks_are_left_out_where_they_mean_nothing(
    kernels_v1: Trace, tmp_path: Path
) -> None:
    """Rotary embeddings of 0.32.0 have an offset and a direction; those of 0.18.1 have neither."""
    selection = Selection("*rotary*", "_C.rotary_embedding")
    out = replay_isolated(find_engine("v1-0.18"), Path(kernels_v1.path), tmp_path / "a.trace", selection=selection)
    verdict = compare_traces(kernels_v1, out)
    assert classes(verdict) == {"_C.rotary_embedding.default": {"identical"}}
    assert isolated(verdict).not_replayed == ()


def test_a_reference_is_the_call_on_float64_inputs(under_v1: Trace) -> None:
    """Checked here in numpy, for a matrix product over weights that the trace holds by name only."""
    golden = open_trace(KERNELS)
    constants = Constants(golden, model=TINY)
    step, exact = golden.steps("record")[0], under_v1.steps(REFERENCE)[0]
    isolated_step = under_v1.steps(ISOLATED)[0]
    place = next(i for i, k in enumerate(step.kernels) if k.name == "aten.mm.default")
    x, w = step.kernels[place].arguments
    assert isinstance(x, Value)
    assert isinstance(w, Named)
    kept = constants.load(w.name)
    weight = np.frombuffer(kept.data, np.uint16).astype(np.uint32) << 16
    wide = weight.view(np.float32).reshape(kept.shape).T.astype(np.float64)
    expected = x.numpy().astype(np.float64) @ wide
    (reference,), (output,) = exact.kernels[place].outputs, isolated_step.kernels[place].outputs
    assert isinstance(reference, Value)
    assert isinstance(output, Value)
    assert reference.dtype == "float64"
    assert np.allclose(reference.numpy(), expected, rtol=1e-12, atol=1e-12)
    error = np.abs(output.numpy().astype(np.float64) - expected)
    assert 0 < error.max() < 2.0**-7 * np.abs(expected).max()


def test_calls_are_chosen_by_site_and_kernel(tmp_path: Path) -> None:
    arguments = [
        "replay",
        str(KERNELS),
        "--engine",
        "v1",
        "--mode",
        "isolated",
        "--model",
        str(TINY),
        "--json",
        "-",
    ]
    chosen = ["--site", "model.layers.0.*", "--kernel", "aten.mm", "-o", str(tmp_path / "c.trace")]
    find_engine("v1")
    result = CliRunner().invoke(app, [*arguments, *chosen])
    verdict = json.loads(result.stdout)
    assert (result.exit_code, verdict["verdict"], verdict["mode"]) == (0, "match", "isolated")
    assert {k["kernel"] for k in verdict["isolated"]["kernels"]} == {"aten.mm.default"}
    assert verdict["isolated"]["calls"] == verdict["isolated"]["compared"] == 3 * 4
    again = CliRunner().invoke(app, ["compare", str(KERNELS), str(tmp_path / "c.trace"), "--json", "-"])
    assert json.loads(again.stdout)["isolated"] == verdict["isolated"]


# What a stranger's trace may ask for.


def forged(name: str, schema: str, *arguments: Any, **keywords: Any) -> Kernel:
    return Kernel(name, schema, "model.norm", 0, -1, arguments, keywords, ())


def tensor(*values: float) -> Value:
    data = np.array(values, np.float32)
    return Value("float32", data.shape, (1,), data.tobytes)


def test_what_opens_a_file_is_not_executed_and_the_file_is_not_made(sandbox: Sandbox, tmp_path: Path) -> None:
    """Neither by the analyst's list nor, where that is circumvented, by the child."""
    target = tmp_path / "made"
    schema = "aten::from_file(str filename, bool? shared=None, int? size=0) -> Tensor"
    call = forged("aten.from_file.default", schema, str(target), True, 64)
    runner = KernelRunner(sandbox, Constants(open_trace(KERNELS)))
    assert runner.run(call).reason == "not replayable: it opens a file"
    given = {"arguments": [str(target), True, 64], "keywords": {}, "want": []}
    request = {"name": call.name, "schema": "x::y(str a, bool b, int c) -> Tensor", "renamed": {}, **given}
    outcome = sandbox.run("kernel", request)
    assert outcome.reason == "not replayable: its argument 'filename' stands for something outside of its tensors"
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("_C.onednn_mm.default", [1, 2, None, 4096], "its argument 'handler_tensor' stands for"),
        ("aten.no_such.default", [], "this engine has no kernel aten.no_such"),
        ("aten.mm.nonsense", [], "no overload 'nonsense'"),
        ("aten.neg.default", [1], "its schema is different here"),
    ],
)
def test_the_child_refuses_what_it_does_not_have_or_should_not_run(
    sandbox: Sandbox, name: str, arguments: list[Any], reason: str
) -> None:
    schema = "x::y(Tensor c) -> ()"
    request = {"name": name, "schema": schema, "renamed": {}, "arguments": arguments, "keywords": {}, "want": []}
    outcome = sandbox.run("kernel", request)
    assert outcome.status == "not replayable"
    assert reason in outcome.reason


def test_a_kernel_that_raises_or_takes_too_much_is_an_outcome(sandbox: Sandbox) -> None:
    runner = KernelRunner(sandbox, Constants(open_trace(KERNELS)))
    schema = "aten::mm(Tensor self, Tensor mat2) -> Tensor"
    outcome = runner.run(forged("aten.mm.default", schema, tensor(1, 2), tensor(3)))
    assert outcome.status == "failed"
    assert "mat" in outcome.reason
    schema = "aten::repeat_interleave.Tensor(Tensor repeats, *, SymInt? output_size=None) -> Tensor"
    times = Value("int64", (1,), (1,), np.array([1 << 36]).tobytes)
    repeat = forged("aten.repeat_interleave.Tensor", schema, times)
    assert refusal(repeat) is None
    assert runner.run(repeat).status == "out of memory"
    assert runner.run(forged("aten.neg.default", "aten::neg(Tensor self) -> Tensor", tensor(1))).status == "done"


def test_a_view_beyond_a_parameter_is_refused(sandbox: Sandbox) -> None:
    runner = KernelRunner(sandbox, Constants(open_trace(KERNELS), model=TINY))
    schema = "aten::neg(Tensor self) -> Tensor"
    for start, shape in ((120, (9,)), (0, (129,))):
        outcome = runner.run(
            forged("aten.neg.default", schema, Named("model.norm.weight", "bfloat16", shape, (1,), start))
        )
        assert outcome.reason == "not replayable: a view of model.norm.weight extends past its end"
    within = forged("aten.neg.default", schema, Named("model.norm.weight", "bfloat16", (8,), (1,), 120))
    assert runner.run(within).status == "done"
    other = forged("aten.neg.default", schema, Named("model.no.weight", "bfloat16", (8,), (1,), 0))
    assert runner.run(other).reason == "not replayable: the trace does not say what model.no.weight is"


def test_arguments_that_shared_memory_share_it_again(sandbox: Sandbox) -> None:
    """A write through one is seen through the other."""
    memory = np.arange(6, dtype=np.float32)
    whole = Value("float32", (6,), (1,), memory.tobytes, storage=3)
    part = Value("float32", (2,), (2,), memory[1:5:2].tobytes, storage=3, start=1)
    schema = "aten::copy_(Tensor(a!) self, Tensor src, bool non_blocking=False) -> Tensor(a!)"
    call = Kernel("aten.copy_.default", schema, "s", 0, -1, (part, tensor(70, 80)), {}, (), written={0: part})
    outcome = KernelRunner(sandbox, Constants(open_trace(KERNELS))).run(call)
    assert np.frombuffer(outcome.outputs["written"][0].data, np.float32).tolist() == [70, 80]
    cat = Kernel(
        "aten.cat.default",
        "aten::cat(Tensor[] tensors, int dim=0) -> Tensor",
        "s",
        0,
        -1,
        ((whole, part),),
        {},
        (),
    )
    (joined,) = KernelRunner(sandbox, Constants(open_trace(KERNELS))).run(cat).outputs["outputs"]
    assert np.frombuffer(joined.data, np.float32).tolist() == [0, 1, 2, 3, 4, 5, 1, 3]


def test_a_selection_has_what_it_names() -> None:
    call = forged("aten.mm.default", "")
    whole = Selection(), Selection("model.*"), Selection(kernel="aten.mm"), Selection(kernel="aten.mm.default")
    none = Selection("lm_head"), Selection(kernel="aten.m"), Selection(kernel="_C.*")
    assert [s.has(call) for s in whole + none] == [True] * 4 + [False] * 3
