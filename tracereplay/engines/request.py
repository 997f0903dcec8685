"""What one pass of an engine is asked to do, as both sides say it: the one that asks, and the drivers and workers.

Between processes it is plain data (`PassRequest.as_dict`). What it is made of never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tracereplay.cancellation import Cancellation
from tracereplay.checked import OBJECT, STRING, Check, among, checked, or_none
from tracereplay.errors import UsageError
from tracereplay.recorder.options import Options

__all__ = ["Cancel", "Feed", "Inject", "PassRequest"]


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

_REQUEST: Mapping[str, Check] = {
    "trace": STRING, "name": STRING, "golden": or_none(STRING), "feed": or_none(OBJECT), "options": OBJECT,
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

    Raises:
        UsageError: something is to be fed, and there is no golden trace to take it from.
    """

    trace: Path
    name: str
    golden: Path | None = None
    feed: Feed | None = None
    options: Options = Options()

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
