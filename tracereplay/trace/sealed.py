"""Sealing: what a trace holds, readable only by those whose keys it was made for.

    recipient (age1...)  ──age──▶  a segment's key, once  ──AES-256-GCM──▶  each frame's payload
                         ──age──▶  the manifest's `run` and `passes`

Nothing here is a cipher of our own: age is `pyrage`'s, the seal of a frame `cryptography`'s. Both are loaded only
when something is sealed or opened, in an engine's environment from a folder beside it (`PACKAGES`). FORMAT.md has
the bytes.
"""

from __future__ import annotations

import base64
import os
import struct
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tracereplay.errors import DamagedTrace, UsageError
from tracereplay.storage.files import File
from tracereplay.trace.chunk import Bytes

__all__ = [
    "IDENTITY", "OVERHEAD", "PACKAGES", "SEALED", "Seal", "SealedFile", "check_recipients", "close_text", "in_use",
    "open_text", "opened_for", "own_recipient", "use_identity",
]  # fmt: skip

IDENTITY = (
    "TRACEREPLAY_IDENTITY"  # a file with keys that open traces; engines that read a golden trace need it too
)
PACKAGES = "TRACEREPLAY_SEALING"  # a folder with what is needed for that, where the interpreter has none
SEALED = 6  # the codec of a frame whose payload is sealed
_NONCE = 12
OVERHEAD = 1 + _NONCE + 16  # bytes that a seal adds to a payload: codec, nonce, tag
_BOUND = struct.Struct(
    "<BBQQ"
)  # what else must not have changed: kind, codec, offset in the segment, decoded size
_KEY = 32


class _Keys:
    """What this process can open, and for whom it seals."""

    def __init__(self) -> None:
        self.identities: list[Any] = []
        self.own: Any = None  # for as long as the process lives; see `own_recipient`
        self.used: list[str] = []  # public keys of the identities that opened something
        self.files: set[str] = set()


_keys = _Keys()


def _library(name: str) -> Any:
    """A package that sealing needs.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        pass
    beside = os.environ.get(PACKAGES)
    if beside and beside not in sys.path:
        sys.path.append(beside)  # last: an engine's own packages come first
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(
            "Encrypted traces need the packages pyrage and cryptography; install tracereplay[encrypt]."
        ) from error


def _recipient(text: str) -> Any:
    age = _library("pyrage")
    try:
        return age.x25519.Recipient.from_str(text)
    except (age.RecipientError, ValueError) as error:
        what = "the secret half of a key" if text.upper().startswith("AGE-SECRET-KEY-") else "no recipient"
        shown = "The value" if what.startswith("the secret") else repr(text[:80])
        raise UsageError(
            f"{shown} of --encrypt-to is {what}; give the public key of a pair that age-keygen made (age1...)."
        ) from error


def check_recipients(recipients: Iterable[str]) -> None:
    """Raises UsageError unless each is the public key of an age pair, and what sealing needs is installed."""
    for text in recipients:
        _recipient(text)
        _cipher(bytes(_KEY))


def own_recipient() -> str:
    """The public key of a pair that only this process has, and only in its memory.

    Why: whoever makes a sealed recording must read it while it grows (what the engine says of itself, whether
    every rank has ended), and has only the recipient's public key. What it makes is sealed for this pair as well;
    when the process has ended, nobody has its secret half any more.
    """
    if _keys.own is None:
        _keys.own = _library("pyrage").x25519.Identity.generate()
        _keys.identities.insert(0, _keys.own)
    return str(_keys.own.to_public())


def use_identity(path: Path) -> None:
    """Opens what follows with the secret keys in a file as age-keygen writes it.

    Raises:
        UsageError: there are none, or it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"The identity file {path} cannot be read: {why}.") from error
    age = _library("pyrage")
    found = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    try:
        identities = [age.x25519.Identity.from_str(line) for line in found]
    except (age.IdentityError, ValueError) as error:
        raise UsageError(f"The identity file {path} has a line that is no AGE-SECRET-KEY-1...") from error
    if not identities:
        raise UsageError(f"The identity file {path} has no AGE-SECRET-KEY-1... in it.")
    _keys.identities += identities
    _keys.files.add(str(path))


def opened_for() -> tuple[str, ...]:
    """For whom to seal what is made now: the identities with which this process opened sealed traces.

    Why: what is made of a sealed trace, a replay of it for example, must not say in clear what that kept.
    """
    return tuple(_keys.used)


def in_use() -> bool:
    """Whether this process seals or opens anything; then the engines that it starts may have to as well."""
    return bool(_keys.identities or os.environ.get(IDENTITY))


