"""The last step of a recording that ends while its engine goes on: the ranks of an engine agree on it.

    rank 0 ──"I have begun 120"──▶ .engine-0-last ◀──"I have begun 119"── rank 1
                                         │ once all have said so, the last step is the latest that any has begun
                                         ▼
                     each rank records its steps as far as that one, and ends

The ranks of an engine run the same steps, but not at the same moment, and an engine that idles runs none. So none
can end by itself, and no time to come can be named. A rank that has said how far it is begins another step only by
saying so, too, and all of it happens under the file's lock. Nobody waits for another rank: until all have spoken,
steps go on being recorded.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracereplay.trace.directory import CLAIM, SEGMENT

__all__ = ["LastStep"]

PATIENCE = 5.0  # seconds for which an idle rank waits for others, which may have been killed
LOCKED = 0.2  # seconds for which another rank may have the file; it needs microseconds


class LastStep:
    """One rank's part in it.

    Args:
        folder: where all ranks of the engine find the same file.
        segment: the rank's, by which its engine and its rank are known.
        world: how many ranks the engine has. A single one need ask nobody.
    """

    def __init__(self, folder: Path, segment: Path, world: int) -> None:
        named = SEGMENT.fullmatch(segment.name)
        self._alone = world < 2 or named is None
        self._world = world
        self._rank = "" if named is None else named["rank"]
        engine = "" if named is None else named["pass"].partition("-engine")[2]
        self._path = folder / CLAIM.format(f"{engine or 0}-last")
        self._last: int | None = None
        self._idle_since: float | None = None

    def is_over(self, begun: int, *, idle: bool) -> bool:
        """Whether ``begun`` steps are all that the recording has; says that they are begun.

        Args:
            begun: steps that this rank has begun.
            idle: whether it is between two steps.
        """
        last = self._ask(begun)
        if last is None:
            return idle and (self._alone or self._waited())
        if begun < last:
            return idle and self._waited()  # for a step that another rank has begun
        return idle

    def may_begin(self, begun: int) -> bool:
        """Whether a rank that has begun ``begun`` steps shall record another; says so if it does."""
        self._idle_since = None
        if self._last is None and self._ask(begun + 1) is None:
            return not self._alone
        return self._last is None or begun < self._last

    def _waited(self) -> bool:
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        return now - self._idle_since > PATIENCE

    def _ask(self, begun: int) -> int | None:
        """The number of steps that are recorded, if that has been settled; else says ``begun``."""
        if self._last is None and not self._alone:
            try:
                with self._opened() as fd:
                    self._last = self._say(fd, begun)
            except (OSError, ValueError, TypeError, KeyError):
                self._alone = True  # no such folder, no locks, or a rank that was killed while it wrote
        return self._last

    def _say(self, fd: int, begun: int) -> int | None:
        said: dict[str, Any] = json.loads(os.pread(fd, 1 << 16, 0) or b'{"begun": {}, "last": null}')
        last: int | None = said["last"]
        if not isinstance(said["begun"], dict) or not isinstance(last, int | None):
            raise ValueError("another wrote it")
        if last is not None:
            return last
        before = said["begun"].get(self._rank)
        if before == begun:
            return None
        said["begun"][self._rank] = begun
        if len(said["begun"]) == self._world:
            said["last"] = last = max(said["begun"].values())
        data = json.dumps(said).encode()
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
        return last

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + LOCKED
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.001)
            yield fd
        finally:
            os.close(fd)
