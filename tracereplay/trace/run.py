"""What a trace says about its run: facts, which anybody may read, and requests, which only the gate may open.

A trace is a stranger's. What it says happened (versions, resolved settings, tokens) is for comparing and showing.
What it asks for (engine arguments, a model's path, sampling parameters) would be carried out, so that it lies in a
`Requested`, which nothing but `tracereplay.gate` opens; a test over the syntax tree holds that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracereplay.workload import Drawn

__all__ = ["Asked", "RecordedPrompt", "Requested", "Run", "asked_of", "read_run"]


@dataclass(frozen=True, slots=True)
class RecordedPrompt(Drawn):
    """A request as it was served; not something to serve.

    Args:
        token_ids: the prompt; None while only its text was known.
        text: its text, if it was given as text.
        sampling: its sampling parameters, for comparing and showing.
    """

    token_ids: tuple[int, ...] | None
    text: str | None
    sampling: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a trace asks for. Only the gate sees one."""

    model: str
    settings: Mapping[str, Any]
    prompts: Sequence[RecordedPrompt]


class Requested:
    """What a trace asks for, closed.

    Args:
        asked: what it is.
    """

    __slots__ = ("_sealed",)

    def __init__(self, asked: Asked) -> None:
        self._sealed = asked

    def compared(self) -> dict[str, Any]:
        """The settings' values, for `comparator` to hold against another trace's; never for an engine."""
        return dict(self._sealed.settings)

    def words(self) -> dict[str, str]:
        """The model's path and the settings as text, for people; never for an engine."""
        settings = ", ".join(f"{name}={value}" for name, value in self._sealed.settings.items())
        return {"model": self._sealed.model, "settings": settings}


def asked_of(requested: Requested) -> Asked:
    """What a trace asks for. For `tracereplay.gate` alone."""
    return requested._sealed


@dataclass(frozen=True)
class Run:
    """What a trace says about its run.

    Args:
        kind: ``recording`` or ``replay``.
        command: whether a command of the user's was recorded, a server perhaps.
        level: ``operator`` or ``kernel``.
        sites: globs of the sites of which operators were recorded.
        sides: ``in`` and ``out``: what of them.
        engine: what the engine said of itself: ``name``, ``versions``, ``settings``, ``environment``, ``device``,
            and ``arguments``, which its command gave it
        weights: digest of the checkpoint's tensors.
        checkpoint: of each tensor its dtype, shape and digest.
        model_files: digest of each file of the model beside its tensors, by name; older traces have none.
        prompts: the requests.
        requested: what replaying it would carry out; None if it says nothing of a workload.
        notes: sentences for whoever reads it.
        observer: what recording changed, if that was measured.
        golden: of a replay, the digest of its golden trace.
        base: the trace that parts of it are stored as a difference from.
        trigger: of a trace that a flight recorder made, what set it off: ``kind``, ``detail``, ``time``, and
            ``request``, ``sequence``, ``position``, ``step`` as far as they are known.
        not_replayed: of an isolated replay, site, calls, rows and reason of what was left out.
        began, ended: when it began to be made and was complete, in ISO 8601 (UTC); None: it does not say.
        command_line: of the user's command that was recorded, without secrets.
        withheld: ``what`` was kept out of it (tokens), and a name of the ``key`` of the digests in their place.
    """

    kind: str = "trace"
    command: bool = False
    level: str = "operator"
    sites: tuple[str, ...] = ("*",)
    sides: tuple[str, ...] = ("in", "out")
    engine: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    model_files: Mapping[str, str] = field(default_factory=dict)
    prompts: tuple[RecordedPrompt, ...] = ()
    requested: Requested | None = None
    notes: tuple[str, ...] = ()
    observer: Mapping[str, Any] | None = None
    golden: str | None = None
    base: Mapping[str, Any] | None = None
    trigger: Mapping[str, Any] | None = None
    not_replayed: tuple[Any, ...] = ()
    withheld: Mapping[str, Any] | None = None
    began: str | None = None
    ended: str | None = None
    command_line: tuple[str, ...] = ()

    def engine_facts(self, name: str) -> Mapping[str, Any]:
        """A part of what the engine said of itself, such as ``settings``."""
        found = self.engine.get(name)
        return found if isinstance(found, Mapping) else {}


def read_run(said: Mapping[str, Any]) -> Run:
    """The ``run`` of a manifest whose shape was checked (`manifest.read_manifest`).

    Raises:
        KeyError, TypeError, ValueError: it is not what a recording says.
    """
    work = said.get("workload")
    prompts = () if work is None else tuple(map(_prompt, work["prompts"]))
    recorded = said.get("recorded") or {}
    requested = None
    if work is not None:
        requested = Requested(Asked(str(work["model"]), dict(work.get("settings") or {}), prompts))
    return Run(
        kind=str(said.get("kind", Run.kind)),
        command="command" in said,
        level=str(said.get("level", Run.level)),
        sites=tuple(map(str, recorded.get("sites", Run.sites))),
        sides=tuple(map(str, recorded.get("sides", Run.sides))),
        engine=said.get("engine") or {},
        weights=None if work is None else work.get("weights"),
        checkpoint=said.get("checkpoint") or {},
        model_files=dict(said.get("model_files") or {}),
        prompts=prompts,
        requested=requested,
        notes=tuple(map(str, said.get("notes") or ())),
        observer=said.get("observer"),
        golden=said.get("golden"),
        base=said.get("base"),
        trigger=said.get("trigger"),
        not_replayed=tuple(said.get("not_replayed") or ()),
        withheld=said.get("withheld"),
        began=said.get("began"),
        ended=said.get("ended"),
        command_line=tuple(map(str, said.get("command") or ())),
    )


def _prompt(said: Mapping[str, Any]) -> RecordedPrompt:
    ids = said["prompt_token_ids"]
    return RecordedPrompt(
        None if ids is None else tuple(ids), said.get("prompt"), dict(said.get("sampling") or {})
    )
