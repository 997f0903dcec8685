"""The requests of a pass as people ask for them: who asked, what they were given and got, and in which steps.

A trace has no table of its requests. Prompts are in the manifest or in the steps in which requests begin, tokens
in the steps that sampled them, and who asked in the files of `requests`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracereplay.errors import UsageError
from tracereplay.event import Sampled
from tracereplay.passes import RECORD
from tracereplay.trace.forms import StepRecord
from tracereplay.trace.known import KnownRequest, Numbers, found_by, identities, numbers
from tracereplay.trace.open import Trace
from tracereplay.trace.requests import Identity
from tracereplay.trace.run import RecordedPrompt

__all__ = ["Listed", "Place", "detailed", "listed", "named"]

LOOK = 2_000  # steps in which a list looks for tokens: opening a trace takes as long for any length
NAMED = 5  # requests that a message names
MAX_DIGITS = 10
MAX_SAMPLES = 1024  # of a request that a stranger's number may make us list


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request is in a step.

    Args:
        step: its number.
        rows: of the step's row map that are its own.
        positions: of these rows, in its sequence; that of a rejected draft token is negative.
        calls: of the step.
        of: rows of the step.
    """

    step: int
    rows: tuple[int, ...]
    positions: tuple[int, ...]
    calls: int
    of: int


@dataclass(slots=True)
class Listed:
    """A sample of a request.

    Args:
        request, sequence: its numbers.
        identity: who asked; None where no front end was recorded.
        prompt: its token ids; None where the trace has only its text.
        text: the prompt's text, if it was given as text.
        sampling: its parameters.
        samples: how many the request has.
        reason: why it ended, by its front end's word or the pass's results; empty: it is not known.
        tokens: sampled, in order of their positions.
        logprobs: of these.
        places: where it is in the steps; for `detailed` only.
        whole: whether the trace was read so far that all of its tokens are known.
        lacking: whether steps of it were left out, because the writer was behind or the recording paused.
    """

    request: int
    sequence: int
    identity: Identity | None
    prompt: tuple[int, ...] | None
    text: str | None
    sampling: dict[str, Any]
    samples: int = 1
    reason: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    whole: bool = True
    lacking: bool = False

    @property
    def expected(self) -> int | None:
        """How many tokens it has, by its front end's word."""
        return None if self.identity is None else self.identity.tokens


def listed(trace: Trace, pass_name: str, most: int | None = None) -> tuple[list[Listed], int]:
    """The first requests of a pass, in the order of their numbers, and how many there are.

    Args:
        trace: to read.
        pass_name: of its passes.
        most: how many at most; None: all.
    """
    limit = None if most is None else LOOK
    told = numbers(trace, limit)
    keys = _keys(trace, told)
    return _read(trace, pass_name, keys[:most], told, limit), len(keys)


def detailed(trace: Trace, pass_name: str, keys: Sequence[tuple[int, int]]) -> list[Listed]:
    """Some requests, with their places."""
    return _read(trace, pass_name, keys, numbers(trace), places=True)


def named(trace: Trace, text: str) -> list[tuple[int, int]]:
    """Request and sequence of what ``text`` names: a number, an id, or the beginning of a single one. The samples
    of a request have one id, as have the prompts of one body.

    Raises:
        UsageError: there is none, or several have ids that begin so.
    """
    keys = _keys(trace, numbers(trace))
    if text.isascii() and text.isdigit() and len(text) < MAX_DIGITS:
        numbered = [key for key in keys if key[0] == int(text)]
        if numbered or not keys:  # a trace that does not say what was asked for has numbers all the same
            return numbered or [(int(text), 0)]
    found = found_by(trace.requests, text) if text else []
    if not found:
        raise UsageError(f"{trace.path} has no request {text!r}; {_hint(trace, len({key[0] for key in keys}))}")
    ids = list(dict.fromkeys(known.identity.client_id or known.identity.id for known in found))
    if len(ids) > 1:
        some = ", ".join(f"{name} (request {_number(found, name)})" for name in ids[:NAMED])
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        raise UsageError(f"{text!r} begins the ids of {len(ids)} requests, {some}{more}; give more of one.")
    return [(known.request, known.sequence) for known in found]


def _number(found: Sequence[KnownRequest], name: str) -> int:
    return next(known.request for known in found if name in (known.identity.client_id, known.identity.id))


