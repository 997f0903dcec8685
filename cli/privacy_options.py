"""Options of ``record`` that say what a trace may tell of prompts, answers and those who asked."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tracereplay.errors import UsageError
from tracereplay.recorder.options import FIELDS, KERNEL
from tracereplay.trace.withheld import key_in, new_key

__all__ = ["KeepFields", "Kept", "Withhold", "WithholdKey", "fields_of", "key_of"]


class Kept(str, Enum):
    """See ``--withhold``."""

    tokens = "tokens"


KeepFields = Annotated[
    list[str],
    typer.Option(
        metavar="NAME",
        help=f"Field of a server's requests to keep: {', '.join(FIELDS)}. May be repeated.",
        show_default="none",
    ),
]
Withhold = Annotated[
    Kept | None,
    typer.Option(
        help="Keep prompts and outputs out of the trace; it can be compared, but not generated again.",
        show_default=False,
    ),
]
WithholdKey = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Key of the digests that stand for tokens, made if missing: traces of one key can be compared.",
        show_default="one that is thrown away",
    ),
]


def key_of(withhold: Kept | None, file: Path | None, level: str) -> str | None:
    """The key of the digests that stand for what is withheld; None if nothing is.

    Raises:
        UsageError: the options do not go together, or the file holds no key.
    """
    if withhold is None:
        if file is not None:
            raise UsageError(
                "--withhold-key is the key of what --withhold keeps out; give that too, or leave it out."
            )
        return None
    if level == KERNEL:
        raise UsageError("Tokens cannot be withheld from what kernels read and write; leave out --level kernel.")
    return new_key() if file is None else key_in(file)


def fields_of(names: list[str]) -> tuple[str, ...]:
    """Raises UsageError if a field is none that can be kept."""
    if unknown := [name for name in names if name not in FIELDS]:
        raise UsageError(f"{unknown[0]!r} is no field that can be kept; --keep-fields takes {', '.join(FIELDS)}.")
    return tuple(dict.fromkeys(names))
