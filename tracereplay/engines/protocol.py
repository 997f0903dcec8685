"""The driver's side of the protocol that `launch.process` speaks: commands from stdin, one JSON object a line.

    {"do": "start", "model": DIR, "settings": {...}}          -> {"ok": {...the engine's description}}
    {"do": "tokenize", "texts": [...]}                        -> {"ok": [[ids], ...]}
    {"do": "generate", "prompts": [...], "recording": {...}}  -> {"ok": {"requests": [...], "seconds": s, ...}}
    end of input                                              -> the process ends

An answer may be ``{"error": sentence, "exit_code": n}``. The engine's own output is redirected to stderr,
since stdout carries the answers.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import traceback
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from tracereplay.errors import TracereplayError

__all__ = ["Driver", "serve", "unknown_setting"]


class Driver(Protocol):
    """One engine; each method answers the command of its name."""

    def start(self, model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Starts the engine on a checkpoint directory, and returns its description."""

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of ``texts``."""

    def generate(self, prompts: list[Mapping[str, Any]], recording: Mapping[str, Any] | None) -> dict[str, Any]:
        """Generates once; records if ``recording`` says where (`launch.jobs.record_pass`)."""


def serve(driver: Driver) -> None:
    """Handles commands until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        out.write(json.dumps(_carry_out(driver, json.loads(line))) + "\n")
        out.flush()


def unknown_setting(name: str, known: Collection[str]) -> str:
    """The error message for an unknown setting, with similar names."""
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    return f"This engine has no setting {name!r}{hint}"


def _carry_out(driver: Driver, command: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"ok": getattr(driver, command.pop("do"))(**command)}
    except TracereplayError as error:
        return {"error": str(error), "exit_code": error.exit_code, "kind": type(error).__name__}
    except BaseException as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}", "exit_code": 4, "crashed": True}
