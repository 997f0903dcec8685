"""Where the adapters of a trace's requests are: where the user says, or where they were if they are unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracereplay.errors import WorkloadError
from tracereplay.sampling import LORA
from tracereplay.storage.adapter import Adapter, read_adapter
from tracereplay.workload import Prompt

__all__ = ["ADAPTERS", "with_adapters"]

ADAPTERS = "lora_modules"  # among the user's engine arguments: directories by name


def with_adapters(prompts: Iterable[Prompt], given: Mapping[str, Any]) -> tuple[tuple[Prompt, ...], list[int]]:
    """The requests, each with an adapter that is there, and the ranks of the adapters.

    Args:
        prompts: requests of a trace, their sampling parameters checked.
        given: the user's directories, by the adapters' names.

    Raises:
        WorkloadError: an adapter is not there, or is not the recorded one.
    """
    found: dict[tuple[str, str | None], Adapter] = {}  # one of a name may have been replaced while a server ran
    served = []
    for number, prompt in enumerate(prompts):
        asked = prompt.sampling.get(LORA)
        if asked is not None:
            key = asked["name"], asked["digest"]
            if key not in found:
                found[key] = _found(asked, number, given.get(asked["name"]))
            prompt = replace(prompt, sampling={**prompt.sampling, LORA: found[key].as_dict()})
        served.append(prompt)
    return tuple(served), [adapter.rank for adapter in found.values()]


def _found(asked: Mapping[str, Any], number: int, given: Any) -> Adapter:
    name, digest = asked["name"], asked["digest"]
    if given is not None:
        adapter = read_adapter(name, Path(str(given)))
        if digest is not None and adapter.digest != digest:
            raise WorkloadError(
                f"The adapter at {given} is not the {name!r} that golden's request {number} was served with "
                f"(digest {adapter.digest}, golden {digest}); give golden's with --lora {name}=DIR."
            )
        return adapter
    try:
        adapter = read_adapter(name, Path(asked["path"]))
    except WorkloadError as error:
        raise WorkloadError(
            f"Golden's request {number} was served with the adapter {name!r}, which is not at {asked['path']} any "
            f"more; say with --lora {name}=DIR where it is."
        ) from error
    if adapter.digest != digest:
        raise WorkloadError(
            f"The adapter at {asked['path']} is no longer the {name!r} that golden's request {number} was served "
            f"with (digest {adapter.digest}, golden {digest}); give golden's with --lora {name}=DIR."
        )
    return adapter
