"""A verdict for people at a terminal: in five lines what happened, then how much, then what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tracereplay.comparator.judging.suspects import Suspect, Weight
from tracereplay.report import bisection, findings, inside, isolated, oracle, rollout
from tracereplay.report.clean import clean
from tracereplay.report.coverage import print_coverage
from tracereplay.report.effects import may_change, suspects, value_words
from tracereplay.report.layout import (
    STYLE,
    Row,
    cell,
    command_lines,
    indented,
    labelled,
    more,
    print_rows,
    section,
)
from tracereplay.report.next_step import Given, Next
from tracereplay.report.reasons import untold
from tracereplay.report.story import Story, TextOf, story_of
from tracereplay.report.words import (
    allowance,
    apart,
    integral,
    number,
    of_allowed,
    passing,
    percent,
    request_named,
    source,
)
from tracereplay.verdict import Divergence, TokenFinding, Verdict
from tracereplay.verdict.measures import rounded_up
from tracereplay.verdict.rollout import Rollout

__all__ = ["render"]

# Rows of each list; the whole report stays under 50 lines.
SETTINGS, NOTES = 4, 3
_LIKELY = Weight.UNKNOWN  # and what explains more
_VALUE = 20  # columns of a value
_PLACE = 14  # columns of labels of a place
_LABEL, _GAP = 11, 2  # columns of the first lines' labels at least, and after them
_COMMAND = 2000  # characters of a command that anybody would paste
_WHOLE = 10_000  # characters of a value that is told in full


def render(
    verdict: Verdict, console: Console, *, everything: bool = False, given: Given | None = None,
    whole: Sequence[str] = (), before: str = "", text: TextOf | None = None,
) -> None:  # fmt: skip
    """Prints ``verdict``.

    Args:
        verdict: what to print.
        console: where to print (`layout.report_console`); no colours if it is not a terminal.
        everything: print every site, edge, setting and note, not only classes and the first few.
        given: the options that the candidate was run with, for the next command; None: they are not known.
        whole: the command that prints everything; empty: that is not said.
        before: what to do before that, as the beginning of a sentence.
        text: makes text of a token; None: nothing can.
    """
    story = story_of(verdict, given, text)
    width = max(_LABEL, len(verdict.verdict) + _GAP)
    _print_story(story, verdict, console, width)
    _sides(verdict, console, width)
    _reasons(verdict, story, console)
    _settings(verdict, console, everything)
    _tokens(verdict, console)
    if verdict.rollout is not None and (everything or _of_interest(verdict.rollout)):
        rollout.render(verdict.rollout, console, everything=everything)
    if verdict.bisection is not None:
        bisection.render(verdict, verdict.bisection, console, everything=everything)
    if verdict.first_divergence is not None:
        _divergence(verdict, verdict.first_divergence, console)
    if verdict.kernels is not None:
        inside.render(verdict.kernels, console)
    if verdict.oracle is not None:
        oracle.render(verdict.oracle, console, everything=everything)
    if verdict.isolated is not None:
        isolated.render(verdict.isolated, console, everything=everything)
    findings.render(verdict, console, everything=everything)
    print_coverage(verdict.coverage, console, everything)
    _notes(verdict, console, everything)
    if whole and not everything:
        console.print()
        if before:
            labelled(console, "More", Text(before), width)
        _command(console, "" if before else "More", whole, width)


def _of_interest(found: Rollout) -> bool:
    """Whether a trainer would ask: tokens were drawn, or the two report different quantities."""
    other = found.reported is not None and found.reported.differ
    return other or (found.drawn > 0 and found.abs_diff.max > 0)


# -- the first lines ----------------------------------------------------------------------------------------


def _print_story(story: Story, verdict: Verdict, console: Console, width: int) -> None:
    word = verdict.verdict.upper()
    labelled(console, word, Text(story.what, "bold"), width, STYLE[verdict.verdict])
    for label, words in (("Cause", story.cause), ("Where", story.where), ("How large", story.size)):
        labelled(console, label, Text(words), width)
    _next(story.next, console, width)


def _next(step: Next, console: Console, width: int) -> None:
    if not step.command or (console.is_terminal and sum(map(len, step.command)) > _COMMAND):
        labelled(console, "Next", Text(step.why), width)
        return
    _command(console, "Next", step.command, width, "bold")
    labelled(console, "", Text(clean(step.why), style="dim"), width)


def _command(console: Console, label: str, words: Sequence[str], width: int, style: str = "") -> None:
    """A command beside its label, as it can be pasted."""
    for number_, line in enumerate(command_lines(words, console.width - width)):
        told = Text().append(f"{'' if number_ else label:<{width}}", "dim")
        console.print(told.append(line, style), soft_wrap=True)


def _reasons(verdict: Verdict, story: Story, console: Console) -> None:
    """What else the verdict says in sentences."""
    told = untold(verdict, story.cause)
    if told:
        section(console, "In detail")
    for reason in told:
        indented(console, clean(reason))


def _sides(verdict: Verdict, console: Console, width: int) -> None:
    console.print()
    for label, side in (("golden", verdict.golden), ("candidate", verdict.candidate)):
        labelled(console, label, cell(source(side)), width)


# -- settings and tokens ------------------------------------------------------------------------------------


def _settings(verdict: Verdict, console: Console, everything: bool) -> None:
    ranked = suspects(verdict)
    if not ranked:
        return
    likely = [s for s in ranked if s.weight <= _LIKELY]
    other = [s for s in ranked if s.weight is Weight.ELSEWHERE and s.difference.effect == "semantic"]
    shown = ranked if everything else [*likely[:SETTINGS], *other[:1]] or ranked[:1]
    section(console, "Settings that differ", "  what can explain this first")
    rows = [
        Row([cell(s.difference.name), _values(s, everything), cell(may_change(s), STYLE[s.difference.effect])])
        for s in shown
    ]
    print_rows(console, ("", "golden -> candidate", "may change"), rows)
    more(console, len(ranked) - len(shown))


def _values(found: Suspect, everything: bool) -> Text:
    most = _WHOLE if everything else _VALUE
    golden, candidate = (value_words(v, most) for v in (found.difference.golden, found.difference.candidate))
    return Text(f"{golden} -> {candidate}")


def _tokens(verdict: Verdict, console: Console) -> None:
    tokens = verdict.tokens
    if not tokens.compared and tokens.logprob_max is None:
        return
    section(console, "Tokens")
    first = tokens.first_divergence
    words = f"{tokens.compared} greedy tokens compared, "
    words += f"{tokens.differing} differ{'s' * (tokens.differing == 1)}" if tokens.differing else "all the same"
    if first is not None:
        words += f", first in request {request_named(first)} at position {first.position}: "
        words += f"{first.golden} -> {first.candidate}"
    indented(console, words)
    if tokens.logprob_max is not None:
        most, mean = number(tokens.logprob_max), number(tokens.logprob_mean)
        same = "logprobs of golden tokens are the same"
        words = f"logprobs of golden tokens differ by {most} at most, {mean} on average"
        indented(console, words if tokens.logprob_max else same)
    if _only_generated(verdict):
        indented(console, "a policy file that allows this has these lines, beside those of the one in use:")
        for line in _limits(tokens):
            indented(console, line, indent=4)


def _only_generated(verdict: Verdict) -> bool:
    """Whether nothing but tokens and logprobs is beyond what is allowed, by an amount that can be allowed."""
    finite = math.isfinite(verdict.tokens.logprob_max or 0.0)
    return verdict.cause == "rounding" and verdict.first_divergence is None and finite


def _limits(tokens: TokenFinding) -> list[str]:
    """The limits that would have let it pass, in TOML."""
    may = max(tokens.differing, tokens.allowed or 0)
    drift = max(rounded_up(tokens.logprob_max or 0.0), tokens.logprob_allowed or 0.0)
    return [f"tokens.differing = {may}", f"logprobs.max_abs = {float(drift)!r}"]


# -- the first divergence -----------------------------------------------------------------------------------


def _divergence(verdict: Verdict, first: Divergence, console: Console) -> None:
    own = verdict.mode in ("injected", "isolated")
    section(
        console,
        "First divergence" if own else "First visible divergence",
        "" if own else "  (it may be inherited)",
    )
    for name, value in _places(first):
        labelled(console, f"  {name}", value, _PLACE)


def _places(first: Divergence) -> list[tuple[str, Text]]:
    what = f"output {first.index}" if first.kind == "operator" else f"input {first.index}, as it arrives"
    operator = f" ({first.operator})" if first.operator else ""
    row = (
        f"request {request_named(first)}, sequence {first.sequence}, position {first.position}, step {first.step}"
    )
    return [
        ("where", cell(f"{first.site}{operator}, {what}", "bold")),
        *([("kernel", cell(first.kernel, "bold"))] if first.kernel else []),
        ("row", cell(row)),
        ("class", cell(first.error_class, STYLE[first.error_class])),
        ("error", cell(_error(first))),
        ("allowed", cell(allowance(first.tolerance))),
        *_needed(first),
    ]


def _needed(first: Divergence) -> list[tuple[str, Text]]:
    """What a tolerance would have to be at least: with it, something else may be out of tolerance."""
    words = passing(first.error_class, first.passing_tolerance, first.passing_bias)
    if words == "none":
        return []
    return [("would take", cell(words if words.startswith("no ") else f"at least {words}"))]


def _error(first: Divergence) -> str:
    metrics, worst = first.metrics, first.metrics.worst
    at = "" if worst is None else f" (element {worst.index}: {apart(worst)})"
    if integral(first.tolerance):
        return f"not equal{at}; {percent(metrics.equal)} of the values are"
    nonfinite = f", {metrics.nonfinite} not finite" if metrics.nonfinite else ""
    size = of_allowed(metrics)
    if first.tolerance.source == "strict":  # of the tolerance that would be applied without
        size = size.replace("the allowed error", "the error that is allowed by default")
    return (
        f"{size}{at}{nonfinite}; relative L2 {number(metrics.relative_l2)}, bias "
        f"{metrics.bias_ulp:+.2g} ulp, {percent(metrics.equal)} bitwise equal"
    )


def _notes(verdict: Verdict, console: Console, everything: bool) -> None:
    notes = verdict.notes if everything else verdict.notes[:NOTES]
    if not notes:
        return
    section(console, "Notes")
    for note in notes:
        indented(console, clean(note))
    more(console, len(verdict.notes) - len(notes))
