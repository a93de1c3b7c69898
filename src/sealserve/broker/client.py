"""The guest's side of a release: challenge, quote, and the secret, opened; and of a renewal.

Rules this module keeps:

* The TLS root is the one certificate of the broker's identity; the broker's
  SPKI digest stands in the report data as well. Any other server learns nothing.
* Only reaching the broker is retried, a few times, and what it puts off before it
  looks at it, as it says; all inside the caller's timeout. A quote is judged once.
* The secret comes back in a `bytearray` that its holder wipes; it is in no
  repr, no error and no log. (Python may keep the immutable buffers it was
  decrypted and decoded in until they are reused: the TD's memory is the fence.)
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message

from sealserve.attestation.binding import (
    NONCE_BYTES,
    release_transcript,
    renewal_transcript,
    report_data_of,
)
from sealserve.attestation.sealing import generate_key
from sealserve.broker.identity import SERVER_NAME, BrokerIdentity
from sealserve.broker.protocol import (
    CHALLENGE_METHOD,
    MAX_MESSAGE_BYTES,
    PUSHBACK_KEY,
    RELEASE_METHOD,
    RENEW_METHOD,
    lease_id_bytes,
    resource_name,
)
from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.wire.broker import v1_pb2

__all__ = ["Released", "request_release", "request_renewal"]

_CONNECT_ATTEMPTS: Final = 4
_FIRST_PAUSE_SECONDS: Final = 0.25
_MAX_PUSHBACK_SECONDS: Final = 30.0
_ANSWER = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+)+(?: [a-z0-9_.]+)*")
_MAX_ANSWER_CHARS: Final = 2048

_HINTS: Final = {
    "release.denied": "the broker's audit log says what it expected and what it found",
    "release.nonce_expired": "the quote took too long; try again",
    "release.too_many_challenges": "try again in a minute",
    "release.resource_unknown": "put the secret first: `sealserve secret put`",
    "release.peer_limited": "too many guests ask from this address; the operator sets the limit",
    "release.version_withdrawn": "ask for the current version, with the volume that goes with it",
    "release.lease_revoked": "the broker's operator ended it: audit log and lease list say when",
}

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class Released:
    """What the broker released.

    Attributes:
        secret: the bytes; call `wipe` as soon as they have done their work.
        secret_version: which version of the secret this is, from 1 on.
        record: the signed volume record, or empty.
        lease_seconds: how long the guest may keep the secret, from when it asked.
        lease_id: what to renew; empty if the broker gives no leases.
    """

    secret: bytearray = field(repr=False)
    secret_version: int
    record: bytes = field(repr=False)
    lease_seconds: int
    lease_id: str = ""

    def wipe(self) -> None:
        """Overwrite the secret with zeros."""
        self.secret[:] = bytes(len(self.secret))


def request_release(
    address: str,
    identity: BrokerIdentity,
    resource: str,
    quote_of: Callable[[bytes], bytes],
    boot_id: bytes,
    *,
    secret_version: int = 0,
    timeout: float = 60.0,
) -> Released:
    """Ask a broker for a secret, as an attested guest.

    Args:
        address: the broker's ``host:port``.
        identity: the broker's public identity; no other server is spoken to.
        resource: what is asked for, such as ``"models/demo"``.
        quote_of: makes a quote over 64 bytes of report data; called once.
        boot_id: the kernel's boot id, 16 bytes.
        secret_version: the version to ask for, where two are live; 0 for the current one.
        timeout: seconds for everything, the quote included.

    Returns:
        The secret and what belongs to it.

    Raises:
        Refused: the broker's own ``release.*`` code; ``release.broker_unproven``
            if the server does not hold the identity's key; ``sealing.not_opened``.
        Unavailable: ``release.broker_unreachable``, ``release.timeout``, or the
            broker's own code.
        InputError: ``resource.name_invalid``, ``release.answer_malformed``, or the
            broker's own code.
    """
    resource_name(resource)
    deadline = time.monotonic() + timeout
    key = generate_key()
    with _channel(address, identity) as channel:
        call = _Caller(channel, address, deadline)
        nonce = call.challenge(resource)
        transcript = release_transcript(
            nonce=nonce,
            broker_spki_sha256=identity.spki_sha256,
            hpke_public_key=key.public,
            resource=resource,
            boot_id=boot_id,
        )
        quote = quote_of(report_data_of(transcript))
        sealed = call.release(
            v1_pb2.ReleaseRequest(
                resource=resource,
                nonce=nonce,
                boot_id=boot_id,
                hpke_public_key=key.public,
                quote=quote,
                secret_version=secret_version,
            )
        )
    payload = _parse(v1_pb2.Payload, key.open(sealed, transcript), address)
    if secret_version not in (0, payload.secret_version):
        raise _malformed(address)
    return Released(
        secret=bytearray(payload.secret),
        secret_version=payload.secret_version,
        record=payload.volume_record,
        lease_seconds=payload.lease_seconds,
        lease_id=payload.lease_id,
    )


def request_renewal(
    address: str,
    identity: BrokerIdentity,
    lease_id: str,
    resource: str,
    quote_of: Callable[[bytes], bytes],
    boot_id: bytes,
    *,
    timeout: float = 60.0,
) -> int:
    """Ask a broker to let a lease run on, as the guest that holds it.

    Args:
        address: the broker's ``host:port``.
        identity: the broker's public identity; no other server is spoken to.
        lease_id: from the release.
        resource: what it is a lease of.
        quote_of: makes a quote over 64 bytes of report data; called once.
        boot_id: the kernel's boot id, 16 bytes; the same as at the release.
        timeout: seconds for everything, the quote included.

    Returns:
        How many seconds the lease lasts, from when this was called.

    Raises:
        Refused, Unavailable, InputError: as `request_release`, and
            ``release.lease_revoked``, ``release.lease_ended``, ``release.lease_unknown``,
            ``release.lease_other_boot``, ``release.version_withdrawn``.
    """
    resource_name(resource)
    with _channel(address, identity) as channel:
        call = _Caller(channel, address, time.monotonic() + timeout)
        nonce = call.challenge(resource)
        transcript = renewal_transcript(
            nonce=nonce,
            broker_spki_sha256=identity.spki_sha256,
            lease_id=lease_id_bytes(lease_id),
            resource=resource,
            boot_id=boot_id,
        )
        request = v1_pb2.RenewRequest(
            lease_id=lease_id,
            resource=resource,
            nonce=nonce,
            boot_id=boot_id,
            quote=quote_of(report_data_of(transcript)),
        )
        return call.renew(request)


class _Caller:
    """The two calls, with the deadline and the broker's errors turned into ours."""

    def __init__(self, channel: grpc.Channel, address: str, deadline: float) -> None:
        self._channel = channel
        self._address = address
        self._deadline = deadline

    def challenge(self, resource: str) -> bytes:
        request = v1_pb2.ChallengeRequest(resource=resource)
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, _CONNECT_ATTEMPTS + 1):
            try:
                raw = self._call(CHALLENGE_METHOD, request)
                break
            except Unavailable as error:
                last = attempt == _CONNECT_ATTEMPTS or self._left() <= pause
                if last or error.code != "release.broker_unreachable":
                    raise
                time.sleep(pause)
                pause *= 2
        nonce = _parse(v1_pb2.ChallengeResponse, raw, self._address).nonce
        if len(nonce) != NONCE_BYTES:
            raise _malformed(self._address)
        return nonce

    def release(self, request: v1_pb2.ReleaseRequest) -> bytes:
        raw = self._call(RELEASE_METHOD, request)
        return _parse(v1_pb2.ReleaseResponse, raw, self._address).sealed

    def renew(self, request: v1_pb2.RenewRequest) -> int:
        raw = self._call(RENEW_METHOD, request)
        return _parse(v1_pb2.RenewResponse, raw, self._address).lease_seconds

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _call(self, method: str, request: Message) -> bytes:
        call = self._channel.unary_unary(
            method, request_serializer=bytes, response_deserializer=bytes
        )
        raw = request.SerializeToString()
        while (left := self._left()) > 0:
            try:
                answer: bytes = call(raw, timeout=left)
            except grpc.RpcError as error:
                refusal, wait = _error_of(error, self._address), _pushback_of(error)
                # Turned away at the door: neither challenge nor quote was looked at.
                if refusal.code != "release.peer_limited" or not 0 < wait < self._left():
                    raise refusal from None
                time.sleep(wait)
            else:
                return answer
        raise _timed_out(self._address)


