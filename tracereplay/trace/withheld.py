"""What `--withhold tokens` keeps out of a trace: what was asked and answered, and what says so directly.

Withheld are token ids, texts of sampling parameters, logprobs, and the tensors of operators that are nothing but
a table over tokens, or one step away from them (`withheld_slots`). In place of a token stands a keyed digest of it
and of its place; a trace without tokens can be compared with another one under the same key, and its operators be
replayed alone, but it cannot be generated again.

Why logprobs: who has the model can try all tokens at a place whose beginning is known, and the one whose logprob
is the recorded one was there. Tensors of later layers can be searched in the same way; PRODUCTION.md says so.

Why the place too: with the same digest for a token wherever it stands, a trace would be a text in a substitution
cipher, which is read by counting.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracereplay.errors import UsageError
from tracereplay.event import UNAPPLIED, Request, Sampled, Site
from tracereplay.storage.files import PRIVATE

__all__ = ["TOKENS", "WITHHELD", "Withheld", "key_in", "key_of", "new_key", "withheld_slots"]

TOKENS = "tokens"  # what can be withheld
WITHHELD = "withheld"  # in a request's sampling parameters: digests of what they said in text
_KEY = 32
_BITS = 61  # of a digest, so that it is a token's number wherever that is stored
_ROLES = ("embedding", "logits", "sampler")
_KEPT = (UNAPPLIED, "lora")  # of a request's parameters, besides numbers


def new_key() -> str:
    """A key for one recording, as text."""
    return secrets.token_hex(_KEY)


def key_in(path: Path) -> str:
    """The key in a file, which is made if it is not there.

    Raises:
        UsageError: it holds something else, or cannot be read or made.
    """
    try:
        try:
            text = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            text = new_key()
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "w") as file:
                file.write(f"{text}\n")
        if len(bytes.fromhex(text)) != _KEY:
            raise ValueError
    except OSError as error:
        raise UsageError(f"The key file {path} cannot be read or made: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(
            f"The key file {path} does not hold {2 * _KEY} hexadecimal digits; give a path where one can be made."
        ) from error
    return text


def key_of(withhold: str | None, file: Path | None) -> str | None:
    """The key of the digests that stand for what is withheld; None if nothing is.

    Raises:
        UsageError: nothing is, and there is a key; or the file has none.
    """
    if withhold is not None:
        return new_key() if file is None else key_in(file)
    if file is not None:
        raise UsageError("--withhold-key is for what --withhold keeps out; give that too, or leave it out.")
    return None


def withheld_slots(sites: Sequence[Site]) -> set[int]:
    """The sites of which nothing is kept, inputs and outputs.

    All that stands outside of numbered layers: embeddings, what follows the last layer (of which logits are a
    product with the checkpoint's tensors), logits, the sampler, what prepares images. And of each stack of layers
    the first: its inputs are the embeddings' outputs, and most of it computes row by row, so that it is a table
    over tokens, too.
    """
    places = {site.slot: _layer(site.name) for site in sites}
    first: dict[str, int] = {}
    for place in places.values():
        if place is not None:
            first[place[0]] = min(place[1], first.get(place[0], place[1]))
    roles = {site.slot for site in sites if site.role in _ROLES}
    return roles | {slot for slot, place in places.items() if place is None or first[place[0]] == place[1]}


def _layer(name: str) -> tuple[str, int] | None:
    """The stack of layers in which a site is, and its number there: ``model.layers`` and 3."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return None if at is None else (".".join(parts[:at]), int(parts[at]))


class Withheld:
    """Puts digests in the place of what is withheld.

    Args:
        key: as `new_key` makes it.
    """

    def __init__(self, key: str) -> None:
        self._key = bytes.fromhex(key)

    def said(self) -> dict[str, Any]:
        """What the manifest says of it: two traces with the same ``key`` can be compared."""
        return {"what": [TOKENS], "key": self._digest("key", [])[:16]}

    def token(self, request: int, position: int, token: int) -> int:
        """What stands for a token at its place."""
        return int(self._digest("token", [request, position, token]), 16) >> 128 - _BITS

    def tokens(self, request: int, tokens: Iterable[int], start: int = 0) -> list[int]:
        """What stands for tokens that follow each other, the first at the place ``start``."""
        return [self.token(request, start + i, token) for i, token in enumerate(tokens)]

    def sampled(self, sampled: Sampled) -> Sampled:
        request, _, position = sampled.key
        token, choice = (self.token(request, position, found) for found in (sampled.token, sampled.choice))
        return Sampled(sampled.key, token, choice, None)

    def request(self, request: Request) -> Request:
        ids = tuple(self.tokens(request.request, request.prompt_token_ids))
        return replace(request, prompt_token_ids=ids, sampling=self.sampling(request.sampling))

    def sampling(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Sampling parameters without what may hold words or tokens; of that a digest is kept."""
        kept = {name: value for name, value in given.items() if _is_number(value) or name in (*_KEPT, WITHHELD)}
        digests = {name: self._digest(name, value) for name, value in given.items() if name not in kept}
        return {**kept, WITHHELD: digests} if digests else kept

    def workload(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """A workload as the manifest holds it (`workload.Workload.as_dict`)."""
        return {**said, "prompts": [self._prompt(n, prompt) for n, prompt in enumerate(said["prompts"])]}

    def _prompt(self, number: int, said: Mapping[str, Any]) -> dict[str, Any]:
        ids = said["prompt_token_ids"]
        known = None if ids is None else self.tokens(number, ids)
        return {"prompt_token_ids": known, "prompt": None, "sampling": self.sampling(said["sampling"])}

    def results(self, said: Mapping[str, Any], prompts: Sequence[int]) -> dict[str, Any]:
        """What an engine returned for a pass; ``prompts`` has the length of each prompt."""
        requests = [
            {
                **{name: value for name, value in one.items() if _is_number(value) or name == "finish_reason"},
                "token_ids": self.tokens(one["request"], one["token_ids"], prompts[one["request"]]),
                "logprobs": None,
                "prompt_logprobs": None,
            }
            for one in said["requests"]
        ]
        return {**said, "requests": requests}

    def _digest(self, what: str, value: Any) -> str:
        text = json.dumps([what, value], sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16, key=self._key).hexdigest()


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)
