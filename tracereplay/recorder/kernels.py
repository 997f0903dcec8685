"""Records kernels in the order of their calls: arguments before, outputs, and what they wrote in place.

A Triton kernel declares nothing and returns nothing: it writes through pointers. Its results are those of its
tensor arguments that it changed, found by comparing each before and after the launch.

Tensors are copied to the step's arenas, like those of operators. The model's own are recorded by name: parameters
are in the checkpoint, and buffers (tables of cosines) are written once, with the first step. The engine's
key/value cache is left out: it is as large as the machine allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import xxhash

from tracereplay.event import COMPILED
from tracereplay.hooks.kernels import declared_writes, unseen, watching
from tracereplay.hooks.launched import Addresses, Launch, Word
from tracereplay.hooks.triton import unknown_launches
from tracereplay.recorder.step import PendingStep, dtype_name

__all__ = ["KernelRecorder"]

LARGEST = 1 << 30  # bytes of a tensor; larger ones are left out
_ALIGNED = 64  # bytes by which a copy may be longer in an arena
_OPAQUE = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_TRUSTED = frozenset({"aten", "prim", "prims"})  # namespaces whose schemas declare all writes
SEEDED = torch.Tag.nondeterministic_seeded


class _Running(NamedTuple):
    """A kernel in progress.

    Args:
        record: its record (`trace.kernels`), to be completed.
        tensors: its tensor arguments in order, each with its number in the step (-1: not recorded).
        declared: which of them the schema declares as written.
        watched: whether the others are checked for writes afterwards.
        launched: whether it was launched past the dispatcher, with no schema that could declare a write.
    """

    record: list[Any]
    tensors: list[tuple[torch.Tensor, int]]
    declared: frozenset[int]
    watched: bool
    launched: bool = False


class KernelRecorder:
    """Records the kernels of one pass; the listener of `hooks.kernels`.

    Args:
        model: whose parameters and buffers are known by name.
        check_writes: whether to compare arguments of custom operators after each call, to find writes that the
            schema does not declare. Triton kernels are always compared: all their results are such writes.
        failed: called with errors.
    """

    def __init__(
        self, model: torch.nn.Module, *, check_writes: bool, failed: Callable[[BaseException], None]
    ) -> None:
        self._check_writes = check_writes
        self._failed = failed
        self._model = model
        self._constants: dict[str, torch.Tensor] = {}
        self._by_memory: dict[int, str] = {}
        self._caches: set[int] = set()
        self._told_constants = False
        self._noted: set[str] = set()
        self._step: PendingStep | None = None
        self._names: dict[tuple[str, str], int] = {}
        self._calls: list[list[Any]] = []
        self._open: list[int] = []  # places of the kernels that are running, outermost first
        self._site = (0, 0)

    # -- steps and operators ----------------------------------------------------------------------------

    def begin_step(self, step: PendingStep) -> None:
        """Records the following kernels in ``step``."""
        if not self._constants:
            self._meet_model()
        self._step = step
        self._names, self._calls, self._open = {}, [], []

    def _meet_model(self) -> None:
        """Reads the model's tensors. Not before it runs: the engine may bind its key/value cache later."""
        self._constants = _constants(self._model)
        self._by_memory = {c.untyped_storage()._cdata: name for name, c in self._constants.items()}
        self._caches = {c.untyped_storage()._cdata for c in _caches(self._model)}

    def end_step(self) -> dict[str, Any]:
        """The step's kernels (`trace.kernels`), tensors by their numbers among the step's."""
        step, self._step = self._step, None
        record = {"names": [list(name) for name in self._names], "calls": self._calls, "constants": []}
        if step is not None:
            self._note(step, *unknown_launches())
        if not self._told_constants and step is not None:
            record["constants"] = [self._constant(step, *item) for item in self._constants.items()]
            self._told_constants = True
        return record

    def watch(self, slot: int, number: int) -> AbstractContextManager[None]:
        """Records the kernels that call ``number`` of the operator at ``slot`` dispatches."""
        self._site = (slot, number)
        return watching(self)

    def compiled_region(self, slots: Iterable[int]) -> None:
        """Records a compiled graph that ran these operators as one call, since its kernels are not dispatched."""
        first, *others = sorted(slots)
        place = self._names.setdefault((COMPILED, ""), len(self._names))
        counted = {"operators": 1 + len(others)}
        self._calls.append([place, first, 0, -1, [], counted, [], [], [], ""])

    # -- one kernel -------------------------------------------------------------------------------------

    def begin(self, name: str, op: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> _Running | None:
        """See `hooks.kernels.KernelListener`."""
        step = self._step
        if step is None:
            return None
        try:
            with unseen():
                tensors: list[tuple[torch.Tensor, int]] = []
                given = [self._argument(step, a, tensors) for a in arguments]
                named = {k: self._argument(step, a, tensors) for k, a in keywords.items()}
                if SEEDED in op.tags and "generator" not in named:
                    named["generator"] = self._generator(step, torch.default_generator)
                record = self._begun(name, str(op._schema), given, named)
                watched = self._check_writes and name.split(".", 1)[0] not in _TRUSTED
                return _Running(record, tensors, self._declared(op, arguments, keywords), watched)
        except Exception as error:
            self._failed(error)
            return None

    def launch(self, launch: Launch) -> _Running | None:
        """See `hooks.kernels.KernelListener`."""
        step = self._step
        if step is None:
            return None
        try:
            with unseen():
                comparable = self._make_room(step, launch)
                tensors: list[tuple[torch.Tensor, int]] = []
                named = {k: self._argument(step, a, tensors) for k, a in launch.arguments.items()}
                if launch.unfollowed:
                    names = ", ".join(launch.unfollowed)
                    self._note(
                        step, f"{launch.name} was given addresses of memory ({names}), which cannot be followed: "
                        "what it read and wrote there is not recorded.",
                    )  # fmt: skip
                record = self._begun(launch.name, launch.declaration, [], named)
                return _Running(record, tensors, frozenset(), watched=comparable, launched=True)
        except Exception as error:
            self._failed(error)
            return None

    def _make_room(self, step: PendingStep, launch: Launch) -> bool:
        """Has all its tensors copied to one arena, before and after, to be compared; whether they can be."""
        tensors = [x for argument in launch.arguments.values() for x in _tensors(argument)]
        size = sum(2 * (x.nbytes + _ALIGNED) for x in tensors if x.nbytes <= LARGEST)
        if size <= 2 * LARGEST:
            step.reserve(size)
            return True
        self._note(
            step, f"{launch.name} was given tensors of {size // 2} bytes; the limit for finding out what a Triton "
            f"kernel wrote is {LARGEST}, so its results are not recorded.",
        )  # fmt: skip
        return False

    def _begun(self, name: str, schema: str, given: list[Any], named: dict[str, Any]) -> list[Any]:
        """The record of a kernel that begins."""
        place = self._names.setdefault((name, schema), len(self._names))
        parent = self._open[-1] if self._open else -1
        record = [place, *self._site, parent, given, named, [], [], [], ""]
        self._open.append(len(self._calls))
        self._calls.append(record)
        return record

    def _note(self, step: PendingStep, *sentences: str) -> None:
        """Adds notes to the step, each once in a pass."""
        step.notes += [sentence for sentence in sentences if sentence not in self._noted]
        self._noted.update(sentences)

    def end(self, kernel: _Running | None, result: Any, error: BaseException | None) -> None:
        """See `hooks.kernels.KernelListener`."""
        step = self._step
        if kernel is None or step is None:
            return
        try:
            with unseen():
                self._open.pop()
                record = kernel.record
                if error is not None:
                    record[9] = type(error).__name__
                    return
                results = result if isinstance(result, tuple | list) else (result,)
                record[6] = [self._argument(step, r, []) for r in results]
                record[7], record[8] = self._written(step, kernel)
        except Exception as failure:
            self._failed(failure)

    def _declared(self, op: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> frozenset[int]:
        """Indices of the call's tensors that the schema declares as written."""
        positions, names = declared_writes(op)
        found: set[int] = set()
        number = 0
        for written, argument in (
            *((i in positions, a) for i, a in enumerate(arguments)),
            *((k in names, a) for k, a in keywords.items()),
        ):
            count = sum(1 for _ in _tensors(argument))
            found.update(range(number, number + count) if written else ())
            number += count
        return frozenset(found)

    def _written(self, step: PendingStep, kernel: _Running) -> tuple[list[list[int]], list[int]]:
        """The new values of the tensors that it wrote, and which of these writes the schema does not declare."""
        written, undeclared = [], []
        known = {x.untyped_storage()._cdata for i, (x, _) in enumerate(kernel.tensors) if i in kernel.declared}
        for i, (x, number) in enumerate(kernel.tensors):
            if number < 0:
                continue
            if i in kernel.declared:
                written.append([i, step.copy(x)])
            elif kernel.watched and x.untyped_storage()._cdata not in known:
                after = step.copy(x, arrived=True)  # the same number if it is unchanged
                if step.differ(number, after):
                    written.append([i, after])
                    if not kernel.launched:
                        undeclared.append(i)
        return written, undeclared

    # -- arguments --------------------------------------------------------------------------------------

    def _argument(self, step: PendingStep, value: Any, tensors: list[tuple[torch.Tensor, int]]) -> Any:
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, torch.Tensor):
            record = self._tensor(step, value)
            tensors.append((value, record[1] if record[0] == "t" else -1))
            return record
        if isinstance(value, Word):
            return ["o", value.kind, value.text, -1]
        if isinstance(value, Addresses):
            tensors.append((value.tensor, -1))
            dtype = str(value.tensor.dtype).removeprefix("torch.")
            return ["x", dtype, list(value.tensor.shape), "addresses of memory"]
        if isinstance(value, int):
            return int(value) if -(1 << 63) <= value < 1 << 64 else ["o", "int", str(value), -1]
        if isinstance(value, float):
            return float(value)
        if isinstance(value, list | tuple):
            return ["l", [self._argument(step, item, tensors) for item in value]]
        if isinstance(value, _OPAQUE):
            return ["o", type(value).__name__, str(value).removeprefix("torch."), -1]
        if isinstance(value, torch.Generator):
            return self._generator(step, value)
        if isinstance(value, complex):
            return ["c", value.real, value.imag]
        return ["o", type(value).__name__, "", -1]

    def _tensor(self, step: PendingStep, x: torch.Tensor) -> list[Any]:
        dtype = dtype_name(x)
        if dtype is None:
            return ["x", str(x.dtype).removeprefix("torch."), list(x.shape), f"a tensor of {x.layout}"]
        memory = x.untyped_storage()._cdata
        name = self._by_memory.get(memory)
        if name is not None:
            base = self._constants[name]
            if x.dtype == base.dtype:
                start = x.storage_offset() - base.storage_offset()
                return ["n", name, dtype, list(x.shape), list(x.stride()), start]
        if memory in self._caches:
            return ["x", dtype, list(x.shape), "the engine's key/value cache"]
        if x.nbytes > LARGEST:
            return ["x", dtype, list(x.shape), f"a tensor of {x.nbytes} bytes"]
        return ["t", step.copy(x, arrived=True)]

    def _generator(self, step: PendingStep, generator: torch.Generator) -> list[Any]:
        return ["o", "Generator", str(generator.device), step.copy(generator.get_state())]

    def _constant(self, step: PendingStep, name: str, x: torch.Tensor) -> list[Any]:
        dtype = str(x.dtype).removeprefix("torch.")
        is_buffer = not isinstance(x, torch.nn.Parameter)
        kept = is_buffer and dtype_name(x) is not None and x.nbytes <= LARGEST
        place = step.copy(x) if kept else -1
        return [name, dtype, list(x.shape), list(x.stride()), _digest(x), place]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _constants(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name: the first of those that share memory, without empty ones."""
    found: dict[str, torch.Tensor] = {}
    seen = set()
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if x.layout is torch.strided and x.numel() and x.untyped_storage().nbytes():
            memory = x.untyped_storage()._cdata
            if memory not in seen:
                seen.add(memory)
                found[name] = x
    return found


def _caches(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The attention layers' key/value caches: engines bind them to an attribute of this name."""
    for module in model.modules():
        yield from _tensors(getattr(module, "kv_cache", None))


def _digest(x: torch.Tensor) -> str | None:
    """xxh3-128 of a tensor's elements; None unless it is on the CPU, since it would cost a copy."""
    if x.device.type != "cpu":
        return None
    data = x.detach().contiguous().flatten().view(torch.uint8).numpy()
    return xxhash.xxh3_128_hexdigest(memoryview(data))
