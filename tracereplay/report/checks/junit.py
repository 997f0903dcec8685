"""What came of checks as JUnit XML: a test case a row.

Diverged, or an unexpected match, is a failure; what could not be judged (inconclusive, or codes 2 to 5) an error.
"""

from __future__ import annotations

import datetime
from xml.etree import ElementTree

from tracereplay.checks import Result, Results
from tracereplay.report.checks.words import outcome, reasons, said
from tracereplay.report.clean import clean

__all__ = ["render"]

_DIVERGED = 1
_LONGEST = 20_000  # characters of a failure


def render(results: Results) -> str:
    """An XML document with one suite."""
    root = ElementTree.Element("testsuites")
    failures = sum(result.exit_code == _DIVERGED for result in results.results)
    suite = ElementTree.SubElement(
        root, "testsuite", name=_text(f"tracereplay {results.path.name}"), tests=str(len(results.results)),
        failures=str(failures), errors=str(len(results.unmet) - failures), skipped="0",
        time=_seconds(results.seconds),
        timestamp=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
        hostname="localhost",
    )  # fmt: skip
    for result in results.results:
        _case(suite, result, results)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _case(suite: ElementTree.Element, result: Result, results: Results) -> None:
    check = result.check
    case = ElementTree.SubElement(
        suite, "testcase", name=_text(check.name), classname=_text(f"{results.path.stem}.{check.engine}"),
        time=_seconds(result.seconds),
    )  # fmt: skip
    if not result.met:
        kind = "failure" if result.exit_code == _DIVERGED else "error"
        what = ElementTree.SubElement(case, kind, message=_text(said(result)), type=_text(outcome(result)))
        lines = [said(result), *reasons(result), *result.last_lines.splitlines()]
        lines.append(f"Expected: {check.expected}. Next: {result.next_command}")
        what.text = "\n".join(map(_text, lines))[:_LONGEST]
    told = [f"{outcome(result)}; golden {check.golden}, engine {check.engine}, mode {check.mode}"]
    ElementTree.SubElement(case, "system-out").text = "\n".join(map(_text, told))


def _seconds(value: float) -> str:
    return f"{value:.3f}"


def _text(value: str) -> str:
    """Without what XML cannot hold: control characters, and what is no character."""
    return clean(value)
