"""README.md of a bundle, in the form in which a family's maintainers take bug reports; and the engines' listings.

What a trace says is a stranger's even here: it stands in code, where Markdown and HTML mean nothing.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import prod
from typing import Any

from jinja2 import Environment, StrictUndefined

from tracereplay.bundle.allowed import hub_name
from tracereplay.bundle.manifest import MANIFEST, MODEL, POLICY, Manifest
from tracereplay.bundle.redaction import Redaction
from tracereplay.engines.known import family_of
from tracereplay.passes import RECORD
from tracereplay.report.clean import clean
from tracereplay.report.story import story_of
from tracereplay.report.words import count
from tracereplay.trace import Trace
from tracereplay.verdict import Verdict

__all__ = ["FILES", "Told", "listing", "model_of", "readme"]

SCRIPT = "reproducer/repro.py"
_SETTINGS = 12  # that are named
FIRST = ("versions", "settings", "arguments", "environment")  # of an engine's facts

# The files that a bundle may have, in the order in which a reader wants them.
FILES: Mapping[str, str] = {
    "report.html": "the report: one page that loads nothing",
    "verdict.json": "the same for programs (`tracereplay report verdict.json`)",
    "golden.pack": "the golden trace",
    "candidate.pack": "the candidate's trace, as its difference from golden",
    "statistics.json": "of each tensor that was left out: mean, deviation, least and largest element",
    "errors.json": "how far the candidate is off, by operator and row",
    SCRIPT: "the first call that differs, as a script; read it before you run it",
    "reproducer/inputs.safetensors": "its inputs, and its weights if it has any",
    "reproducer/expected.safetensors": "what golden computed from them",
    "environment/golden.txt": "golden's engine, with all that it made of its arguments",
    "environment/candidate.txt": "the same of the candidate's",
    "model/": "the model's tensors and configuration (`--use-bundled-weights`)",
    "policy.toml": "what was tolerated",
    "manifest.json": "sizes and digests of all files, and what was left out",
}


@dataclass(frozen=True)
class Told:
    """Of two cleaned traces, what a README needs.

    Args:
        golden, candidate: open.
        verdict: what they show.
        names: of the files in the bundle.
        strict: whether no difference was tolerated.
    """

    golden: Trace
    candidate: Trace
    verdict: Verdict
    names: Sequence[str]
    strict: bool = False


def readme(told: Told, manifest: Manifest) -> str:
    """The text of README.md."""
    family = family_of(told.candidate.run.engine)
    verdict = told.verdict
    story = story_of(verdict)
    weights = any(name.startswith("model/") for name in told.names)
    lines = [f"{verdict.verdict.upper()}: {story.what}"]
    lines += [f"{name}: {text}" for name, text in (("cause", story.cause), ("where", story.where)) if text]
    lines += [f"how large: {story.size}"] if story.size else []
    description = _render(
        _template("description.j2"),
        story="\n".join(lines),
        same=manifest.verdict == manifest.whole,
        whole=_short(manifest.whole),
        told=_short(manifest.verdict),
        golden={"engine": _engine(told.golden)},
        candidate={"engine": _engine(told.candidate)},
        requests=_requests(told.golden),
        settings=list(_settings(verdict)),
        model=model_of(told.golden),
        digests=manifest.golden,
        weights=weights,
        commands=_commands(told, manifest.redacted, weights=weights),
        files=list(_files(told.names)),
        reduced=manifest.reduced,
        removed=[*manifest.removed, *manifest.absent],
    )
    environment = f"Golden\n{listing(told.golden, FIRST)}\nCandidate\n{listing(told.candidate, FIRST)}"
    form = family.bug_report or _template("readme.j2")
    return _render(form, title=_title(verdict, told), description=description, environment=environment)


def listing(trace: Trace, parts: Sequence[str] = (*FIRST, "model_config", "resolved")) -> str:
    """An engine as it described itself, in lines."""
    run = trace.run
    lines = [f"  engine       {run.engine.get('name')}", f"  device       {run.engine.get('device')}"]
    if run.began:
        lines.append(f"  recorded     {run.began}")
    for part in parts:
        facts = run.engine_facts(part)
        lines += [f"  {part.replace('_', ' ')}"] if facts else []
        lines += [f"    {name}={_value(value)}" for name, value in sorted(facts.items())]
    return "\n".join(map(clean, lines)) + "\n"


def model_of(trace: Trace) -> dict[str, Any]:
    """What a trace says of its model: ``name`` and ``revision`` on a hub, ``architecture``, ``parameters`` (how
    many), ``weights`` (digest)."""
    run = trace.run
    name, revision = (None, None)
    if run.requested is not None:
        name, revision = hub_name(run.requested.words()["model"], served=True)
    count = sum(prod(shape) for _, shape, *_ in map(_tensor, run.checkpoint.values()))
    return {
        "name": name,
        "revision": revision,
        "architecture": run.engine_facts("settings").get("architecture"),
        "parameters": f"{count:,}" if count else None,
        "weights": run.weights,
    }


def _tensor(said: Any) -> tuple[Any, ...]:
    fits = isinstance(said, list | tuple) and len(said) == 3 and isinstance(said[1], list | tuple)
    return tuple(said) if fits and all(type(size) is int for size in said[1]) else ("", (0,), "")


def _engine(trace: Trace) -> str:
    versions = trace.run.engine_facts("versions")
    package = family_of(trace.run.engine).package
    named = [f"{name} {versions[name]}" for name in (package, "torch") if versions.get(name)]
    return ", ".join([*named, str(trace.run.engine.get("device") or "an unknown device")])


def _requests(trace: Trace) -> str:
    results = trace.results.get(RECORD, {}).get("requests", ())
    tokens = sum(len(result.get("token_ids") or ()) for result in results)
    return f"{count(len(trace.run.prompts), 'request')}, {count(tokens, 'generated token')}."


def _settings(verdict: Verdict) -> Iterator[str]:
    matter = [d for d in verdict.settings_diff if d.effect in ("semantic", "numeric")]
    for found in matter[:_SETTINGS]:
        yield f"{found.name}: {_value(found.golden)} -> {_value(found.candidate)}"
    if len(matter) > _SETTINGS:
        yield f"and {len(matter) - _SETTINGS} more, in report.html"


def _value(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)


def _commands(told: Told, redacted: Redaction | None, *, weights: bool) -> str:
    family = family_of(told.candidate.run.engine)
    where = f"--family {family.name}" if family.entry_points is None else "--python /path/to/its/python"
    lines = [f"tracereplay engine add mine {where}  # {family.title}, as the candidate's"]
    lines.append("tracereplay bundle --check bug.zip")
    if redacted is Redaction.tokens:
        return "\n".join([
            *lines, "unzip bug.zip golden.pack candidate.pack", "tracereplay compare golden.pack candidate.pack",
            "tracereplay replay golden.pack --engine mine --mode isolated",
        ])  # fmt: skip
    words = ["tracereplay", "replay", "bug.zip", "--engine", "mine"]
    words += ["--use-bundled-weights"] if weights else ["--model", "DIR"]
    mode = "rerun" if redacted is Redaction.values else told.verdict.mode
    words += ["--mode", mode] if mode in ("rerun", "isolated") else []
    words += ["--strict"] if told.strict else []
    if POLICY in told.names:
        lines.append(f"unzip bug.zip {POLICY}")
        words += ["--policy", POLICY]
    words += [word for name, value in _overrides(told) for word in ("--set", f"{name}={json.dumps(value)}")]
    lines.append(shlex.join(map(clean, words)))
    if SCRIPT in told.names:
        lines += [
            f"unzip bug.zip '{SCRIPT.partition('/')[0]}/*'",
            f"python {SCRIPT}  # with the candidate's Python",
        ]
    return "\n".join(lines)


def _overrides(told: Told) -> Iterator[tuple[str, Any]]:
    """Arguments that the candidate was given beyond golden's."""
    mine, theirs = told.golden.run.requested, told.candidate.run.requested
    if mine is None or theirs is None:
        return
    known = mine.compared()
    for name, value in theirs.compared().items():
        if name not in known or known[name] != value:
            yield name, value


