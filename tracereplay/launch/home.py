"""Where files are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["home"]


def home() -> Path:
    """``TRACEREPLAY_HOME``, else the user's cache directory."""
    if own := os.environ.get("TRACEREPLAY_HOME"):
        return Path(own).expanduser().absolute()
    try:
        import platformdirs
    except ImportError:  # in an engine's environment, where it records itself
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tracereplay"
    return platformdirs.user_cache_path("tracereplay")
