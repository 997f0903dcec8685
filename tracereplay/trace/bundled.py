"""The golden trace in a bundle (`tracereplay bundle`): a packed trace, stored in the ZIP file as it is.

So it is read where it lies, by whoever opens a trace. What else a bundle must be, `bundle --check` says.
"""

from __future__ import annotations

from pathlib import Path

from tracereplay.errors import NotATrace, TraceError
from tracereplay.storage.files import File, LocalFile
from tracereplay.storage.zipped import Zipped, is_zip

__all__ = ["GOLDEN", "golden_in", "is_bundle"]

GOLDEN = "golden.pack"  # its name in a bundle


def golden_in(file: File) -> File:
    """The packed golden trace in a bundle.

    Raises:
        NotATrace: it is no ZIP file, or one without such a trace.
        BadBundle: it is one that is not safe to open.
    """
    archive = Zipped(file)
    if GOLDEN not in archive.members:
        raise NotATrace(f"{file.name} is a ZIP file without a {GOLDEN}, so it is not a bundle.")
    return archive.window(GOLDEN)


def is_bundle(path: Path) -> bool:
    """Whether a ZIP file is at ``path``."""
    if not path.is_file():
        return False
    try:
        file = LocalFile(path)
    except TraceError:
        return False
    try:
        return is_zip(file)
    finally:
        file.close()
