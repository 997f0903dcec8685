"""Which release of tracereplay this is, wherever it runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["our_version"]

_NAMES = ("tracereplay", "tracereplay-guest")  # installed, or brought into an engine's environment by an overlay


def our_version() -> str:
    """This release, as traces name it."""
    for name in _NAMES:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"  # the sources alone are on the path
