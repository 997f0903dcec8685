"""What a recording keeps, and what happens if that is too much.

Whoever asks for a recording imports this, as does whoever makes it; so it never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from tracereplay.checked import COUNT, FLAG, Check, among, checked, list_of, or_none
from tracereplay.event import Site
from tracereplay.trace import codec

__all__ = ["KERNEL", "OPERATOR", "Options"]

# Levels of a recording; the first is that of one that says nothing.
OPERATOR, KERNEL = "operator", "kernel"


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
}


@dataclass(frozen=True)
class Options:
    """How much is recorded, and what happens if the writer cannot keep up.

    Args:
        when_behind: ``block`` makes the engine wait; ``drop`` drops steps and counts them.
        max_steps: after which the recording ends; None: never.
        max_bytes: of this process's segment, or, where a pass is asked for, of all ranks' together; None: any
            number.
        codec: how chunks are stored.
        sites: globs of the sites to keep.
        sides: ``in`` keeps inputs (and what a call wrote into them), ``out`` outputs.
        level: ``operator``, or ``kernel`` to include the kernels that operators dispatch.
        check_writes: whether to check custom kernels for writes that their schemas do not declare; what Triton
            kernels wrote, which declare nothing, is always found out.
        in_flight: steps whose copies may still run on the device when the next one begins; 0: each is handed over
            before its tokens can leave the engine, so that no client receives tokens that the trace lacks.
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

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sites": list(self.sites), "sides": list(self.sides)}

    @classmethod
    def from_dict(cls, data: Any) -> Options:
        """Reads what `as_dict` wrote; what is missing is the default.

        Raises:
            UsageError: there is no such option, or it does not take such a value.
        """
        given = checked(data, _TAKES, "the recording options", whole=False)
        for name in ("sites", "sides"):
            if name in given:
                given[name] = tuple(given[name])
        return cls(**given)

    def left_out(self, sites: Sequence[Site]) -> dict[str, set[int]]:
        """For each side, the slots for which it is not kept."""
        others = {s.slot for s in sites if not any(fnmatchcase(s.name, glob) for glob in self.sites)}
        return {side: others if side in self.sides else {s.slot for s in sites} for side in ("in", "out")}

    def told(self) -> list[str]:
        """Notes for the reader of the trace on what is left out."""
        if (self.sites, self.sides) == (Options.sites, Options.sides):
            return []
        return [f"Of sites like {', '.join(self.sites)} only this was recorded: {', '.join(self.sides)}."]
