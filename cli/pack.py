"""``tracereplay pack``: pack a trace into one file, to attach to a report or serve from a URL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tracereplay.cli.console import stderr
from tracereplay.cli.options import (
    BaseTrace,
    EncryptTo,
    Force,
    TracePath,
    Withhold,
    WithholdKey,
    opened,
    refuse_given,
)
from tracereplay.cli.summary import size_words
from tracereplay.engines.known import family_of
from tracereplay.engines.naming import map_of
from tracereplay.engines.roles import with_roles
from tracereplay.errors import UsageError
from tracereplay.event import Site
from tracereplay.sitemap import parts_of
from tracereplay.storage.files import is_url
from tracereplay.store.putting import uploading
from tracereplay.trace import Trace
from tracereplay.trace.bases import Counterparts, PartsOf, by_name
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.sealed import check_recipients
from tracereplay.trace.withheld import Withheld, key_of

__all__ = ["pack"]


def pack(
    context: typer.Context,
    trace: TracePath,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", metavar="FILE", help="File to write, or its URL.", show_default="TRACE.pack"),
    ] = None,
    level: Annotated[
        int | None,
        typer.Option(min=1, max=22, help="zstandard compression level.", show_default="unchanged"),
    ] = None,
    base: BaseTrace = None,
    encrypt_to: EncryptTo = [],  # noqa: B006
    withhold: Withhold = None,
    withhold_key: WithholdKey = None,
    force: Force = False,
) -> None:
    """Pack a trace into one file, which opens like the directory, also from a URL.

    At a URL (s3://BUCKET/golden.pack, with the package for its protocol) the file is whole or not there.

    With --base, tensors are stored as differences from that trace, row by row, where that is smaller. It is then
    needed to read the file.
    """
    check_recipients(encrypt_to)
    key = key_of(withhold, withhold_key)
    if key is not None:
        refuse_given(context, ["level", "base"], "Tokens are withheld from a trace that is packed as it is")
    source = opened(trace)
    if out is None:
        if isinstance(source.path, str):
            raise UsageError("Give the file to write: -o FILE.")
        out = str(source.path.with_name(f"{source.path.name}.pack"))
    golden = opened(base) if base is not None else None
    counterparts = by_name if golden is None else _counterparts(golden, source)
    with _written(out, force, [trace, *filter(None, [base])]) as (path, replace):
        pack_trace(
            source, path, level=level, base=golden, counterparts=counterparts, force=replace,
            recipients=encrypt_to, withheld=None if key is None else Withheld(key),
        )  # fmt: skip
        size = path.stat().st_size
    words = f"Packed {size_words(source.size)} into {size_words(size)}: {out}"
    stderr.print(Text(words), soft_wrap=True)


@contextmanager
def _written(out: str, force: bool, inputs: Sequence[str]) -> Iterator[tuple[Path, bool]]:
    """Where the file is made, and whether one that is there is replaced; then it is put at a URL, if asked."""
    if not is_url(out):
        yield Path(out), force
        return
    with uploading(out, force=force, inputs=inputs) as path:
        yield path, False


def _counterparts(golden: Trace, candidate: Trace) -> Counterparts:
    """By the map of both engines' sites."""

    def parts(base: Mapping[str, Site], sites: Mapping[str, Site]) -> PartsOf:
        theirs = with_roles(sites, family_of(candidate.run.engine)).values()
        return parts_of(map_of(with_roles(base, family_of(golden.run.engine)), theirs))

    return parts
