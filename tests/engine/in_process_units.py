"""What only an engine's interpreter can check, since it needs torch.

test_in_process.py runs this file under a real engine's interpreter with the overlay; it prints, as JSON, what each
function below raised (null: nothing).
"""

import dataclasses
import json
import os
import select
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from unit_runner import run

from tracereplay.cancellation import Cancellation
from tracereplay.device import Cpu
from tracereplay.engines.naming import map_of
from tracereplay.engines.variables import GRAPHS
from tracereplay.engines.vllm.guest.asked import asked_of_graphs
from tracereplay.engines.vllm.guest.choose import generation, is_v2
from tracereplay.engines.vllm.guest.numbering import Numbering
from tracereplay.engines.vllm.guest.operators import layouts
from tracereplay.engines.vllm.guest.refusals import refuse_arguments
from tracereplay.engines.vllm.guest.speculation import Batch, Ends, Verification, forced_run
from tracereplay.engines.vllm.guest.v1 import refuse_v1
from tracereplay.engines.vllm.guest.v2 import refuse_older_batches
from tracereplay.errors import Unsupported
from tracereplay.event import Layout, Parameter, RowKey, Site, make_rows
from tracereplay.hooks.kernels import returnable
from tracereplay.hooks.taps import listen, slot_of, tap
from tracereplay.recorder import arena, writer_client
from tracereplay.recorder.options import GraphOptions, Options
from tracereplay.recorder.session import Session
from tracereplay.replayer.golden import GoldenRows
from tracereplay.replayer.own_errors import CancelledRows
from tracereplay.replayer.tables import RowTables
from tracereplay.trace import (
    PendingCall,
    SegmentReader,
    SegmentWriter,
    TensorBytes,
    TraceDirectory,
    open_trace,
    segment_path,
)


def _tables(values, dtype, own=False):
    """Rows (0, 0, 0), (0, 0, 1) ... of output 0 of one site, as a pass would have left them."""
    rows = make_rows([(0, 0, i) for i in range(len(values))])
    path = Path(tempfile.mkdtemp()) / "made.trace"
    directory = TraceDirectory(path, {})
    name = "injected" if own else "record"
    writer = SegmentWriter(segment_path(path, name, 0), {})
    site = Site("site", "Doubler", slot_of("site"))
    writer.sites([site])
    data = values.to(dtype).contiguous()
    kept = TensorBytes(str(dtype).removeprefix("torch."), tuple(data.shape), tuple(data.stride()),
                       data.view(torch.uint8).numpy().tobytes())  # fmt: skip
    writer.step(0, rows, [PendingCall(site.slot, 0, rows, rows, {}, {0: kept})], [], [])
    writer.close({})
    directory.complete()
    return RowTables(open_trace(path), name, {}, [site], 0, 1, Cpu(), own=own)


def _without_error(actual, injected, golden, selection, dtype=torch.bfloat16, places=None):
    """What the next operator is given instead of ``actual``."""
    tables = _tables(golden, dtype), _tables(injected, dtype, own=True)
    rows = CancelledRows(*tables, {slot_of("site"): "site"}, selection)
    places = range(len(actual)) if places is None else places
    return rows.rows(slot_of("site"), "out", 0, make_rows([(0, 0, i) for i in places]), actual.to(dtype))


def where_an_operator_repeats_itself_cancelling_gives_golden_bits():
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        golden, injected = torch.randn(4, 65) * 1e3, torch.randn(4, 65)
        injected[0, 0], golden[0, 1], injected[1, 2], injected[2, 3] = float("nan"), -0.0, 0.0, float("inf")
        given = _without_error(injected, injected, golden, Cancellation(everything=True), dtype)
        bits = {2: torch.int16, 4: torch.int32}[given.element_size()]
        assert torch.equal(given.view(bits), golden.to(dtype).view(bits)), dtype


def what_was_inherited_passes_through_and_only_the_own_error_goes():
    golden, injected, actual = torch.full((2, 3), 4.0), torch.full((2, 3), 4.5), torch.full((2, 3), 7.5)
    chosen = Cancellation(operators=frozenset({"site"}))
    assert torch.equal(_without_error(actual, injected, golden, chosen), torch.full((2, 3), 7.0).bfloat16())
    assert _without_error(actual, injected, golden, Cancellation(operators=frozenset({"other"}))) is None
    assert _without_error(actual, injected, golden, Cancellation(edges=frozenset({("site", 0)}))) is None


