"""What to do after a verdict: the exact next command, and what it tells."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tracereplay.comparator.judging.settings import argument_of
from tracereplay.engines.known import family_of
from tracereplay.gate import setting_refusal
from tracereplay.report.effects import explaining, likely
from tracereplay.report.words import integral
from tracereplay.verdict import Divergence, Verdict

__all__ = ["Given", "Next", "next_step"]

# Options as they were given, each with its value: ("--set", "dtype=float32").
Given: TypeAlias = Sequence[tuple[str, ...]]

_FEWER = {"invariance": ("--set", "--model")}  # of all that replay takes
_ALONE = ("--model", "--policy", "--strict")  # what it takes with --mode isolated
_SCRIPTED = {"norm", "gated", "activation", "linear", "embedding", "rotary"}  # roles of which repro makes scripts
_NOT_KNOWN = "; add the {}options that the candidate was run with"
_TRIES = "tries golden's settings, and names those that matter"
_TAKES_OUT = "takes this error out, which proves whether it is the cause"


@dataclass(frozen=True, slots=True)
class Next:
    """What to do.

    Args:
        command: its words, which are to be quoted; some may come from a trace. Empty: there is nothing to run.
        why: what it tells, or what to do instead, as the end of a sentence.
    """

    command: tuple[str, ...]
    why: str


def next_step(verdict: Verdict, given: Given | None = None) -> Next:
    """What to do next; ``given`` are the options that the candidate was run with, None: not known."""
    if verdict.verdict == "match":
        return Next((), "nothing to do; more and longer prompts would show more")
    if verdict.verdict == "inconclusive":
        return _unclear(verdict, given)
    first = verdict.first_divergence
    if verdict.cause == "setting" and (found := _same_again(verdict, given)) is not None:
        return found
    if verdict.cause == "operator" and verdict.bisection is None and _only_bits(verdict) and _settable(verdict):
        return _run(verdict, given, "bisect settings", _TRIES)
    if first is not None and first.kind == "operator" and verdict.cause == "operator":
        return _by_itself(verdict, first, given)
    if verdict.bisection is not None:
        return _proven(verdict, given)
    if verdict.cause is None:
        return _run(verdict, given, "replay", "gives each operator golden's inputs, and so names the one to blame")
    rounded = verdict.cause == "rounding" and verdict.oracle is None and _settable(verdict)
    if verdict.cause in ("setting", "structure") or rounded:
        return _run(verdict, given, "bisect settings", _TRIES)
    if verdict.cause == "operator":
        return Next((), "look at the calls that fail, listed below")
    why = {
        "rounding": "measures how much of it each operator explains",
        "edge": _TAKES_OUT,
        "unobserved": "names the first place where something computes that was not recorded",
    }
    return _cancelled(verdict, given, why.get(verdict.cause, "proves what the cause is"))


def _by_itself(verdict: Verdict, first: Divergence, given: Given | None) -> Next:
    """The call that is out of tolerance alone, as far as its engine's operators can be run by themselves."""
    family, engine = family_of(verdict.golden.engine), verdict.golden.engine
    role = family.operator(first.operator).role
    one_rank = engine.get("ranks", 1) == 1
    if first.kernel or (family.alone is not None and role in _SCRIPTED and one_rank):
        kernel = ("--kernel", first.kernel) if first.kernel else ()
        model = [_path(word) for option in given or () if option[0] == "--model" for word in option]
        call = "--site", first.site, "--step", str(first.step), *kernel
        words = "tracereplay", "repro", _golden(verdict), *call, *model, "-o", "bug"
        return Next(words, "writes this call as a script of its own, to look into or report")
    if family.alone is not None and role == "attention" and one_rank and verdict.mode != "isolated":
        options = "--mode", "isolated", "--site", first.site
        return _run(verdict, given, "replay", "runs its recorded calls alone, without an engine", options)
    if verdict.mode == "injected" and verdict.bisection is None and verdict.oracle is None:
        return _cancelled(verdict, given, _TAKES_OUT)
    return _look(verdict, first)


def _cancelled(verdict: Verdict, given: Given | None, why: str) -> Next:
    """A bisection of operators, unless it can take nothing out, or leads back to where one is."""
    first = verdict.first_divergence
    if first is not None and integral(first.tolerance):
        return _look(verdict, first)
    return _decide() if verdict.oracle is not None else _run(verdict, given, "bisect operators", why)


def _look(verdict: Verdict, first: Divergence) -> Next:
    words = "tracereplay", "show", _golden(verdict), first.site, "--step", str(first.step)
    return Next(words, "shows the tensors that golden has there")


def _decide() -> Next:
    return Next((), "decide whether this is a fault: --json FILE keeps the verdict for those who know")


def _proven(verdict: Verdict, given: Given | None) -> Next:
    """What is left to ask when a bisection has been made."""
    found = verdict.bisection
    assert found is not None
    if found.kind == "settings" and found.arguments:
        return _as_golden(verdict, given, found.arguments)
    if found.kind == "versions" or verdict.oracle is not None:
        return _decide()
    if found.kind == "settings":
        return _cancelled(verdict, given, "no setting restores it; this measures what each operator explains")
    if verdict.first_divergence is not None and integral(verdict.first_divergence.tolerance):
        return _look(verdict, verdict.first_divergence)
    return _run(verdict, given, "replay", "tells which of the two is nearer to exact results", ("--oracle",))


