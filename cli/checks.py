"""What options ask for, looked at before anything slow starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracereplay.cli.files import LOG, VERDICT, check_distinct, check_output
from tracereplay.comparator import Policy, load_policy
from tracereplay.errors import UsageError
from tracereplay.gate import check_request
from tracereplay.passes import RECORD
from tracereplay.trace import open_trace

__all__ = ["check_golden", "check_json", "check_log", "policy_of", "rules_words"]


def policy_of(file: Path | None, strict: bool) -> Policy:
    """The policy that ``--policy`` and ``--strict`` ask for."""
    policy = Policy() if file is None else load_policy(file)
    return policy.made_strict() if strict else policy


def rules_words(file: Path | None, strict: bool) -> tuple[str, ...]:
    """The same options as words of a command."""
    return (*(("--policy", str(file)) if file is not None else ()), *(("--strict",) if strict else ()))


def check_json(file: str | None) -> None:
    """Raises UsageError if ``--json`` cannot be written, before anything slow starts."""
    if file not in (None, "-"):
        check_output("--json", Path(str(file)), VERDICT)


def check_log(file: Path | None, json_file: str | None = None) -> None:
    """Raises UsageError if ``--log`` cannot be written or is ``--json``'s file, before anything slow starts."""
    if file is None:
        return
    check_distinct({"--json": json_file, "--log": file})
    check_output("--log", file, LOG)
    if file.exists() and not file.is_file():
        raise UsageError(f"--log {file} cannot be written: it is not a file.")


def check_golden(golden: Path, given: Mapping[str, Any], model: Path | None) -> None:
    """Raises if a golden trace's request is refused, before anything slow starts (`gate.check_request`)."""
    with open_trace(golden) as trace:
        if RECORD in trace.passes:  # what is no recording, the verb itself refuses
            check_request(trace, given, model)
