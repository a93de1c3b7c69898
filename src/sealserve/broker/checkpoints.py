"""Signed statements of a broker about its audit chain. No database.

A *checkpoint* says where the chain stood at a time; an *end* says that an export
ends there. Both are canonical JSON under an Ed25519 signature (RFC 8032).

Rules this module keeps:

* The key signs nothing else, and its public half stands in the broker's identity
  document: who holds that checks with no other party's help.
* A statement names its kind and its broker, so that none passes for another.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sealserve.broker.audit_chain import ChainHead, canonical
from sealserve.broker.identity import BrokerIdentity
from sealserve.errors import InputError, Refused

__all__ = ["CHECKPOINT", "END", "Signer", "Statement"]

CHECKPOINT: Final = "sealserve-audit-checkpoint/1"
END: Final = "sealserve-audit-end/1"

_Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Statement(BaseModel):
    """What a broker signed about its chain.

    Attributes:
        type: what is said of the place: the chain stood there, or the export ends there.
        broker: SHA-256 of the broker's SubjectPublicKeyInfo, hex.
        count: how many lines there were.
        sha256: of the last one, hex.
        time: when it was signed, ISO 8601 in UTC.
        signature: base64 of 64 bytes, over the canonical JSON of all the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    type: Literal["sealserve-audit-checkpoint/1", "sealserve-audit-end/1"]
    broker: _Hex32
    count: Annotated[int, Field(ge=0, lt=2**53)]
    sha256: _Hex32
    time: Annotated[str, Field(pattern=r"^[0-9T:.+-]{1,32}$")]
    signature: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")]

    @classmethod
    def from_dict(cls, value: object, *, where: str) -> Statement:
        """Read a statement that came from outside.

        Raises:
            InputError: ``audit.checkpoint_malformed``.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise InputError(
                "audit.checkpoint_malformed",
                f"no checkpoint of an audit chain: {field} {first['msg']}",
                where=where,
            ) from None

    @property
    def head(self) -> ChainHead:
        """The end that it speaks of."""
        return ChainHead(self.count, self.sha256)

    def to_dict(self) -> dict[str, Any]:
        """The statement as a JSON object."""
        return self.model_dump()

    def require_signed(self, identity: BrokerIdentity, *, where: str) -> None:
        """Check whose word it is.

        Args:
            identity: the broker that must have signed.
            where: the line or row it came from, for the error.

        Raises:
            Refused: ``audit.checkpoint_invalid``.
        """
        key = Ed25519PublicKey.from_public_bytes(identity.audit_public_key)
        try:
            if self.broker != identity.spki_sha256.hex():
                raise InvalidSignature
            key.verify(base64.b64decode(self.signature, validate=True), self._signed())
        except (InvalidSignature, binascii.Error):
            raise Refused(
                "audit.checkpoint_invalid",
                "the checkpoint is not signed by this broker",
                where=where,
                hint="it was changed, or the log belongs to another broker than the broker.json",
            ) from None

    def _signed(self) -> bytes:
        return canonical(self.model_dump(exclude={"signature"})).encode()


class Signer:
    """The broker's own pen.

    Args:
        identity: of the broker.
        private: its Ed25519 key, 32 bytes. Secret.
    """

    def __init__(self, identity: BrokerIdentity, private: bytes) -> None:
        self._identity = identity
        self._key = Ed25519PrivateKey.from_private_bytes(private)

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(
        self,
        kind: Literal["sealserve-audit-checkpoint/1", "sealserve-audit-end/1"],
        head: ChainHead,
        *,
        now: datetime | None = None,
    ) -> Statement:
        """Say where the chain stands.

        Args:
            kind: `CHECKPOINT` or `END`.
            head: an end that was checked.
            now: the time in the statement (UTC); the wall clock's if not given.
        """
        unsigned = Statement(
            type=kind,
            broker=self._identity.spki_sha256.hex(),
            count=head.count,
            sha256=head.sha256,
            time=(now or datetime.now(UTC)).isoformat(timespec="milliseconds"),
            signature=base64.b64encode(bytes(64)).decode(),
        )
        signature = base64.b64encode(self._key.sign(unsigned._signed())).decode()
        return unsigned.model_copy(update={"signature": signature})
