"""Launches of Triton kernels, recorded under an engine's interpreter by Triton's own; see in_process_units.py."""

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
sys.path.insert(0, str(Path(__file__).parent / "stand_in"))

import pickle
import threading
import types

import torch
import torch._inductor.config
import triton
import triton.language as tl
import triton.runtime.autotuner
import triton.runtime.jit
from in_process_units import _recorded, _tensor
from unit_runner import run

from tracereplay.event import LeftOut, Opaque, Value
from tracereplay.hooks.census import Census
from tracereplay.hooks.kernels import watching
from tracereplay.hooks.triton import launches, unknown_launches


@triton.jit
def _scale(x_ptr, out_ptr, n, factor=2.0, bias_ptr=None, BLOCK: tl.constexpr = 16):  # noqa: N803
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n)
    tl.store(out_ptr + at, x * factor, mask=at < n)


@triton.jit
def _raise(x_ptr, BLOCK: "tl.constexpr"):  # noqa: N803
    tl.static_assert(BLOCK == 0)


@triton.jit
def _follow(pointers, out_ptr):
    x_ptr = tl.load(pointers).to(tl.pointer_type(tl.float32))
    tl.store(out_ptr, tl.load(x_ptr))


DECLARED = f"{__name__}._scale(x_ptr, out_ptr, n, factor, bias_ptr, BLOCK: constexpr)"


class Scale(torch.nn.Module):
    """What an operator does with Triton: memory that nobody has written, a kernel, and PyTorch's again."""

    grid = (2,)

    def forward(self, x):
        out = torch.empty_like(x)
        _scale[self.grid](x, out, x.numel())
        return out + 1


class _Listener:
    """Notes what it is told."""

    def __init__(self):
        self.launches, self.ended, self.dispatched = [], [], []

    def launch(self, launch):
        self.launches.append(launch)
        return launch

    def begin(self, name, *rest):
        self.dispatched.append(name)

    def end(self, kernel, result, error):
        if kernel is not None:
            self.ended.append((kernel.name, result, type(error)))


def _launched(launch):
    listener = _Listener()
    with watching(listener):
        launch()
    return listener


def _kernel(module, *calls, name="triton."):
    (step,), summary = _recorded(module, *calls, level="kernel")
    assert summary["errors"] == {}, summary
    (found,) = [k for k in step.kernels if k.name.startswith(name)]
    return found, step


def a_launch_is_recorded_between_what_pytorch_dispatches():
    x = torch.arange(20.0).view(4, 5)
    kernel, step = _kernel(Scale(), (x,))
    names = [k.name for k in step.kernels]
    assert names == ["aten.empty_like.default", "triton._scale", "aten.add.Tensor"], names
    assert kernel.schema == (f"{__name__}._scale(x_ptr, out_ptr, n, factor, bias_ptr, BLOCK: constexpr)"), (
        kernel.schema
    )
    assert (kernel.site, kernel.call, kernel.parent, kernel.failed) == ("site", 0, -1, "")
    given = dict(kernel.keywords)
    assert list(given) == ["x_ptr", "out_ptr", "n", "factor", "bias_ptr", "BLOCK", "grid"]
    assert torch.equal(_tensor(given["x_ptr"]), x)
    assert [given[k] for k in ("n", "factor", "bias_ptr", "BLOCK", "grid")] == [20, 2.0, None, 16, (2,)]
    assert set(kernel.written) == {1}
    assert torch.equal(_tensor(kernel.written[1]), 2 * x)
    assert (kernel.arguments, kernel.outputs, kernel.undeclared) == ((), (), ())
    assert torch.equal(_tensor(step.calls[0].outputs[0]), 2 * x + 1)


def a_grid_that_is_computed_is_recorded_as_numbers():
    module = Scale()
    module.grid = lambda meta: (triton.cdiv(meta["n"], meta["BLOCK"]), 1)
    kernel, _ = _kernel(module, (torch.ones(10, 5),))
    assert kernel.keywords["grid"] == (4, 1)


def writes_are_found_if_nobody_asks_for_those_of_other_kernels():
    (step,), _ = _recorded(Scale(), (torch.ones(2, 3),), level="kernel", check_writes=False)
    assert [set(k.written) for k in step.kernels if k.name == "triton._scale"] == [{1}]


