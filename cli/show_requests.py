"""``tracereplay show``, of requests: who asked for what, and what became of it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from tracereplay.cli.texts import Decode, one_line, why_no_text
from tracereplay.report.clean import clean
from tracereplay.report.layout import Row, cell, command_lines, indented, labelled, print_rows, sentence_room
from tracereplay.trace import Trace
from tracereplay.trace.known import served_names
from tracereplay.trace.listing import Listed, detailed, listed
from tracereplay.trace.requests import Identity, Moment

__all__ = ["FIRST", "as_json", "check_json", "print_requests", "show_one"]

FIRST = 20  # requests that are listed
_LONG = 2000  # characters of a text
_LABEL = 13  # columns of the names of facts
_STEPS = 8  # steps of a request that are listed


# -- a list -------------------------------------------------------------------------------------------------


def print_requests(
    trace: Trace, pass_name: str, console: Console, decode: Decode | None, most: int | None
) -> None:
    """Lists the first requests of a pass; nothing if it has none."""
    found, count = listed(trace, pass_name, most)
    if not found:
        return
    arrivals = [one.identity.arrived for one in found if one.identity is not None and one.identity.arrived]
    days = {f"{_datetime(moment):%Y-%m-%d}" for moment in arrivals}
    day = f", of {days.pop()} (UTC)" if len(days) == 1 else " (times are UTC)" if days else ""
    known = any(one.identity is not None for one in found)
    headers = "request", *(("id", "arrived", "took") if known else ()), "prompt", "tokens", "end"
    room = sentence_room(console)
    with_day = not day.startswith(",")
    rows = [
        Row(list(map(_cell, _row(one, known, with_day))), [_cell(_said_and_got(one, decode, room))])
        for one in found
    ]
    console.print()
    console.print(Text(f"requests of {clean(pass_name)}{day}", style="bold"))
    print_rows(console, headers, rows)
    if count > len(found):
        console.print(_cell(f"  and {count - len(found)} more; --all lists them"))
    if decode is None and trace.run.withheld is None:
        indented(console, f"tokens are shown by their numbers: {clean(why_no_text(trace))}", style="dim")


def _row(one: Listed, known: bool, with_day: bool) -> Iterator[str]:
    identity = one.identity
    yield _number(one)
    if known:
        yield "" if identity is None else identity.client_id or identity.id
        yield _time(identity.arrived if identity else None, with_day)
        yield _took(identity)
    yield "" if one.prompt is None else str(len(one.prompt))
    yield _count(one)
    yield ", ".join(filter(None, (one.reason, "not whole" if one.lacking else "")))


def _said_and_got(one: Listed, decode: Decode | None, room: int | None) -> str:
    """Prompt and output, each cut to half of that many columns; None: as long as they are."""
    most = _LONG if room is None else max((room - 16) // 2, 8)
    given = _quoted_text(_shortened(one.text, most)) if one.text else None
    prompt = given or _told(one.prompt or (), decode, most)
    return f"{prompt} -> {_told(one.tokens, decode, most)}"


def _told(tokens: Sequence[int], decode: Decode | None, most: int) -> str:
    said = one_line(tokens, decode, most)
    return said if decode is None else _quoted_text(said)


def _quoted_text(text: str) -> str:
    return f'"{text}"'


def _shortened(text: str, most: int) -> str:
    said = clean(text)
    return said if len(said) <= most else f"{said[:most]}..."


def _number(one: Listed) -> str:
    return f"{one.request}.{one.sequence}" if one.sequence or one.samples > 1 else str(one.request)


def _count(one: Listed) -> str:
    """How many tokens the trace has, and how many there were if these are others."""
    if not one.whole:
        return str(one.expected) if one.expected is not None else f"{len(one.tokens)} or more"
    all_there = one.expected is None or one.expected <= len(one.tokens)
    return str(len(one.tokens)) if all_there else f"{len(one.tokens)} of {one.expected}"


def _time(moment: Moment | None, with_day: bool) -> str:
    return "" if moment is None else f"{_datetime(moment):{'%Y-%m-%d ' if with_day else ''}%H:%M:%S}"


def _datetime(moment: Moment) -> datetime:
    seconds = min(moment.utc / 1e9, 253_402_300_799.0)  # the last second that a date has
    return datetime.fromtimestamp(seconds, timezone.utc)


def _took(identity: Identity | None) -> str:
    seconds = _seconds(identity)
    return "" if seconds is None else f"{seconds:.3g} s"


def _seconds(identity: Identity | None) -> float | None:
    """How long it took, by the clock that nobody sets."""
    if identity is None or identity.arrived is None or identity.ended is None:
        return None
    return (identity.ended.monotonic - identity.arrived.monotonic) / 1e9


def _cell(words: str) -> Text:
    return Text(clean(words))


# -- one ----------------------------------------------------------------------------------------------------


def show_one(
    trace: Trace, pass_name: str, keys: Sequence[tuple[int, int]], console: Console, decode: Decode | None
) -> None:
    """All that a trace says of some requests: one, or the samples of one, or the prompts of one body."""
    for place, one in enumerate(detailed(trace, pass_name, keys)):
        if place:
            console.print()
        for name, words in _facts(trace, one, decode):
            labelled(console, name, Text(words), _LABEL)
        _print_places(pass_name, one, console)
    command = "tracereplay", "show", str(trace.path), "SITE", "--step", "N", "--request", str(keys[0][0])
    console.print()
    labelled(console, "Its tensors", Text(" ".join(command_lines(command))), _LABEL)


def _facts(trace: Trace, one: Listed, decode: Decode | None) -> Iterator[tuple[str, str]]:
    identity = one.identity
    yield "request", f"{one.request}, sequence {one.sequence}"
    if identity is not None:
        yield "id", clean(identity.client_id or identity.id)
        yield "engine's id", clean(identity.id)
        if identity.arrived is not None:
            yield "arrived", f"{_datetime(identity.arrived).isoformat(timespec='milliseconds')}"
        if identity.ended is not None:
            yield (
                "ended",
                f"{_datetime(identity.ended).isoformat(timespec='milliseconds')}, {_took(identity)} later",
            )
    stop = "" if identity is None or identity.stop is None else f", at {_quoted(identity.stop)}"
    yield "end", f"{clean(one.reason)}{stop}" if one.reason else "not while this was recorded"
    if one.lacking:
        yield "not whole", "steps of it were left out, while the recording was paused or behind the engine"
    served = ", ".join(map(clean, served_names(trace)))
    if identity is not None and (identity.adapter or served):
        yield "model", f"{clean(identity.adapter)} (an adapter of {served})" if identity.adapter else served
    if identity is not None and identity.priority:
        yield "priority", str(identity.priority)
    for name, value in {} if identity is None else identity.fields.items():
        yield clean(name), clean(value)
    if one.sampling:
        yield "sampling", clean(", ".join(f"{name}={value}" for name, value in one.sampling.items()))
    yield "prompt", _tokens(one.prompt, one.text, decode)
    yield "output", f"{_count(one)} tokens: {_text(one.tokens, decode)}"


def _quoted(stop: str | int) -> str:
    return f"token {stop}" if isinstance(stop, int) else f'"{clean(stop)}"'


def _tokens(tokens: Sequence[int] | None, text: str | None, decode: Decode | None) -> str:
    if tokens is None:
        return clean(text or "not recorded")
    return f"{len(tokens)} tokens: {_quoted_text(clean(text)[:_LONG]) if text else _text(tokens, decode)}"


def _text(tokens: Sequence[int], decode: Decode | None) -> str:
    return clean(_told(tokens, decode, _LONG))


def _print_places(pass_name: str, one: Listed, console: Console) -> None:
    if not one.places:
        return
    rows = [
        Row([
            cell(place.step), cell(_span(place.rows)), cell(place.of), cell(_span(place.positions)),
            cell(place.calls),
        ])
        for place in one.places[:_STEPS]
    ]  # fmt: skip
    console.print()
    console.print(cell(f"steps of {pass_name} that it is in", "bold"))
    print_rows(console, ("step", "rows", "of", "positions", "calls"), rows)
    more = len(one.places) - _STEPS
    if more > 0:
        indented(console, f"and {more} more, the last is {one.places[-1].step}")


def _span(numbers: Sequence[int]) -> str:
    if len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers[:_STEPS])) + (" ..." if len(numbers) > _STEPS else "")


# -- JSON ---------------------------------------------------------------------------------------------------


def check_json(file: str | None) -> None:
    """Raises UsageError if ``--json`` cannot be written, before anything is read."""
    if file not in (None, "-"):
        files = _files()
        files.check_output(
            "--json", Path(str(file)), files.FileKind("a list of requests written by show", _is_list)
        )


def _files() -> Any:
    """What writes files knows all kinds that there are, and imports what makes them: not to show a trace."""
    return importlib.import_module("tracereplay.cli.files")


def _is_list(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"schema", "requests", "count"} <= found.keys()


def as_json(
    trace: Trace, pass_name: str, file: str, decode: Decode | None, most: int | None,
    keys: Sequence[tuple[int, int]] | None = None,
) -> None:  # fmt: skip
    """Writes the same as JSON: a list's requests, or what is known of those with these numbers."""
    found, count = (
        (detailed(trace, pass_name, keys), len(keys)) if keys is not None else listed(trace, pass_name, most)
    )
    said = {
        "schema": 1, "trace": str(trace.path), "pass": pass_name, "served_model_names": list(served_names(trace)),
        "requests": [_said(one, decode, places=keys is not None) for one in found], "count": count,
    }  # fmt: skip
    text = json.dumps(said, indent=1) + "\n"
    if file == "-":
        typer.echo(text, nl=False)
    else:
        _files().write_text(Path(file), text)