def _files(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, what in FILES.items():
        if name == MANIFEST or any(found == name or (name == MODEL and found.startswith(name)) for found in names):
            yield name, what


def _title(verdict: Verdict, told: Told) -> str:
    story = story_of(verdict)
    return f"{story.what}: {_engine(told.golden)} and {_engine(told.candidate)}"


def _short(shown: Mapping[str, Any]) -> str:
    first = shown.get("first_divergence")
    where = ""
    if isinstance(first, Mapping):
        where = f", first at {first['site']} ({first['kind']}, {first['class']})"
    return f"{shown.get('verdict')}, cause {shown.get('cause')}{where}"


# -- Markdown -----------------------------------------------------------------------------------------------


def _template(name: str) -> str:
    return files("tracereplay.bundle").joinpath(name).read_text(encoding="utf-8")


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        autoescape=False,  # it is Markdown; what comes from a trace is fenced
    )  # fmt: skip
    environment.filters.update({"fenced": _fenced, "code": _code, "plain": _plain})
    return environment.from_string(template).render(**values)


def _fenced(text: str, language: str) -> str:
    """A block of code that nothing in it ends."""
    lines = [clean(line) for line in text.rstrip("\n").split("\n")]
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return "\n".join([f"{fence}{language}", *lines, fence])


def _code(text: object) -> str:
    return f"`{clean(text).replace('`', chr(39))}`"


def _plain(text: object) -> str:
    """A sentence in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&])", r"\\\1", clean(text))
