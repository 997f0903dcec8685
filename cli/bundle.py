"""``tracereplay bundle``: two traces as one ZIP file to attach to a bug report; and whether such a file is one."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tracereplay.bundle import Bundle, Redaction, check_bundle, make_bundle
from tracereplay.cli.checks import policy_of
from tracereplay.cli.console import progress, tell
from tracereplay.cli.files import ZIPPED, check_output
from tracereplay.cli.options import Model, PolicyFile, Settings, Strict, assignments, local_path, refuse_given
from tracereplay.cli.summary import size_words
from tracereplay.cli.texts import Decode, decoder
from tracereplay.environments import load_engine
from tracereplay.errors import UsageError
from tracereplay.launch.budget import bytes_of
from tracereplay.trace import Trace

__all__ = ["bundle"]

_MAKING = (
    "golden", "candidate", "out", "max_size", "redact", "whole", "engine", "settings", "weights", "policy",
    "strict", "model",
)  # fmt: skip


def bundle(
    context: typer.Context,
    golden: Annotated[
        str | None, typer.Argument(metavar="GOLDEN", help="The trusted recording.", show_default=False)
    ] = None,
    candidate: Annotated[
        str | None, typer.Argument(metavar="CANDIDATE", help="What is compared with it.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", parser=local_path, metavar="FILE.zip", help="File to write.", show_default=False
        ),
    ] = None,
    max_size: Annotated[
        str, typer.Option(metavar="BYTES", help="Bytes that the file may have; GitHub takes 25 MB.")
    ] = "24MB",
    redact: Annotated[
        Redaction | None,
        typer.Option(
            help="Also leave out: texts of prompts; tokens, and what says directly which they were; or tensors' "
            "values, for which statistics stand.",
            show_default=False,
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Take all of the traces, not the smallest part that shows the same.")
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The candidate's engine: smaller traces are replayed by it (with --set as it was), so that they "
            "are known to show the same again.",
            show_default=False,
        ),
    ] = None,
    settings: Settings = [],  # noqa: B006
    weights: Annotated[
        bool, typer.Option("--with-weights", help="Add the model's tensors and configuration, if it is small.")
    ] = False,
    policy: PolicyFile = None,
    strict: Strict = False,
    model: Model = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check", parser=local_path, metavar="FILE.zip",
            help="Say instead whether a bundle is what it lists, and safe to open; nothing in it is executed.",
            show_default=False,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Make one file of two traces that shows what differs, to attach to a bug report; or check such a file.

    Users, machines, paths and environment variables are never in it; prompts are, unless --redact says otherwise.
    """
    if check is not None:
        refuse_given(context, _MAKING, "--check reads a bundle and makes none")
        _tell_checked(check, check_bundle(check))
        return
    if golden is None or candidate is None or out is None:
        raise UsageError("Give GOLDEN, CANDIDATE and -o FILE.zip to make a bundle, or --check FILE.zip.")
    check_output("-o", out, ZIPPED)
    if whole:
        refuse_given(context, ["engine", "settings"], "--whole makes nothing smaller, and needs no engine for it")
    if redact is Redaction.tokens:
        refuse_given(context, ["engine", "settings"], "No engine can replay a bundle without tokens")
    most, known = bytes_of(max_size, "--max-size"), None if engine is None else load_engine(engine)
    with progress("Making a bundle") as report:
        made = make_bundle(
            golden, candidate, out, max_size=most, policy=policy_of(policy, strict), redaction=redact, whole=whole,
            engine=known, settings=assignments(settings), model=model, weights=weights,
            decoder=partial(_decoder, model=model), report=report,
        )  # fmt: skip
    tell(f"The bundle is in {out} ({size_words(made.size)}). Its README.md is the report; look through it first.")
    for line in (*made.contents.reduced, *made.contents.absent):
        tell(line)
    if redact is None:
        tell("It holds prompts and outputs: --redact prompts, tokens or values leaves them out.")
    if made.contents.verdict != made.contents.whole:
        tell("What was left out changes what it shows; its README.md says what the whole traces show.")


def _decoder(trace: Trace, model: Path | None) -> Decode | None:
    """What makes text of tokens; a model that is given for its weights need not have a tokenizer."""
    with suppress(UsageError):
        return decoder(trace, model)
    return None


def _tell_checked(path: Path, found: Bundle) -> None:
    manifest = found.contents
    kept = "" if manifest.redacted is None else f", made without {manifest.redacted.value}"
    count = len(manifest.files) + 1
    tell(
        f"{path} is intact: {count} files, {size_words(found.inflated)}{kept}. It shows: {found.verdict.verdict}. "
        "Nothing in it was executed."
    )
