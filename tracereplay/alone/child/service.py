"""The child's loop: one request at a time, until the other side closes the connection.

sandbox ─▶ child   {"handlers": {name: module}, "setup": {name: ...}, "memory": bytes, "largest": bytes}
child ─▶ sandbox   {"status": "done", "outputs": {name: what the handler says of itself}}
sandbox ─▶ child   {"handler": name, "request": ...}
child ─▶ sandbox   {"status": "done", "outputs": ...}, or {"status": ..., "reason": sentence}
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import socket
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tracereplay.alone.child.confine import confine, limit_memory
from tracereplay.alone.child.wire import Channel, Closed, TooLarge

__all__ = ["NotReplayable", "serve"]

_NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory")


class NotReplayable(Exception):
    """A handler refuses to execute a call; the text says why, in lower case, since it follows a colon."""


def serve(fd: int) -> None:
    """Serves the sandbox at the other end of the socket ``fd``."""
    os.dup2(2, 1)  # libraries print
    faulthandler.enable()
    confine()
    channel = Channel(socket.socket(fileno=fd))
    begin = channel.receive()
    channel.largest = begin["largest"]
    handlers: dict[str, ModuleType] = {}

    def prepare() -> dict[str, Any]:
        for name, module in begin["handlers"].items():
            handlers[name] = importlib.import_module(module)
        ready = {n: m.prepare(begin["setup"].get(n)) for n, m in handlers.items() if hasattr(m, "prepare")}
        limit_memory(begin["memory"])
        return ready

    def carry_out() -> Any:
        return handlers[message["handler"]].run(message["request"])

    channel.send(_outcome(prepare))
    while True:
        try:
            message = channel.receive()
        except Closed:
            return
        answer = _outcome(carry_out)
        try:
            channel.send(answer)
        except TooLarge as error:
            channel.send({"status": "failed", "reason": str(error)})


def _outcome(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"status": "done", "outputs": work()}
    except NotReplayable as error:
        return {"status": "not replayable", "reason": str(error)}
    except MemoryError:
        return {"status": "out of memory", "reason": "out of memory"}
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        if any(words in str(error).lower() for words in _NO_MEMORY):
            return {"status": "out of memory", "reason": "out of memory"}
        text = str(error).strip() or "without a message"
        return {"status": "failed", "reason": f"{type(error).__name__}: {text.splitlines()[0][:500]}"}
