"""What came of each row, and the exit code of all."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracereplay.checks.table import STRICT, Check
from tracereplay.verdict import Verdict

__all__ = ["FAILED", "Result", "Results", "code_of", "replay_command"]

# From worst to none: a defect of ours, wrong usage, an unreadable trace, a failed engine, diverged, inconclusive.
_WORST = (70, 2, 5, 4, 1, 3, 0)
_DIVERGED, _INCONCLUSIVE = 1, 3
FAILED = "failed"  # a row without a verdict


def code_of(check: Check, verdict: Verdict) -> int:
    """A row's exit code: 0 where the verdict is the expected one.

    An unexpected match counts as diverged: what the row says of the engine is no longer so.
    """
    if verdict.verdict == check.expect and check.cause in (None, verdict.cause):
        return 0
    return _INCONCLUSIVE if verdict.verdict == "inconclusive" else _DIVERGED


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a row.

    Args:
        check: the row.
        exit_code: 0 if it met what was expected.
        seconds: it took, a shared engine's start counted where it was started.
        verdict: None where there is none.
        error: why there is none, a sentence.
        last_lines: of the engine that failed.
        kept: the verdict's file, if it was kept.
        traces: golden's and the candidate's, if they were kept and could be compared.
    """

    check: Check
    exit_code: int
    seconds: float = 0.0
    verdict: Verdict | None = None
    error: str | None = None
    last_lines: str = ""
    kept: Path | None = None
    traces: tuple[Path, Path] | None = None

    @property
    def met(self) -> bool:
        """Whether it is what was expected."""
        return self.exit_code == 0

    @property
    def outcome(self) -> str:
        """The verdict, or `FAILED`."""
        return FAILED if self.verdict is None else self.verdict.verdict

    @property
    def next_command(self) -> str:
        """What shows more of it."""
        return replay_command(self.check) if self.kept is None else f"tracereplay report {_quoted(self.kept)}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        check = self.check
        return {
            "name": check.name, "golden": check.golden, "engine": check.engine, "mode": check.mode,
            "settings": dict(check.settings), "expect": check.expect, "cause": check.cause, "met": self.met,
            "outcome": self.outcome, "exit_code": self.exit_code, "seconds": round(self.seconds, 3),
            "error": self.error, "next": self.next_command,
            "verdict": None if self.verdict is None else self.verdict.as_dict(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Results:
    """What came of a file's rows, in its order."""

    path: Path
    results: tuple[Result, ...]

    @property
    def exit_code(self) -> int:
        """The worst of the rows': 2, 5, 4, 1, 3, 0 in this order."""
        return min((result.exit_code for result in self.results), key=_WORST.index, default=0)

    @property
    def unmet(self) -> tuple[Result, ...]:
        """Those that are not as expected."""
        return tuple(result for result in self.results if not result.met)

    @property
    def seconds(self) -> float:
        return sum(result.seconds for result in self.results)

    @property
    def words(self) -> str:
        """All in one sentence."""
        count, unmet = len(self.results), len(self.unmet)
        rows = "1 check" if count == 1 else f"{count} checks"
        if not unmet:
            return f"{rows}: as expected" if count == 1 else f"{rows}: all as expected"
        return f"{rows}: not as expected" if count == 1 else f"{rows}: {unmet} not as expected"

    def not_kept(self) -> Results:
        """The same, where verdicts do not stay where they were written."""
        return replace(self, results=tuple(replace(result, kept=None) for result in self.results))

    def as_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "schema": 1, "checks": [result.as_dict() for result in self.results], "exit_code": self.exit_code,
        }  # fmt: skip


def replay_command(check: Check) -> str:
    """The command that replays a row alone, with its whole report."""
    words: list[object] = ["tracereplay", "replay", check.golden, "--engine", check.engine]
    if check.mode != "injected":
        words += ["--mode", check.mode]
    for name, value in check.settings.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    if check.model is not None:
        words += ["--model", check.model]
    if check.policy is not None:
        words += ["--strict"] if check.policy == STRICT else ["--policy", check.policy]
    return " ".join(map(_quoted, words))


def _quoted(word: object) -> str:
    return shlex.quote(str(word))