def rows_without_an_own_error_are_left_alone():
    golden = torch.tensor([[1.0, -0.0], [float("nan"), 2.0]])
    assert _without_error(torch.full((2, 2), 7.5), golden, golden, Cancellation(everything=True)) is None
    other = torch.tensor([[1.0, 0.0], [float("nan"), 2.0]])
    given = _without_error(other, other, golden, Cancellation(everything=True))
    assert torch.equal(given.view(torch.int16), golden.bfloat16().view(torch.int16))


def rows_are_cancelled_by_their_place_and_unknown_ones_stay():
    golden, injected = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.5], [2.25]])
    actual = torch.tensor([[9.0], [2.25], [1.5], [6.0]])  # of places 7, 1 and 0, and a row of padding
    given = _without_error(actual, injected, golden, Cancellation(everything=True), places=[7, 1, 0])
    assert given.flatten().tolist() == [9.0, 2.0, 1.0, 6.0]


def strides_are_kept_while_cancelling():
    golden, injected = torch.ones(3, 2), torch.full((3, 2), 2.0)
    actual = torch.full((2, 3), 2.0, dtype=torch.bfloat16).t()
    given = _without_error(actual, injected, golden, Cancellation(everything=True))
    assert given.stride() == actual.stride()
    assert torch.equal(given, torch.ones(3, 2).bfloat16())


class _Third(torch.nn.Module):
    def forward(self, x):
        return x / 3


def a_pass_that_keeps_tokens_only_touches_no_operator_but_those_that_are_cancelled():
    """What comes out is what comes out where everything is kept."""
    values = torch.tensor([[3.0], [6.0]])
    tables = _tables(values / 2, torch.float32), _tables(values / 3, torch.float32, own=True)
    found = {}
    for sites in ((), ("*",)):
        session, modules = Session(0, Cpu()), [_Third(), _Third()]
        for name, module in zip(("site", "other"), modules, strict=True):
            tap(module, slot_of(name), {"forward": module.forward})
            session.sites.append(Site(name, "Third", slot_of(name)))
        listen(session)
        names = {site.slot: site.name for site in session.sites}
        replacement = CancelledRows(*tables, names, Cancellation(operators=frozenset({"site"})))
        path = Path(tempfile.mkdtemp()) / "cancelled-rank0.seg"
        session.begin_pass(path, {}, replacement, Options(sites=sites))
        session.begin_step(make_rows([(0, 0, 0), (0, 0, 1)]))
        watched = session.watched
        result = modules[1](modules[0](values))
        session.sampled([RowKey(0, 0, 2)], torch.tensor([7]), torch.tensor([8]), torch.tensor([-0.5]))
        session.end_step()
        assert session.end_pass()["errors"] == {}
        (step,) = SegmentReader(path).steps()
        found[sites] = result, step.sampled
        assert sum(len(call.inputs) + len(call.outputs) for call in step.calls) == (4 if sites else 0)
        assert watched == {slot_of(name) for name in (("site", "other") if sites else ("site",))}
    (few, sampled), (all_, same) = found.values()
    assert torch.equal(few, all_)
    assert torch.equal(few, values / 2 / 3)
    assert sampled == same
    assert sampled[0].choice == 8


def _config(**changes):
    parallel = SimpleNamespace(pipeline_parallel_size=1)
    compilation = SimpleNamespace(cudagraph_mode=SimpleNamespace(name="FULL"), cudagraph_capture_sizes=[])
    model = SimpleNamespace(enforce_eager=False)
    given = {"speculative_config": None, "parallel_config": parallel, "compilation_config": compilation}
    return SimpleNamespace(**{**given, "model_config": model, **changes})


def _runner(module, device):
    return type("Runner", (), {"__module__": module, "device": torch.device(device)})()


def _refusal(runner, config):
    try:
        refuse_v1(runner, config)
    except Unsupported as error:
        return str(error)
    return ""


def older_batches_of_model_runner_v2_are_refused_with_the_way_out():
    fields = ["req_ids", "num_computed_tokens_np", "prefill_len_np"]
    refuse_older_batches(dataclasses.make_dataclass("InputBatch", fields))
    for missing in fields[1:]:
        said = ""
        try:
            refuse_older_batches(dataclasses.make_dataclass("InputBatch", [f for f in fields if f != missing]))
        except Unsupported as error:
            said = str(error)
        assert f"no {missing}; set VLLM_USE_V2_MODEL_RUNNER=0" in said, said


