"""Where files are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

__all__ = ["home"]


def home() -> Path:
    """``TRACEREPLAY_HOME``, else the user's cache directory."""
    own = os.environ.get("TRACEREPLAY_HOME")
    return Path(own).expanduser().absolute() if own else platformdirs.user_cache_path("tracereplay")