def _said(one: Listed, decode: Decode | None, *, places: bool) -> dict[str, Any]:
    identity = one.identity
    return {
        "request": one.request,
        "sequence": one.sequence,
        "id": None if identity is None else identity.client_id or None,
        "engine_id": None if identity is None else identity.id,
        "arrived": _moment(identity.arrived if identity else None),
        "ended": _moment(identity.ended if identity else None),
        "seconds": _seconds(identity),
        "finish_reason": one.reason or None,
        "lacking": one.lacking,
        "stop": None if identity is None else identity.stop,
        "adapter": None if identity is None else identity.adapter or None,
        "priority": 0 if identity is None else identity.priority,
        "fields": {} if identity is None else dict(identity.fields),
        "sampling": one.sampling,
        "prompt_token_ids": None if one.prompt is None else list(one.prompt),
        "prompt": one.text or (None if decode is None or one.prompt is None else decode(one.prompt)),
        "token_ids": one.tokens,
        "tokens": one.expected if one.expected is not None else len(one.tokens),
        "text": None if decode is None else decode(one.tokens),
        **({"logprobs": one.logprobs, "steps": [asdict(place) for place in one.places]} if places else {}),
    }


def _moment(moment: Moment | None) -> dict[str, Any] | None:
    if moment is None:
        return None
    return {"utc": _datetime(moment).isoformat(), "utc_ns": moment.utc, "monotonic_ns": moment.monotonic}
