"""What came of checks as workflow commands of GitHub Actions, which show at the lines of ``checks.toml``."""

from __future__ import annotations

import os
from pathlib import Path

from tracereplay.checks import Result, Results
from tracereplay.report.checks.words import outcome, reasons, said
from tracereplay.report.clean import clean

__all__ = ["SUMMARY", "render"]

SUMMARY = "GITHUB_STEP_SUMMARY"  # the file to which Markdown for the run's page is appended
_NOTICE = "notice"


def render(results: Results) -> str:
    """A line a row that is not as expected, and one for all."""
    lines = [_annotation(results.path, result) for result in results.unmet]
    lines.append(_command(_NOTICE, {"title": "tracereplay"}, results.words))
    return "\n".join(lines) + "\n"


def _annotation(path: Path, result: Result) -> str:
    where = {"file": _from_root(path), "line": str(result.check.line)}
    title = f"{clean(result.check.name)}: {outcome(result)}"
    lines = [said(result), *reasons(result), f"Next: {clean(result.next_command)}"]
    return _command("error", {**where, "title": title}, "\n".join(lines))


def _from_root(path: Path) -> str:
    """As annotations name files: from the root of the repository."""
    root = os.environ.get("GITHUB_WORKSPACE") or os.getcwd()
    whole = os.path.abspath(path)
    return os.path.relpath(whole, root) if Path(whole).is_relative_to(os.path.abspath(root)) else str(path)


def _command(name: str, properties: dict[str, str], message: str) -> str:
    """As `@actions/core` writes it: what would end a property or a line is escaped."""
    given = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{name} {given}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
