"""Tokens as text, where the model's tokenizer is at hand and the package ``tokenizers`` is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tracereplay.errors import UsageError
from tracereplay.gate.tokenizers import tokenizer_file
from tracereplay.trace import Trace

__all__ = ["Decode", "decoder", "one_line", "why_no_text"]

Decode = Callable[[Sequence[int]], str]


def decoder(trace: Trace, model: Path | None) -> Decode | None:
    """What makes text of a trace's tokens; None: there is nothing that could.

    Args:
        trace: whose tokens.
        model: the user's directory of the model; None: the recorded one, if it is still there.

    Raises:
        UsageError: the user's directory was given, and cannot be used.
    """
    file = tokenizer_file(trace, model)
    if file is None:
        return None
    try:
        tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(file))
    except ImportError:
        if model is None:
            return None
        raise UsageError(
            "Text needs the package tokenizers; install it (pip install 'tracereplay[text]')."
        ) from None
    except Exception as error:  # of the package's own kind, a bare Exception
        if model is None:
            return None
        raise UsageError(f"{file} cannot be read as a tokenizer: {error}.") from error
    size = tokenizer.get_vocab_size()

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode([t for t in tokens if 0 <= t < size], skip_special_tokens=False))

    return decode


def why_no_text(trace: Trace) -> str:
    """What would be needed to show a trace's tokens as text."""
    if tokenizer_file(trace, None) is None:
        return "--model DIR, with the model's tokenizer.json in it, shows their text"
    return "their text needs the package tokenizers (pip install 'tracereplay[text]')"


def one_line(tokens: Sequence[int], decode: Decode | None, most: int) -> str:
    """Tokens as text, or as their ids, cut to ``most`` characters; what is not printable is left to the caller."""
    if decode is None:
        text = " ".join(map(str, tokens[: most // 2 + 1]))
        cut = len(text) > most or len(tokens) > most // 2 + 1
    else:
        text = decode(tokens[:most])
        cut = len(text) > most or len(tokens) > most
    return f"{text[:most]}..." if cut else text
