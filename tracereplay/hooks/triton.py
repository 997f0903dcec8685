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
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch.utils._python_dispatch import _disable_current_modes

from tracereplay.hooks.launched import COMPUTED, GRAPH, Launch, Word, launch_of
from tracereplay.hooks.launched import given as given_as

__all__ = ["LaunchListener", "launches", "no_launches", "unknown_launches"]


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
                lambda: launch_of(kernel.fn, args, kwargs, grid_of(kernel, kwargs)),
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
                lambda: launch_of(kernel.src.fn.fn, args, kwargs, grid), functools.partial(runner, *args, **kwargs)
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
            return launch_of(kernel.fn.fn or kernel.fn, args, {**chosen, **kwargs}, COMPUTED)

        return _told(described, functools.partial(run, kernel, *args, **kwargs))

    return launch


def _graph(call: Any) -> Any:
    @functools.wraps(call)
    def run(graph: Any, inputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        listener = _here.listener()
        if listener is None:
            return call(graph, inputs, *args, **kwargs)
        given = {str(place): given_as("", value, True) for place, value in enumerate(inputs)}
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
