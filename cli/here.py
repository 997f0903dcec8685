"""Golden traces at URLs, brought to this machine for verbs whose engines read them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from tracereplay.storage.files import is_url

__all__ = ["path_or_url", "reads_here"]

P = ParamSpec("P")
R = TypeVar("R")


def path_or_url(text: str) -> Path | str:
    """What an argument names; `reads_here` makes a path of either."""
    return text if is_url(text) else Path(text)


def reads_here(argument: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Wraps a verb: where an argument of that name is a URL, the trace there is kept on this machine meanwhile."""

    def wrap(verb: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(verb)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            given = kwargs[argument]
            if not isinstance(given, str) or not is_url(given):
                return verb(*args, **kwargs)
            from tracereplay.cli.console import tell
            from tracereplay.store.cache import kept

            with kept(given, tell) as path:
                kwargs[argument] = path
                return verb(*args, **kwargs)

        return run

    return wrap
