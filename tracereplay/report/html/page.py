"""The file: a template, a style sheet and a script in one, with a policy that lets nothing else be loaded.

Everything that comes from a trace is text: the template escapes it, and what is not printable is spelled out. The
policy names the style and the script by their digests, so that nothing that is written into the page can run.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tracereplay.comparator.details import Details
from tracereplay.report.clean import clean
from tracereplay.report.effects import may_change
from tracereplay.report.html import facts
from tracereplay.report.html.heat import heat_data
from tracereplay.report.html.series import classes, logprobs, logprobs_of_bins, values
from tracereplay.report.html.texts import Decode, side_by_side
from tracereplay.report.reasons import untold
from tracereplay.report.story import story_of
from tracereplay.report.words import allowance, integral, multiple, number, percent, short_kernel, source
from tracereplay.verdict import Verdict

__all__ = ["MARK", "render"]

# In every page's head, by which a file is known to be one.
MARK = '<meta name="generator" content="tracereplay">'

_POLICY = "default-src 'none'; style-src '{style}'; script-src '{script}'; base-uri 'none'; form-action 'none'"


def render(
    verdict: Verdict, details: Details | None = None, *, decode: Decode | None = None, limit: float | None = None
) -> str:
    """The page.

    Args:
        verdict: what it says.
        details: of both traces, if they were compared; parts that need them are else replaced by a command.
        decode: makes text of tokens; None: they are shown as ids.
        limit: how far logprobs may be apart, in nats, if known.
    """
    seen = details or Details()
    known = details is not None and details.scale is not None
    style, script = _file("style.css"), _file("page.js")
    shown, unlikely = facts.settings(verdict)
    story = story_of(verdict, text=None if decode is None else lambda token: decode([token]))
    plot = None if seen.generated is None else logprobs(seen.generated, limit)
    if plot is None and verdict.rollout is not None:
        plot = logprobs_of_bins(verdict.rollout.by_position, limit)
    told = verdict.tokens.first_divergence
    texts = None if seen.generated is None else side_by_side(seen.generated, decode, told)
    own = "isolated" if verdict.mode == "injected" else "own and inherited"
    heat = heat_data(verdict, seen)
    return _environment().get_template("page.j2").render(
        verdict=verdict,
        details=seen,
        known=known,
        story=story,
        lines=[("cause", story.cause), ("where", story.where), ("how large", story.size)],
        after=facts.command(*story.next.command),
        reasons=untold(verdict, story.cause),
        again=facts.again(verdict),
        settings=shown,
        unlikely=unlikely,
        texts=texts,
        as_text=decode is not None,
        logprobs=plot,
        heat=heat,
        own=own,
        inputs=facts.INPUTS.get(verdict.mode, ""),
        plots=classes(verdict.operators, seen.inherited, own),
        kinds=facts.by_class(verdict, seen.inherited),
        edges=facts.listed(verdict.edges),
        measured=facts.measured(verdict),
        allowances=facts.allowances(verdict),
        first=None if verdict.first_divergence is None else facts.fact_rows(verdict.first_divergence),
        visible=None if verdict.first_visible is None else facts.fact_rows(verdict.first_visible),
        values=[] if seen.histograms is None else list(values(seen.histograms)),
        left=facts.grouped(verdict.coverage.not_compared),
        mark=Markup(MARK),
        policy=_POLICY.format(style=_digest(style), script=_digest(script)),
        style=Markup(style),
        script=Markup(script),
    )  # fmt: skip


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tracereplay.report.html", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_printable, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update({
        "number": number, "percent": percent, "multiple": multiple, "allowance": allowance, "source": source,
        "kernel": _kernel, "known_class": facts.known_class, "integers": integral, "lines": _lines,
        "share": _share, "value": _value, "many": _many, "may_change": may_change,
    })  # fmt: skip
    return environment


def _printable(value: object) -> object:
    """What is not printable, spelled out."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _lines(text: str) -> Markup:
    """A text with its line breaks, everything else that is not printable spelled out."""
    return Markup("\n").join(clean(line) for line in text.split("\n"))


def _kernel(name: str | None) -> str:
    return "" if name is None else short_kernel(name)


def _share(value: float) -> str:
    """A share in percent, which may be negative."""
    return f"{100 * value:.1f} %" if abs(value) < 10 else number(100 * value) + " %"


def _value(value: Any) -> str:
    return "unset" if value is None else str(value)


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


@cache
def _file(name: str) -> str:
    return files("tracereplay.report.html").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
