"""Recorded operators, rebuilt in a sandbox and run one call at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tracereplay.alone.child.service import NotReplayable
from tracereplay.alone.sandbox import OPERATOR, Outcome, Sandbox
from tracereplay.engines.family import Plan, Planner, Tensor
from tracereplay.errors import MissingWeights
from tracereplay.event import Call, Site, Value
from tracereplay.launch.process import Launchable
from tracereplay.passes import RECORD
from tracereplay.trace import TensorBytes, Trace
from tracereplay.trace.parameters import Parameters

__all__ = ["Operators", "operator_requests", "setup_for"]

KEPT = 2 << 30  # bytes of weights that a child holds at once; packed for the processor, each may be there twice


def setup_for(engine: Launchable) -> dict[str, Any]:
    """The handler's setup for a sandbox that runs operators: ``setup={OPERATOR: setup_for(engine)}``."""
    return {"settings": dict(engine.settings)}


def operator_requests(golden: Trace, site: str = "*", rank: int = 0) -> Iterator[tuple[int, Site, Call]]:
    """The operators' calls of a recording, in the order in which they ran.

    Args:
        golden: the recording.
        site: glob of module paths.
        rank: whose.

    Yields:
        The number of the step, the site, and the call: what `Operators.run` takes.
    """
    sites = golden.sites(RECORD, rank)
    for step in golden.segment(RECORD, rank).steps():
        for call in step.calls:
            if fnmatchcase(call.site, site):
                yield step.number, sites[call.site], call


class Operators:
    """Runs operators of a recording in isolation.

    An operator is rebuilt, and its weights are sent, when the first of its calls is run; afterwards only inputs
    are sent. A new child, or one that keeps too much, is sent them again.

    Args:
        sandbox: where they run; started with `setup_for`.
        plan: of the engine's family (`engines.family.Alone`).
        golden: the recording.
        model: the checkpoint's directory, if it has moved since recording.
    """

    def __init__(self, sandbox: Sandbox, plan: Planner, golden: Trace, model: Path | None = None) -> None:
        self._sandbox, self._plan = sandbox, plan
        self._parameters = Parameters(golden, model)
        self._ranks = len(golden.ranks(RECORD))
        self._dtype = str(golden.run.engine_facts("settings").get("dtype"))
        self._keys: dict[str, int] = {}
        self._refused: dict[int, Outcome] = {}
        self._plans: dict[int, Plan] = {}
        self._kept: dict[int, int] = {}  # bytes of weights by key
        self._child = -1  # the child that has them

    def run(self, site: Site, call: Call) -> Outcome:
        """Runs the operator at ``site`` on the inputs of ``call``.

        Returns:
            If done, ``outputs`` is ``{"outputs": [...], "written": {index: ...}}`` of `TensorBytes`: in the
            order and with the indices of `Call.outputs` and `Call.written`. Otherwise the status and the reason.
        """
        if self._ranks > 1:
            return _not_replayable(f"it was recorded with tensor parallel size {self._ranks}")
        key = self._key(site)
        if key in self._refused:
            return self._refused[key]
        try:
            failed = self._keep(key, site)
            if failed is None:
                self._plans[key].check(call.inputs)
        except NotReplayable as error:
            return _not_replayable(str(error))
        if failed is not None:
            return failed
        inputs = [_tensor(value) for value in call.inputs]
        return self._sandbox.run(OPERATOR, {"call": key, "inputs": inputs, "rows": call.rows_in.tolist()})

    def _key(self, site: Site) -> int:
        """One number for operators that are the same; without weights, that is one for all layers."""
        own = site.parameters or "Attention" in site.operator  # which keeps keys and values of its own
        what = [site.operator, sorted(site.config.items()), site.name if own else ""]
        return self._keys.setdefault(json.dumps(what, default=str), len(self._keys))

    def _keep(self, key: int, site: Site) -> Outcome | None:
        """Makes sure that the child has the operator; returns an outcome if it cannot."""
        if self._child != self._sandbox.starts:
            self._kept, self._child = {}, self._sandbox.starts
        if key in self._kept:
            return None
        try:
            weights = {p.name: self._parameters.load(p) for p in site.parameters}
            tensors: dict[str, TensorBytes] = {p.name: _weight(p.dtype, weights[p.name]) for p in site.parameters}
            described: Mapping[str, Tensor] = tensors
            self._plans[key] = self._plan(site.operator, site.config, self._dtype, described)
        except (MissingWeights, NotReplayable) as error:
            self._refused[key] = _not_replayable(_clause(error))
            return self._refused[key]
        size = sum(weight.nbytes for weight in weights.values())
        if sum(self._kept.values()) + size > KEPT:
            # Not those without weights: attention would lose the keys and values that later calls need.
            forgotten = [known for known, nbytes in self._kept.items() if nbytes]
            self._sandbox.run(OPERATOR, {"forget": forgotten})
            self._kept = {known: 0 for known in self._kept if known not in forgotten}
        outcome = self._sandbox.run(OPERATOR, {
            "build": key, "operator": site.operator, "config": dict(site.config), "dtype": self._dtype,
            "parameters": tensors,
        })  # fmt: skip
        if outcome.status == "done":
            self._kept[key], self._child = size, self._sandbox.starts
            return None
        self._refused[key] = outcome  # it would not end otherwise another time, and may have killed the child
        return outcome


def _clause(error: Exception) -> str:
    text = str(error)
    return (text[:1].lower() + text[1:] if isinstance(error, MissingWeights) else text).rstrip(".")


def _not_replayable(reason: str) -> Outcome:
    return Outcome("not replayable", f"not replayable: {reason}")


def _weight(dtype: str, array: npt.NDArray[Any]) -> TensorBytes:
    return TensorBytes(dtype, array.shape, (1,) * array.ndim, array.tobytes())


def _tensor(value: Value) -> TensorBytes:
    return TensorBytes(value.dtype, value.shape, value.strides, value.load(), value.storage, value.start)
