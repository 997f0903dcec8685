"""What a recording keeps, and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tracereplay.event import Site
from tracereplay.trace import codec

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """How much is recorded, and what happens if the writer cannot keep up.

    Args:
        when_behind: ``block`` makes the engine wait; ``drop`` drops steps and counts them.
        max_steps: after which the recording ends; None: never.
        max_bytes: of this process's segment.
        codec: how chunks are stored.
        sites: globs of the sites to keep.
        sides: ``in`` keeps inputs (and what a call wrote into them), ``out`` outputs.
        level: ``operator``, or ``kernel`` to include the kernels that operators dispatch.
        check_writes: whether to check custom kernels for writes that their schemas do not declare.
        in_flight: steps whose copies may still run on the device when the next one begins; 0: each is handed over
            before its tokens can leave the engine, so that no client receives tokens that the trace lacks.
    """

    when_behind: str = "block"
    max_steps: int | None = None
    max_bytes: int | None = None
    codec: int = codec.PLANES
    sites: Sequence[str] = ("*",)
    sides: Sequence[str] = ("in", "out")
    level: str = "operator"
    check_writes: bool = True
    in_flight: int = 2

    def left_out(self, sites: Sequence[Site]) -> dict[str, set[int]]:
        """For each side, the slots for which it is not kept."""
        others = {s.slot for s in sites if not any(fnmatchcase(s.name, glob) for glob in self.sites)}
        return {side: others if side in self.sides else {s.slot for s in sites} for side in ("in", "out")}

    def told(self) -> list[str]:
        """Notes for the reader of the trace on what is left out."""
        if (self.sites, self.sides) == (Options.sites, Options.sides):
            return []
        return [f"Of sites like {', '.join(self.sites)} only this was recorded: {', '.join(self.sides)}."]
