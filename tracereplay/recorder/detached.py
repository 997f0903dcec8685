"""Starts the writer as a daemon: ``python -m tracereplay.recorder.detached IN OUT``.

Front ends stop an engine by killing its descendants, and the writer must outlive the engine to write what was
handed over. The started process exits at once; its child, the writer, is adopted by init or a subreaper.
"""

from __future__ import annotations

import os

if os.fork():
    os._exit(0)

from tracereplay.recorder.writer_process import main  # after the fork, which copies no threads

if __name__ == "__main__":
    main()
