"""Sampling parameters that a workload may hold, by the names that engines share, and what each takes.

Checked before an engine starts: what it would refuse a minute later, or take without a word (a temperature that is
not a number).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from tracereplay.checked import FLAG, STRING, Check, list_of
from tracereplay.errors import WorkloadError

__all__ = [
    "GRAMMARS",
    "LORA",
    "SAMPLING",
    "as_engines_take_it",
    "as_traces_keep_it",
    "check_sampling",
    "in_our_words",
]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _number(fits: Callable[[float], bool], words: str) -> Check:
    return lambda value: _is_number(value) and fits(value), f"a number {words}".rstrip()


def _integer(least: int) -> Check:
    return lambda value: type(value) is int and value >= least, f"an integer of at least {least}"


def _is_bias(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        str(token).isascii() and str(token).isdigit() and _is_number(bias) for token, bias in value.items()
    )


# What may be generated is said by one of these; the others say how it is read.
GRAMMARS: Mapping[str, Check] = {
    "json": (lambda value: isinstance(value, (str, Mapping)), "a JSON schema"),
    "regex": STRING,
    "choice": list_of(lambda value: isinstance(value, str), "texts"),
    "grammar": STRING,
    "json_object": (lambda value: value is True, "true"),
    "structural_tag": STRING,
}
_HOW_READ: Mapping[str, Check] = {
    "disable_any_whitespace": FLAG,
    "disable_additional_properties": FLAG,
    "whitespace_pattern": STRING,
}


LORA = "lora"  # the adapter that a request is served with: `storage.adapter.Adapter` as plain data


def _is_adapter(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and value.keys() == {"name", "path", "digest", "rank"}
        and all(isinstance(value[key], str) for key in ("name", "path"))
        and isinstance(value["digest"], (str, type(None)))
        and type(value["rank"]) is int
    )


def _is_grammar(value: Any) -> bool:
    takes = {**GRAMMARS, **_HOW_READ}
    return (
        isinstance(value, Mapping)
        and len(GRAMMARS.keys() & value.keys()) == 1
        and all(name in takes and takes[name][0](part) for name, part in value.items())
    )


_PENALTY = _number(lambda value: -2 <= value <= 2, "from -2 to 2")

SAMPLING: Mapping[str, Check] = {
    "max_tokens": _integer(1),
    "min_tokens": _integer(0),
    "temperature": _number(lambda value: value >= 0, "of at least 0"),
    "top_p": _number(lambda value: 0 < value <= 1, "above 0, of at most 1"),
    "top_k": (
        lambda value: type(value) is int and value >= -1,
        "an integer, or -1 for all tokens",
    ),
    "min_p": _number(lambda value: 0 <= value <= 1, "from 0 to 1"),
    "seed": (lambda value: type(value) is int and -(1 << 63) <= value < 1 << 63, "an integer of 64 bits"),
    "n": _integer(1),
    "logprobs": _integer(0),
    "prompt_logprobs": _integer(0),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "repetition_penalty": _number(lambda value: value > 0, "above 0"),
    "ignore_eos": FLAG,
    "stop_token_ids": list_of(lambda value: type(value) is int and value >= 0, "token ids"),
    "logit_bias": (_is_bias, "an object with a number for each token id"),
    "bad_words": list_of(lambda value: isinstance(value, str) and value != "", "words"),
    "stop": list_of(lambda value: isinstance(value, str) and value != "", "texts"),
    # How generated tokens are made into the text in which ``stop`` is looked for.
    "skip_special_tokens": FLAG,
    "spaces_between_special_tokens": FLAG,
    "include_stop_str_in_output": FLAG,
    "allowed_token_ids": list_of(lambda value: type(value) is int and value >= 0, "token ids"),
    "structured_outputs": (_is_grammar, f"an object with one of {', '.join(GRAMMARS)}"),
    LORA: (_is_adapter, "the name of an adapter that is given with --lora NAME=DIR"),
}

# What requests may ask for, and what cannot be asked for again yet: refused by name, not left out.
_NOT_YET = frozenset(
    {
        "best_of", "echo", "extra_args", "logits_processors", "lora_request", "repetition_detection", "suffix",
        "thinking_token_budget", "truncate_prompt_tokens",
    }
)  # fmt: skip


def check_sampling(sampling: Mapping[str, Any], where: str) -> None:
    """Raises WorkloadError for a parameter that is unknown or has a value that no engine takes; None is not given.

    Args:
        sampling: the parameters.
        where: who gave them, for the message: ``Line 3 of prompts.jsonl``.
    """
    for name, value in sampling.items():
        if name not in SAMPLING:
            raise WorkloadError(f"{where} {_why_not(name)}")
        fits, words = SAMPLING[name]
        if value is not None and not fits(value):
            raise WorkloadError(f"{where}: {name} is {value!r:.60}; it must be {words}.")


def in_our_words(request: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A request in which what servers take in several ways is said in one.

    ``response_format`` and ``guided_*`` become ``structured_outputs``, a single stop text becomes a list.

    Raises:
        WorkloadError: it asks for two grammars, or for a format that is unknown.
    """
    found = dict(request)
    grammars = [{name.removeprefix("guided_"): found.pop(name)} for name in _GUIDED if found.get(name) is not None]
    if (asked := found.pop("response_format", None)) is not None:
        grammars += _of_format(asked, where)
    if found.get("structured_outputs") is not None:
        grammars.append(found.pop("structured_outputs"))
    if len(grammars) > 1:
        raise WorkloadError(f"{where} asks for {len(grammars)} grammars; give one, as structured_outputs.")
    if grammars:
        found["structured_outputs"] = grammars[0]
    if isinstance(found.get("stop"), str):
        found["stop"] = [found["stop"]]
    return found


_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")


def _of_format(asked: Any, where: str) -> list[dict[str, Any]]:
    """What OpenAI's ``response_format`` asks for; nothing for plain text."""
    kind = asked.get("type") if isinstance(asked, Mapping) else None
    if kind == "text":
        return []
    if kind == "json_object":
        return [{"json_object": True}]
    described = asked.get("json_schema") if kind == "json_schema" else None
    if isinstance(described, Mapping) and isinstance(described.get("schema"), Mapping):
        return [{"json": described["schema"]}]
    raise WorkloadError(
        f"{where}: response_format is {asked!r:.60}; it must be of type text, json_object or json_schema."
    )


def _why_not(name: str) -> str:
    if name in _NOT_YET:
        return f"asks for {name}, which cannot be recorded and replayed yet; leave it out."
    close = difflib.get_close_matches(name, SAMPLING, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {sorted(SAMPLING)}."
    return f"has the unknown key {name!r}; {hint}"


def as_engines_take_it(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """``sampling`` with token ids as numbers: keys of JSON are strings."""
    bias = sampling.get("logit_bias")
    if bias is None:
        return dict(sampling)
    return {**sampling, "logit_bias": {int(token): float(value) for token, value in bias.items()}}


def as_traces_keep_it(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `as_engines_take_it`; keys in traces are strings, as in JSON."""
    bias = sampling.get("logit_bias")
    return dict(sampling) if bias is None else {**sampling, "logit_bias": {str(k): v for k, v in bias.items()}}
