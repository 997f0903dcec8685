"""What a recording keeps, and what happens if that is too much.

Whoever asks for a recording imports this, as does whoever makes it; so it never imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from tracereplay.checked import COUNT, FLAG, NUMBER, OBJECT, STRING, Check, among, checked, list_of, or_none
from tracereplay.errors import UsageError
from tracereplay.event import Site
from tracereplay.recorder import triggers as kinds
from tracereplay.recorder.choosing import Choice
from tracereplay.recorder.ring_limits import RingLimits, read_ring
from tracereplay.trace import codec
from tracereplay.trace.withheld import withheld_slots

__all__ = ["FIELDS", "KERNEL", "NO_KERNELS", "OPERATOR", "GraphOptions", "Options"]

# Levels of a recording; the first is that of one that says nothing.
OPERATOR, KERNEL = "operator", "kernel"
NO_KERNELS = (
    "Kernels cannot be recorded inside CUDA graphs, which replay them past PyTorch's dispatcher; set "
    "enforce_eager=true, or record operators only (--level operator)."
)

# Fields of a request's body that a recording may be asked to keep; they say who somebody is.
FIELDS = ("user", "safety_identifier", "metadata")

_KEY = re.compile("[0-9a-f]{64}")
_TAKES: Mapping[str, Check] = {
    "when_behind": among("block", "drop"),
    "max_steps": or_none(COUNT),
    "max_bytes": or_none(COUNT),
    "codec": among(*codec.CHUNK_CODECS),
    "sites": list_of(lambda glob: isinstance(glob, str), "globs"),
    "sides": list_of(lambda side: side in ("in", "out"), "'in' and 'out'"),
    "level": among(OPERATOR, KERNEL),
    "check_writes": FLAG,
    "in_flight": COUNT,
    "recipients": list_of(lambda key: isinstance(key, str), "recipients' keys"),
    "withhold": or_none(
        (lambda key: isinstance(key, str) and _KEY.fullmatch(key) is not None, "a key of 64 hexadecimal digits")
    ),
    "keep_fields": list_of(lambda name: name in FIELDS, f"names of {', '.join(FIELDS)}"),
    "choice": OBJECT,
    "ring": or_none(STRING),
    "triggers": list_of(lambda text: isinstance(text, str), "triggers"),
    "trigger_every": NUMBER,
    "trigger_most": COUNT,
    "trigger_after": COUNT,
    "ring_share": COUNT,
}
CHANGEABLE = frozenset({"when_behind", "max_steps", "sites", "sides"})  # while a recording runs

_NO_TOKENS = (
    "Tokens were withheld: digests stand for them, and nothing is kept of operators that say directly which they "
    "are, those of the first layer among them."
)
_LISTS = ("sites", "sides", "recipients", "keep_fields", "triggers")


@dataclass(frozen=True)
class Options:
    """How much is recorded, and what happens if the writer cannot keep up.

    Args:
        when_behind: ``block`` makes the engine wait; ``drop`` drops steps and counts them.
        max_steps: after which the recording ends; None: never.
        max_bytes: of this process's segment, or, where a pass is asked for, of all ranks' together; None: any
            number.
        codec: how chunks are stored.
        sites: globs of the sites to keep; none: only tokens and their logprobs are recorded.
        sides: ``in`` keeps inputs (and what a call wrote into them), ``out`` outputs.
        level: ``operator``, or ``kernel`` to include the kernels that operators dispatch.
        check_writes: whether to check custom kernels for writes that their schemas do not declare; what Triton
            kernels wrote, which declare nothing, is always found out.
        in_flight: steps whose copies may still run on the device when the next one begins; 0: each is handed over
            before its tokens can leave the engine, so that no client receives tokens that the trace lacks.
        recipients: public keys (age1...) of the only ones who can read the recording; none: everybody can.
        withhold: the key of the digests that stand for tokens (`trace.withheld`); None: tokens are recorded.
        keep_fields: of the bodies of a server's requests, fields to keep; see `FIELDS`.
        choice: which requests, and which of their rows and steps.
        ring: keeps the last steps in memory, as many as this says (`ring_limits.read_ring`), and writes a trace of
            them when a trigger fires; None: writes every step.
        triggers: what does (`recorder.triggers`).
        trigger_every: seconds between two traces that triggers of one kind make.
        trigger_most: how many of them are made.
        trigger_after: steps that a trace has after its trigger, or fewer if the trigger's sequence ends before.
        ring_share: processes that share the bytes of the ring.
    """

    when_behind: str = "block"
    max_steps: int | None = None
    max_bytes: int | None = None
    codec: int = codec.PLANES
    sites: tuple[str, ...] = ("*",)
    sides: tuple[str, ...] = ("in", "out")
    level: str = OPERATOR
    check_writes: bool = True
    in_flight: int = 2
    recipients: tuple[str, ...] = ()
    withhold: str | None = None
    keep_fields: tuple[str, ...] = ()
    choice: Choice = field(default_factory=Choice)
    ring: str | None = None
    triggers: tuple[str, ...] = kinds.DEFAULT
    trigger_every: float = kinds.EVERY
    trigger_most: int = kinds.MOST
    trigger_after: int = 16
    ring_share: int = 1

    def as_dict(self) -> dict[str, Any]:
        lists = {name: list(getattr(self, name)) for name in _LISTS}
        return {**asdict(self), **lists, "choice": self.choice.as_dict()}

    def public(self) -> dict[str, Any]:
        """`as_dict`, without the key of what is withheld."""
        return {**self.as_dict(), "withhold": self.withhold is not None}

    @classmethod
    def from_dict(cls, data: Any) -> Options:
        """Reads what `as_dict` wrote; what is missing is the default.

        Raises:
            UsageError: there is no such option, or it does not take such a value.
        """
        given = checked(data, _TAKES, "the recording options", whole=False)
        for name in _LISTS:
            if name in given:
                given[name] = tuple(given[name])
        if "choice" in given:
            given["choice"] = Choice.from_dict(given["choice"])
        found = cls(**given)
        found.ring_limits()
        for text in found.triggers:
            kinds.check_trigger(text)
        return found

    def ring_limits(self) -> RingLimits | None:
        """What this process's ring keeps at most; None: there is none.

        Raises:
            UsageError: it is no size of a ring, or too large a one.
        """
        return None if self.ring is None else read_ring(self.ring).share(self.ring_share)

    def changed(self, data: Mapping[str, Any]) -> Options:
        """With other values, as a recording that runs can take them.

        Raises:
            UsageError: one of them cannot be changed while it runs, or does not take such a value.
        """
        for name in data:
            if name in _TAKES and name not in CHANGEABLE:
                raise UsageError(
                    f"The option {name!r} is decided when a recording starts; {', '.join(sorted(CHANGEABLE))} can "
                    "be changed while it runs."
                )
        return Options.from_dict({**self.as_dict(), **data})

    def left_out(self, sites: Sequence[Site]) -> dict[str, set[int]]:
        """For each side, the slots for which it is not kept."""
        return _left_out(self, sites)

    def header(self) -> dict[str, Any]:
        """What a manifest's run says of the operators that are recorded, where these are not all."""
        if (self.sites, self.sides) == (Options.sites, Options.sides):
            return {}
        return {"recorded": {"sites": list(self.sites), "sides": list(self.sides)}}

    def told(self) -> list[str]:
        """Notes for the reader of the trace on what is left out."""
        return [*self._told(), *([_NO_TOKENS] if self.withhold else [])]

    def _told(self) -> list[str]:
        chosen = self.choice.told()
        if (self.sites, self.sides) == (Options.sites, Options.sides):
            return chosen
        if not self.sites:
            return ["Only tokens and logprobs were recorded, and no operator's inputs or outputs.", *chosen]
        sides = " and ".join({"in": "inputs", "out": "outputs"}[side] for side in self.sides)
        return [f"Of operators, only {sides} of sites like {' or '.join(self.sites)} were recorded.", *chosen]


