"""What is varied between runs that should agree: how an engine is started, never what it generates.

`calibrator` measures what such runs differ by, `invariance` whether they do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tracereplay.errors import UsageError
from tracereplay.launch.process import Configured, Launchable
from tracereplay.trace.run import Run

__all__ = ["NAMES", "Variation", "named_variation"]

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class Variation:
    """One way to run golden's workload again.

    Args:
        name: for people.
        settings: engine arguments, laid over golden's.
        env: environment variables of the engine's process, over the engine's own.
        engine: an engine other than the one being calibrated, or None.
        idle: why it would vary nothing that golden has; empty if it does.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    engine: Launchable | None = None
    idle: str = ""

    def words(self, engine: Launchable) -> str:
        """The variation in one line, where ``engine`` is the one that is calibrated."""
        changed = [f"{key}={value}" for key, value in (*self.settings.items(), *self.env.items())]
        return f"{self.name}: {' '.join([(self.engine or engine).name, *changed])}"

    def applied(self, engine: Launchable) -> Configured:
        """What to start.

        Raises:
            UsageError: it would vary nothing, or a variable is set in the shell, whose value an engine keeps.
        """
        if self.idle:
            raise UsageError(self.idle)
        chosen = self.engine or engine
        for name in self.env:
            if name in os.environ:
                raise UsageError(f"{name} is set in the shell, which takes precedence; unset it to vary it.")
        return Configured(chosen.name, chosen.python, {**chosen.env, **self.env}, chosen.settings, chosen.family)


def _repeat(run: Run) -> Variation:
    return Variation("repeat")


def _batch(run: Run) -> Variation:
    """Each request in a batch of its own; where golden's were, all together."""
    batch_of_one, count = _resolved(run).get("max_num_seqs") == 1, len(run.prompts)
    idle = "" if count > 1 else f"Golden has {count} prompt; batches are composed otherwise from two on."
    return Variation("batch", {"max_num_seqs": count if batch_of_one else 1}, idle=idle)


def _threads(run: Run) -> Variation:
    """One thread; where golden had one, two."""
    return Variation("threads", env={THREADS: "2" if run.engine.get("threads") == 1 else "1"})


def _chunks(run: Run) -> Variation:
    """The longest prompt in two or three chunks; where golden's was cut already, in one."""
    longest = max((len(p.token_ids or ()) for p in run.prompts), default=0)
    resolved = _resolved(run)
    if resolved.get("max_num_batched_tokens", longest) < longest:
        whole = resolved.get("max_model_len", longest)
        return Variation("chunks", {"enable_chunked_prefill": False, "max_num_batched_tokens": whole})
    budget = max(longest // 2, 2)
    idle = "" if longest > budget else f"Golden's longest prompt has {longest} tokens, which is not cut in chunks."
    fewer = min(resolved.get("max_num_seqs", budget), budget)  # a batch has at least a token of each request
    return Variation(
        "chunks",
        {"enable_chunked_prefill": True, "max_num_batched_tokens": budget, "max_num_seqs": fewer},
        idle=idle,
    )


_NAMED: Mapping[str, Callable[[Run], Variation]] = {
    "repeat": _repeat, "batch": _batch, "threads": _threads, "chunks": _chunks,
}  # fmt: skip
NAMES = tuple(_NAMED)


def named_variation(name: str, run: Run) -> Variation:
    """The variation of that name, as the opposite of golden's setting.

    Args:
        name: one of `NAMES`.
        run: golden's ``run``.

    Raises:
        UsageError: there is no such variation.
    """
    if name not in _NAMED:
        raise UsageError(f"There is no variation {name!r}; there are {', '.join(NAMES)}.")
    return _NAMED[name](run)


def _resolved(run: Run) -> Mapping[str, int]:
    """Golden's lengths that are known; an engine may say of one that it has none."""
    return {name: value for name, value in run.engine_facts("settings").items() if type(value) is int}
