"""A packed trace that goes to a URL: made on this machine, and put there when it is complete."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tracereplay.errors import NotATrace, TraceError, UsageError
from tracereplay.storage.files import Folder
from tracereplay.storage.remote import open_remote
from tracereplay.storage.upload import upload
from tracereplay.trace import open_trace

__all__ = ["uploading"]


@contextmanager
def uploading(url: str, *, force: bool = False, inputs: Iterable[str | Path] = ()) -> Iterator[Path]:
    """Where to write a packed trace that is then put at ``url``, unless the context ends with an error.

    Args:
        url: of a file.
        force: replace a trace there.
        inputs: what is read for it, and never replaced.

    Raises:
        UsageError: what is there must stay, or nothing can be written there.
    """
    _refuse_others(url, force, [str(path) for path in inputs])
    with tempfile.TemporaryDirectory(prefix="tracereplay-") as folder:
        path = Path(folder) / "golden.pack"
        yield path
        upload(path, url, replace=force)


def _refuse_others(url: str, force: bool, inputs: Iterable[str]) -> None:
    """The rules of `trace.place.Place`, as far as they can be asked of a server; before anything slow starts."""
    if url.startswith(("http://", "https://")):
        raise UsageError(
            f"Cannot write to {url}; give a local path, or a store's URL as in s3://BUCKET/golden.pack."
        )
    if url.endswith("/"):
        raise UsageError(f"{url} names a folder; give the address of a file, as in {url}golden.pack.")
    try:
        found = open_remote(url)
    except NotATrace:
        return
    if url in inputs:
        raise UsageError(f"{url} is read by this command, so it is not replaced. Give another address.")
    if isinstance(found, Folder):
        raise UsageError(f"{url} is a folder; give the address of a file, as in {url}/golden.pack.")
    found.close()
    if not force:
        raise UsageError(f"{url} already exists; give another address, or --force to replace a trace.")
    try:
        open_trace(url).close()
    except TraceError as error:
        raise UsageError(
            f"{url} is not certain to be a trace ({error}), so it is not replaced. Give another address, or move "
            "it away."
        ) from error
