"""Finds uv, and passes pip's settings on to it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from tracereplay.errors import EnvironmentFailed

__all__ = ["uv_binary", "uv_environment"]

# uv does not read pip's settings (a mirror, a folder of wheels), so they are passed on where uv has none itself.
# The last value is uv's separator of several values.
PIP_TO_UV = (
    ("PIP_FIND_LINKS", "UV_FIND_LINKS", ","),
    ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", " "),
    ("PIP_EXTRA_INDEX_URL", "UV_INDEX", " "),
    ("PIP_TRUSTED_HOST", "UV_INSECURE_HOST", " "),
    ("PIP_CERT", "SSL_CERT_FILE", " "),
)
UV_SAME_AS = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}


def uv_binary() -> str:
    from uv import find_uv_bin

    try:
        return str(find_uv_bin())
    except FileNotFoundError as error:
        found = shutil.which("uv")
        if found:
            return found
        raise EnvironmentFailed("uv was not found. Install it with 'pip install uv'.") from error


def uv_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The variables uv runs with: ``base``, and pip's settings where uv has none of its own."""
    result = dict(base)
    for pip, uv, separator in PIP_TO_UV:
        value = base.get(pip, "").strip()
        told = base.get(uv) or base.get(UV_SAME_AS.get(uv, uv))
        if value and not told:
            result[uv] = separator.join(value.split())
    # Neither an active environment nor a project of the user's may matter.
    result.pop("VIRTUAL_ENV", None)
    return result
