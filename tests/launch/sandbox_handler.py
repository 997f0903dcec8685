"""A handler for tests: it does what it is told to the process that it runs in."""

import os
import signal
import socket
import sys
import time
from typing import Any

from tracereplay.alone.child.service import NotReplayable


def prepare(setup: Any) -> Any:
    if setup == "hang":
        time.sleep(60)
    return {"setup": setup}


def run(request: Any) -> Any:
    return globals()[f"_{request['do']}"](request)


def _echo(request: Any) -> Any:
    print("libraries print")
    print("and complain", file=sys.stderr)
    return request["value"]


def _crash(request: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def _exit(request: Any) -> Any:
    os._exit(7)


def _sleep(request: Any) -> Any:
    time.sleep(request["seconds"])


def _eat(request: Any) -> Any:
    eaten = [bytearray(b"x" * (16 << 20)) for _ in range(request["pieces"])]
    return len(eaten)


def _refuse(request: Any) -> Any:
    raise NotReplayable("it reads a pointer")


def _fail(request: Any) -> Any:
    raise ValueError("no such thing\nsecond line")


def _pid(request: Any) -> Any:
    return os.getpid()


def _secrets(request: Any) -> Any:
    return [name for name in os.environ if name.endswith("TOKEN")]


def _connect(request: Any) -> Any:
    with socket.create_connection(("127.0.0.1", request["port"]), timeout=5):
        return True
