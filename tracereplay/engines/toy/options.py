"""The toy's engine arguments and their values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from tracereplay.checked import Check, among
from tracereplay.engines.protocol import unknown_setting
from tracereplay.engines.toy.numerics import Rounding
from tracereplay.errors import UsageError

__all__ = ["DEFAULTS", "KNOWN", "check_settings"]

DEFAULTS: Mapping[str, Any] = {"dtype": "bfloat16", "rounding": "once", "noise": 0.0}

_FLAG: Check = among(True, False)
_COUNT: Check = lambda value: type(value) is int and value > 0, "a whole number from 1 on"

KNOWN: Mapping[str, Check] = {
    "dtype": among("bfloat16", "float16", "float32"),
    "rounding": among(*get_args(Rounding)),
    "noise": (lambda value: type(value) in (int, float) and 0 <= value < math.inf, "a number from 0 on"),
    "flaw": (lambda value: isinstance(value, str), "a text such as model.norm:scale"),
    "logprobs_mode": among("raw_logprobs", "processed_logprobs"),
    "tensor_parallel_size": among(1, 2),
    "max_model_len": _COUNT,
    "max_num_seqs": _COUNT,
    "max_num_batched_tokens": _COUNT,
    # Without effect, since there are no graphs and prompts are always chunked as needed; accepted so that commands
    # for other engines work.
    "enforce_eager": _FLAG,
    "enable_chunked_prefill": _FLAG,
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises UsageError for an unknown setting or an invalid value; None is the default."""
    for name, value in settings.items():
        if name not in KNOWN:
            raise UsageError(unknown_setting(name, tuple(KNOWN)))
        fits, words = KNOWN[name]
        if value is not None and not fits(value):
            raise UsageError(f"The toy engine's setting {name!r} is {value!r}; it must be {words}.")
