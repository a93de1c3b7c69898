"""The KEK as a file of 32 bytes beside the database: the default.

Rules this module keeps: the file is private (`private_file`) and has exactly 32
bytes. Good for 2^32 values under one key.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealserve.broker.keys import bound_to, not_opened, open_value, seal_value
from sealserve.broker.private_file import read_private
from sealserve.errors import Refused

__all__ = ["KEK_BYTES", "FileKek"]

KEK_BYTES: Final = 32
_ID_LABEL: Final = b"sealserve broker kek id v1"


class FileKek:
    """A `KeyEncryptionKey` of which this process holds the bytes.

    A wrapped value is ``nonce (12) || ciphertext || tag (16)``.
    """

    __slots__ = ("_cipher", "_id")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEK_BYTES:
            raise ValueError("a key-encryption key has 32 bytes")
        self._cipher = AESGCM(key)
        self._id = f"file:{hmac.digest(key, _ID_LABEL, 'sha256').hex()[:16]}"

    @classmethod
    def create(cls, path: Path) -> FileKek:
        """Make a new key file with mode 0600; the file must not exist yet."""
        key = os.urandom(KEK_BYTES)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> FileKek:
        """Read the key file.

        Raises:
            Unavailable: ``kek.unreadable``.
            Refused: ``kek.not_a_file``, ``kek.mode_too_wide``, ``kek.wrong_owner``,
                ``kek.wrong_size``.
        """
        key = read_private(
            path,
            KEK_BYTES,
            "the key-encryption key",
            hint="restore it from your backup; without it no secret of this broker opens",
        )
        if len(key) != KEK_BYTES:
            raise Refused(
                "kek.wrong_size",
                "the key-encryption key has not exactly 32 bytes",
                where=str(path),
                hint="restore it from your backup",
            )
        return cls(key)

    @property
    def id(self) -> str:
        """As `KeyEncryptionKey.id`."""
        return self._id

    def wrap(self, plaintext: bytes, *, name: str, version: int) -> bytes:
        """As `KeyEncryptionKey.wrap`."""
        return seal_value(self._cipher, plaintext, bound_to(name, version))

    def unwrap(self, wrapped: bytes, *, name: str, version: int) -> bytes:
        """As `KeyEncryptionKey.unwrap`."""
        try:
            return open_value(self._cipher, wrapped, bound_to(name, version))
        except (InvalidTag, ValueError):
            raise not_opened(name, version) from None

    def close(self) -> None:
        """Nothing is held open."""
