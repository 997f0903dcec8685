"""The driver's side of the protocol that `launch.process` speaks: commands from stdin, one JSON object a line.

    {"do": "start", "model": DIR, "settings": {...}, "inherited": [...]}
                                                              -> {"ok": {...the engine's description}}
    {"do": "tokenize", "texts": [...]}                        -> {"ok": [[ids], ...]}
    {"do": "generate", "prompts": [...], "recording": {...}}  -> {"ok": {"requests": [...], "seconds": s, ...}}
    end of input                                              -> the process ends

``inherited`` names settings of another engine's, which hold only where this one has them.
``recording`` is a `request.PassRequest`, or null to record nothing.
An answer may be ``{"error": sentence, "exit_code": n}``. The engine's own output is redirected to stderr,
since stdout carries the answers.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from tracereplay.checked import similar
from tracereplay.engines.request import PassRequest
from tracereplay.errors import TracereplayError

__all__ = ["Driver", "serve", "unknown_setting", "without_unknown"]


class Driver(Protocol):
    """One engine; each method answers the command of its name."""

    def start(self, model: str, settings: Mapping[str, Any], inherited: Collection[str] = ()) -> dict[str, Any]:
        """Starts the engine on a checkpoint directory, and returns its description.

        Args:
            model: the directory.
            settings: engine arguments.
            inherited: names of those that are left out if this engine does not know them.
        """

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of ``texts``."""

    def generate(self, prompts: list[Mapping[str, Any]], recording: PassRequest | None) -> dict[str, Any]:
        """Generates once; ``recording`` is what pass to make of it, None to record nothing."""


def serve(driver: Driver) -> None:
    """Handles commands until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        out.write(json.dumps(_carry_out(driver, json.loads(line))) + "\n")
        out.flush()


def without_unknown(
    settings: Mapping[str, Any], inherited: Collection[str], known: Collection[str]
) -> dict[str, Any]:
    """``settings`` without those among ``inherited`` that are not ``known`` to the engine."""
    return {name: value for name, value in settings.items() if name in known or name not in inherited}


def unknown_setting(name: str, known: Collection[str]) -> str:
    """The error message for an unknown setting, with similar names."""
    return f"This engine has no setting {name!r}{similar(name, known)}"


def _carry_out(driver: Driver, command: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"ok": _answer(driver, **command)}
    except TracereplayError as error:
        return {"error": str(error), "exit_code": error.exit_code, "kind": type(error).__name__}
    except BaseException as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}", "exit_code": 4, "crashed": True}


def _answer(driver: Driver, do: str, **arguments: Any) -> Any:
    """What the driver answers; here plain data becomes a request."""
    if arguments.get("recording") is not None:
        arguments["recording"] = PassRequest.from_dict(arguments["recording"])
    return getattr(driver, do)(**arguments)