def _wrap(data: bytes, recipients: Sequence[str]) -> bytes:
    """``data`` as an age file."""
    unique = dict.fromkeys([*recipients, *([own_recipient()] if _keys.own is not None else [])])
    wrapped: bytes = _library("pyrage").encrypt(data, [_recipient(text) for text in unique])
    return wrapped


def _unwrap(data: bytes, name: str) -> bytes:
    path = os.environ.get(IDENTITY)
    if path and path not in _keys.files:
        use_identity(Path(path))
    if not _keys.identities:
        raise UsageError(f"{name} is encrypted; give the file with the key that opens it: --identity FILE.")
    age = _library("pyrage")
    for identity in _keys.identities:
        try:
            found: bytes = age.decrypt(data, [identity])
        except age.DecryptError as error:
            if "No matching keys" not in str(error):
                raise DamagedTrace(f"{name} is damaged: its key cannot be opened ({error}).") from error
            continue
        public = str(identity.to_public())
        if identity is not _keys.own and public not in _keys.used:
            _keys.used.append(public)
        return found
    raise UsageError(f"{name} is encrypted for somebody else: no key of the identity file opens it.")


def close_text(data: bytes, recipients: Sequence[str]) -> str:
    """Text that only the recipients can read, as text."""
    return base64.b64encode(_wrap(data, recipients)).decode()


def open_text(text: str, name: str) -> bytes:
    """The inverse of `close_text`.

    Raises:
        UsageError: this process has no key for it.
        DamagedTrace: it is not what was written.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise DamagedTrace(f"{name} is damaged: its encrypted part cannot be read.") from error
    return _unwrap(data, name)


def _cipher(key: bytes) -> Any:
    return _library("cryptography.hazmat.primitives.ciphers.aead").AESGCM(key)


class Seal:
    """A segment's key, and how it is kept in the segment.

    Args:
        key: of AES-256-GCM.
        wrapped: the same, as only the recipients can read it.
    """

    def __init__(self, key: bytes, wrapped: bytes) -> None:
        self.wrapped = wrapped
        self._cipher = _cipher(key)

    @classmethod
    def new(cls, recipients: Sequence[str]) -> Seal:
        """A key that was never used."""
        key = os.urandom(_KEY)
        return cls(key, _wrap(key, recipients))

    @classmethod
    def unwrapped(cls, wrapped: bytes, name: str) -> Seal:
        """The key of a segment.

        Raises:
            UsageError, DamagedTrace: see `open_text`.
        """
        key = _unwrap(wrapped, name)
        if len(key) != _KEY:
            raise DamagedTrace(f"{name} is damaged: its key has {len(key)} bytes, not {_KEY}.")
        return cls(key, wrapped)

    def close(self, kind: int, codec: int, offset: int, size: int, payload: Bytes) -> list[bytes]:
        """A frame's payload, sealed, in pieces.

        Args:
            kind, size: of the frame; see `frames.Frame`.
            codec: of the payload inside.
            offset: of the frame's header in the segment.
            payload: as it would be stored otherwise.
        """
        # A nonce at random, not a counter: a step that is taken back, or a segment that is continued by `repair`,
        # writes other bytes at the same place, and must never use the same one. Of 2^32 frames two have the same
        # one with a probability of 2^-33.
        nonce = os.urandom(_NONCE)
        closed = self._cipher.encrypt(nonce, payload, _BOUND.pack(kind, codec, offset, size))
        return [bytes([codec]) + nonce, closed]

    def open(self, kind: int, offset: int, size: int, payload: bytes, name: str) -> tuple[int, bytes]:
        """The codec and the payload that were sealed.

        Raises:
            DamagedTrace: they are not what was sealed at this place of this segment.
        """
        exceptions = _library("cryptography.exceptions")
        try:
            if len(payload) < OVERHEAD:
                raise ValueError
            codec, nonce, closed = payload[0], payload[1 : 1 + _NONCE], memoryview(payload)[1 + _NONCE :]
            found: bytes = self._cipher.decrypt(nonce, closed, _BOUND.pack(kind, codec, offset, size))
        except (exceptions.InvalidTag, ValueError) as error:
            raise DamagedTrace(
                f"{name} is damaged: the frame at byte {offset} is not what was sealed there."
            ) from error
        return codec, found


class SealedFile:
    """A segment whose frames are sealed, with the key.

    Args:
        file: the segment.
        seal: its key.
    """

    def __init__(self, file: File, seal: Seal) -> None:
        self._file, self.seal = file, seal
        self.name, self.size = file.name, file.size

    def read(self, offset: int, length: int) -> bytes:
        return self._file.read(offset, length)

    def close(self) -> None:
        self._file.close()
