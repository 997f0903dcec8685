"""A command with everything that a polite parent meets: it says which signals came, leaves an orphan that will not
end, and shared memory.

    python signal_support.py LOG SECONDS CODE      it ends so many seconds after the last signal
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from pathlib import Path

log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def say(*words: object) -> None:
    os.write(log, (" ".join(map(str, words)) + "\n").encode())


def heard(number: int, frame: object) -> None:
    """Whoever sends several has as long again for the next one."""
    global end
    end = time.monotonic() + float(sys.argv[2])
    say("got", signal.Signals(number).name)


end = float("inf")
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, heard)
if os.fork() == 0:
    if os.fork():
        os._exit(0)
    os.setsid()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    name = f"tracereplay-test-{os.getpid()}"
    with open(Path("/dev/shm") / name, "w+b") as file:
        file.truncate(mmap.PAGESIZE)
        held = mmap.mmap(file.fileno(), mmap.PAGESIZE)
    say("orphan", os.getpid())
    say("memory", name)
    time.sleep(600)
os.wait()
say("command", os.getpid())
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    time.sleep(0.05)
sys.exit(int(sys.argv[3]))
