"""What to generate: prompts as token ids, sampling parameters and engine settings, as plain frozen data.

Prompt files hold one JSON object per line: ``{"prompt": "text"}`` or ``{"prompt_token_ids": [1, 2]}`` with
optional sampling parameters beside it (``max_tokens``, ``temperature``, ``seed``, ``n``, ``logprobs`` ...).
Lines of OpenAI's batch format (``{"custom_id": ..., "body": {"prompt": ...}}``) are read too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tracereplay.errors import WorkloadError
from tracereplay.sampling import LORA, check_sampling, in_our_words

__all__ = ["Drawn", "Prompt", "Workload", "read_prompts"]

_PROMPT = ("prompt", "prompt_token_ids")
# Parts of a batch request that change nothing of what is generated.
# What requests are given beside text, in engines' words and in those of their servers.
_MEDIA = (
    "multi_modal_data", "multi_modal_uuids", "mm_processor_kwargs", "image", "images", "image_url", "audio",
    "audios", "input_audio", "audio_url", "video", "videos", "video_url", "encoder_prompt", "prompt_embeds",
)  # fmt: skip
_OF_THE_ANSWER = ("model", "prompt", "stream", "stream_options", "user", "metadata", "request_id")


class Drawn:
    """What sampling parameters say of a request: asked for, or recorded."""

    __slots__ = ()
    sampling: Mapping[str, Any]

    @property
    def sequences(self) -> int:
        """How many samples are drawn (``n``)."""
        return int(self.sampling.get("n", 1))

    @property
    def greedy(self) -> bool:
        """Whether every token is the most probable one."""
        return float(self.sampling.get("temperature", 1.0)) == 0.0


@dataclass(frozen=True)
class Prompt(Drawn):
    """One request.

    >>> tracereplay.Prompt((5, 6, 7), sampling={"max_tokens": 4, "temperature": 0.0}).greedy
    True

    Args:
        token_ids: the prompt; None while only its text is known.
        text: the prompt's text, if it was given as text.
        sampling: parameters among `sampling.SAMPLING`.
    """

    token_ids: tuple[int, ...] | None
    text: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        ids = None if self.token_ids is None else list(self.token_ids)
        return {"prompt_token_ids": ids, "prompt": self.text, "sampling": dict(self.sampling)}


@dataclass(frozen=True)
class Workload:
    """Everything that decides what an engine is asked to do; `of` makes one.

    >>> tracereplay.Workload("model", (tracereplay.Prompt((5, 6, 7)),)).settings
    {}

    Args:
        model: directory of the checkpoint.
        prompts: the requests, numbered from 0.
        settings: engine arguments as the user gave them (``enforce_eager``, ``max_model_len`` ...).
        weights: digest of the checkpoint's tensors, or None while unknown.
        inherited: names of settings that an engine may not have: a recorded command gave them to its own.
    """

    model: str
    prompts: tuple[Prompt, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    inherited: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, model: str | PathLike[str], prompts: Iterable[str | Sequence[int] | Mapping[str, Any]],
        settings: Mapping[str, Any] | None = None, **sampling: Any,
    ) -> Workload:  # fmt: skip
        """A workload in Python.

        >>> tracereplay.Workload.of("model", ["Hello", [5, 6, 7]], max_tokens=4).prompts[1].token_ids
        (5, 6, 7)

        Args:
            model: directory of the checkpoint.
            prompts: each as text, as token ids, or as a line of a prompt file, with its own sampling parameters.
            settings: engine arguments.
            sampling: parameters of prompts that do not give their own: 16 greedy tokens unless given.

        Raises:
            WorkloadError: one of them is wrong.
        """
        defaults = {"max_tokens": 16, "temperature": 0.0, "logprobs": 0, **sampling}
        asked = [_prompt(_as_request(p), f"Prompt {i}", defaults, {}) for i, p in enumerate(prompts)]
        if not asked:
            raise WorkloadError("There is no prompt; give at least one.")
        return cls(str(model), tuple(asked), dict(settings or {}))

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompts": [p.as_dict() for p in self.prompts],
            "settings": dict(self.settings),
            "weights": self.weights,
        }


def read_prompts(
    path: Path, defaults: Mapping[str, Any], adapters: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> tuple[Prompt, ...]:
    """The prompts of a JSON-lines file.

    Args:
        path: the file.
        defaults: sampling parameters of lines that do not give their own.
        adapters: those that a line may name as ``lora``, or as the ``model`` of a batch request.

    Raises:
        WorkloadError: the file is missing or empty, or a line is wrong; the message names the line.
    """
    try:
        # Not splitlines, which takes U+2028 and others for line ends, though they may stand in a string.
        # A byte order mark, and line ends as on Windows, are not part of the prompts.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise WorkloadError(f"The prompt file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise WorkloadError(f"The prompt file {path} is not UTF-8 text (byte {error.start}).") from error
    given = {f"Line {number} of {path}": line for number, line in enumerate(lines, start=1) if line.strip()}
    requests = {where: _request(line, where) for where, line in given.items()}
    _check_one_model(requests, adapters)
    prompts = [_prompt(request, where, defaults, adapters) for where, request in requests.items()]
    if not prompts:
        raise WorkloadError(
            f'The prompt file {path} is empty; give one JSON object per line: {{"prompt": "..."}}.'
        )
    return tuple(prompts)


def _as_request(prompt: str | Sequence[int] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(prompt, Mapping):
        return dict(prompt)
    return {"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": [*prompt]}


def _request(line: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise WorkloadError(f"{where} is not JSON: {error.msg} at column {error.colno}.") from error
    except RecursionError as error:
        raise WorkloadError(f"{where} is nested too deeply to be a prompt.") from error
    if not isinstance(data, dict):
        raise WorkloadError(f"{where} holds {type(data).__name__}, not a JSON object.")
    return data


def _check_one_model(requests: Mapping[str, Mapping[str, Any]], adapters: Collection[str]) -> None:
    """Batch requests name a model, of which an engine serves one, or an adapter."""
    bodies = ((where, data.get("body")) for where, data in requests.items())
    models = ((where, str(body["model"])) for where, body in bodies if isinstance(body, dict) and "model" in body)
    named = [(where, model) for where, model in models if model not in adapters]
    for where, model in named:
        first, expected = named[0]
        if model != expected:
            raise WorkloadError(
                f"{where} is for the model {model!r}, and {first} for {expected!r}; give a file for each. "
                f"If it is an adapter (LoRA), say where it is with --lora {model}=DIR."
            )


def _prompt(
    request: dict[str, Any], where: str, defaults: Mapping[str, Any], adapters: Mapping[str, Mapping[str, Any]]
) -> Prompt:
    data = _unbatched(request, where, adapters)
    if media := next((name for name in _MEDIA if name in data), None):
        raise WorkloadError(
            f"{where} gives {media}, and requests with images, sound, video or embeddings cannot be recorded yet; "
            "give prompts of text or of token ids only."
        )
    data = in_our_words(data, where)
    sampling = {**defaults, **{k: v for k, v in data.items() if k not in _PROMPT}}
    if isinstance(name := sampling.get(LORA), str):
        if name not in adapters:
            raise WorkloadError(f"{where} asks for the adapter {name!r}; say where it is with --lora {name}=DIR.")
        sampling[LORA] = dict(adapters[name])
    check_sampling(sampling, where)
    return Prompt(_token_ids(data, where), _text(data, where), sampling)


def _unbatched(data: dict[str, Any], where: str, adapters: Collection[str]) -> dict[str, Any]:
    """The request in a line of OpenAI's batch format, or the line as it is."""
    body = data.get("body")
    if body is None:
        return data
    if not isinstance(body, dict) or "prompt" not in body:
        raise WorkloadError(f"{where} is a batch request without a prompt; chat requests cannot be read yet.")
    prompt = body["prompt"]
    ids = isinstance(prompt, list)
    found = {k: v for k, v in body.items() if k not in _OF_THE_ANSWER and v is not None}
    if body.get("model") in adapters:
        found[LORA] = body["model"]
    return {**found, ("prompt_token_ids" if ids else "prompt"): prompt}


def _token_ids(data: Mapping[str, Any], where: str) -> tuple[int, ...] | None:
    ids = data.get("prompt_token_ids")
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise WorkloadError(f"{where}: prompt_token_ids must be a list of non-negative integers.")
    if not ids:
        raise WorkloadError(f"{where} has an empty prompt; give at least one token.")
    return tuple(ids)


def _text(data: Mapping[str, Any], where: str) -> str | None:
    text = data.get("prompt")
    if (text is None) == (data.get("prompt_token_ids") is None):
        raise WorkloadError(f'{where} must have either "prompt" or "prompt_token_ids".')
    if text is not None and (not isinstance(text, str) or not text):
        raise WorkloadError(f"{where} has an empty prompt; give a text of at least one character.")
    return text
