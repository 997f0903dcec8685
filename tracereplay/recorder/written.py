"""Which of its inputs an operator writes to without returning them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tracereplay.hooks.computing import written_by
from tracereplay.hooks.kernels import returnable
from tracereplay.recorder.step import OpenCall, PendingStep

__all__ = ["DeclaredWrites", "WrittenInputs", "hidden"]

CHECKED_CALLS = 2  # per site, for arguments written in place: a comparison costs as much as a copy


def hidden(taken: Sequence[Any], outputs: Sequence[Any]) -> list[int]:
    """Indices of the inputs that are not also outputs."""
    returned = {x.untyped_storage().data_ptr() for x in outputs if _has_memory(x)}
    return [i for i, x in enumerate(taken) if _has_memory(x) and x.untyped_storage().data_ptr() not in returned]


def _has_memory(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.layout is torch.strided


class WrittenInputs:
    """Finds them by comparison in an operator's first calls; afterwards only those are looked at."""

    def __init__(self) -> None:
        self._checked: dict[int, int] = {}
        self._unsettled: dict[int, set[int]] = {}
        self._writes: dict[int, set[int]] = {}  # per slot that was checked, the inputs that it changes

    def may_write(self, slot: int) -> bool:
        """Whether the operator changes an input, as far as is known."""
        return bool(self._writes.get(slot, True))

    def keep(
        self, step: PendingStep, call: OpenCall, taken: list[torch.Tensor], outputs: list[torch.Tensor],
        kept: Callable[[int, torch.Tensor], torch.Tensor],
    ) -> None:  # fmt: skip
        """Records the inputs of ``call`` that it changed and did not return; of each what is ``kept``."""
        if not call.inputs:
            return
        checked = self._checked.get(call.slot, 0)
        found = self._unsettled.setdefault(call.slot, set())
        if checked < CHECKED_CALLS:
            self._checked[call.slot] = checked + 1
            given = [i for i in hidden(taken, outputs) if i in call.inputs]
            found.update(i for i in given if step.changed(call, i, kept(i, taken[i])))
        if checked + 1 >= CHECKED_CALLS:
            self._writes[call.slot] = found
        for index in found:
            call.written[index] = step.copy(kept(index, taken[index]), like=taken[index])


class DeclaredWrites(TorchDispatchMode):  # type: ignore[misc,unused-ignore]
    """Finds them by what the kernels declare that an operator dispatches: where values cannot be compared.

    What a launch past PyTorch's dispatcher writes, which only its kernel knows, is not found.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._under_way: list[set[int]] = []  # of the calls around, innermost last, addresses of storages
        self._written: set[int] = set()  # of the call that has ended last

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Lets compiled functions run compiled, as `hooks.kernels` does: a graph must hold what runs without."""
        return True

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Collects what is written in this context, which counts for those around it, too."""
        self._under_way.append(set())
        try:
            with self:
                yield
        finally:
            self._written = self._under_way.pop()
            if self._under_way:
                self._under_way[-1] |= self._written

    def to(self, x: torch.Tensor) -> bool:
        """Whether the memory of ``x`` was written to in the context that has ended last."""
        return x.untyped_storage().data_ptr() in self._written

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = written_by(function, args, kwargs) or ()
        self._under_way[-1].update(x.untyped_storage().data_ptr() for x in given if _has_memory(x))
        return returnable(function(*args, **kwargs))