def what_arguments_cannot_be_recorded_is_refused_together():
    def said(v0=False, cuda=True, level="operator", **arguments):
        try:
            refuse_arguments(arguments, v0=v0, cuda=cuda, level=level)
        except Unsupported as error:
            return str(error)
        return ""

    found = said(pipeline_parallel_size=2, speculative_config={"method": "eagle3"})
    for words in ("pipeline_parallel_size=1", "eagle3", '{"cudagraph_mode":"NONE"}'):
        assert words in found, found
    assert "enable_dbo=false" in said(enable_dbo=True)
    both = said(level="kernel", pipeline_parallel_size=2)
    assert "enforce_eager=true" in both, both
    assert "pipeline_parallel_size=1" in both, both
    with mock.patch.dict(os.environ, {GRAPHS: json.dumps(GraphOptions(level="kernel").as_dict())}):
        assert asked_of_graphs().level == "kernel"
    assert "enforce_eager=true" in said(v0=True, compilation_config={"cudagraph_mode": "NONE"})
    for arguments in (
        {"enforce_eager": True}, {"compilation_config": {"cudagraph_mode": "NONE"}},
        {"compilation_config": {"use_cudagraph": False}}, {"optimization_level": 0}, {"cuda": False},
    ):  # fmt: skip
        assert not said(**arguments, level="kernel"), arguments
    for given in (None, 3, {"mode": 3}, {"cudagraph_mode": "FULL_AND_PIECEWISE"}):
        assert not said(compilation_config=given), given
        assert "inside CUDA graphs" in said(compilation_config=given, speculative_config={"method": "ngram"}), (
            given
        )


def the_second_model_runner_of_v1_is_told_from_the_first():
    assert is_v2(_runner("vllm.v1.worker.gpu.model_runner", "cpu"))
    assert not is_v2(_runner("vllm.v1.worker.gpu_model_runner", "cpu"))
    refuse_v1(_runner("vllm.v1.worker.gpu_model_runner", "cpu"), _config())


def a_runner_of_neither_generation_is_not_ours():
    assert generation(_runner("vllm.v1.worker.cpu_model_runner", "cpu")) == "V1"
    assert generation(_runner("vllm.worker.cpu_model_runner", "cpu")) == "V0"
    derived = type(
        "Mine", (type(_runner("vllm.v1.worker.gpu_model_runner", "cpu")),), {"__module__": "mine.runner"}
    )
    assert generation(derived()) == "V1"
    for other in ("sglang.srt.model_executor.model_runner", "vllm_omni.worker", "vllm.workers"):
        said = ""
        try:
            generation(_runner(other, "cpu"))
        except Unsupported as error:
            said = str(error)
        assert f"model runner is {other}.Runner" in said, said


def drafts_are_accepted_as_long_as_they_are_goldens():
    keys = [RowKey(0, 0, position) for position in range(5, 9)]
    forced = {keys[0]: 7, keys[1]: 8, keys[2]: 9}
    assert forced_run(forced, keys, [7, 8, 9]) == [7, 8, 9]  # golden ends here
    assert forced_run(forced, keys, [7, 1, 9]) == [7, 8]
    assert forced_run(forced, keys, [1, 8, 9]) == [7]
    assert forced_run(forced, keys[:1], []) == [7]
    assert forced_run({}, keys, [7, 8, 9]) is None


def what_a_verification_throws_away_is_marked_and_not_reported():
    batch = Batch()
    batch.add(
        0, 0, range(4, 8), [11, 12, 13], discarded=False, ends=Ends(9, frozenset())
    )  # the second is rejected
    batch.add(1, 0, range(3), [], discarded=True)  # a chunk of a prompt
    batch.add(2, 0, range(5, 7), [14], discarded=False, ends=Ends(1, frozenset()))  # ends with the accepted draft
    batch.add(3, 0, range(5, 7), [15], discarded=False, ends=Ends(9, frozenset({15})))  # which stops it
    found = Verification(batch, {})
    outputs = torch.tensor(
        [[11, 20, -1, -1], [9, -1, -1, -1], [14, 21, -1, -1], [15, 22, -1, -1]], dtype=torch.int32
    )
    found.bonus, found.own = torch.tensor([30, 9, 21, 22]), torch.tensor([11, 20, 13, 14, 15])
    found.settle(outputs, 100)
    assert found.rows[:, 2].tolist() == [4, 5, -7, -8, 0, 1, 2, 5, -7, 5, -7]
    assert found.last_rows[:, 2].tolist() == [4, 5, -7, -8, 2, 5, -7, 5, -7]
    assert found.kept() == [0, 1, 5, 7]
    targets, bonus = torch.tensor([0, 1, 2, 5, 7]), torch.tensor([3, 4, 6, 8])
    logprobs = torch.arange(16.0)
    tokens, choices, values = found.result(outputs, logprobs, targets, bonus)
    assert tokens.tolist() == choices.tolist() == [11, 20, 14, 15]
    assert values.tolist() == [0.0, 1.0, 8.0, 12.0]