def _left_out(options: Options | GraphOptions, sites: Sequence[Site]) -> dict[str, set[int]]:
    others = {s.slot for s in sites if not any(fnmatchcase(s.name, glob) for glob in options.sites)}
    if options.withhold:
        others |= withheld_slots(sites)
    return {side: others if side in options.sides else {s.slot for s in sites} for side in ("in", "out")}


# What graphs can be given when they are replayed, and how many areas of memory that takes.
_FEEDS = {"nothing": 1, "golden": 2, "errors": 3}
_GRAPHS_TAKE: Mapping[str, Check] = {
    "feeds": among(*_FEEDS), "withhold": FLAG, **{name: _TAKES[name] for name in ("sites", "sides", "level")},
}  # fmt: skip
MEMORY = 2 << 30


@dataclass(frozen=True)
class GraphOptions:
    """How CUDA graphs are captured, which is decided when an engine starts.

    Args:
        feeds: ``nothing`` (graphs are recorded only), ``golden`` (they can be fed golden rows), or ``errors`` (and
            own errors be cancelled).
        sites, sides: what is captured, as in `Options`; a pass can keep no more than that.
        level: of what will be recorded; ``kernel`` cannot be, so that the engine is refused before it starts.
        memory: bytes on the device for all areas together. The largest graph's tensors of every operator, inputs
            and outputs, need some 10 MiB a row for 7 billion parameters in bfloat16, once for each area. The
            user's, who gives it to the engine (`engines.variables.GRAPH_MEMORY`).
        withhold: whether tokens are, as in `Options`, which has a key for it.
    """

    feeds: str = "errors"
    sites: tuple[str, ...] = ("*",)
    sides: tuple[str, ...] = ("in", "out")
    level: str = OPERATOR
    memory: int = MEMORY
    withhold: bool = False

    @property
    def areas(self) -> int:
        """Areas of memory: staged tensors, golden rows, and rows of an injected pass."""
        return _FEEDS[self.feeds]

    def as_dict(self) -> dict[str, Any]:
        lists = {"sites": list(self.sites), "sides": list(self.sides)}
        return {"feeds": self.feeds, "level": self.level, "withhold": self.withhold, **lists}

    @classmethod
    def from_dict(cls, data: Any, memory: str | None = None) -> GraphOptions:
        """Reads what `as_dict` wrote; what is missing is the default.

        Args:
            memory: as a user writes it: ``800M``, ``4G``, or bytes; None: the default.

        Raises:
            UsageError: there is no such option, or it does not take such a value.
        """
        given = checked(data, _GRAPHS_TAKE, "the options of CUDA graphs", whole=False)
        given.update({name: tuple(given[name]) for name in ("sites", "sides") if name in given})
        return cls(**given, memory=MEMORY if memory is None else _bytes(memory))

    def left_out(self, sites: Sequence[Site]) -> dict[str, set[int]]:
        """For each side, the slots for which it is not captured."""
        return _left_out(self, sites)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip().upper().removesuffix("B").removesuffix("I"))
    if match is None:
        raise UsageError(f"{text!r} is no amount of memory; give bytes, or a number with K, M or G, as in 4G.")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
