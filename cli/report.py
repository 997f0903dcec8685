"""``tracereplay report``: show a verdict saved as JSON, or that of two traces; as a page with ``-o``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tracereplay.cli.checks import policy_of, rules_words
from tracereplay.cli.console import tell
from tracereplay.cli.files import PAGE, check_output, write_text
from tracereplay.cli.options import Model, PolicyFile, Strict, local_path, opened, refuse_given
from tracereplay.cli.texts import decoder
from tracereplay.comparator import compare_traces
from tracereplay.comparator.numbers.tolerance import Policy
from tracereplay.errors import UsageError
from tracereplay.report import invariance, terminal
from tracereplay.report.layout import report_console
from tracereplay.verdict import Verdict
from tracereplay.verdict.invariance import Invariance

__all__ = ["report"]


def report(
    context: typer.Context,
    verdict: Annotated[
        str,
        typer.Argument(
            metavar="VERDICT.json|GOLDEN", help="File written by --json, or the trusted recording.",
            show_default=False,
        ),
    ],
    candidate: Annotated[
        str | None,
        typer.Argument(metavar="[CANDIDATE]", help="With GOLDEN, what is compared with it.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", parser=local_path, metavar="FILE.html", help="Write one HTML file instead.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every site, edge and note, not only the first few.")
    ] = False,
    policy: PolicyFile = None,
    strict: Strict = False,
    model: Model = None,
) -> None:  # fmt: skip
    """Show a verdict written by --json, or that of two traces; exits with 0 whatever the verdict."""
    if out is None:
        refuse_given(context, ["model"], "Only a page written by -o shows tokens as text")
    else:
        refuse_given(context, ["everything"], "A page written by -o shows everything")
        check_output("-o", out, PAGE)
    if candidate is None:
        refuse_given(context, ["policy", "strict", "model"], "A verdict was judged, and its traces are not read")
        _saved(Path(verdict), out, everything)
    else:
        whole = "tracereplay", "report", verdict, candidate, *rules_words(policy, strict), "--all"
        _compared(verdict, candidate, policy_of(policy, strict), model, out, everything, whole)


def _saved(path: Path, out: Path | None, everything: bool) -> None:
    data, console = read_json(path), report_console()
    if "invariant" not in data:
        found = Verdict.from_dict(data)
        if out is None:
            whole = "tracereplay", "report", str(path), "--all"
            terminal.render(found, console, everything=everything, whole=whole)
        else:
            _write(out, _page_of(found, path))
    elif out is None:
        invariance.render(Invariance.from_dict(data), console)
    else:
        raise UsageError(f"{path} is a verdict of invariance, which has no page; leave out -o.")


def _page_of(verdict: Verdict, path: Path) -> str:
    from tracereplay.report import html  # with its templates, only when there is a page to write

    try:
        return html.render(verdict)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UsageError(
            f"{path} is not a verdict that can be shown: {error}; give a file written by --json."
        ) from None


def _compared(
    golden: str, candidate: str, policy: Policy, model: Path | None, out: Path | None, everything: bool,
    whole: Sequence[str],
) -> None:  # fmt: skip
    if out is None:
        found = compare_traces(golden, candidate, policy)
        terminal.render(found, report_console(), everything=everything, whole=whole)
        return
    from tracereplay.comparator.details import Details
    from tracereplay.report import html

    with opened(golden, None) as mine, opened(candidate, None) as theirs:
        details, decode = Details(), decoder(mine, model)
        found = compare_traces(mine, theirs, policy, details=details)
        _write(out, html.render(found, details, decode=decode, limit=policy.logprob_max_abs))


def _write(out: Path, page: str) -> None:
    write_text(out, page)
    tell(f"The report is in {out}.")


def read_json(path: Path) -> Mapping[str, Any]:
    """What a JSON file says.

    Raises:
        UsageError: it cannot be read, or is not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"The verdict {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}; give a file written by --json.") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} is not a verdict; give a file written by --json.")
    return data
