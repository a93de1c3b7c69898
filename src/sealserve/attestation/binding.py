"""Every formula that binds a quote or a sealed message to what it speaks for.

Rules this module keeps:

* All report-data, HPKE-info and transcript formulas stand here and nowhere else.
* A transcript is injective: each part has its length in front, and the first
  part is a label that names purpose and version. A change of meaning is a new
  label.
* Everything bound is public; nothing here is secret.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from sealserve.errors import InputError, Refused

__all__ = [
    "BOOT_ID_BYTES",
    "LEASE_ID_BYTES",
    "MAX_RESOURCE_BYTES",
    "NONCE_BYTES",
    "REPORT_DATA_BYTES",
    "SPKI_DIGEST_BYTES",
    "deposit_info",
    "release_transcript",
    "renewal_transcript",
    "report_data_of",
    "require_report_data",
    "tls_report_data",
]

NONCE_BYTES = 32
BOOT_ID_BYTES = 16
LEASE_ID_BYTES = 16
SPKI_DIGEST_BYTES = 32
REPORT_DATA_BYTES = 64
MAX_RESOURCE_BYTES = 256

_HPKE_PUBLIC_KEY_BYTES = 1216  # MLKEM768 (1184) || X25519 (32)
_RELEASE = b"sealserve/v1 key-release"
_RENEWAL = b"sealserve/v1 lease-renewal"
_DEPOSIT = b"sealserve/v1 key-deposit"


def release_transcript(
    *,
    nonce: bytes,
    broker_spki_sha256: bytes,
    hpke_public_key: bytes,
    resource: str,
    boot_id: bytes,
) -> bytes:
    """What one key release is about; the HPKE ``info`` of the answer.

    Args:
        nonce: the broker's challenge, 32 bytes, single use.
        broker_spki_sha256: SHA-256 of the broker's SubjectPublicKeyInfo, so
            that evidence made for one broker is worth nothing to another.
        hpke_public_key: the guest's key, born in the TD, 1216 bytes; relayed
            evidence yields only ciphertext.
        resource: name of the secret asked for, 1 to 256 bytes of UTF-8.
        boot_id: the guest kernel's boot id, 16 bytes.

    Returns:
        The length-prefixed transcript. Its :func:`report_data_of` stands in
        the quote.

    Raises:
        InputError: ``binding.malformed`` if a part has the wrong length.
    """
    _check("nonce", nonce, NONCE_BYTES)
    _check("broker SPKI digest", broker_spki_sha256, SPKI_DIGEST_BYTES)
    _check("HPKE public key", hpke_public_key, _HPKE_PUBLIC_KEY_BYTES)
    _check("boot id", boot_id, BOOT_ID_BYTES)
    name = _resource(resource)
    return _transcript(_RELEASE, nonce, broker_spki_sha256, hpke_public_key, name, boot_id)


def renewal_transcript(
    *, nonce: bytes, broker_spki_sha256: bytes, lease_id: bytes, resource: str, boot_id: bytes
) -> bytes:
    """What one renewal of a lease is about.

    Its label keeps a quote that was made for a release from renewing anything,
    and the other way round. No key is bound: the answer holds no secret.

    Args:
        nonce: the broker's challenge, 32 bytes, single use.
        broker_spki_sha256: SHA-256 of the broker's SubjectPublicKeyInfo.
        lease_id: which lease, 16 bytes.
        resource: what it is a lease of, 1 to 256 bytes of UTF-8.
        boot_id: the guest kernel's boot id, 16 bytes: the lease ends with the boot.

    Raises:
        InputError: ``binding.malformed`` if a part has the wrong length.
    """
    _check("nonce", nonce, NONCE_BYTES)
    _check("broker SPKI digest", broker_spki_sha256, SPKI_DIGEST_BYTES)
    _check("lease id", lease_id, LEASE_ID_BYTES)
    _check("boot id", boot_id, BOOT_ID_BYTES)
    name = _resource(resource)
    return _transcript(_RENEWAL, nonce, broker_spki_sha256, lease_id, name, boot_id)


def report_data_of(transcript: bytes) -> bytes:
    """The report data (64 bytes) that binds a transcript: its SHA-512."""
    return hashlib.sha512(transcript).digest()


def tls_report_data(claims: bytes) -> bytes:
    """The report data (64 bytes) of an RA-TLS certificate.

    ``SHA-256(claims buffer) || 32 zero bytes``, all 64 compared. Source: CCC
    interoperable RA-TLS, section 4 (TCG DICE evidence, CBOR tag 60000).
    """
    return hashlib.sha256(claims).digest() + bytes(32)


def require_report_data(stated: bytes, asked: bytes) -> None:
    """Refuse evidence that answers another request.

    Args:
        stated: what a verified quote states.
        asked: what it must speak for.

    Raises:
        Refused: ``binding.report_data``.
    """
    if not hmac.compare_digest(stated, asked):
        raise Refused(
            "binding.report_data",
            "the quote speaks for other report data than was asked for",
            hint="it answers another request: ask for evidence anew",
        )


def deposit_info(*, broker_spki_sha256: bytes, deposit_public_key: bytes) -> bytes:
    """The HPKE ``info`` of a volume key on its way from its owner to a broker.

    Args:
        broker_spki_sha256: SHA-256 of the broker's SubjectPublicKeyInfo.
        deposit_public_key: the broker's HPKE deposit key, 1216 bytes.

    Raises:
        InputError: ``binding.malformed`` if a part has the wrong length.
    """
    _check("broker SPKI digest", broker_spki_sha256, SPKI_DIGEST_BYTES)
    _check("deposit public key", deposit_public_key, _HPKE_PUBLIC_KEY_BYTES)
    return _transcript(_DEPOSIT, broker_spki_sha256, deposit_public_key)


def _transcript(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def _resource(name: str) -> bytes:
    raw = name.encode()
    if not 1 <= len(raw) <= MAX_RESOURCE_BYTES:
        raise InputError(
            "binding.malformed",
            f"a resource name has 1 to {MAX_RESOURCE_BYTES} bytes, this one {len(raw)}",
        )
    return raw


def _check(what: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise InputError("binding.malformed", f"a {what} has {size} bytes, this one {len(value)}")
