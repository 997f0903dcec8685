"""The program, run in a test."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from typing import Any

import pytest

from tracereplay.cli.main import main


@dataclass(frozen=True)
class Ended:
    """How the program ended."""

    code: int
    out: str
    err: str

    @property
    def verdict(self) -> dict[str, Any]:
        """What it printed with ``--json -``."""
        found: dict[str, Any] = json.loads(self.out)
        return found


class Program:
    """Runs ``tracereplay`` in this process and returns how it ended."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *words: object) -> Ended:
        self._capture.readouterr()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as ended:
                main([str(word) for word in words])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = self._capture.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)