def _as_golden(verdict: Verdict, given: Given | None, arguments: Sequence[str]) -> Next:
    """The replay with what a bisection found: ``--set a=1``, ``no --set a``, ``env A=1`` or ``env -u A``."""
    options: list[str] = []
    variables: list[str] = []
    left_out = set()
    for argument in arguments:
        kind, _, rest = argument.partition(" ")
        if kind == "no":
            left_out.add(rest.removeprefix("--set "))
        elif kind == "env":
            variables = [*rest.split(" ", 1), *variables] if rest.startswith("-u ") else [*variables, rest]
        else:
            name, _, value = rest.partition("=")
            options += _set(name, json.loads(value))
    told = _listed(verdict) if given is None else given
    kept = [o for o in told if o[0] != "--set" or o[-1].partition("=")[0] not in left_out]
    found = _run(verdict, kept, "replay", "shows whether anything else differs", options)
    why = found.why + (_asked_for(told) if given is None else "")
    return Next((*(("env", *variables) if variables else ()), *found.command), why)


def _same_again(verdict: Verdict, given: Given | None) -> Next | None:
    """The replay with golden's values of the settings to blame; None: they cannot all be given."""
    options: list[str] = []
    for difference in explaining(verdict):
        name, value = argument_of(difference.name), difference.golden
        if name is None or value is None or setting_refusal(name, value) is not None:
            return None
        options += _set(name, value)
    if not options:
        return None
    return _run(verdict, given, "replay", "shows whether anything else differs", options)


def _unclear(verdict: Verdict, given: Given | None) -> Next:
    if any(d.name == "weights" for d in verdict.settings_diff):
        why = "DIR being a checkpoint that has golden's weights"
        return _run(verdict, given, "replay", why, ("--model", "DIR"))
    told = " ".join(verdict.reasons)
    if "incomplete" in told:
        side = verdict.golden if "golden recording is incomplete" in told else verdict.candidate
        return Next(("tracereplay", "verify", _path(side.trace)), "tells what it has; for all of it, make it anew")
    if "does not reproduce its own results" in told:
        return _run(verdict, given, "invariance", "names the operator that does not give the same bits again")
    if verdict.mode == "compare":
        return _run(verdict, given, "replay", "makes a candidate of golden's own prompts, and compares all of it")
    if verdict.cause == "unobserved":
        why = "names the first place where something computes that was not recorded"
        return _cancelled(verdict, given, why)
    return Next((), "see below what was not compared, and why")


def _run(
    verdict: Verdict, given: Given | None, verb: str, why: str, options: Sequence[str] = ()
) -> Next:  # fmt: skip
    """A command that starts the candidate's engine again, with the options it had."""
    engine = str(verdict.candidate.engine.get("name") or "NAME")
    told = _listed(verdict) if given is None else given
    kept = [_path(word) for option in told if _taken(option, verb, options) for word in option]
    words = "tracereplay", *verb.split(), _golden(verdict), "--engine", engine, *kept
    return Next((*words, *options), why + (_asked_for(told) if given is None else ""))


def _listed(verdict: Verdict) -> Given:
    """Options that the candidate must have had: its values of settings that matter, which a trace may ask for."""
    found = []
    for difference in likely(verdict):
        name, value = argument_of(difference.name), difference.candidate
        if name is not None and value is not None and setting_refusal(name, value) is None:
            found.append(_set(name, value))
    return found


def _settable(verdict: Verdict) -> bool:
    """Whether golden's value of any setting that can explain something can be tried."""
    names = ((argument_of(d.name), d.golden) for d in likely(verdict))
    return any(name is not None and setting_refusal(name, value) is None for name, value in names)


def _only_bits(verdict: Verdict) -> bool:
    """Whether all that is out of tolerance is so under a strict policy alone, as rounding is."""
    first = verdict.first_divergence
    strict = first is not None and first.tolerance.source == "strict" and first.error_class == "exceeds"
    return strict and all(
        o.metrics.allowance_ratio <= 1 and not o.metrics.nonfinite
        for o in verdict.operators
        if o.error_class != "incomparable"
    )


def _set(name: str, value: object) -> tuple[str, str]:
    """An option; text that would be read as JSON is quoted."""
    text = json.dumps(value, separators=(",", ":"))
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            text = value
    return "--set", f"{name}={text}"


def _asked_for(listed: Given) -> str:
    return _NOT_KNOWN.format("other " if listed else "")


def _taken(option: Sequence[str], verb: str, anew: Sequence[str]) -> bool:
    """Whether a command takes an option that was given, which is not given anew."""
    taken = _ALONE if "isolated" in anew else _FEWER.get(verb, option)
    if option[0] not in taken:
        return False
    if option[0] != "--set":
        return option[0] not in anew
    return not {word.partition("=")[0] for word in option} <= {word.partition("=")[0] for word in anew}


def _golden(verdict: Verdict) -> str:
    return _path(verdict.golden.trace)


def _path(path: str) -> str:
    """As somebody would write it who is here."""
    try:
        here = os.getcwd() + os.sep
    except OSError:  # it is gone
        return path
    return path.removeprefix(here) if path.startswith(here) else path
