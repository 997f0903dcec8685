"""A directory in memory by which a recording's parent and its engine's workers speak, whatever the disk does."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tracereplay.launch.descendants import SHARED
from tracereplay.recorder.orders import ORDERS

__all__ = ["Room"]


class Room:
    """Made by the parent, before its command starts; only its owner may look into it."""

    def __init__(self) -> None:
        parent = SHARED if os.access(SHARED, os.W_OK | os.X_OK) else None
        self.path = Path(tempfile.mkdtemp(prefix="tracereplay-room-", dir=parent))
        (self.path / ORDERS).touch(mode=0o600)

    @property
    def memory(self) -> list[str]:
        """Its name in shared memory, for whoever tidies up there."""
        return [self.path.name] if self.path.parent == SHARED else []

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
