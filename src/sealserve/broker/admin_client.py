"""Calls a broker's administration port: as one principal, to one broker.

Rules this module keeps: no other server than the identity's is spoken to; every
call has a deadline; the broker's errors come out as they were raised there.
Needs no database.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError, Message

from sealserve.address import Address
from sealserve.broker.admin_protocol import (
    ERROR_KEY,
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    decode_error,
    method_of,
)
from sealserve.broker.identity import SERVER_NAME, BrokerIdentity
from sealserve.broker.principals import AdminIdentity
from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.wire.broker.admin import v1_pb2

__all__ = ["AdminClient", "identity_beside"]

_TIMEOUT_SECONDS: Final = 60.0


def identity_beside(key: Path) -> Path:
    """Where the broker's public document is looked for if it is not named."""
    return key.parent / "broker.json"


class AdminClient:
    """A connection; a context manager.

    Args:
        address: the administration port.
        broker: the broker's public identity.
        identity: whose calls these are.
        timeout: seconds for each call.
    """

    def __init__(
        self,
        address: Address,
        broker: BrokerIdentity,
        identity: AdminIdentity,
        *,
        timeout: float = _TIMEOUT_SECONDS,
    ) -> None:
        self._address = str(address)
        self._timeout = timeout
        credentials = grpc.ssl_channel_credentials(
            root_certificates=broker.certificate.encode(),
            private_key=identity.key_pem,
            certificate_chain=identity.certificate_pem,
        )
        self._channel = grpc.secure_channel(
            self._address,
            credentials,
            options=[
                ("grpc.ssl_target_name_override", SERVER_NAME),
                ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
                ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.enable_retries", 0),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    @classmethod
    def connect(cls, address: str, identity: Path, broker: Path | None) -> AdminClient:
        """Make one from what a person types.

        Args:
            address: ``HOST:PORT``.
            identity: the file of `principals.make_identity`.
            broker: the broker's ``broker.json``; the one beside ``identity`` if not given.

        Raises:
            InputError: ``address.malformed``, ``principal.*``, ``identity.malformed``.
            Unavailable: ``file.unreadable``.
        """
        return cls(
            Address.parse(address, where="--admin"),
            BrokerIdentity.load(broker or identity_beside(identity)),
            AdminIdentity.load(identity),
        )

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self._channel.close()

    def perform(self, request: Message) -> dict[str, Any]:
        """Ask for something.

        Returns:
            As `Administration.perform`.

        Raises:
            SealserveError: what the broker raised.
            Refused: ``admin.broker_unproven``.
            Unavailable: ``admin.unreachable``, ``admin.timeout``.
            InputError: ``admin.answer_malformed``.
        """
        try:
            raw = self._channel.unary_unary(
                method_of(request), request_serializer=bytes, response_deserializer=bytes
            )(request.SerializeToString(), timeout=self._timeout)
        except grpc.RpcError as error:
            raise self._error_of(error) from None
        try:
            result = json.loads(v1_pb2.Result.FromString(raw).json)
        except (DecodeError, ValueError, RecursionError):
            result = None
        if not isinstance(result, dict):
            raise InputError(
                "admin.answer_malformed",
                "the broker's answer is not of this protocol",
                where=self._address,
                hint="broker and sealserve here may be of different versions",
            )
        return result

    def _error_of(self, error: grpc.RpcError) -> SealserveError:
        for item in error.trailing_metadata() or ():
            if item.key == ERROR_KEY and isinstance(item.value, bytes):
                told = decode_error(item.value, address=self._address)
                if told is not None:
                    return told
        details = error.details() or ""
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unavailable(
                "admin.timeout", "the broker did not answer in time", where=self._address
            )
        if "CERTIFICATE_VERIFY_FAILED" in details:
            return Refused(
                "admin.broker_unproven",
                "the server does not hold the key of the broker you named",
                where=self._address,
                hint="check the address, or get the broker's current broker.json",
            )
        return Unavailable(
            "admin.unreachable",
            f"the broker does not answer ({error.code().name})",
            where=self._address,
            hint="check the address and admin.listen in broker.yaml; a broker hangs up on a"
            " certificate that is not registered there",
        )
