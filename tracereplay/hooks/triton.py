"""Kernels written in Triton, and graphs compiled by Inductor, which are launched past PyTorch's dispatcher.

    kernel[grid](x, out, n, BLOCK=64)     listener.launch(Launch(...)) ──▶ it runs ──▶ listener.end(...)

=====================  =======================================================================
what is called         by whom
=====================  =======================================================================
JITFunction.run        compiled kernels, also those that are tuned (Autotuner, Heuristics)
GridExecutor.__call__  Triton's interpreter (TRITON_INTERPRET=1)
CompiledKernel[grid]   kernels that were compiled before, and are launched without JITFunction
CachingAutotuner.run   Triton kernels that Inductor made, where an operator calls a compiled function
CompiledFxGraph(...)   that function's graph, with all that it launches: for a CPU Inductor makes kernels in C++
=====================  =======================================================================

These are wrapped while an operator is watched, and are what they were otherwise. They are internals of Triton and
PyTorch: `unknown_launches` says which of them this version does not have. What a launch itself calls (the
interpreter copies tensors, a tuner fills them) is part of it, and is not told. Launches that only measure are not
told either.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["GRAPH", "Addresses", "Launch", "LaunchListener", "Word", "launches", "no_launches", "unknown_launches"]


GRAPH = "inductor.graph"


class Launch(NamedTuple):
    """One launch of a Triton kernel, or call of a compiled graph.

    Args:
        name: `GRAPH`, or ``triton.`` and the function's name, as ``triton._temperature_kernel``. Without its
            module, which versions of an engine move, so that the two sides' kernels can be paired.
        declaration: its module, name and parameters: ``ops.scale(x_ptr, n, BLOCK: constexpr)``; empty of a graph,
            whose parameters have numbers.
        arguments: by the names of its parameters, in their order, defaults included; then options of the launch
            (``num_warps``) and its ``grid``, a tuple of numbers of programs. Tensors, numbers, strings, None,
            lists of them, `Word` and `Addresses`.
        unfollowed: parameters that were given addresses of memory, of which nothing more is known.
    """

    name: str
    declaration: str
    arguments: Mapping[str, Any]
    unfollowed: tuple[str, ...] = ()


class Word(NamedTuple):
    """An argument that is neither a tensor nor plain data: ``dtype`` and ``bf16``, ``function`` and ``silu``."""

    kind: str
    text: str = ""


class Addresses:
    """A tensor whose elements are addresses of memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class LaunchListener(Protocol):
    """What sees the launches. It must not raise."""

    def launch(self, launch: Launch) -> Any:
        """A kernel is about to run. Returns what ``end`` shall be told."""

    def end(self, kernel: Any, result: Any, error: BaseException | None) -> None:
        """It was launched, or raised ``error``. A kernel returns nothing, an empty tuple; a graph a tuple."""


class _Here(threading.local):
    """The listeners of this thread, innermost last; None while nothing is told."""

    def __init__(self) -> None:
        self.listeners: list[LaunchListener | None] = []

    def listener(self) -> LaunchListener | None:
        return self.listeners[-1] if self.listeners else None


_here = _Here()
_lock = threading.Lock()
_wrapped: list[tuple[type, str, Any]] = []  # class, method, and the method as it was
_watched = 0  # how many watch


@contextlib.contextmanager
def launches(listener: LaunchListener) -> Iterator[None]:
    """Tells ``listener`` of every Triton kernel that this thread launches."""
    _here.listeners.append(listener)
    _install()
    try:
        yield
    finally:
        _uninstall()
        _here.listeners.pop()


@contextlib.contextmanager
def no_launches() -> Iterator[None]:
    """Tells nobody of what this thread launches in this context."""
    _here.listeners.append(None)
    try:
        yield
    finally:
        _here.listeners.pop()


def unknown_launches() -> list[str]:
    """Sentences on the ways to launch a kernel that this version of Triton or PyTorch has otherwise."""
    missing = [
        f"{place.module} has no {place.owner}.{place.method}"
        for place in _PLACES
        if sys.modules.get(place.module) is not None and _method(place) is None
    ]
    if not missing:
        return []
    version = getattr(sys.modules.get("triton"), "__version__", "of an unknown version")
    return [
        f"Triton {version} launches kernels in a way that is not known here ({', '.join(missing)}): kernels "
        "written in Triton may be missing."
    ]


def _install() -> None:
    global _watched
    with _lock:
        _watched += 1
        if _watched > 1:
            return
        for place in _PLACES:
            found = _method(place)
            if found is not None:
                _wrapped.append((found[0], place.method, found[1]))
                setattr(found[0], place.method, _wrapper(place, found[1]))


@functools.lru_cache(maxsize=64)
def _wrapper(place: _Place, method: Any) -> Any:
    return place.wrap(method)


