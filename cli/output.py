"""What commands make: a verdict on stdout or in a file, and traces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from tracereplay.cli.files import write_text
from tracereplay.cli.texts import decoder
from tracereplay.comparator.judging.outcome import judge_unrun
from tracereplay.errors import OtherWeights, TracereplayError
from tracereplay.report import json as json_form
from tracereplay.report import terminal
from tracereplay.report.layout import report_console
from tracereplay.report.next_step import Given
from tracereplay.report.story import TextOf
from tracereplay.store.cache import addressed
from tracereplay.trace import open_trace
from tracereplay.verdict import Mode, Verdict

__all__ = ["deliver", "weights_first"]


def deliver(
    verdict: Verdict, json_file: str | None, *, given: Given | None = None, everything: bool = False,
    whole: Sequence[str] | None = None, model: Path | None = None,
) -> int:  # fmt: skip
    """Prints the verdict, or its JSON alone for ``-``; returns the exit code.

    Args:
        verdict: what to print.
        json_file: where its JSON goes as well.
        given: the options that the candidate was run with; None: they are not known.
        everything: print all of it.
        whole: the command that prints all of it; None: `report`, of its JSON.
        model: the user's directory of the model, whose tokenizer makes text of tokens.
    """
    text = None if json_file == "-" else _text_of(verdict, model)
    verdict = addressed(verdict)
    if json_file == "-":
        typer.echo(json_form.render(verdict), nl=False)
        return verdict.exit_code
    if json_file is not None:
        write_text(Path(json_file), json_form.render(verdict))
    told = whole or ("tracereplay", "report", json_file or "FILE", "--all")
    before = "" if whole or json_file else "run this again with --json FILE, and then:"
    terminal.render(
        verdict, report_console(), everything=everything, given=given, whole=told,
        before=before, text=text,
    )  # fmt: skip
    return verdict.exit_code


def _text_of(verdict: Verdict, model: Path | None) -> TextOf | None:
    """What makes text of a token, if the tokenizer of golden's model is at hand and any token differs."""
    if verdict.tokens.first_divergence is None or "://" in verdict.golden.trace:
        return None
    with suppress(TracereplayError, OSError), open_trace(verdict.golden.trace) as trace:
        decode = decoder(trace, model)
        return None if decode is None else lambda token: decode([token])
    return None


@contextmanager
def weights_first(
    golden: Path, engine: str, json_file: str | None, mode: Mode = "injected", given: Given | None = None
) -> Iterator[None]:
    """Delivers a verdict of its own and exits if the body finds that the weights differ from golden's."""
    try:
        yield
    except OtherWeights as found:
        with open_trace(golden) as trace:
            verdict = judge_unrun(trace, engine, found, mode)
        raise typer.Exit(deliver(verdict, json_file, given=given)) from None
