"""Sealing bytes to one recipient: HPKE (RFC 9180), base mode, one message.

Rules this module keeps:

* One suite, no negotiation: KEM MLKEM768-X25519 (hybrid, post-quantum), KDF
  HKDF-SHA384, AEAD AES-256-GCM. Another suite would be another module.
* Every message is bound by ``info`` to the transcript it belongs to
  (:mod:`sealserve.attestation.binding`); there is no default.
* A message that does not open says only that: never why, never what.
* Private keys and plaintexts appear in no repr, log or error.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from sealserve.errors import InputError, Refused

__all__ = [
    "MAX_SEALED_BYTES",
    "OVERHEAD_BYTES",
    "PRIVATE_KEY_BYTES",
    "PUBLIC_KEY_BYTES",
    "HpkeKey",
    "generate_key",
    "seal",
]

MAX_SEALED_BYTES = 1 << 20
OVERHEAD_BYTES = 1120 + 16  # encapsulated key, AEAD tag

_MLKEM_SEED_BYTES = 64
_MLKEM_PUBLIC_BYTES = 1184
_X25519_BYTES = 32
PUBLIC_KEY_BYTES = _MLKEM_PUBLIC_BYTES + _X25519_BYTES
PRIVATE_KEY_BYTES = _MLKEM_SEED_BYTES + _X25519_BYTES

_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA384, hpke.AEAD.AES_256_GCM)


class HpkeKey:
    """An HPKE key pair. ``public`` (1216 bytes) may go anywhere."""

    __slots__ = ("_mlkem", "_x25519", "public")

    def __init__(self, mlkem_key: mlkem.MLKEM768PrivateKey, x: x25519.X25519PrivateKey) -> None:
        self._mlkem = mlkem_key
        self._x25519 = x
        self.public = mlkem_key.public_key().public_bytes_raw() + x.public_key().public_bytes_raw()

    @classmethod
    def from_private_bytes(cls, raw: bytes) -> HpkeKey:
        """The key that :meth:`private_bytes` wrote.

        Raises:
            InputError: ``sealing.key_malformed`` unless it is 96 bytes.
        """
        if len(raw) != PRIVATE_KEY_BYTES:
            raise InputError(
                "sealing.key_malformed",
                f"an HPKE private key has {PRIVATE_KEY_BYTES} bytes, this one {len(raw)}",
            )
        return cls(
            mlkem.MLKEM768PrivateKey.from_seed_bytes(raw[:_MLKEM_SEED_BYTES]),
            x25519.X25519PrivateKey.from_private_bytes(raw[_MLKEM_SEED_BYTES:]),
        )

    def private_bytes(self) -> bytes:
        """The secret half, 96 bytes: ML-KEM seed and X25519 scalar. Wrap it before storing."""
        return self._mlkem.private_bytes_raw() + self._x25519.private_bytes_raw()

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Open a message sealed to this key.

        Args:
            sealed: encapsulated key and ciphertext, at most 1 MiB.
            info: the transcript it was sealed under.

        Returns:
            The plaintext.

        Raises:
            InputError: ``sealing.too_large``.
            Refused: ``sealing.not_opened`` for another key, another transcript
                or any changed byte.
        """
        _check_size(len(sealed))
        try:
            key = hpke.MLKEM768X25519PrivateKey(self._mlkem, self._x25519)
            return _SUITE.decrypt(sealed, key, info=info)
        except (InvalidTag, ValueError):
            raise Refused(
                "sealing.not_opened",
                "the sealed message was not made for this key and this transcript",
                hint="ask for a new one; if it happens again, something between changes messages",
            ) from None

    def __repr__(self) -> str:
        return f"HpkeKey(public={self.public[:8].hex()}...)"


def generate_key() -> HpkeKey:
    """A new key pair from the operating system's random generator."""
    return HpkeKey(mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate())


def seal(public: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Seal bytes to the holder of a key.

    Args:
        public: the recipient's public key, 1216 bytes.
        plaintext: what only the recipient may read, at most 1 MiB with overhead.
        info: the transcript this message belongs to.

    Returns:
        ``encapsulated key (1120) || ciphertext || tag (16)``.

    Raises:
        InputError: ``sealing.key_malformed`` or ``sealing.too_large``.
    """
    if len(public) != PUBLIC_KEY_BYTES:
        raise InputError(
            "sealing.key_malformed",
            f"an HPKE public key has {PUBLIC_KEY_BYTES} bytes, this one {len(public)}",
        )
    _check_size(len(plaintext) + OVERHEAD_BYTES)
    try:
        key = hpke.MLKEM768X25519PublicKey(
            mlkem.MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC_BYTES]),
            x25519.X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC_BYTES:]),
        )
        return _SUITE.encrypt(plaintext, key, info=info)
    except ValueError:
        raise InputError(
            "sealing.key_malformed", "the HPKE public key is not a valid MLKEM768-X25519 key"
        ) from None


def _check_size(size: int) -> None:
    if size > MAX_SEALED_BYTES:
        raise InputError(
            "sealing.too_large",
            f"a sealed message of {size} bytes exceeds the limit of {MAX_SEALED_BYTES}",
        )
