"""In which forms ``check`` writes what came of checks, and what of that replaces an earlier file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import Enum
from io import StringIO
from pathlib import Path

import typer
from rich.console import Console

from tracereplay.checks import Results
from tracereplay.cli.files import FileKind, check_output
from tracereplay.errors import UsageError
from tracereplay.report.checks import github, junit, machine, markdown, perfetto, table
from tracereplay.storage.atomic import written

__all__ = ["Form", "append_summary", "check_form", "deliver_form", "summary_file"]

_READ = 1 << 16  # bytes of a file that tell what it is


class Form(str, Enum):
    """See ``--format``."""

    table = "table"
    junit = "junit"
    markdown = "markdown"
    github = "github"
    json = "json"
    perfetto = "perfetto"


def _as_table(results: Results) -> str:
    text = StringIO()
    table.render(results, Console(file=text, highlight=False, color_system=None))
    return text.getvalue()


_RENDER: Mapping[Form, Callable[[Results], str | bytes]] = {
    Form.table: _as_table,
    Form.junit: junit.render,
    Form.markdown: markdown.render,
    Form.github: github.render,
    Form.json: machine.render,
    Form.perfetto: perfetto.render,
}
# What a file of each form has in its beginning.
_MARKS: Mapping[Form, bytes] = {
    Form.table: b"check",
    Form.junit: b'<testsuite name="tracereplay ',
    Form.markdown: markdown.MARK.encode(),
    Form.github: b"::",
    Form.json: b'"checks": [',
    Form.perfetto: perfetto.MARK,
}


def check_form(out: Path | None, form: Form) -> None:
    """Raises UsageError if ``-o`` cannot be written, or holds something else than an earlier one of that form."""
    if form is Form.perfetto:
        perfetto.check_perfetto()
        if out is None:
            raise UsageError("A Perfetto trace is a binary file; say with -o FILE where it goes.")
    if out is None:
        return

    def known(path: Path) -> bool:
        with path.open("rb") as file:
            return _MARKS[form] in file.read(_READ)

    check_output("--out", out, FileKind(f"a file written by check --format {form.value}", known))


def deliver_form(results: Results, form: Form, out: Path | None) -> None:
    """Writes results to a file, and a table for whoever looks on; without a file, only them, to stdout."""
    if out is None and form is not Form.table:
        typer.echo(_RENDER[form](results), nl=False)
        return
    table.render(results, Console(highlight=False))
    if out is not None:
        text = _RENDER[form](results)
        with written(out) as file:
            file.write(text if isinstance(text, bytes) else text.encode(errors="backslashreplace"))


def summary_file() -> Path | None:
    """Where a workflow of GitHub's wants its summary; None if it is none."""
    named = os.environ.get(github.SUMMARY)
    return Path(named) if named else None


def append_summary(file: Path, results: Results) -> None:
    """Adds what came of checks to the summary, in which other steps may have written, too."""
    with file.open("a", encoding="utf-8") as out:
        out.write(markdown.render(results))
