"""Key-encryption keys (KEK): one small interface, and the envelope for slow ones.

Rules this module keeps:

* A wrapped value is bound to its name and version: one value cannot be put in
  another's place.
* Values are encrypted with AES-256-GCM (NIST SP 800-38D) under a random 96-bit
  nonce: by the KEK itself, or, where the KEK is far away, by a data key made
  for that one value, which the KEK wraps.
* No error names more than the wrapped value's name and version.
"""

from __future__ import annotations

import hmac
import os
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealserve.errors import InternalError, Refused

__all__ = [
    "DATA_KEY_BYTES",
    "NONCE_BYTES",
    "DataKeyWrapper",
    "Envelope",
    "KeyEncryptionKey",
    "NotOpened",
    "bound_to",
    "not_opened",
    "not_usable",
    "open_value",
    "prove",
    "seal_value",
]

DATA_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
_LABEL: Final = b"sealserve broker wrap v1"
_ENVELOPE: Final = b"\x01"
_MAX_WRAPPED_KEY_BYTES: Final = 1024
_PROBE: Final = "broker/probe"


class KeyEncryptionKey(Protocol):
    """Wraps and unwraps; the key itself never leaves it."""

    @property
    def id(self) -> str:
        """Names the key without telling anything of it: a row says by it what opens it."""
        ...

    def wrap(self, plaintext: bytes, *, name: str, version: int) -> bytes:
        """Encrypt a value for the store.

        Raises:
            Unavailable, Refused: ``kek.*``.
        """
        ...

    def unwrap(self, wrapped: bytes, *, name: str, version: int) -> bytes:
        """Decrypt what `wrap` made under the same name and version.

        Raises:
            Refused: ``kek.unwrap_failed``: another KEK, another name or version, or
                changed bytes.
            Unavailable, Refused: other ``kek.*``.
        """
        ...

    def close(self) -> None:
        """Let go of what the key lives in."""
        ...


class DataKeyWrapper(Protocol):
    """A KEK that is asked for little: to wrap one data key of 32 bytes."""

    @property
    def id(self) -> str:
        """As `KeyEncryptionKey.id`."""
        ...

    def wrap_key(self, key: bytes, bound: bytes) -> bytes:
        """Wrap a data key, authenticating ``bound`` with it; at most 1024 bytes."""
        ...

    def unwrap_key(self, wrapped: bytes, bound: bytes) -> bytes:
        """Unwrap it.

        Raises:
            NotOpened: it is not what `wrap_key` made with the same ``bound``.
        """
        ...

    def close(self) -> None:
        """As `KeyEncryptionKey.close`."""
        ...


class NotOpened(Exception):
    """The wrapper's answer was no: another key, other bytes or another binding."""


class Envelope:
    """A KEK out of a wrapper of data keys.

    A wrapped value is ``0x01 || length of the wrapped data key (2, big-endian) ||
    wrapped data key || nonce (12) || ciphertext || tag (16)``.
    """

    __slots__ = ("_wrapper",)

    def __init__(self, wrapper: DataKeyWrapper) -> None:
        self._wrapper = wrapper

    @property
    def id(self) -> str:
        """As `KeyEncryptionKey.id`."""
        return self._wrapper.id

    def wrap(self, plaintext: bytes, *, name: str, version: int) -> bytes:
        """As `KeyEncryptionKey.wrap`."""
        key, bound = os.urandom(DATA_KEY_BYTES), bound_to(name, version)
        wrapped = self._wrapper.wrap_key(key, bound)
        if len(wrapped) > _MAX_WRAPPED_KEY_BYTES:
            raise InternalError("kek.wrapped_key_too_large", "the wrapped data key is too large")
        size = len(wrapped).to_bytes(2, "big")
        return _ENVELOPE + size + wrapped + seal_value(AESGCM(key), plaintext, bound)

    def unwrap(self, wrapped: bytes, *, name: str, version: int) -> bytes:
        """As `KeyEncryptionKey.unwrap`."""
        size = int.from_bytes(wrapped[1:3], "big")
        data_key, value = wrapped[3 : 3 + size], wrapped[3 + size :]
        if wrapped[:1] != _ENVELOPE or len(data_key) != size or size > _MAX_WRAPPED_KEY_BYTES:
            raise not_opened(name, version)
        bound = bound_to(name, version)
        try:
            key = self._wrapper.unwrap_key(data_key, bound)
            return open_value(AESGCM(key), value, bound)
        except (NotOpened, InvalidTag, ValueError):
            raise not_opened(name, version) from None

    def close(self) -> None:
        """As `KeyEncryptionKey.close`."""
        self._wrapper.close()


def seal_value(cipher: AESGCM, plaintext: bytes, bound: bytes) -> bytes:
    """Encrypt under a fresh nonce: ``nonce (12) || ciphertext || tag (16)``."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, plaintext, bound)


def open_value(cipher: AESGCM, sealed: bytes, bound: bytes) -> bytes:
    """Decrypt what `seal_value` made.

    Raises:
        InvalidTag, ValueError: it does not open.
    """
    return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)


def bound_to(name: str, version: int) -> bytes:
    """The additional data that binds a wrapped value to its place."""
    fields = (_LABEL, name.encode(), version.to_bytes(4, "big"))
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def not_opened(name: str, version: int) -> Refused:
    """The error for a value that this KEK does not open."""
    return Refused(
        "kek.unwrap_failed",
        f"the stored value {name!r} version {version} does not open under this key",
        hint="the key belongs to another broker, or the database was changed",
    )


def prove(kek: KeyEncryptionKey) -> None:
    """See that a key opens what it wraps, before anything depends on it.

    Raises:
        Refused: ``kek.not_usable``.
        Unavailable, Refused: as `KeyEncryptionKey.wrap` and `unwrap`.
    """
    probe = os.urandom(DATA_KEY_BYTES)
    wrapped = kek.wrap(probe, name=_PROBE, version=1)
    if not hmac.compare_digest(kek.unwrap(wrapped, name=_PROBE, version=1), probe):
        raise not_usable()


def not_usable() -> Refused:
    """The error for a key that other values come out of than went in."""
    return Refused("kek.not_usable", "the key does not give back what it wrapped")