def goldens_tokens_come_out_of_a_verification_and_the_own_choices_are_kept():
    batch = Batch()
    batch.add(0, 0, range(4, 7), [11, 12], discarded=False)
    forced = {RowKey(0, 0, 5): 11, RowKey(0, 0, 6): 12, RowKey(0, 0, 7): 13}
    found = Verification(batch, forced)
    assert found.rows[:, 2].tolist() == [4, 5, 6]
    outputs = torch.tensor([[50, -1, -1]], dtype=torch.int32)  # it would reject the first draft
    found.bonus, found.own = torch.tensor([60]), torch.tensor([50, 51])
    found.settle(outputs, 100)
    assert outputs.tolist() == [[11, 12, 13]]
    tokens, choices, _ = found.result(outputs, None, torch.tensor([0, 1]), torch.tensor([2]))
    assert (tokens.tolist(), choices.tolist()) == ([11, 12, 13], [50, 51, 60])
    again = Verification(batch, {**forced, RowKey(0, 0, 5): 99})  # known beforehand: both drafts are rejected
    assert again.rows[:, 2].tolist() == [4, -6, -7]


def graphs_pipelines_and_some_speculation_are_refused():
    first = "vllm.v1.worker.gpu_model_runner"
    assert not _refusal(_runner(first, "cuda"), _config())
    drafts = SimpleNamespace(method="ngram")
    plain, ahead = SimpleNamespace(async_scheduling=False), SimpleNamespace(async_scheduling=True)
    assert not _refusal(_runner(first, "cpu"), _config(speculative_config=drafts, scheduler_config=plain))
    mode = SimpleNamespace(name="FULL")
    graphs = SimpleNamespace(cudagraph_mode=mode, cudagraph_capture_sizes=[1, 2])
    said = _refusal(
        _runner(first, "cuda"),
        _config(speculative_config=drafts, scheduler_config=plain, compilation_config=graphs),
    )
    assert "inside CUDA graphs" in said, said
    said = _refusal(_runner(first, "cpu"), _config(speculative_config=drafts, scheduler_config=ahead))
    assert "async_scheduling=false" in said
    eagle = SimpleNamespace(method="eagle3")
    assert "eagle3" in _refusal(_runner(first, "cpu"), _config(speculative_config=eagle, scheduler_config=plain))
    two = SimpleNamespace(pipeline_parallel_size=2)
    assert "pipeline_parallel_size=1" in _refusal(_runner(first, "cpu"), _config(parallel_config=two))


def request_ids_of_every_engine_are_understood():
    numbering = Numbering(5)
    assert numbering.number("5") == (0, 0)
    assert numbering.number("7_parallel_sample_1") == (2, 1)
    assert numbering.number("1_6-3f2a9c1b") == (1, 1)
    assert numbering.number("8-3f2a9c1b") == (3, 0)
    server = Numbering(None)
    assert server.number("cmpl-abc-0-3f2a9c1b") == (0, 0)
    assert server.number("cmpl-def-0") == (1, 0)
    assert server.number("cmpl-abc-0-3f2a9c1b") == (0, 0)


class Doubler(torch.nn.Module):
    """Doubles its input, and zeroes its second argument without returning it."""

    def forward(self, x, scratch):
        scratch.zero_()
        return x * 2


def _recording(module, **options):
    """A session that has begun to record ``module``, and its segment."""
    slot = slot_of("site")
    tap(module, slot, {"forward": module.forward})
    session = Session(0, Cpu())
    session.sites = [Site("site", type(module).__name__, slot)]
    listen(session)
    path = Path(tempfile.mkdtemp()) / "record-rank0.seg"
    session.begin_pass(path, {}, None, Options(**options), module)
    return session, path


def _recorded(module, *calls, compiled=False, **options):
    """The steps of a session that records ``module`` over ``calls``."""
    session, path = _recording(module, **options)
    run = torch.compile(module, backend="aot_eager", fullgraph=True) if compiled else module
    for arguments in calls:
        session.begin_step(make_rows([(0, 0, i) for i in range(len(arguments[0]))]))
        run(*arguments)
        session.end_step()
    summary = session.end_pass()
    listen(None)
    return list(SegmentReader(path).steps()), summary


