"""What sets a flight recorder off, and how often it may.

    nonfinite      logits that are not finite
    logprob<-20    a sampled token's logprob, of requests that ask for logprobs
    error          the engine raises an exception in a step, or is gone without having said so
    finish=abort   a request ends for that reason (abort, length, stop)
    tokens>4096    a request ends with more tokens
    mark           a request says so itself, by an argument that the engine does not know

Whoever asks for a recording imports this, as does the writer process; so it never imports torch.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from tracereplay.checked import similar
from tracereplay.errors import UsageError

__all__ = [
    "DEFAULT", "ENDS", "ERROR", "EVERY", "MARK", "MOST", "NONFINITE", "REASONS", "STARTER_GONE", "Ended", "Fired",
    "RateLimit", "Triggers", "check_trigger",
]  # fmt: skip

NONFINITE, ERROR, MARK = "nonfinite", "error", "mark"
DEFAULT = (NONFINITE, ERROR, MARK)
STARTER_GONE = "the process that started this worker was gone"  # what a worker says then, as an error
ENDS = FINISH, TOKENS = "finish", "tokens"  # what a request's end sets off
REASONS = ("abort", "length", "stop")
_KINDS = (*DEFAULT, "logprob", *ENDS)
_CONDITION = re.compile(r"(?P<kind>[a-z]+)(?:(?P<sign>[<>=])(?P<bound>.+))?", re.ASCII)
_SIGNS = {"logprob": "<", "finish": "=", "tokens": ">"}
_EXAMPLES = "nonfinite, error, mark, logprob<-20, finish=abort or tokens>4096"
EVERY = 60.0  # seconds between two traces that triggers of one kind make
MOST = 100  # traces that triggers of one kind make


class Fired(NamedTuple):
    """Something that a trigger was waiting for.

    Args:
        kind: ``nonfinite``, ``logprob``, ``error``, ``finish``, ``tokens``, ``mark``, or whatever a user said.
        detail: more of it, in words.
        request, sequence, position: whose; -1: nobody's, or not known.
        step: number of the step; -1: of none.
    """

    kind: str
    detail: str
    request: int = -1
    sequence: int = -1
    position: int = -1
    step: int = -1


class Ended(NamedTuple):
    """The end of a sequence.

    Args:
        request, sequence: which.
        reason: one of `REASONS`; empty: not known.
        tokens: how many it has generated.
    """

    request: int
    sequence: int
    reason: str
    tokens: int


def _parts(text: str) -> tuple[str, str]:
    match = _CONDITION.fullmatch(text.replace(" ", ""))
    kind = "" if match is None else match["kind"]
    if match is None or kind not in _KINDS:
        raise UsageError(f"There is no trigger {text!r}{similar(kind, _KINDS)[:-1]}; there are {_EXAMPLES}.")
    if match["sign"] != _SIGNS.get(kind):
        raise UsageError(f"The trigger {text!r} is not one of {_EXAMPLES}.")
    return kind, match["bound"] or ""


def check_trigger(text: str) -> None:
    """Raises UsageError unless ``text`` is a trigger that can fire."""
    kind, bound = _parts(text)
    if kind == "logprob" and not _number(bound) < 0:
        raise UsageError(f"The trigger {text!r} fires with every token; give a bound below 0, as in logprob<-20.")
    if kind == "tokens" and not (bound.isdigit() and int(bound) < 1 << 31):
        raise UsageError(f"The trigger {text!r} needs a number of tokens, as in tokens>4096.")
    if kind == "finish" and bound not in REASONS:
        raise UsageError(
            f"No request ends because of {bound!r}, so that the trigger {text!r} never fires; there are "
            f"{', '.join(REASONS)}."
        )


def _number(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"{text!r} is no bound of a logprob; give a number, as in logprob<-20.")
    return found


class Triggers:
    """Looks at what arrives.

    Args:
        texts: the triggers, as `check_trigger` lets them through.
        tokens: whether tokens and logprobs may be said.
    """

    def __init__(self, texts: Sequence[str], *, tokens: bool = True) -> None:
        self._tells = tokens
        found = [_parts(text) for text in texts]
        self._kinds = {kind for kind, _ in found}
        self._logprob = max((float(bound) for kind, bound in found if kind == "logprob"), default=-math.inf)
        self._tokens = min((int(bound) for kind, bound in found if kind == "tokens"), default=None)
        self._reasons = {bound for kind, bound in found if kind == "finish"}

    def has(self, kind: str) -> bool:
        """Whether one of this kind was asked for."""
        return kind in self._kinds

    def of_sampled(self, step: int, sampled: Any) -> Fired | None:
        """Of tokens in an array of `ring.SAMPLED`."""
        if not self.has("logprob") or not len(sampled):
            return None
        wanted = sampled[sampled["logprob"] < self._logprob]  # false for what is not a number
        if not len(wanted):
            return None
        worst = wanted[wanted["logprob"].argmin()]
        words = f"token {int(worst['token'])} has the logprob {float(worst['logprob']):.4g}"
        request, sequence, position = map(int, worst["key"])
        words = words if self._tells else "a token has a logprob"
        detail = f"{words}, below {self._logprob:.4g}"
        return Fired("logprob", detail, request, sequence, position, step)

    def of_end(self, end: Ended) -> Fired | None:
        """Of a sequence that ends."""
        if end.reason in self._reasons:
            words = f"it ended because of {end.reason}, with {end.tokens} tokens"
            return Fired(FINISH, words, end.request, end.sequence)
        if self._tokens is not None and end.tokens > self._tokens:
            words = f"it ended with {end.tokens} tokens, more than {self._tokens}"
            return Fired(TOKENS, words, end.request, end.sequence)
        return None


class RateLimit:
    """How often triggers of one kind may make a trace.

    Args:
        every: seconds between two.
        most: how many.
    """

    def __init__(self, every: float = EVERY, most: int = MOST) -> None:
        self._every, self._most = every, most
        self._last: dict[str, float] = {}
        self._count: dict[str, int] = {}
        self.suppressed: dict[str, int] = {}  # since the last trace

    def lets(self, kind: str) -> bool:
        """Whether it may; counts it if so, and those that may not."""
        now = time.monotonic()
        if now - self._last.get(kind, -math.inf) < self._every or self._count.get(kind, 0) >= self._most:
            self.suppressed[kind] = self.suppressed.get(kind, 0) + 1
            return False
        self._last[kind] = now
        self._count[kind] = self._count.get(kind, 0) + 1
        return True
