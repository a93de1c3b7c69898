"""What a secret can be, how long it lives, and what its owner may not mix up.

Rules this module keeps: a time of expiry has one form in the database, so that
texts compare as times do; what can be checked of a secret's bytes is checked
before they are kept, and no error shows any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, cast, get_args

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sealserve.errors import InputError

__all__ = [
    "RETIRED_AT_ONCE",
    "Kind",
    "Previous",
    "check",
    "kind_of",
    "moment",
    "read_expiry",
]

Kind = Literal["volume-key", "passphrase", "tls-key", "opaque"]
"""What the bytes are. Only a volume's key has a volume record."""

_KINDS: Final = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Previous:
    """What becomes of the live versions of a secret when the next one is put.

    Attributes:
        retired: they are retired at once.
        seconds: otherwise they stay live so long; 0 for as long as nobody ends them.
    """

    retired: bool
    seconds: int = 0


RETIRED_AT_ONCE: Final = Previous(retired=True)


def kind_of(text: str, record: bytes) -> Kind:
    """The kind that is named, or that the record tells.

    Raises:
        InputError: ``secret.kind_unknown``, ``secret.kind_mismatch``.
    """
    if not text:
        return "volume-key" if record else "opaque"
    if text not in _KINDS:
        raise InputError(
            "secret.kind_unknown",
            f"{text[:32]!r} is no kind of secret",
            hint=f"take one of {', '.join(_KINDS)}",
        )
    if (text == "volume-key") is not bool(record):
        raise InputError(
            "secret.kind_mismatch",
            f"a secret of kind {text} has {'no' if record else 'a'} volume record",
            hint="give --record and --owner-pub with a volume's key, and with nothing else",
        )
    return cast("Kind", text)


def read_expiry(text: str) -> str | None:
    """A time of expiry as it stands in the database.

    Args:
        text: a date, which ends at midnight UTC before it, or ISO 8601 with a time
            zone; empty for never.

    Raises:
        InputError: ``secret.expires_invalid``: not a time, or one that has passed.
    """
    if not text:
        return None
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is None and len(text) == len("2027-01-31"):
            when = when.replace(tzinfo=UTC)
        if when.tzinfo is None or when <= datetime.now(UTC):
            raise ValueError
        return moment(when.timestamp())
    except (ValueError, OverflowError, OSError):
        raise InputError(
            "secret.expires_invalid",
            f"{text[:40]!r} is no time to come",
            hint="write 2027-01-31 or 2027-01-31T12:00:00+00:00",
        ) from None


def moment(seconds: float) -> str:
    """A time as the database has it: ISO 8601, UTC, whole seconds.

    Args:
        seconds: since 1970.
    """
    start = datetime(1970, 1, 1, tzinfo=UTC)
    return (start + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def check(kind: Kind, secret: bytes) -> None:
    """See that the bytes are what they are said to be, as far as that can be seen.

    Raises:
        InputError: ``secret.not_a_tls_key``.
    """
    if kind != "tls-key":
        return
    try:
        load_pem_private_key(secret, password=None)
    except Exception:  # the parsers have many ways to say no
        raise InputError(
            "secret.not_a_tls_key",
            "the bytes are no private key in PEM, or one under a password",
            hint="give the key alone, unencrypted: the broker wraps it",
        ) from None