def _tensor(value):
    return torch.frombuffer(bytearray(value.load()), dtype=getattr(torch, value.dtype)).view(value.shape)


def an_argument_written_in_place_is_kept_before_and_after():
    calls = [(torch.full((2, 3), float(i)), torch.ones(2, 3)) for i in range(4)]
    steps, summary = _recorded(Doubler(), *calls)
    assert summary["errors"] == {}, summary
    for i, step in enumerate(steps):
        call = step.calls[0]
        assert torch.equal(_tensor(call.inputs[1]), torch.ones(2, 3))
        assert torch.equal(_tensor(call.written[1]), torch.zeros(2, 3))
        assert torch.equal(_tensor(call.outputs[0]), torch.full((2, 3), 2.0 * i))


def taps_fire_inside_a_compiled_graph():
    calls = [(torch.full((2, 3), float(i)), torch.ones(2, 3)) for i in range(3)]
    steps, summary = _recorded(Doubler(), *calls, compiled=True)
    assert summary["errors"] == {}, summary
    assert [len(s.calls) for s in steps] == [1, 1, 1]
    assert torch.equal(_tensor(steps[2].calls[0].outputs[0]), torch.full((2, 3), 4.0))


def every_dtype_and_shape_keeps_its_bits():
    values = [torch.tensor([[float("nan"), -0.0, float("inf")]], dtype=d) for d in (
        torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn)]  # fmt: skip
    values += [torch.tensor([[True, False]]), torch.zeros(0, 4), torch.arange(6).view(2, 3).t()]

    class Same(torch.nn.Module):
        def forward(self, x):
            return x

    for value in values:
        steps, summary = _recorded(Same(), (value,))
        assert summary["errors"] == {}, summary
        stored = steps[0].calls[0].inputs[0]
        assert (stored.shape, stored.strides) == (tuple(value.shape), tuple(value.stride()))
        expected = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        assert stored.load() == expected


def what_cannot_be_recorded_is_counted_and_the_operator_runs():
    class Odd(torch.nn.Module):
        def forward(self, x):
            return x.to_dense()

    steps, summary = _recorded(Odd(), (torch.eye(2).to_sparse(),))
    assert list(summary["errors"]) == [
        "TypeError: tensors of torch.float32 and torch.sparse_coo cannot be recorded"
    ]
    assert len(steps) == 1
    assert torch.equal(_tensor(steps[0].calls[0].outputs[0]), torch.eye(2))


class Slices(torch.nn.Module):
    """Takes two overlapping views of one tensor, and a third tensor that is freed and made again."""

    def forward(self, one, other, fresh):
        return one + other + fresh


def views_say_which_memory_they_share():
    base = torch.arange(24.0).view(4, 6)
    before = torch.ones(4, 3)
    steps, _ = _recorded(Slices(), (base[:, :3], base[:, 2:5], before))
    one, other, fresh = steps[0].calls[0].inputs
    assert one.storage == other.storage != fresh.storage
    assert (one.strides, one.start, other.start) == ((6, 1), 0, 2)
    assert torch.equal(_tensor(other), base[:, 2:5])


def memory_that_is_freed_and_used_again_is_other_memory():
    class Frees(torch.nn.Module):
        def forward(self, x):
            return x

    module, seen = Frees(), set()
    session, path = _recording(module)
    session.begin_step(make_rows([(0, 0, 0)]))
    with torch.inference_mode():
        for i in range(50):
            x = torch.full((64,), float(i))
            seen.add(x.untyped_storage()._cdata)
            module(x)
            del x
    session.end_step()
    assert session.end_pass()["errors"] == {}
    listen(None)
    calls = SegmentReader(path).step(0).calls
    assert len({c.inputs[0].storage for c in calls}) == len(seen) == 50
    assert [_tensor(c.inputs[0])[0].item() for c in calls] == list(range(50))


def a_step_larger_than_all_arenas_is_whole():
    arena.SIZE = 1 << 16
    try:
        calls = [(torch.full((300, 50), float(i)), torch.ones(300, 50)) for i in range(3)]
        big = (torch.arange(100_000.0).view(100, 1000), torch.ones(100, 1000))
        steps, summary = _recorded(Doubler(), *calls, big, calls[0])
    finally:
        arena.SIZE = 32 << 20
    assert summary["errors"] == {}, summary
    for step, (x, scratch) in zip(steps, [*calls, big, calls[0]], strict=True):
        assert torch.equal(_tensor(step.calls[0].inputs[0]), x)
        assert torch.equal(_tensor(step.calls[0].outputs[0]), 2 * x)
        assert torch.equal(_tensor(step.calls[0].written[1]), torch.zeros_like(scratch))


