"""What one pass of an engine is asked to do, as both sides say it: the one that asks, and the drivers and workers.

Between processes it is plain data (`PassRequest.as_dict`). What it is made of never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from tracereplay.cancellation import Cancellation
from tracereplay.checked import OBJECT, STRING, Check, among, checked, or_none
from tracereplay.errors import UsageError
from tracereplay.recorder.options import Options

__all__ = ["Cancel", "Cleared", "Feed", "Inject", "PassRequest", "Serving"]


@dataclass(frozen=True, slots=True)
class Inject:
    """Every operator is fed golden's values in place of the actual ones."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Chosen values are fed without the own error that the injected pass showed.

    Args:
        selection: which.
        injected: the candidate's trace that has the injected pass.
    """

    selection: Cancellation
    injected: Path


Feed: TypeAlias = Inject | Cancel

Cleared: TypeAlias = Literal["pass", "group", "never"]


def _groups(value: Any) -> bool:
    """Whether these are lists of requests in which each request from 0 on is once."""
    if not isinstance(value, list) or not all(isinstance(group, list) and group for group in value):
        return False
    found = [number for group in value for number in group]
    return all(type(number) is int for number in found) and sorted(found) == list(range(len(found)))


@dataclass(frozen=True, slots=True)
class Serving:
    """How the requests of a pass are handed to the engine; what is generated does not follow from it.

    Args:
        groups: the numbers of the requests that are handed over together, in that order, once the group before
            has ended; each request once. None: all together, in the workload's order.
        cleared: when the prefix cache is emptied: before the ``pass``, before each ``group``, or ``never``, so
            that it holds what the passes before have left.
    """

    groups: tuple[tuple[int, ...], ...] | None = None
    cleared: Cleared = "pass"

    def of(self, requests: int) -> tuple[tuple[int, ...], ...]:
        """The groups for a workload of that many requests.

        Raises:
            UsageError: they are groups of another number of requests.
        """
        groups = (tuple(range(requests)),) if self.groups is None else self.groups
        if sum(map(len, groups)) != requests:
            raise UsageError(f"The pass is to serve {sum(map(len, groups))} requests, and there are {requests}.")
        return groups

    def order(self) -> tuple[int, ...] | None:
        """The numbers of the requests in the order in which they are handed over; None: the workload's."""
        return None if self.groups is None else tuple(number for group in self.groups for number in group)

    def as_dict(self) -> dict[str, Any]:
        groups = None if self.groups is None else [list(group) for group in self.groups]
        return {"groups": groups, "cleared": self.cleared}

    @classmethod
    def from_dict(cls, data: Any) -> Serving:
        """Reads what `as_dict` wrote.

        Raises:
            UsageError: a key is unknown or missing, or its value is not of its type; the message names it.
        """
        given = checked(data, _SERVING, "the pass's serving")
        groups: Sequence[Sequence[int]] | None = given["groups"]
        return cls(None if groups is None else tuple(map(tuple, groups)), given["cleared"])


_SERVING: Mapping[str, Check] = {
    "groups": or_none((_groups, "lists of requests, each request once")), "cleared": among(*get_args(Cleared)),
}  # fmt: skip
_REQUEST: Mapping[str, Check] = {
    "trace": STRING, "name": STRING, "golden": or_none(STRING), "feed": or_none(OBJECT), "options": OBJECT,
    "serving": OBJECT,
}  # fmt: skip
_FEEDS: Mapping[str, Mapping[str, Check]] = {"inject": {}, "cancel": {"selection": OBJECT, "injected": STRING}}


@dataclass(frozen=True, slots=True)
class PassRequest:
    """One pass: where it is recorded, and what is done to the generation.

    Args:
        trace: directory that is written to; absolute, since an engine's processes may be anywhere.
        name: of the pass, see `passes`.
        golden: the golden trace whose tokens are forced; None: the engine runs freely.
        feed: what operators are fed in place of what arrives; None: nothing.
        options: how much is recorded.
        serving: in which groups and order requests are handed over.

    Raises:
        UsageError: something is to be fed, and there is no golden trace to take it from.
    """

    trace: Path
    name: str
    golden: Path | None = None
    feed: Feed | None = None
    options: Options = Options()
    serving: Serving = Serving()

    def __post_init__(self) -> None:
        if self.feed is not None and self.golden is None:
            raise UsageError(f"The pass {self.name!r} is to be fed golden's values, but has no golden trace.")

    def as_dict(self) -> dict[str, Any]:
        return {
            "trace": str(self.trace),
            "name": self.name,
            "golden": None if self.golden is None else str(self.golden),
            "feed": _feed_as_dict(self.feed),
            "options": self.options.as_dict(),
            "serving": self.serving.as_dict(),
        }

    @classmethod
    def from_dict(cls, data: Any) -> PassRequest:
        """Reads what `as_dict` wrote.

        Raises:
            UsageError: a key is unknown or missing, or its value is not of its type; the message names it.
        """
        given = checked(data, _REQUEST, "the pass request")
        golden, feed = given["golden"], given["feed"]
        return cls(
            Path(given["trace"]),
            given["name"],
            None if golden is None else Path(golden),
            None if feed is None else _feed_from_dict(feed),
            Options.from_dict(given["options"]),
            Serving.from_dict(given["serving"]),
        )


def _feed_as_dict(feed: Feed | None) -> dict[str, Any] | None:
    match feed:
        case Inject():
            return {"kind": "inject"}
        case Cancel(selection, injected):
            return {"kind": "cancel", "selection": selection.as_dict(), "injected": str(injected)}
        case None:
            return None


def _feed_from_dict(data: Mapping[str, Any]) -> Feed:
    takes = {"kind": among(*_FEEDS), **_FEEDS.get(str(data.get("kind")), {})}
    given = checked(data, takes, "the pass's feed")
    if given["kind"] == "inject":
        return Inject()
    return Cancel(Cancellation.from_dict(given["selection"]), Path(given["injected"]))
