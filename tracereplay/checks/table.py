"""Checks as a TOML file: one table a row. Errors name the row and the key.

::

    [defaults]                # optional: what rows that do not say otherwise have
    engine = "v1"
    [[check]]
    golden = "decode.pack"    # path, from this file's directory, or URL
    engine = "v1"             # a registered engine
    name = "decode"           # by default the golden's name and the engine's
    digest = "9f0c..."        # of golden: another trace there is not used
    settings = {enforce_eager = false}   # engine arguments, over golden's; "null" is none
    model = "models/tiny"     # checkpoint directory, if it has moved since recording
    policy = "policy.toml"    # or "strict": every bit must match
    mode = "injected"         # or rerun, isolated
    expect = "match"          # or diverged, inconclusive
    cause = "rounding"        # of the verdict, where diverged is expected
    accept = ["device"]       # what of golden's signature need not fit: device, format, settings, weights
    prompts = "prompts.jsonl" # what --update records golden from, the first time too; else what golden asks for
    max_tokens = 16           # of prompts that do not say it
    resources = {gpu = 1}     # of a cluster (--ray), which its engine takes
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from tracereplay.checked import Check as Takes
from tracereplay.checked import among, checked, list_of
from tracereplay.errors import UsageError
from tracereplay.storage.files import is_url
from tracereplay.verdict import Cause, Outcome

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["PARTS", "STRICT", "Check", "CheckFile", "load_checks", "read_toml", "selected"]

PARTS = ("device", "format", "settings", "weights")  # of a golden trace's signature
STRICT = "strict"
_TEXT: Takes = (lambda value: isinstance(value, str) and value != "", "text, in quotes")
_DIGEST = re.compile("[0-9a-f]{32}")


def _are_resources(value: Any) -> bool:
    return isinstance(value, Mapping) and all(type(n) in (int, float) and 0 <= n < 1e15 for n in value.values())


_ROW: Mapping[str, Takes] = {
    "golden": _TEXT,
    "engine": _TEXT,
    "name": _TEXT,
    "digest": (
        lambda value: isinstance(value, str) and _DIGEST.fullmatch(value) is not None,
        "32 hexadecimal digits, as `tracereplay show` prints them",
    ),
    "settings": (lambda value: isinstance(value, Mapping), "a table"),
    "model": _TEXT,
    "policy": _TEXT,
    "mode": among("injected", "rerun", "isolated"),
    "expect": among(*get_args(Outcome)),
    "cause": among(*get_args(Cause)),
    "prompts": _TEXT,
    "max_tokens": (lambda value: type(value) is int and value > 0, "a number of tokens, 1 or more"),
    "resources": (_are_resources, "a table of amounts, as in {gpu = 1}"),
    "accept": list_of(lambda part: part in PARTS, f"names of {', '.join(PARTS)}"),
}
_TOKENS = 16
_OF_ONE_ROW = ("golden", "name", "digest")
_HEADER = re.compile(r"^\s*\[\[\s*[\"']?check[\"']?\s*\]\]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Check:
    """A row: a golden trace, an engine that replays it, and what the verdict is expected to be.

    Args:
        name: of the row; no other has it.
        golden: an absolute path, or a URL.
        engine: name of a registered engine.
        digest: what golden's must be, if it is given.
        settings: engine arguments that override golden's.
        model: checkpoint directory, if it has moved since recording.
        policy: a file, `STRICT`, or None for the default tolerances.
        mode: ``injected``, ``rerun`` or ``isolated``.
        expect: the verdict that counts as success.
        cause: the verdict's cause that does, beside that; None: any.
        accept: those of `PARTS` that need not fit.
        prompts: file of what a golden trace is recorded from; None: what the one there asks for.
        max_tokens: of prompts that do not say it.
        resources: of a cluster, which its engine takes; none: what all take.
        line: where the row begins in its file.
    """

    name: str
    golden: str
    engine: str
    digest: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Path | None = None
    policy: str | None = None
    mode: str = "injected"
    expect: str = "match"
    cause: str | None = None
    accept: tuple[str, ...] = ()
    line: int = 1
    prompts: Path | None = None
    max_tokens: int = _TOKENS
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def expected(self) -> str:
        """What is expected, in words."""
        return self.expect if self.cause is None else f"{self.expect} ({self.cause})"


@dataclass(frozen=True, slots=True)
class CheckFile:
    """The rows of a file, in its order."""

    path: Path
    checks: tuple[Check, ...]

    @property
    def lock(self) -> Path:
        """Where it is noted which goldens were accepted, by whom they were made and why: ``checks.lock``."""
        return self.path.with_suffix(".lock")

    def where(self, check: Check, key: str) -> str:
        """A key of a row, for messages."""
        return f"{key!r} of the row {check.name!r} (line {check.line} of {self.path})"


def load_checks(path: Path) -> CheckFile:
    """The checks in a TOML file.

    Raises:
        UsageError: the file cannot be read, or has an unknown key or a wrong value; the message names the row.
    """
    text, document = read_toml(path, "file of checks")
    for key in document:
        if key not in ("check", "defaults"):
            raise UsageError(f"{path} has {key!r}, which is unknown; give [[check]] tables, and [defaults].")
    rows = document.get("check")
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path} has no row; give at least one [[check]] table with 'golden' and 'engine'.")
    about = f"[defaults] in {path}"
    known = {key: takes for key, takes in _ROW.items() if key not in _OF_ONE_ROW}
    defaults = checked(document.get("defaults", {}), known, about, whole=False)
    lines = [text.count("\n", 0, found.end()) + 1 for found in _HEADER.finditer(text)]
    checks = [
        _check(row, number, lines[number] if number < len(lines) else 1, defaults, path)
        for number, row in enumerate(rows)
    ]
    _refuse_twins(checks, path)
    return CheckFile(path, tuple(checks))


def selected(file: CheckFile, only: Sequence[str]) -> tuple[Check, ...]:
    """The rows whose names one of the globs fits; all, without globs.

    Raises:
        UsageError: a glob fits none.
    """
    for glob in only:
        if not any(fnmatchcase(check.name, glob) for check in file.checks):
            names = ", ".join(repr(check.name) for check in file.checks[:10])
            raise UsageError(f"No row of {file.path} is called {glob!r}; there are {names}.")
    return tuple(c for c in file.checks if not only or any(fnmatchcase(c.name, glob) for glob in only))


def read_toml(path: Path, what: str) -> tuple[str, dict[str, Any]]:
    """A TOML file, as text and as what it says.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        return text, tomllib.loads(text)
    except FileNotFoundError as error:
        raise UsageError(f"There is no {what} {path}; give the path of one.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The {what} {path} is not TOML: {error}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"The {what} {path} cannot be read: {error}.") from error


def _check(row: Any, number: int, line: int, defaults: Mapping[str, Any], path: Path) -> Check:
    named = row.get("name") if isinstance(row, dict) else None
    called = f" ({named!r})" if isinstance(named, str) else ""
    about = f"row {number + 1}{called}, line {line} of {path}"
    given = {**defaults, **checked(row, _ROW, about, whole=False)}
    for key in ("golden", "engine"):
        if key not in given:
            raise UsageError(f"The key {key!r} of {about} is missing.")
    given["settings"] = {**defaults.get("settings", {}), **given.get("settings", {})}
    if given.get("cause") is not None and given.get("expect", "match") != "diverged":
        raise UsageError(f"The key 'cause' of {about} needs expect = \"diverged\": nothing else has a cause.")
    if given.get("mode") == "isolated" and given["settings"]:
        raise UsageError(f"The key 'settings' of {about} has no effect: an isolated replay starts no engine.")
    home = path.absolute().parent
    golden = given["golden"] if is_url(given["golden"]) else str(home / given["golden"])
    model, policy, prompts = given.get("model"), given.get("policy"), given.get("prompts")
    return Check(
        name=given.get("name") or f"{Path(given['golden']).stem} {given['engine']}",
        golden=golden,
        engine=given["engine"],
        digest=given.get("digest"),
        settings=_settings(given["settings"], about),
        model=None if model is None else home / Path(model).expanduser(),
        policy=policy if policy in (None, STRICT) else str(home / policy),
        mode=given.get("mode", "injected"),
        expect=given.get("expect", "match"),
        cause=given.get("cause"),
        accept=tuple(given.get("accept", ())),
        line=line,
        prompts=None if prompts is None else home / prompts,
        max_tokens=given.get("max_tokens", _TOKENS),
        resources=given.get("resources", {}),
    )


def _settings(given: Mapping[str, Any], about: str) -> dict[str, Any]:
    """Engine arguments. TOML has no word for None, which ``"null"`` stands for, as in ``--set``."""
    try:
        json.dumps(given)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"The key 'settings' of {about} has a value that no engine takes ({error}); give numbers, text, "
            "true, false, lists and tables."
        ) from error
    return {name.replace("-", "_"): None if value == "null" else value for name, value in given.items()}


def _refuse_twins(checks: Sequence[Check], path: Path) -> None:
    seen: dict[str, Check] = {}
    for check in checks:
        if (other := seen.setdefault(check.name, check)) is not check:
            raise UsageError(
                f"Two rows of {path} are called {check.name!r}, in the lines {other.line} and {check.line}; give "
                "each a 'name' of its own."
            )
