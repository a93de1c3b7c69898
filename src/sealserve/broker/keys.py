"""The key-encryption key (KEK), and how everything secret is wrapped under it.

Rules this module keeps:

* The KEK file is read only if it is a regular file of exactly 32 bytes that
  nobody but its owner may read or write, and the owner is us or root.
* A wrapped value is bound to its name and version: one value cannot be put in
  another's place. AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce,
  good for 2^32 wraps under one KEK.
* No error names more than the wrapped value's name and version.
"""

from __future__ import annotations

import hmac
import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealserve.errors import Refused, Unavailable

__all__ = ["KEK_BYTES", "KeyEncryptionKey"]

KEK_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_LABEL: Final = b"sealserve broker wrap v1"
_ID_LABEL: Final = b"sealserve broker kek id v1"


class KeyEncryptionKey:
    """Wraps and unwraps; the key itself never leaves the object.

    Attributes:
        id: names the key without telling anything of it, so that a row says what opens it.
    """

    __slots__ = ("_cipher", "id")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEK_BYTES:
            raise ValueError("a key-encryption key has 32 bytes")
        self._cipher = AESGCM(key)
        self.id = f"file:{hmac.digest(key, _ID_LABEL, 'sha256').hex()[:16]}"

    @classmethod
    def create(cls, path: Path) -> KeyEncryptionKey:
        """Make a new key file with mode 0600; the file must not exist yet."""
        key = os.urandom(KEK_BYTES)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> KeyEncryptionKey:
        """Read the key file.

        Raises:
            Unavailable: ``kek.unreadable``.
            Refused: ``kek.not_a_file``, ``kek.mode_too_wide``, ``kek.wrong_owner``,
                ``kek.wrong_size``.
        """
        try:
            # O_NOFOLLOW and checks on the open file: what is checked is what is read.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(
                "kek.unreadable",
                f"the key-encryption key cannot be opened: {error.strerror}",
                where=str(path),
                hint="restore it from your backup; without it no secret of this broker opens",
            ) from None
        try:
            _check_file(os.fstat(descriptor), path)
            key = os.read(descriptor, KEK_BYTES + 1)
        finally:
            os.close(descriptor)
        if len(key) != KEK_BYTES:
            raise Refused(
                "kek.wrong_size",
                "the key-encryption key has not exactly 32 bytes",
                where=str(path),
                hint="restore it from your backup",
            )
        return cls(key)

    def wrap(self, plaintext: bytes, *, name: str, version: int) -> bytes:
        """Encrypt a value for the store.

        Returns:
            ``nonce (12) || ciphertext || tag (16)``.
        """
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plaintext, _bound_to(name, version))

    def unwrap(self, wrapped: bytes, *, name: str, version: int) -> bytes:
        """Decrypt what `wrap` made under the same name and version.

        Raises:
            Refused: ``kek.unwrap_failed``: another KEK, another name or version, or
                changed bytes.
        """
        nonce, ciphertext = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, ciphertext, _bound_to(name, version))
        except (InvalidTag, ValueError):
            raise Refused(
                "kek.unwrap_failed",
                f"the stored value {name!r} version {version} does not open under this key",
                hint="the key file belongs to another broker, or the database was changed",
            ) from None


def _bound_to(name: str, version: int) -> bytes:
    fields = (_LABEL, name.encode(), version.to_bytes(4, "big"))
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def _check_file(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Refused(
            "kek.not_a_file", "the key-encryption key is no regular file", where=str(path)
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise Refused(
            "kek.wrong_owner",
            "the key-encryption key belongs to another user",
            where=str(path),
            hint="chown it to the user the broker runs as",
        )
    if stat.S_IMODE(status.st_mode) & 0o177:
        raise Refused(
            "kek.mode_too_wide",
            f"the key-encryption key has mode {stat.S_IMODE(status.st_mode):04o}",
            where=str(path),
            hint="others may have read it: run `chmod 600`, and think about a new key",
        )