def _uninstall() -> None:
    global _watched
    with _lock:
        _watched -= 1
        while not _watched and _wrapped:
            setattr(*_wrapped.pop())


# -- the ways to launch -------------------------------------------------------------------------------------


def _launcher(grid_of: Callable[[Any, Mapping[str, Any]], Any]) -> Callable[[Any], Any]:
    """Wraps the method by which Triton launches a kernel, compiled or interpreted.

    Args:
        grid_of: finds the grid, in what has the method and in the launch's keyword arguments.
    """

    def wrap(run: Any) -> Any:
        @functools.wraps(run)
        def launch(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            if _here.listener() is None or kwargs.get("warmup"):
                return run(kernel, *args, **kwargs)
            return _told(
                lambda: _launch(kernel.fn, args, kwargs, grid_of(kernel, kwargs)),
                functools.partial(run, kernel, *args, **kwargs),
            )

        return launch

    return wrap


def _compiled_before(getitem: Any) -> Any:
    @functools.wraps(getitem)
    def of_grid(kernel: Any, grid: Any) -> Any:
        runner = getitem(kernel, grid)

        @functools.wraps(runner)
        def launch(*args: Any, **kwargs: Any) -> Any:
            if _here.listener() is None:
                return runner(*args, **kwargs)
            return _told(
                lambda: _launch(kernel.src.fn.fn, args, kwargs, grid), functools.partial(runner, *args, **kwargs)
            )

        return launch

    return of_grid


def _by_inductor(run: Any) -> Any:
    @functools.wraps(run)
    def launch(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        if _here.listener() is None:
            return run(kernel, *args, **kwargs)
        if kwargs.get("benchmark_run"):
            with _untold():
                return run(kernel, *args, **kwargs)

        def described() -> Launch:
            configs: Any = kernel.configs or ()
            chosen = dict(configs[0].kwargs) if len(configs) == 1 else {}  # else it is tuned in the launch
            # A kernel that one of Inductor's own processes has compiled comes without the function it was made of.
            return _launch(kernel.fn.fn or kernel.fn, args, {**chosen, **kwargs}, _COMPUTED)

        return _told(described, functools.partial(run, kernel, *args, **kwargs))

    return launch


def _graph(call: Any) -> Any:
    @functools.wraps(call)
    def run(graph: Any, inputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        listener = _here.listener()
        if listener is None:
            return call(graph, inputs, *args, **kwargs)
        given = {str(place): _given("", value, True) for place, value in enumerate(inputs)}
        running = listener.launch(Launch(GRAPH, "", given))
        try:
            result = call(graph, inputs, *args, **kwargs)  # what it launches is told, too
        except BaseException as error:
            listener.end(running, (), error)
            raise
        listener.end(running, tuple(result) if isinstance(result, list | tuple) else (result,), None)
        return result

    return run


def _measured(bench: Any) -> Any:
    """Launches that a tuner makes to measure them, on the real tensors."""

    @functools.wraps(bench)
    def measure(tuner: Any, *args: Any, **kwargs: Any) -> Any:
        if _here.listener() is None:
            return bench(tuner, *args, **kwargs)
        with _untold():
            return bench(tuner, *args, **kwargs)

    return measure


class _Place(NamedTuple):
    """A method to wrap, and how; where it is not loaded, nothing is launched by it."""

    module: str
    owner: str
    method: str
    wrap: Callable[[Any], Any]


_PLACES = (
    _Place("triton.runtime.jit", "JITFunction", "run", _launcher(lambda kernel, kwargs: kwargs.get("grid"))),
    _Place("triton.runtime.interpreter", "GridExecutor", "__call__", _launcher(lambda kernel, _: kernel.grid)),
    _Place("triton.compiler.compiler", "CompiledKernel", "__getitem__", _compiled_before),
    _Place("triton.runtime.autotuner", "Autotuner", "_bench", _measured),
    _Place("torch._inductor.runtime.triton_heuristics", "CachingAutotuner", "run", _by_inductor),
    _Place("torch._inductor.output_code", "CompiledFxGraph", "__call__", _graph),
)


def _method(place: _Place) -> tuple[type, Any] | None:
    owner: Any = getattr(sys.modules.get(place.module), place.owner, None)
    if not isinstance(owner, type):
        return None
    method = vars(owner).get(place.method)
    return (owner, method) if callable(method) else None


def _told(describe: Callable[[], Launch], run: Callable[[], Any]) -> Any:
    listener = _here.listener()
    assert listener is not None
    with _untold():
        try:
            launch = describe()
        except Exception as error:
            launch = Launch("triton.unknown", "", {"problem": Word(type(error).__name__)})
        kernel = listener.launch(launch)
        try:
            result = run()
        except BaseException as error:
            listener.end(kernel, (), error)
            raise
        listener.end(kernel, (), None)
        return result


@contextlib.contextmanager
def _untold() -> Iterator[None]:
    """Neither launches nor what PyTorch dispatches is told."""
    with no_launches(), _disable_current_modes():
        yield


# -- what was launched --------------------------------------------------------------------------------------

_NO_DEFAULT = inspect.Parameter.empty
_COMPUTED = "computed"  # a grid of which no more is known
_NOT_ARGUMENTS = frozenset({"grid", "warmup", "stream", "benchmark_run"})
_POINTER = re.compile(r"(^|_)(ptrs?|pointers?|addr|address(es)?)\d*(_|$)")
_POINTERS = re.compile(r"(^|_)(ptrs|pointers|addresses)\d*(_|$)")
_INTEGERS = frozenset(getattr(torch, name) for name in ("int64", "uint64") if hasattr(torch, name))


class _Declared(NamedTuple):
    """A kernel's function: its parameters with their defaults, and which are compile-time constants."""

    text: str
    defaults: Mapping[str, Any]
    constants: frozenset[str]


def _declared(function: Any) -> _Declared:
    if inspect.isfunction(function):
        return _declared_in_code(function)
    constants = frozenset(p.name for p in function.params if p.is_constexpr)
    names = function.arg_names
    return _Declared(_listed(function, names, constants), dict.fromkeys(names, _NO_DEFAULT), constants)


@functools.lru_cache(maxsize=4096)
def _declared_in_code(function: Any) -> _Declared:
    parameters = inspect.signature(function).parameters
    constants = frozenset(p.name for p in parameters.values() if "constexpr" in _annotation(p))
    return _Declared(
        _listed(function, parameters, constants), {p.name: p.default for p in parameters.values()}, constants
    )


def _listed(function: Any, names: Iterable[str], constants: frozenset[str]) -> str:
    """The declaration, as text."""
    listed = ", ".join(f"{name}: constexpr" if name in constants else name for name in names)
    return f"{function.__module__}.{function.__qualname__}({listed})"


def _annotation(parameter: inspect.Parameter) -> str:
    """As text: Triton takes the class, and its name in quotes."""
    given = parameter.annotation
    return given if isinstance(given, str) else getattr(given, "__name__", str(given))


def _launch(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], grid: Any) -> Launch:
    declared = _declared(function)
    names = list(declared.defaults)
    if len(args) == len(names) - len(declared.constants) and not declared.constants & kwargs.keys():
        # Launched past what would fill in the constants: they are in the code.
        names = [name for name in names if name not in declared.constants]
    names += [str(place) for place in range(len(names), len(args))]
    given = dict(zip(names, args, strict=False))
    given |= {name: value for name, value in kwargs.items() if name not in _NOT_ARGUMENTS}
    known = {name: given.pop(name, default) for name, default in declared.defaults.items()}
    known = {name: value for name, value in known.items() if value is not _NO_DEFAULT}
    everything = {**known, **given}
    found = {name: _given(name, value, name in declared.constants) for name, value in everything.items()}
    found["grid"] = _sizes(grid, everything)
    unfollowed = tuple(name for name, value in found.items() if _is_address(value))
    return Launch(f"triton.{function.__name__}", declared.text, found, unfollowed)


def _sizes(grid: Any, arguments: Mapping[str, Any]) -> Any:
    """The grid's sizes; a grid that is computed is asked with the launch's arguments by name."""
    try:
        found = grid(dict(arguments)) if callable(grid) else grid
        return found if isinstance(found, str) else tuple(map(int, found))
    except Exception:
        return _COMPUTED


def _given(name: str, value: Any, constant: bool) -> Any:
    """An argument as tensors, plain data and words."""
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        pointers = _POINTERS if value.dtype is torch.int64 else _POINTER
        return Addresses(value) if value.dtype in _INTEGERS and pointers.search(name) else value
    if kind == "constexpr":
        return _given(name, value.value, True)
    if isinstance(value, bool | str | float | None):
        return value
    if isinstance(value, int):
        return Word("address") if value and not constant and _POINTER.search(name) else int(value)
    if kind == "TensorWrapper":  # a tensor that is read as another dtype
        return value.base
    if kind == "TensorDescriptor":
        return [value.base, *(list(map(int, part)) for part in (value.shape, value.strides, value.block_shape))]
    if isinstance(value, list | tuple):
        return [_given(name, item, constant) for item in value]
    if hasattr(value, "data_ptr"):
        return Word("address")
    if isinstance(value, torch.dtype) or _is_tritons_dtype(value):
        return Word("dtype", str(value).removeprefix("torch."))
    if callable(value):
        return Word("function", str(getattr(value, "__name__", kind)))
    return Word(kind)


def _is_tritons_dtype(value: Any) -> bool:
    return type(value).__name__ == "dtype" and type(value).__module__.startswith("triton.")


def _is_address(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_address, value))
    return isinstance(value, Addresses) or (isinstance(value, Word) and value.kind == "address")