def a_recording_ends_after_as_many_steps_as_asked():
    calls = [(torch.full((2, 3), float(i)), torch.ones(2, 3)) for i in range(5)]
    steps, summary = _recorded(Doubler(), *calls, max_steps=2)
    assert (len(steps), summary["ended"], summary["errors"]) == (2, "max_steps", {})


class Custom(torch.nn.Module):
    """Calls a kernel that writes into two of its arguments, and whose schema declares the first only."""

    library = torch.library.Library("tracereplay_test", "DEF")
    library.define("quiet(Tensor(a!) out, Tensor x, Tensor scratch) -> ()")

    @staticmethod
    def quiet(out, x, scratch):
        out.copy_(x * 2)
        scratch.zero_()

    def forward(self, x, scratch):
        out = torch.empty_like(x)
        torch.ops.tracereplay_test.quiet(out, x, scratch)
        return out


Custom.library.impl("quiet", Custom.quiet, "CPU")


def _quiet(x, **options):
    """The kernel of a recorded call of `Custom`."""
    (step,), summary = _recorded(Custom(), (x, torch.ones_like(x)), level="kernel", **options)
    assert summary["errors"] == {}, summary
    (kernel,) = (k for k in step.kernels if k.name == "tracereplay_test.quiet.default")
    assert torch.equal(_tensor(kernel.arguments[1]), x)
    assert torch.equal(_tensor(kernel.written[0]), x * 2)
    return kernel


def a_write_that_a_kernel_does_not_declare_is_noticed():
    kernel = _quiet(torch.full((2, 3), 4.0))
    assert kernel.undeclared == (2,)
    assert torch.equal(_tensor(kernel.arguments[2]), torch.ones(2, 3))
    assert torch.equal(_tensor(kernel.written[2]), torch.zeros(2, 3))


def undeclared_writes_are_not_looked_for_if_nobody_asks():
    kernel = _quiet(torch.full((2, 3), 4.0), check_writes=False)
    assert (kernel.undeclared, set(kernel.written)) == ((), {0})


def an_argument_that_lies_in_an_arena_before_is_not_taken_for_written():
    """Three tensors of 12 MiB: the arena of 32 MiB is full before the call ends."""
    kernel = _quiet(torch.ones(3 << 20).view(2, -1))
    assert 1 not in kernel.undeclared


def a_recording_ends_before_it_grows_too_large():
    calls = [(torch.rand(40, 30), torch.ones(40, 30)) for i in range(30)]
    steps, summary = _recorded(Doubler(), *calls, max_bytes=60_000)
    assert 0 < len(steps) < 30
    assert (summary["ended"], summary["errors"]) == ("max_bytes", {})


def what_a_slow_writer_cannot_take_is_dropped_and_counted():
    original, asked = writer_client.WriterClient.take, []

    def take(self, *, wait, patience=None):
        asked.append(wait)
        return None if len(asked) % 2 == 0 and not wait else original(self, wait=wait, patience=patience)

    writer_client.WriterClient.take = take
    try:
        calls = [(torch.full((2, 3), float(i)), torch.ones(2, 3)) for i in range(6)]
        steps, summary = _recorded(Doubler(), *calls, when_behind="drop")
    finally:
        writer_client.WriterClient.take = original
    assert [s.number for s in steps] == [0, 2, 4]
    assert (summary["dropped"], summary["errors"]) == (3, {})


def a_writer_that_is_killed_costs_the_trace_and_not_the_operator():
    module = Doubler()
    session, path = _recording(module)
    for i in range(6):
        if i == 3:
            _end(session._writer.pid)
        session.begin_step(make_rows([(0, 0, 0), (0, 0, 1)]))
        assert torch.equal(module(torch.ones(2, 3), torch.ones(2, 3)), torch.full((2, 3), 2.0))
        session.end_step()
    summary = session.end_pass()
    listen(None)
    assert any("the writer process ended prematurely" in text for text in summary["errors"]), summary
    steps = list(SegmentReader(path).steps())
    assert [s.number for s in steps] == list(range(len(steps)))
    assert len(steps) <= 3