def what_was_written_is_found_when_an_arena_is_full():
    """Two tensors of 12 MiB, before and after."""
    module, x = Scale(), torch.ones(3 << 20).view(2, -1)
    module.grid = (1,)
    kernel, _ = _kernel(module, (x,))
    assert set(kernel.written) == {1}
    assert torch.equal(_tensor(kernel.written[1]).view(-1)[:16], torch.full((16,), 2.0))


def what_a_kernel_leaves_as_it_was_is_no_result():
    class Again(torch.nn.Module):
        def forward(self, x):
            out = 2 * x
            _scale[(1,)](x, out, x.numel())
            return out

    kernel, _ = _kernel(Again(), (torch.ones(2, 3),))
    assert kernel.written == {}


def a_kernel_that_fails_says_so_and_what_it_raised_arrives():
    class Fails(torch.nn.Module):
        def forward(self, x):
            try:
                _raise[(1,)](x, BLOCK=4)
            except Exception as error:
                self.raised = error
            return x + 1

    module = Fails()
    kernel, step = _kernel(module, (torch.ones(2, 3),))
    assert kernel.failed == type(module.raised).__name__
    assert torch.equal(_tensor(step.calls[0].outputs[0]), torch.full((2, 3), 2.0))


def addresses_are_left_out_and_noted():
    class Follows(torch.nn.Module):
        def forward(self, x):
            out = torch.zeros(1)
            pointers = torch.tensor([x.data_ptr()])
            _follow[(1,)](pointers, out)
            _follow[(1,)](pointers, out)
            return out

    (step,), summary = _recorded(Follows(), (torch.full((2,), 3.0),), level="kernel")
    assert summary["errors"] == {}
    first, second = [k for k in step.kernels if k.name == "triton._follow"]
    assert first.keywords["pointers"] == LeftOut("int64", (1,), "addresses of memory")
    assert first.tensor_names() == ["pointers", "out_ptr"]
    assert _tensor(first.written[1]).item() == 3
    assert second.written == {}
    assert step.notes == (
        "triton._follow was given addresses of memory (pointers), which cannot be followed: "
        "what it read and wrote there is not recorded.",
    )  # fmt: skip


def arguments_of_all_kinds_are_kept():
    x, out = torch.ones(4), torch.zeros(4)

    @triton.jit
    def k(
        x_ptr, where_ptr, n, pair, dtype: tl.constexpr, f: tl.constexpr, flag: tl.constexpr, n_max: tl.constexpr
    ):
        pass

    seen = _launched(
        lambda: k[(1, 1)](x, 1 << 40, 7, (x, 2), tl.bfloat16, _scale, True, tl.constexpr(3), num_warps=4)
    )
    ((_, _, given, unfollowed),) = seen.launches
    assert unfollowed == ("where_ptr",)
    assert given["x_ptr"] is x
    assert given["pair"][0] is x
    assert given["pair"][1] == 2
    assert given["where_ptr"] == ("address", "")
    assert given["dtype"] == ("dtype", "bf16")
    assert given["f"] == ("function", "_scale")
    assert (given["flag"], given["n_max"], given["num_warps"], given["grid"]) == (True, 3, 4, (1, 1))

    class Takes(torch.nn.Module):
        def forward(self, x):
            k[(1,)](x, 1 << 40, 7, (x, out), tl.bfloat16, _scale, True, 3)
            return x

    kernel, _ = _kernel(Takes(), (x,))
    assert kernel.keywords["where_ptr"] == Opaque("address")
    assert kernel.keywords["f"] == Opaque("function", "_scale")
    assert all(isinstance(value, Value) for value in kernel.keywords["pair"])
    assert kernel.tensor_names() == ["x_ptr", "pair[0]", "pair[1]"]


def nothing_is_wrapped_but_while_an_operator_is_watched():
    executor = triton.runtime.interpreter.GridExecutor
    before = executor.__call__, triton.runtime.jit.JITFunction.run
    listener = _Listener()
    with launches(listener):
        assert executor.__call__ is not before[0]
        with launches(listener):  # an operator within another
            _scale[(1,)](torch.ones(2), torch.ones(2), 2)
        assert executor.__call__ is not before[0]
    assert (executor.__call__, triton.runtime.jit.JITFunction.run) == before
    assert [launch.name for launch in listener.launches] == ["triton._scale"]
    _scale[(1,)](torch.ones(2), torch.ones(2), 2)
    assert len(listener.launches) == 1


def launches_of_other_threads_are_not_told():
    listener = _Listener()
    with launches(listener):
        thread = threading.Thread(target=lambda: _scale[(1,)](torch.ones(2), torch.ones(2), 2))
        thread.start()
        thread.join()
    assert listener.launches == []


