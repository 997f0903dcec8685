"""A verdict that a failed assertion shows as its report."""

from __future__ import annotations

from dataclasses import fields
from io import StringIO

from rich.console import Console

from tracereplay.report import terminal
from tracereplay.verdict import Verdict

__all__ = ["ShownVerdict"]

_WIDTH = 100  # columns; what shows assertions indents them


class ShownVerdict(Verdict):
    """A verdict that is its whole report as text, and a few words where values are named in a line.

    Args:
        verdict: what it is.
        number: which of a test's replays it is the verdict of, so that its ``repr`` is like no other's.
    """

    _number: int

    def __init__(self, verdict: Verdict, number: int) -> None:
        super().__init__(**{field.name: getattr(verdict, field.name) for field in fields(Verdict)})
        object.__setattr__(self, "_number", number)

    def __str__(self) -> str:
        text = StringIO()
        terminal.render(self, Console(file=text, width=_WIDTH, highlight=False, color_system=None))
        return text.getvalue().rstrip()

    def __repr__(self) -> str:
        return f"<verdict {self._number}: {self.verdict.upper()}>"
