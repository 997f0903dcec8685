"""A verdict for people at a terminal: in five lines what happened, then how much, then what is missing."""

from __future__ import annotations

import math

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
from tracereplay.report.words import allowance, number, of_allowed, passing, percent, request_named, source
from tracereplay.verdict import Divergence, Metrics, TokenFinding, Verdict
from tracereplay.verdict.measures import rounded_up
from tracereplay.verdict.rollout import Rollout

__all__ = ["render"]

# Rows of each list; the whole report stays under 50 lines.
SETTINGS, NOTES = 4, 3
_LIKELY = Weight.UNKNOWN  # and what explains more
_VALUE = 20  # columns of a value
_PLACE = 14  # columns of labels of a place
_LABEL = 11  # columns of the first lines' labels
_COMMAND = 2000  # characters of a command that anybody would paste
_WHOLE = 10_000  # characters of a value that is told in full


def render(
    verdict: Verdict, console: Console, *, everything: bool = False, given: Given | None = None,
    whole: str = "", text: TextOf | None = None,
) -> None:  # fmt: skip
    """Prints ``verdict``.

    Args:
        verdict: what to print.
        console: where to print (`layout.report_console`); no colours if it is not a terminal.
        everything: print every site, edge, setting and note, not only classes and the first few.
        given: the options that the candidate was run with, for the next command; None: they are not known.
        whole: how to print everything; empty: that is not said.
        text: makes text of a token; None: nothing can.
    """
    story = story_of(verdict, given, text)
    _print_story(story, verdict, console)
    _sides(verdict, console)
    _reasons(verdict, story, console)
    _settings(verdict, console, everything)
    _tokens(verdict.tokens, console)
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
        labelled(console, "More", Text(clean(whole)), _LABEL)


def _of_interest(found: Rollout) -> bool:
    """Whether a trainer would ask: tokens were drawn, or the two report different quantities."""
    other = found.reported is not None and found.reported.differ
    return other or (found.drawn > 0 and found.abs_diff.max > 0)


# -- the first lines ----------------------------------------------------------------------------------------


def _print_story(story: Story, verdict: Verdict, console: Console) -> None:
    word = f"{verdict.verdict.upper()}  "
    labelled(console, word, Text(story.what, "bold"), max(_LABEL, len(word)), STYLE[verdict.verdict])
    for label, words in (("Cause", story.cause), ("Where", story.where), ("How large", story.size)):
        labelled(console, label, Text(words), _LABEL)
    _next(story.next, console)


def _next(step: Next, console: Console) -> None:
    if not step.command or (console.is_terminal and sum(map(len, step.command)) > _COMMAND):
        labelled(console, "Next", Text(step.why), _LABEL)
        return
    room = console.width - _LABEL
    for number_, line in enumerate(command_lines(step.command, room)):
        label = Text().append(f"{'' if number_ else 'Next':<{_LABEL}}", "dim")
        console.print(label.append(line, "bold"), soft_wrap=True)
    labelled(console, "", Text(clean(step.why), style="dim"), _LABEL)


def _reasons(verdict: Verdict, story: Story, console: Console) -> None:
    """What else the verdict says in sentences."""
    told = untold(verdict, story.cause)
    if told:
        section(console, "In detail")
    for reason in told:
        indented(console, clean(reason))


def _sides(verdict: Verdict, console: Console) -> None:
    console.print()
    for label, side in (("golden", verdict.golden), ("candidate", verdict.candidate)):
        labelled(console, label, cell(source(side)), _LABEL)


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


def _tokens(tokens: TokenFinding, console: Console) -> None:
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
    if (tokens.differing or tokens.logprob_max) and math.isfinite(tokens.logprob_max or 0.0):
        indented(console, f"a policy that allows this: {_limits(tokens)}")


def _limits(tokens: TokenFinding) -> str:
    """The limits of a policy that would have passed."""
    drift = number(rounded_up(tokens.logprob_max or 0.0))
    return f"[tokens] differing = {tokens.differing}, [logprobs] max_abs = {drift}"


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
    metrics = first.metrics
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
        ("error", cell(_error(metrics))),
        ("allowed", cell(allowance(first.tolerance))),
        ("to allow it", cell(passing(first.error_class, first.passing_tolerance, first.passing_bias))),
    ]


def _error(metrics: Metrics) -> str:
    worst = metrics.worst
    at = "" if worst is None else f" (element {worst.index}: {number(worst.golden)} -> {number(worst.candidate)})"
    nonfinite = f", {metrics.nonfinite} not finite" if metrics.nonfinite else ""
    return (
        f"{of_allowed(metrics)}{at}{nonfinite}; relative L2 {number(metrics.relative_l2)}, bias "
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