def a_tuned_kernel_is_told_once_and_its_measurements_are_not():
    measured = []

    def bench(call, quantiles):
        call()
        torch.zeros(3)
        measured.append(quantiles)
        return [1.0, 1.0, 1.0]

    configs = [triton.Config({"BLOCK": size}) for size in (8, 16)]
    tuned = triton.autotune(configs, key=["n"], do_bench=bench)(_scale)
    x, out = torch.arange(16.0), torch.zeros(16)
    seen = _launched(lambda: tuned[lambda meta: (triton.cdiv(meta["n"], meta["BLOCK"]),)](x, out, 16))
    assert len(measured) == 2
    ((name, _, given, _),) = seen.launches
    assert (name, given["BLOCK"], given["grid"]) == ("triton._scale", 8, (2,))
    assert seen.ended == [("triton._scale", (), type(None))]
    assert not any(name.startswith("aten.zeros") for name in seen.dispatched), seen.dispatched
    assert torch.equal(out, 2 * x)


def a_compiled_kernel_is_told_with_the_names_of_its_arguments():
    """What compiles and launches is replaced: this machine has nothing to compile for."""
    calls = []
    original = triton.runtime.jit.JITFunction.run
    triton.runtime.jit.JITFunction.run = lambda self, *args, grid, warmup, **kwargs: calls.append(warmup)
    try:
        compiled = triton.runtime.jit.JITFunction(_scale.fn)
        x, out = torch.ones(2), torch.ones(2)
        seen = _launched(lambda: (compiled[(1,)](x, out, n=2, num_warps=8), compiled.warmup(x, out, 2, grid=(1,))))
    finally:
        triton.runtime.jit.JITFunction.run = original
    assert calls == [False, True]
    ((name, declaration, given, _),) = seen.launches
    assert (name, declaration) == (
        "triton._scale",
        f"{__name__}._scale(x_ptr, out_ptr, n, factor, bias_ptr, BLOCK: constexpr)",
    )
    assert (given["n"], given["factor"], given["BLOCK"], given["num_warps"]) == (2, 2.0, 16, 8)
    assert seen.ended == [("triton._scale", (), type(None))]


def a_kernel_compiled_before_its_launch_is_told():
    from triton.compiler.compiler import CompiledKernel

    def getitem(kernel, grid):
        return lambda *args, stream=None: None

    original, CompiledKernel.__getitem__ = CompiledKernel.__getitem__, getitem
    try:
        kernel = CompiledKernel.__new__(CompiledKernel)
        kernel.module = None
        kernel.src = types.SimpleNamespace(fn=triton.runtime.jit.JITFunction(_scale.fn))
        seen = _launched(lambda: kernel[(3, 1, 1)](torch.ones(2), torch.ones(2), 2, 2.0, None))
    finally:
        CompiledKernel.__getitem__ = original
    ((name, _, given, _),) = seen.launches
    assert (name, given["n"], given["grid"]) == ("triton._scale", 2, (3, 1, 1))


def _by_inductor(function):
    """The launch of a kernel that Inductor holds as ``function``."""
    from torch._inductor.runtime import triton_heuristics

    autotuner = triton_heuristics.CachingAutotuner
    original, autotuner.run = autotuner.run, lambda self, *args, stream, benchmark_run=False, **kwargs: None
    try:
        kernel = autotuner.__new__(autotuner)
        kernel.fn = function
        kernel.configs = [triton.Config({"BLOCK": 32})]
        seen = _launched(lambda: kernel.run(torch.ones(2), torch.ones(2), 2, 2.0, None, stream=0))
    finally:
        autotuner.run = original
    ((name, _, given, _),) = seen.launches
    return name, given


def inductors_kernels_are_told_by_their_names():
    name, given = _by_inductor(types.SimpleNamespace(fn=_scale.fn))
    assert (name, given["n"], given["BLOCK"], given["grid"]) == ("triton._scale", 2, 32, "computed")


def so_are_those_that_its_own_processes_have_compiled():
    """They were pickled, for which Inductor takes their functions away (seen on a GPU: "triton.unknown")."""
    from torch._inductor.runtime import triton_heuristics

    kernel = triton_heuristics.CachingAutotuner.__new__(triton_heuristics.CachingAutotuner)
    kernel.fn, kernel.launchers, kernel.benchmark_failure_reasons = (
        triton.runtime.jit.JITFunction(_scale.fn),
        [],
        {},
    )
    kernel.prepare_for_pickle()
    assert kernel.fn.fn is None
    name, given = _by_inductor(pickle.loads(pickle.dumps(kernel.fn)))
    assert (name, given["n"], given["BLOCK"], given["grid"]) == ("triton._scale", 2, 32, "computed")


