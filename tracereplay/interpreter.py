"""How other Python processes are started: never with what lies in the working directory.

``python -m`` and ``python -c`` look for modules in the working directory first. Who analyses a stranger's files in
the folder that they came in would run a ``torch.py`` of his.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SAFE", "module_command"]

# For the processes that the started one starts in turn; Python 3.10 does not know it.
SAFE: Mapping[str, str] = {"PYTHONSAFEPATH": "1"}
_RUN = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_command(python: str, module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` as ``python -m`` does, without the working directory on the path."""
    return [python, "-c", _RUN, module, *arguments]
