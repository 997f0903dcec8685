"""Maps an engine's request ids to (request, sequence).

Engines decorate the caller's id. ``7`` can arrive as ``7_parallel_sample_1`` (V0), or as
``1_7-3f2a9c1b`` (V1: child number, id, random suffix).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["NOBODY", "Numbering", "client_names"]

_V0_CHILD = re.compile(r"^(?P<id>.*)_parallel_sample_(?P<child>\d+)$")
_V1 = re.compile(r"^(?:(?P<child>\d+)_)?(?P<id>.+?)(?:-[0-9a-f]{8})?$")

# What a server's front end puts before a client's own id (X-Request-Id), or one that it makes up. To that of a
# completion it always adds the number of the prompt, since there may be several.
_COMPLETION = re.compile(r"^(?P<whole>cmpl-(?P<own>.+))-\d+$")
_OTHER = re.compile(r"^(?P<whole>(?:chatcmpl-|resp_)(?P<own>.+))$")

NOBODY = (-1, 0)  # (request, sequence) of a request that is not recorded


def client_names(engine_id: str) -> tuple[str, ...]:
    """What a request is called without what engines put to its id inside; each name once.

    The first is that of the whole request as the answer has it: ``cmpl-7f`` of ``1_cmpl-7f-0-3f2a9c1b``. Then
    follow the one that the front end gives to the engine, ``cmpl-7f-0``, and the client's own, ``7f``.
    """
    match = _V0_CHILD.match(engine_id) or _V1.match(engine_id)
    assert match is not None  # the second pattern matches any id
    external = match["id"]
    served = _COMPLETION.match(external) or _OTHER.match(external)
    names = (external,) if served is None else (served["whole"], external, served["own"])
    return tuple(dict.fromkeys(names))


class Numbering:
    """Numbers requests.

    Args:
        first: the engine's integer id of the workload's first request; None numbers requests in the order in which
            they are seen (a server's ids are not integers).
        order: the workload's numbers of the requests in the order in which they are handed to the engine, which
            counts them; None: they are handed over in the workload's order.
    """

    def __init__(self, first: int | None, order: Sequence[int] | None = None) -> None:
        self._first, self._order = first, order
        self._seen: dict[str, int] = {}
        self._known: dict[str, tuple[int, int]] = {}
        self._passed: set[str] = set()  # ids of requests under way that are not recorded
        self._count = 0  # of requests that were seen

    @property
    def counted(self) -> bool:
        """Whether requests are numbered from a workload's first one."""
        return self._first is not None

    def find(self, engine_id: str) -> tuple[int, int] | None:
        """(request, sequence) of an id that was seen before, `NOBODY` if it was passed over; else None."""
        return NOBODY if engine_id in self._passed else self._known.get(engine_id)

    def knows(self, engine_id: str) -> bool:
        """Whether this id has a number."""
        return engine_id in self._known

    def pass_over(self, engine_id: str) -> tuple[int, int]:
        """Gives no number to a request, and remembers that until it is `finished`."""
        self._passed.add(engine_id)
        return NOBODY

    def finished(self, engine_ids: Iterable[str]) -> None:
        """These ids, which have no numbers, do not come again."""
        if self._passed:
            self._passed.difference_update(engine_ids)

    def under_way(self) -> set[int]:
        """Requests of which an id is known."""
        return {request for request, _ in self._known.values()}

    def anew(self) -> Numbering:
        """Numbers from 0 again, for the next trace of a recording; who was passed over stays so."""
        found = Numbering(self._first, self._order)
        found._passed |= self._passed
        return found

    def forget(self, engine_id: str) -> None:
        """Lets go of an id that does not come again: a server has no end of them. Of several samples of a request
        some may come only when others have ended, so that the request stays known."""
        self._known.pop(engine_id, None)
        match = _V0_CHILD.match(engine_id) or _V1.match(engine_id)
        if match is not None and match["child"] is None:
            self._seen.pop(engine_id, None)

    def number(self, engine_id: str) -> tuple[int, int]:
        """(request, sequence) of an id as the engine's worker sees it."""
        found = self._known.get(engine_id)
        if found is None:
            found = self._known[engine_id] = self._parse(engine_id)
        return found

    def _parse(self, engine_id: str) -> tuple[int, int]:
        match = _V0_CHILD.match(engine_id) or _V1.match(engine_id)
        assert match is not None  # the second pattern matches any id
        external, child = match["id"], int(match["child"] or 0)
        if self._first is not None and external.isdigit():
            place = int(external) - self._first
            return place if self._order is None else self._order[place], child
        # With the random suffix, since a client may send the same id twice, for two requests.
        own = external if match.re is _V0_CHILD else engine_id[match.start("id") :]
        if own not in self._seen:
            self._seen[own] = self._count
            self._count += 1
        return self._seen[own], child