@torch.compile
def _fused(x, scale):
    return torch.relu(x * scale + 1).sum(-1)


class Compiled(torch.nn.Module):
    def forward(self, x):
        return _fused(x, torch.full((), 3.0))


def a_compiled_function_runs_compiled_and_its_graph_is_recorded():
    """For a CPU Inductor makes kernels in C++, of which nothing is seen."""
    for seed in range(100):  # until the orders in which both sum show, else this would not tell
        x = torch.randn(4, 3000, generator=torch.Generator().manual_seed(seed))
        expected = Compiled()(x)
        if not torch.equal(expected, torch.relu(x * 3.0 + 1).sum(-1)):
            break
    else:
        raise AssertionError("what is compiled sums in the order of what is not")
    kernel, step = _kernel(Compiled(), (x,), name="inductor.graph")
    assert torch.equal(_tensor(step.calls[0].outputs[0]), expected)
    assert torch.equal(_tensor(kernel.outputs[0]), expected)
    assert any(torch.equal(_tensor(value), x) for value in kernel.keywords.values() if value.shape)
    assert (kernel.schema, kernel.written, kernel.failed) == ("", {}, "")


def what_is_compiled_while_it_is_watched_gives_the_same_bits():
    x = torch.randn(4, 3000)
    torch._dynamo.reset()
    kernel, _ = _kernel(Compiled(), (x,), name="inductor.graph")
    assert torch.equal(_tensor(kernel.outputs[0]), Compiled()(x))


def a_kernel_that_inductor_made_is_recorded_inside_its_graph():
    torch._inductor.config.cpu_backend = "triton"
    torch._dynamo.reset()
    try:
        x = torch.randn(4, 32)
        kernel, step = _kernel(Compiled(), (x,))
        expected = Compiled()(x)
    finally:
        torch._inductor.config.cpu_backend = "cpp"
        torch._dynamo.reset()
    assert kernel.name.startswith("triton.triton_"), kernel.name
    assert step.kernels[kernel.parent].name == "inductor.graph"
    (result,) = kernel.written.values()
    assert torch.equal(_tensor(result), expected)
    assert kernel.keywords["grid"] == "computed"


class Between(torch.nn.Module):
    """Computes past the dispatcher, in no operator."""

    def __init__(self, compute):
        super().__init__()
        self.compute = compute
        self.scale = torch.nn.Parameter(torch.full((), 3.0))

    def forward(self, x):
        return self.compute(x, self.scale)


def _counted(compute, x):
    """What a census says of a model that is not an operator."""
    model = Between(compute)
    census = Census(model, ())
    census.begin()
    try:
        result = model(x)
    finally:
        census.end()
    return result, census.found()


def a_census_counts_a_compiled_graph_that_runs_compiled():
    x = torch.randn(4, 3000)
    with torch.no_grad():
        result, found = _counted(_fused, x)
        assert torch.equal(result, _fused(x, torch.full((), 3.0)))
    assert found["unobserved"] == [["", "Between", 1, 1]], found
    assert found["parameters"] == [["scale", "float32", [], [""]]], found


def a_census_counts_a_launch():
    def launch(x, scale):
        out = torch.empty_like(x)
        _scale[(1,)](x, out, x.numel(), bias_ptr=scale)
        return out

    _, found = _counted(launch, torch.ones(4))
    assert found["unobserved"] == [["", "Between", 1, 1]], found
    assert found["parameters"] == [["scale", "float32", [], [""]]], found


def an_unknown_triton_is_noted_and_nothing_fails():
    jit = triton.runtime.jit
    original, jit.JITFunction = jit.JITFunction, type("JITFunction", (), {})
    try:
        (note,) = unknown_launches()
        (step,), summary = _recorded(Scale(), (torch.ones(2, 3),), level="kernel")
    finally:
        jit.JITFunction = original
    assert note == (
        f"Triton {triton.__version__} launches kernels in a way that is not known here "
        "(triton.runtime.jit has no JITFunction.run): kernels written in Triton may be missing."
    )
    assert (step.notes, summary["errors"]) == ((note,), {})
    assert unknown_launches() == []


if __name__ == "__main__":
    run(globals())