def one_writer_serves_all_passes_and_a_killed_one_is_replaced():
    module = Doubler()
    session, path = _recording(module)
    writers = []
    for kill in ("", "in a pass", "", "between passes", ""):
        writers.append(session._writer.pid)
        for i in range(3):
            session.begin_step(make_rows([(0, 0, 0), (0, 0, 1)]))
            module(torch.full((2, 3), float(i)), torch.ones(2, 3))
            session.end_step()
        if kill == "in a pass":
            _end(writers[-1])
        summary = session.end_pass()
        assert bool(summary["errors"]) == (kill == "in a pass"), summary
        if not summary["errors"]:
            steps = list(SegmentReader(path).steps())
            assert [_tensor(s.calls[0].outputs[0])[0, 0].item() for s in steps] == [0.0, 2.0, 4.0]
            assert SegmentReader(path).summary is not None
        if kill == "between passes":
            _end(writers[-1])
        path = path.with_name(f"pass{len(writers)}-rank0.seg")
        session.begin_pass(path, {}, None, Options(), module)
    listen(None)
    assert writers[0] == writers[1] != writers[2] == writers[3] != writers[4], writers
    ended = os.pidfd_open(writers[4])
    session._process.close()  # as if the engine had exited
    assert select.select([ended], [], [], 30)[0]
    assert SegmentReader(path).summary["ended"] == "engine_gone"


def a_pass_that_cannot_be_opened_or_closed_takes_no_other_with_it():
    module = Doubler()
    session, path = _recording(module)
    session.end_pass()
    pid = session._process.pid
    session.begin_pass(path, {}, None, Options(), module)  # the file exists
    assert "File exists (while writing the trace)" in session.end_pass()["errors"]
    other = path.with_name("other-rank0.seg")
    session.begin_pass(other, {}, None, Options(), module)
    session.begin_step(make_rows([(0, 0, 0)]))
    module(torch.ones(1, 3), torch.ones(1, 3))
    session.end_step()
    assert session.end_pass()["errors"] == {}
    listen(None)
    assert session._process.pid == pid
    assert len(list(SegmentReader(other).steps())) == 1


def _end(pid):
    ended = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([ended], [], [], 30)


class Partly(torch.nn.Module):
    """Calls a kernel that returns a list with an undefined tensor, as FlashAttention 3 does."""

    library = torch.library.Library("tracereplay_partly", "DEF")
    library.define("fwd(Tensor x) -> Tensor?[]")

    def forward(self, x):
        return torch.ops.tracereplay_partly.fwd(x)[0]


Partly.library.impl("fwd", lambda x: [x * 2, None], "CPU")


def an_undefined_tensor_in_a_list_does_not_end_the_engine():
    found = returnable([torch.ones(2), None, 3])
    assert (found[1].numel(), found[1].dtype, found[2]) == (0, torch.float32, 3)
    assert returnable([None]) == [None]
    assert returnable((torch.ones(1), None))[1] is None
    steps, summary = _recorded(Partly(), (torch.ones(2),), level="kernel")
    assert summary["errors"] == {}, summary
    (kernel,) = [k for k in steps[0].kernels if k.name.startswith("tracereplay_partly")]
    assert torch.equal(_tensor(kernel.outputs[0]), torch.full((2,), 2.0)), kernel
    assert kernel.outputs[1] is None, kernel


def fused_layers_are_cut_by_their_parts():
    QKVParallelLinear = type("QKVParallelLinear", (torch.nn.Module,), {})  # noqa: N806
    module = QKVParallelLinear()
    module.num_heads, module.num_kv_heads = 4, 1
    assert layouts("a.qkv_proj", module, 2)["out0"].parts == (4, 1, 1)
    assert layouts("a.qkv_proj", module, 2)["out0"].copies == (1, 2, 2)


def _mapped(golden_sites, calls, sites, ranks=1):
    """Golden's tables as an engine with ``sites`` reads them; ``calls`` are one step's, by rank and site."""
    path = Path(tempfile.mkdtemp()) / "made.trace"
    directory = TraceDirectory(path, {})
    for rank in range(ranks):
        writer = SegmentWriter(segment_path(path, "record", rank), {})
        writer.sites(golden_sites)
        pending = []
        for site in golden_sites:
            inputs, outputs = calls[rank][site.name]
            rows = make_rows([(0, 0, i) for i in range(len(outputs[0]))])
            kept = [{i: _bytes(x) for i, x in enumerate(side)} for side in (inputs, outputs)]
            pending.append(PendingCall(site.slot, 0, rows, rows, *kept))
        writer.step(0, rows, pending, [], [])
        writer.close({})
    directory.complete()
    trace = open_trace(path)
    return RowTables(trace, "record", {}, sites, 0, 1, Cpu(), site_map=map_of(trace.sites("record"), sites))