def _hint(trace: Trace, count: int) -> str:
    if not count:
        return "it has none."
    numbers = "its only number is 0" if count == 1 else f"its numbers are 0 to {count - 1}"
    return f"{numbers}, and {'it names no ids' if not trace.requests else 'show without --request lists them'}."


def _keys(trace: Trace, names: Numbers) -> list[tuple[int, int]]:
    """(request, sequence) of all, in order."""
    told = {request for request, _ in names}
    prompts = [(r, s) for r, p in enumerate(trace.run.prompts) if r not in told for s in range(_samples(p))]
    return sorted({*names, *prompts})


def _samples(prompt: RecordedPrompt) -> int:
    n = prompt.sampling.get("n", 1)
    return max(1, min(n, MAX_SAMPLES)) if type(n) is int else 1


def _read(
    trace: Trace, pass_name: str, keys: Sequence[tuple[int, int]], told: Numbers, most: int | None = None, *,
    places: bool = False,
) -> list[Listed]:  # fmt: skip
    names = {key: name for key, (_, name) in told.items()}
    if most is None:
        said = {known.identity.id: known.identity for known in trace.requests}
    else:
        said = identities(trace, {names[key] for key in keys if key in names})
    samples = Counter(request for request, _ in names)
    results = _results(trace, pass_name)
    lacking = trace.lacking(pass_name)
    found, prompts = [], trace.run.prompts
    for key in keys:
        identity = None if key not in names else said.get(names[key]) or Identity(names[key])
        one = Listed(*key, identity, None, None, {}, samples[key[0]] or 1)
        if key[0] < len(prompts):
            prompt = prompts[key[0]]
            one.prompt, one.text, one.sampling = prompt.token_ids, prompt.text, dict(prompt.sampling)
            one.samples = samples[key[0]] or _samples(prompt)
        result = results.get(key, {})
        one.reason = identity.reason if identity is not None else str(result.get("finish_reason") or "")
        one.lacking = key[0] in lacking
        one.tokens = [token for token in result.get("token_ids", ()) if type(token) is int]
        found.append(one)
    if places or not results:
        _read_tokens(trace, pass_name, found, most, places)
    return found


def _results(trace: Trace, pass_name: str) -> dict[tuple[int, int], Mapping[str, Any]]:
    """What the engine returned for requests of a workload."""
    results = trace.results.get(pass_name, {}).get("requests") or ()
    return {(r.get("request", -1), r.get("sequence", -1)): r for r in results}


def _read_tokens(trace: Trace, pass_name: str, wanted: Sequence[Listed], most: int | None, places: bool) -> None:
    """Fills in what steps say of some requests; ends when their front end's count of tokens is reached.

    Args:
        trace, pass_name: whose steps.
        wanted: the requests.
        most: steps that are read at most; None: all.
        places: whether to fill in these too.
    """
    by_key = {(one.request, one.sequence): one for one in wanted}
    sampled: dict[tuple[int, int], dict[int, Sampled]] = {key: {} for key in by_key}
    for count, step in enumerate(trace.records(pass_name, trace.ranks(pass_name)[0])):
        if count == most:
            for one in wanted:
                one.whole = one.expected is not None and len(sampled[one.request, one.sequence]) >= one.expected
            break
        if places:
            _add_places(step, by_key)
        for token in step.sampled:
            key = (token.key.request, token.key.sequence)
            if key in sampled:
                sampled[key][token.key.position] = token
        if pass_name == RECORD and all(_done(one, len(sampled[key])) for key, one in by_key.items()):
            break
    for key, one in by_key.items():
        in_order = [sampled[key][position] for position in sorted(sampled[key])]
        one.tokens, one.logprobs = [t.token for t in in_order], [t.logprob for t in in_order]


def _add_places(step: StepRecord, by_key: Mapping[tuple[int, int], Listed]) -> None:
    rows = step.rows
    for key, one in by_key.items():
        own = ((rows[:, 0] == key[0]) & (rows[:, 1] == key[1])).nonzero()[0].tolist()
        if own:
            at = tuple(rows[own, 2].tolist())
            one.places.append(Place(step.number, tuple(own), at, len(step.form.calls), len(rows)))


def _done(one: Listed, tokens: int) -> bool:
    return one.expected is not None and tokens >= one.expected and bool(one.identity and one.identity.ended)
