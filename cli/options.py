"""Options shared by several commands, and how their values are parsed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from tracereplay.cli.here import path_or_url
from tracereplay.errors import TraceError, UsageError
from tracereplay.gate.adapters import ADAPTERS
from tracereplay.storage.atomic import local_path
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.listing import named

__all__ = [
    "PRIVACY",
    "BaseTrace",
    "CandidateOut",
    "EncryptTo",
    "Everything",
    "Force",
    "GoldenTrace",
    "JsonFile",
    "Log",
    "Logprobs",
    "Lora",
    "MaxTokens",
    "Model",
    "OneRequest",
    "OneStep",
    "PassName",
    "PolicyFile",
    "Prompts",
    "Samples",
    "SamplingSeed",
    "Settings",
    "Strict",
    "Temperature",
    "TracePath",
    "UseOracle",
    "Withhold",
    "WithholdKey",
    "assignments",
    "given_words",
    "local_path",
    "one_request",
    "opened",
    "read_from",
    "refuse_given",
    "with_lora",
]


TracePath = Annotated[
    str, typer.Argument(metavar="TRACE", help="A trace: a directory, a packed file, or a URL.", show_default=False)
]
BaseTrace = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="TRACE",
        help="Trace that TRACE stores its differences from, if not in the same directory.",
        show_default=False,
    ),
]
PassName = Annotated[
    str | None,
    typer.Option("--pass", help="Pass to read: record, injected or rerun.", show_default="the first of these"),
]
OneStep = Annotated[
    int | None, typer.Option("--step", min=0, help="Number of the only step to select.", show_default=False)
]
OneRequest = Annotated[
    str | None,
    typer.Option(
        "--request",
        metavar="ID",
        help="The only request to select: its number, its id, or how its id begins.",
        show_default=False,
    ),
]

GoldenTrace = Annotated[
    Path,
    typer.Argument(
        parser=path_or_url, metavar="GOLDEN", help="The trusted recording, or its URL.", show_default=False
    ),
]
Model = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Checkpoint directory, if it has moved.", show_default=False),
]

Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE.jsonl", help="Prompts, one JSON object per line.", show_default=False),
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Number of tokens to generate per prompt.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")]
SamplingSeed = Annotated[int | None, typer.Option("--seed", help="Sampling seed.", show_default=False)]
Logprobs = Annotated[int, typer.Option(min=0, help="Number of alternative tokens to report logprobs for.")]
Samples = Annotated[int, typer.Option("--n", min=1, help="Number of samples per prompt.")]

Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Engine argument, such as enforce_eager=false."),
]
Lora = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=DIR", help="Directory of an adapter (LoRA) that requests name; may be given more than once.",
        show_default=False,
    ),
]  # fmt: skip
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="FILE", help="Tolerances as TOML, such as calibrate writes.", show_default=False
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Tolerate no difference: every bit must match.")]
UseOracle = Annotated[
    bool,
    typer.Option("--oracle", help="Compare both sides with float64 references, and say which is more accurate."),
]
CandidateOut = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--out",
        parser=local_path,
        metavar="TRACE",
        help="Path to keep the candidate's trace at.",
        show_default=False,
    ),
]
PRIVACY = "Privacy"  # a group of options
EncryptTo = Annotated[
    list[str],
    typer.Option(
        rich_help_panel=PRIVACY,
        metavar="AGE1...",
        help="Public key (age) of the only one who can read what is written; may be given more than once.",
        show_default=False,
    ),
]


class Kept(str, Enum):
    """See ``--withhold``."""

    tokens = "tokens"


Withhold = Annotated[
    Kept | None,
    typer.Option(
        rich_help_panel=PRIVACY,
        help="Keep prompts and outputs out of what is written; it can be compared, but not generated again.",
        show_default=False,
    ),
]
WithholdKey = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=PRIVACY,
        metavar="FILE",
        help="Key of the digests that stand for tokens, made if missing: traces of one key can be compared.",
        show_default="one that is thrown away",
    ),
]
Everything = Annotated[
    bool, typer.Option("--all", help="Show every site, edge, setting and note, not only the first few.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing trace.")]
Log = Annotated[
    Path | None,
    typer.Option(
        "--log",
        metavar="FILE",
        help="File to keep the engine's output in; an existing log is appended to.",
        show_default=False,
    ),
]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="File to write as JSON; - is stdout.", show_default=False),
]


def opened(path: str, base: str | None = None) -> Trace:
    """The trace at a path or URL."""
    return open_trace(path, None if base is None else open_trace(base))


def one_request(trace: Trace, text: str) -> int:
    """The number of the request that ``--request`` names.

    Raises:
        UsageError: there is none, or there are several.
    """
    numbers = sorted({request for request, _ in named(trace, text)})
    if len(numbers) > 1:
        raise UsageError(f"{text!r} names the requests {', '.join(map(str, numbers))}; give the number of one.")
    return numbers[0]


def refuse_given(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Raises UsageError if options were given that would be ignored.

    Args:
        context: of the verb.
        names: of the parameters behind them.
        why: a sentence without its end, to which "leave out" and the options are added.
    """
    options = {parameter.name: max(parameter.opts, key=len) for parameter in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [
        options[name] for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"
    ]
    if given:
        raise UsageError(f"{why}; leave out {', '.join(given)}.")


def read_from(*paths: str | Path | None) -> list[Path]:
    """The local files that reading some traces needs; for a trace that cannot be opened, only its own path."""
    found = [Path(path) for path in paths if path is not None]
    for path in tuple(found):
        with suppress(TraceError), open_trace(path) as trace:
            found += trace.read_from
    return found


def assignments(texts: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """``KEY=VALUE`` as a dictionary; a value that is JSON (``2``, ``true``, ``null``) is parsed, else it is text.

    Raises:
        UsageError: a text is not of that form.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {text!r} is not of the form KEY=VALUE.")
        found[key.strip().replace("-", "_")] = _value(value)
    return found


def given_words(
    settings: Iterable[str], lora: Iterable[str] = (), model: Path | None = None, policy: Path | None = None,
    strict: bool = False,
) -> tuple[tuple[str, ...], ...]:  # fmt: skip
    """The options that a candidate was run with, for the next command: each with its value."""
    return (
        *(("--set", text) for text in settings),
        *(("--lora", text) for text in lora),
        *((("--model", str(model)),) if model is not None else ()),
        *((("--policy", str(policy)),) if policy is not None else ()),
        *((("--strict",),) if strict else ()),
    )


def with_lora(settings: Mapping[str, Any], lora: Iterable[str]) -> dict[str, Any]:
    """Engine arguments with the directories of adapters among them, as `gate.workload_of` takes them."""
    found: dict[str, str] = {}
    for text in lora:
        name, equals, directory = text.partition("=")
        if not name or not equals or not directory:
            raise UsageError(f"--lora {text!r} is not of the form NAME=DIR.")
        found[name] = directory
    return {**settings, ADAPTERS: found} if found else dict(settings)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
