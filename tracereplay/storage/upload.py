"""A file put at a URL, where it is whole or not at all, whenever this process is killed.

    s3://, gs://       an object is there when its upload is completed: a single request, or one of many parts that
                       is completed last. What was begun and never completed is no object.
    anything else      the file goes to .NAME.partial-XXXXXXXX beside it, which is then renamed.

For the analyst's side only.
"""

from __future__ import annotations

import inspect
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from tracereplay.errors import UsageError
from tracereplay.storage.remote import file_system

__all__ = ["upload"]

_AT_ONCE = {"s3", "s3a", "gs", "gcs"}  # protocols of stores whose uploads are seen when they are complete


def upload(file: Path, url: str, *, replace: bool = False) -> None:
    """Puts a local file at ``url``.

    Args:
        file: the local file.
        url: where it goes.
        replace: what is there already. If not, and the store can be asked for it, what came to be there while the
            file was on its way stays, too.

    Raises:
        UsageError: it cannot be written, or something is there.
    """
    system, path = file_system(url)
    try:
        if not replace and system.exists(path):
            raise FileExistsError(url)
        if _protocols(system) & _AT_ONCE:
            system.put_file(str(file), path, **({} if replace else _only_new(system)))
        else:
            _renamed(system, file, path)
    except FileExistsError as error:
        raise UsageError(f"{url} already exists; give another address, or --force to replace a trace.") from error
    except NotImplementedError as error:
        raise UsageError(f"{url} cannot be written: nothing can be put at such an address.") from error
    except Exception as error:  # every protocol has errors of its own
        raise UsageError(f"{url} cannot be written: {str(error) or type(error).__name__}.") from error


def _renamed(system: Any, file: Path, path: str) -> None:
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/.{name[:50]}.partial-{secrets.token_hex(4)}"
    if folder:
        system.makedirs(folder, exist_ok=True)
    try:
        system.put_file(str(file), partial)
        system.mv(partial, path)
    except BaseException:
        with suppress(Exception):
            system.rm_file(partial)
        raise


def _protocols(system: Any) -> set[str]:
    said = system.protocol
    return {said} if isinstance(said, str) else set(said)


def _only_new(system: Any) -> dict[str, str]:
    """What asks a store to refuse an object that exists (``If-None-Match``), if its package can say so."""
    put = getattr(system, "_put_file", system.put_file)
    return {"mode": "create"} if "mode" in inspect.signature(put).parameters else {}
