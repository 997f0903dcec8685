"""Starts the writer process as nobody's child: ``python -m tracereplay.recorder.detached IN OUT``.

Front ends end an engine by killing all processes below it, and what the engine handed over would not be written.
The process that was started ends at once; its child, the writer, belongs to the machine's first process, or to
whoever gathers orphans.
"""

from __future__ import annotations

import os

if os.fork():
    os._exit(0)

from tracereplay.recorder.writer_process import main  # only now: threads of what it imports would not be forked

if __name__ == "__main__":
    main()
