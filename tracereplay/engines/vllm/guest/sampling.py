"""Requests in vLLM's terms: parameters of a workload as ``SamplingParams``, and back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracereplay.errors import WorkloadError
from tracereplay.event import UNAPPLIED
from tracereplay.recorder.choosing import MARK
from tracereplay.sampling import LORA, SAMPLING, as_engines_take_it, as_traces_keep_it
from tracereplay.storage.adapter import Adapter, read_adapter

__all__ = ["Adapters", "kept_sampling", "mark_of", "needs_tokenizer", "vllm_sampling"]

# Fields that change nothing of what is generated: what is returned of it, and how.
_OF_THE_ANSWER = frozenset(
    {
        "best_of", "detokenize", "flat_logprobs", "logprob_token_ids", "output_kind", "output_text_buffer_length",
        "prompt_logprob_start", "prompt_logprob_token_ids", "routed_experts_prompt_start", "skip_clone",
        "skip_reading_prefix_cache", "stream_interval", "truncate_prompt_tokens",
    }
)  # fmt: skip
_RESOLVED = (("watermarking", False),)  # what a front end sets by itself where an engine has no such thing
_GRAMMAR_FIELDS = ("structured_outputs", "guided_decoding")  # since 0.11, and before
_TOKENIZED = ("stop", "bad_words", "structured_outputs")


def needs_tokenizer(sampling: Mapping[str, Any]) -> str | None:
    """The first parameter for which an engine must have a tokenizer; None: there is none."""
    return next((name for name in _TOKENIZED if sampling.get(name)), None)


def vllm_sampling(sampling: Mapping[str, Any]) -> Any:
    """``SamplingParams`` of any release; text is made only to look for ``stop`` in it.

    Raises:
        WorkloadError: this release has no such parameter.
    """
    from vllm import SamplingParams

    given = as_engines_take_it(sampling)
    given.pop(LORA, None)  # not a parameter of its own: see `Adapters`
    grammar = given.pop("structured_outputs", None)
    fields = _fields(SamplingParams)
    if grammar is not None:
        name = next(name for name in _GRAMMAR_FIELDS if name in fields)
        given[name] = _grammar(name, grammar)
    if unknown := sorted(given.keys() - fields):
        raise WorkloadError(f"This release of vLLM has no sampling parameter {unknown[0]!r}.")
    return SamplingParams(detokenize=bool(given.get("stop")), **given)


class Adapters:
    """The adapters of an engine's requests, as ``LoRARequest``; each has a number while the engine runs."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str | None], int] = {}

    def requests(self, prompts: Sequence[Mapping[str, Any]]) -> list[Any] | None:
        """One for each prompt, None for the model itself; None if no prompt has an adapter."""
        asked = [prompt["sampling"].get(LORA) for prompt in prompts]
        return [None if adapter is None else self._request(adapter) for adapter in asked] if any(asked) else None

    def _request(self, adapter: Mapping[str, Any]) -> Any:
        from vllm.lora.request import LoRARequest

        key = (adapter["name"], adapter["digest"])
        return LoRARequest(adapter["name"], self._numbers.setdefault(key, len(self._numbers) + 1), adapter["path"])


def _kept_adapter(request: Any) -> dict[str, Any]:
    """What a trace keeps of a ``LoRARequest``; without a digest, where it was not a local directory."""
    path = Path(request.lora_path)
    try:
        changed = (path / "adapter_config.json").stat().st_mtime_ns
        return _read(request.lora_name, path, changed).as_dict()
    except (OSError, WorkloadError):
        return {"name": request.lora_name, "path": str(path), "digest": None, "rank": 0}


@functools.cache
def _read(name: str, path: Path, changed: int) -> Adapter:
    """An adapter's digest takes as long as reading it; one that was replaced has another time of change."""
    return read_adapter(name, path)


def kept_sampling(sampling: Any, adapter: Any = None, beside: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of vLLM's ``SamplingParams`` that a trace keeps: those that are not the default.

    What a workload cannot ask for again is named under `event.UNAPPLIED`.

    Args:
        sampling: a request's parameters.
        adapter: the ``LoRARequest`` that it is served with.
        beside: names of what it was given beside tokens.
    """
    default = type(sampling)()
    given = {
        name: value
        for name in _fields(type(sampling)) - _OF_THE_ANSWER
        if (value := getattr(sampling, name, None)) not in (None, getattr(default, name, None))
        and (name, value) not in _RESOLVED
    }
    more = {name: value for name, value in (given.pop("extra_args", None) or {}).items() if name != MARK}
    given.update({"extra_args": more} if more else {})  # a mark changes nothing of what is generated
    kept = {name: given.pop(name) for name in SAMPLING if name in given and name not in _GRAMMAR_FIELDS}
    if grammar := next((given.pop(name) for name in _GRAMMAR_FIELDS if name in given), None):
        kept["structured_outputs"] = _plain_grammar(grammar)
    if adapter is not None:
        kept[LORA] = _kept_adapter(adapter)
    if unapplied := sorted({*given, *beside}):
        kept[UNAPPLIED] = unapplied
    return as_traces_keep_it(kept)


def mark_of(sampling: Any) -> object:
    """What a request's client says of recording it: ``vllm_xargs`` of a body; None: nothing."""
    more = getattr(sampling, "extra_args", None)
    return more.get(MARK) if isinstance(more, Mapping) else None


def _fields(kind: Any) -> set[str]:
    """Public fields: a dataclass in older releases, a struct of msgspec's since."""
    return {name for name in getattr(kind, "__struct_fields__", None) or kind.__annotations__ if name[0] != "_"}


def _grammar(name: str, grammar: Mapping[str, Any]) -> Any:
    import vllm.sampling_params as module

    kind = module.StructuredOutputsParams if name == "structured_outputs" else module.GuidedDecodingParams
    fields = {field.name for field in dataclasses.fields(kind) if field.init}
    if unknown := sorted(grammar.keys() - fields):
        raise WorkloadError(f"This release of vLLM cannot read a grammar with {unknown[0]!r}.")
    return kind(**grammar)


def _plain_grammar(grammar: Any) -> dict[str, Any]:
    """Its public fields; the backend that compiles it is the engine's choice."""
    fields = [
        field.name for field in dataclasses.fields(grammar) if field.name[0] != "_" and field.name != "backend"
    ]
    return {name: value for name in fields if (value := getattr(grammar, name)) not in (None, False)}
