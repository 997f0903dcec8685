"""Whether a recorded engine compiled its model, and what compilation alone changes."""

from __future__ import annotations

from tracereplay.trace.run import Run

__all__ = ["WHY_COMPILED_DIFFERS", "compilation_of"]

_OFF = (None, 0, "0", "NONE", "NO_COMPILATION")

WHY_COMPILED_DIFFERS = (
    "Compilation alone may change the last bits: a compiler fuses an operator with its neighbours, and does not "
    "round what it then keeps in registers"
)


def compilation_of(run: Run) -> str | None:
    """How the engine of a trace compiled its model, as a setting and its value; None if it ran eagerly."""
    settings = run.engine_facts("settings")
    mode = settings.get("compilation_mode")
    if mode in _OFF or settings.get("enforce_eager") is True:
        return None
    return f"compilation_mode {mode}"