def _bytes(x):
    data = x.contiguous()
    return TensorBytes(str(x.dtype).removeprefix("torch."), tuple(data.shape), tuple(data.stride()),
                       data.view(torch.uint8).numpy().tobytes())  # fmt: skip


def _fed(tables, name, side, index, like):
    rows = make_rows([(0, 0, i) for i in range(len(like))])
    return GoldenRows(tables).rows(slot_of(name), side, index, rows, like)


def _linear(name, *tensors, rows=4, layouts=None):
    weight = Parameter("weight", "bfloat16", (rows, 4), tensors)
    return Site(name, "Linear", slot_of(name), ("x",), layouts or {}, parameters=(weight,), role="linear")


def projections_of_golden_are_fed_joined_in_the_order_of_the_checkpoints_tensors():
    x, q, k = (torch.randn(3, width).to(torch.bfloat16) for width in (4, 4, 2))
    golden = [_linear("k", "k.weight", rows=2), _linear("q", "q.weight")]
    tables = _mapped(golden, [{"q": ([x], [q]), "k": ([x], [k])}], [_linear("qk", "q.weight", "k.weight")])
    assert torch.equal(_fed(tables, "qk", "out", 0, torch.zeros(3, 6, dtype=torch.bfloat16)), torch.cat([q, k], 1))
    assert torch.equal(_fed(tables, "qk", "in", 0, torch.zeros(3, 4, dtype=torch.bfloat16)), x)


def two_ranks_projections_are_joined_part_by_part():
    x, q, k = (torch.randn(3, width).to(torch.bfloat16) for width in (4, 8, 4))
    cut = {"out0": Layout(-1, (1,), (1,))}
    golden = [_linear("q", "q.weight", rows=4, layouts=cut), _linear("k", "k.weight", rows=2, layouts=cut)]
    calls = [{"q": ([x], [q[:, 4 * r : 4 * r + 4]]), "k": ([x], [k[:, 2 * r : 2 * r + 2]])} for r in (0, 1)]
    tables = _mapped(golden, calls, [_linear("qk", "q.weight", "k.weight")], ranks=2)
    assert torch.equal(
        _fed(tables, "qk", "out", 0, torch.zeros(3, 12, dtype=torch.bfloat16)), torch.cat([q, k], 1)
    )


def a_joined_projection_of_golden_is_fed_in_parts():
    x, qk = (torch.randn(3, width).to(torch.bfloat16) for width in (4, 6))
    sites = [_linear("q", "q.weight", rows=4), _linear("k", "k.weight", rows=2)]
    tables = _mapped([_linear("qk", "q.weight", "k.weight")], [{"qk": ([x], [qk])}], sites)
    assert torch.equal(_fed(tables, "k", "out", 0, torch.zeros(3, 2, dtype=torch.bfloat16)), qk[:, 4:])


def _norm(name, *inputs):
    return Site(name, "Norm", slot_of(name), inputs, role="norm")


def a_sum_of_goldens_is_fed_as_the_sum_and_nothing():
    total, normed = torch.randn(2, 3, 5).to(torch.bfloat16)
    total[0, 0] = -0.0
    tables = _mapped([_norm("norm", "x")], [{"norm": ([total], [normed])}], [_norm("norm", "x", "residual")])
    x, residual, handed_on = (_fed(tables, "norm", *tap, torch.zeros_like(total))
                              for tap in (("in", 0), ("in", 1), ("out", 1)))  # fmt: skip
    for fed in (x, handed_on, x + residual):
        assert torch.equal(fed.view(torch.int16), total.view(torch.int16))


def what_golden_added_is_fed_as_the_sum():
    x, residual, normed = torch.randn(3, 3, 5).to(torch.bfloat16)
    both, one = _norm("norm", "x", "residual"), [_norm("norm", "x")]
    handed_on = x + residual + 1
    tables = _mapped([both], [{"norm": ([x, residual], [normed, handed_on])}], one)
    assert torch.equal(_fed(tables, "norm", "in", 0, torch.zeros_like(x)), handed_on)
    tables = _mapped([both], [{"norm": ([x, residual], [normed])}], one)
    assert torch.equal(_fed(tables, "norm", "in", 0, torch.zeros_like(x)), x + residual)


if __name__ == "__main__":
    run(globals())
