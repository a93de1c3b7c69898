"""Deposits: how an owner's key reaches the broker without a disk ever seeing it.

Rules this module keeps: a key is sealed where it was made, to one broker's
deposit key and bound to that broker's identity; only that broker opens it.
"""

from __future__ import annotations

from sealserve.attestation.binding import deposit_info
from sealserve.attestation.sealing import OVERHEAD_BYTES, HpkeKey, seal
from sealserve.broker.identity import BrokerIdentity
from sealserve.broker.protocol import MAX_SECRET_BYTES
from sealserve.errors import InputError

__all__ = ["MAX_DEPOSIT_BYTES", "open_deposit", "seal_for"]

MAX_DEPOSIT_BYTES = MAX_SECRET_BYTES + OVERHEAD_BYTES


def seal_for(identity: BrokerIdentity, key: bytes) -> bytes:
    """Seal a key to a broker.

    Args:
        identity: the broker that shall keep it.
        key: 1 to 4096 bytes.

    Returns:
        Bytes for `sealserve secret put --sealed-key`; safe on any disk or wire.

    Raises:
        InputError: ``deposit.key_size``.
    """
    if not 1 <= len(key) <= MAX_SECRET_BYTES:
        raise InputError(
            "deposit.key_size", f"a secret has 1 to {MAX_SECRET_BYTES} bytes, not {len(key)}"
        )
    return seal(identity.deposit_public_key, key, _info(identity))


def open_deposit(deposit_key: HpkeKey, identity: BrokerIdentity, sealed: bytes) -> bytes:
    """Open, as the broker, what `seal_for` made.

    Raises:
        InputError: ``deposit.malformed``: not the size of a sealed key.
        Refused: ``sealing.not_opened``: made for another broker, or changed.
    """
    if not OVERHEAD_BYTES < len(sealed) <= MAX_DEPOSIT_BYTES:
        raise InputError(
            "deposit.malformed",
            f"{len(sealed)} bytes are no sealed key",
            hint="give the file that the owner sealed for this broker",
        )
    return deposit_key.open(sealed, _info(identity))


def _info(identity: BrokerIdentity) -> bytes:
    return deposit_info(
        broker_spki_sha256=identity.spki_sha256, deposit_public_key=identity.deposit_public_key
    )