def _channel(address: str, identity: BrokerIdentity) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(root_certificates=identity.certificate.encode())
    return grpc.secure_channel(address, credentials, options=_channel_options())


def _channel_options() -> list[tuple[str, str | int]]:
    return [
        ("grpc.ssl_target_name_override", SERVER_NAME),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.enable_retries", 0),
        # A channel of its own: with gRPC's shared subchannels a second identity
        # at the same address could ride on the first one's connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _error_of(error: grpc.RpcError, address: str) -> SealserveError:
    status = error.code()
    details = (error.details() or "")[:_MAX_ANSWER_CHARS]
    if _ANSWER.fullmatch(details):
        return _brokers_own(status, details, address)
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return _timed_out(address)
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return Refused(
            "release.broker_unproven",
            "the server does not hold the key of the broker you named",
            where=address,
            hint="check the address, or get the broker's current broker.json from its operator",
        )
    return Unavailable(
        "release.broker_unreachable",
        f"the broker does not answer ({status.name})",
        where=address,
        hint="check the address and that `sealserve broker serve` runs there",
    )


def _pushback_of(error: grpc.RpcError) -> float:
    """How long the broker says to wait, in seconds; 0 if it does not."""
    metadata: Iterable[tuple[str, str | bytes]] = cast("Any", error.trailing_metadata() or ())
    for key, value in metadata:
        if key == PUSHBACK_KEY and isinstance(value, str) and value.isascii() and value.isdigit():
            return min(int(value[:9]) / 1000, _MAX_PUSHBACK_SECONDS)
    return 0.0


def _brokers_own(status: grpc.StatusCode, details: str, address: str) -> SealserveError:
    code, *reasons = details.split(" ")
    kind: type[SealserveError] = {
        grpc.StatusCode.PERMISSION_DENIED: Refused,
        grpc.StatusCode.INVALID_ARGUMENT: InputError,
    }.get(status, Unavailable)
    because = f": {', '.join(reasons)}" if reasons else ""
    return kind(code, f"the broker answered no{because}", where=address, hint=_HINTS.get(code))


def _parse(kind: type[_M], raw: bytes, address: str) -> _M:
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        raise _malformed(address) from None
    return message


def _malformed(address: str) -> InputError:
    return InputError(
        "release.answer_malformed",
        "the broker's answer is not of this protocol",
        where=address,
        hint="broker and guest may be of different versions",
    )


def _timed_out(address: str) -> Unavailable:
    return Unavailable(
        "release.timeout",
        "the release was not finished in time",
        where=address,
        hint="a quote can take a second, and more while the host is busy; try again",
    )
