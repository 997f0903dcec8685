"""What came of checks as Markdown, short enough for a comment on a pull request.

What comes from a trace stands in ``<code>`` with every sign that Markdown or GitHub gives a meaning written as a
number: so it is neither markup, nor a link, nor a mention of somebody.
"""

from __future__ import annotations

from tracereplay.checks import Result, Results
from tracereplay.report.checks.words import outcome, reasons, said
from tracereplay.report.clean import clean

__all__ = ["MARK", "render"]

MARK = "<!-- tracereplay check -->"  # by which a workflow finds its comment again
ROWS, DETAILS = 40, 10  # rows in the table, and those that are explained
NAME, SENTENCE, COMMAND = 80, 400, 300  # characters
_PLAIN = " ,-/='"  # signs without a meaning
_ICON = {True: "✅", False: "❌"}


def render(results: Results) -> str:
    """At most some 20,000 characters, whatever rows there are; about 600 for four that match."""
    ordered = sorted(results.results, key=lambda result: result.met)  # what is not as expected comes first
    lines = [MARK, f"### {_ICON[not results.unmet]} tracereplay: {results.words}", ""]
    lines += ["| | check | engine | verdict | expected | |", "|---|---|---|---|---|---:|"]
    lines += [_row(result) for result in ordered[:ROWS]]
    lines += _more(len(ordered) - ROWS)
    for result in results.unmet[:DETAILS]:
        lines += _detail(result)
    lines += _more(len(results.unmet) - DETAILS)
    return "\n".join(lines) + "\n"


def _row(result: Result) -> str:
    cells = (
        _ICON[result.met], literal(result.check.name, NAME), literal(result.check.engine, NAME),
        outcome(result), result.check.expected, f"{result.seconds:.0f} s",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _detail(result: Result) -> list[str]:
    lines = ["", f"<details><summary>{literal(result.check.name, NAME)}: {outcome(result)}</summary>", ""]
    lines += [f"- {literal(said(result), SENTENCE)}"]
    lines += [f"- {literal(reason, SENTENCE)}" for reason in reasons(result)]
    last = result.last_lines.strip().splitlines()[-1:]
    lines += [f"- {literal(line, SENTENCE)}" for line in last]
    lines += [f"- Next: {literal(result.next_command, COMMAND)}", "", "</details>"]
    return lines


def _more(count: int) -> list[str]:
    return ["", f"and {count} more"] if count > 0 else []


def literal(text: str, longest: int) -> str:
    """Text as it is, in a fixed-width font."""
    shown = clean(text)
    if len(shown) > longest:
        half = (longest - 1) // 2
        shown = f"{shown[:half]}…{shown[-half:]}"
    return f"<code>{''.join(c if c.isalnum() or c in _PLAIN else f'&#{ord(c)};' for c in shown)}</code>"
