"""What administrators and auditors hand in: requests, certificates, exports."""

from __future__ import annotations

import base64
import functools
import json
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from sealserve.attestation.sealing import PUBLIC_KEY_BYTES
from sealserve.broker.admin_protocol import METHODS, decode_error
from sealserve.broker.audit_chain import START, canonical, next_end
from sealserve.broker.audit_export import check, lines_of
from sealserve.broker.checkpoints import CHECKPOINT, END, Signer
from sealserve.broker.identity import SERVER_NAME, BrokerIdentity
from sealserve.broker.principals import make_identity, read_certificate, spki_sha256
from sealserve.certificates import server_certificate
from sealserve.errors import InputError
from sealserve.wire.broker.admin import v1_pb2

__all__ = [
    "admin_request",
    "admin_request_seeds",
    "audit_export",
    "audit_export_seeds",
    "broken_promise",
    "principal_certificate",
    "principal_certificate_seeds",
]

_KINDS = [METHODS[name] for name in sorted(METHODS)]
_AUDIT_KEY = bytes(range(32))


def broken_promise() -> AssertionError:
    """What is raised where an accepted input breaks a promise."""
    return AssertionError("what was accepted breaks a promise")


def admin_request(data: bytes) -> None:
    """A request of any kind: what is kept as a proposal comes back the same."""
    kind = _KINDS[data[0] % len(_KINDS)] if data else _KINDS[0]
    request = kind()
    try:
        request.ParseFromString(data[1:])
    except DecodeError:
        raise InputError("admin.request_malformed", "no such message") from None
    request.DiscardUnknownFields()
    kept = json.dumps(json_format.MessageToDict(request, preserving_proto_field_name=True))
    again = kind()
    json_format.ParseDict(json.loads(kept), again)
    if again != request:
        raise broken_promise()
    decode_error(data, address="here")


def admin_request_seeds() -> list[bytes]:
    """One of each kind that has something in it."""
    put = v1_pb2.SecretPutRequest(resource="models/demo", sealed_key=b"x" * 40, lease_seconds=600)
    read = v1_pb2.AuditReadRequest(after=7, limit=9, from_end=True)
    error = {"class": "Refused", "code": "a.b", "message": "m"}
    return [
        bytes([_KINDS.index(type(put))]) + put.SerializeToString(),
        bytes([_KINDS.index(type(read))]) + read.SerializeToString(),
        json.dumps(error).encode(),
    ]


def principal_certificate(data: bytes) -> None:
    """A certificate that shall be a principal's."""
    if len(spki_sha256(read_certificate(data))) != 64:
        raise broken_promise()


def principal_certificate_seeds() -> list[bytes]:
    """One that is taken."""
    return [make_identity("alice", days=1).certificate_pem]


def audit_export(data: bytes) -> None:
    """An export: whatever is accepted was signed line by line."""
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise InputError("audit.export_malformed", "is not ASCII") from None
    checked = check(lines, _identity())
    told = [line for line in lines if line.startswith('{"event"')]
    if len(told) != checked.head.count or checked.signed.head != checked.head:
        raise broken_promise()


def audit_export_seeds() -> list[bytes]:
    """Three lines, signed at the second."""
    signer, end, lines, marks = Signer(_identity(), _AUDIT_KEY), START, [], []
    for number in (1, 2, 3):
        entry = {"event": "release", "sequence": number, "previous": end.sha256, "time": "now"}
        lines.append(canonical(entry))
        end = next_end(lines[-1], end)
        if number == 2:
            marks.append(signer.sign(CHECKPOINT, end))
    whole = list(lines_of(lines, marks, signer.sign(END, end)))
    empty = list(lines_of([], [], signer.sign(END, START)))
    return [("\n".join(each) + "\n").encode() for each in (whole, empty)]


@functools.cache
def _identity() -> BrokerIdentity:
    # Keys that are the same in every process, so that a finding can be repeated.
    tls = ec.derive_private_key(0xB40CE4, ec.SECP256R1())
    names = [x509.DNSName(SERVER_NAME)]
    public = Ed25519PrivateKey.from_private_bytes(_AUDIT_KEY).public_key().public_bytes_raw()
    return BrokerIdentity(
        name="fuzz",
        certificate=server_certificate(tls, "fuzz", names, timedelta(days=1))
        .public_bytes(Encoding.PEM)
        .decode(),
        deposit_key=base64.b64encode(bytes(PUBLIC_KEY_BYTES)).decode(),
        audit_key=base64.b64encode(public).decode(),
    )
