"""RA-TLS: a TLS certificate whose key a quote speaks for.

Rules this module keeps:

* The key is born here, in the TD, and leaves only as the PEM given to the
  server; the certificate is worth nothing without it.
* What is bound is the key (SHA-384 of its SubjectPublicKeyInfo), its end and the
  runtime event log, in a claims buffer whose digest is the quote's report data.
  All 64 bytes are compared. A certificate is signed by the key it carries, so
  its own dates are the word of whoever holds the key: the end counts that the
  quote speaks for.
* A certificate that was only *fetched* proves nothing about a connection: the
  caller must pin the key it carries (see :mod:`sealserve.client`).

Form: TCG DICE conceptual evidence, OID 2.23.133.5.4.9, CBOR tag 60000
``[quote, claims-buffer]``, claims ``"pubkey-hash"`` (mandatory here) and our
own ``"sealserve-expires"`` (mandatory: seconds of POSIX time) and
``"sealserve-runtime-log"``. Source: CCC Attestation SIG, interoperable
RA-TLS.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from sealserve.attestation import binding, cbor
from sealserve.attestation.appraisal import Verdict, appraise
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.policy import Policy
from sealserve.attestation.verifier import VerifiedTd, Verifier
from sealserve.certificates import UNREADABLE, key_pem, server_certificate
from sealserve.errors import InputError, Refused
from sealserve.tdx.eventlog import RuntimeEvent, decode_log, encode_log

__all__ = [
    "EVIDENCE_OID",
    "MAX_CERTIFICATE_BYTES",
    "SERVER_NAME",
    "TlsIdentity",
    "TrustReport",
    "check_certificate",
    "make_identity",
]

SERVER_NAME = "ratls.sealserve.internal"
"""The SNI name under which a server presents its attested certificate."""

EVIDENCE_OID = x509.ObjectIdentifier("2.23.133.5.4.9")
MAX_CERTIFICATE_BYTES = 128 * 1024

_EVIDENCE_TAG = 60000
_SHA384 = 7  # IANA Named Information Hash Algorithm Registry
_CLAIM_KEY = "pubkey-hash"
_CLAIM_END = "sealserve-expires"
_CLAIM_LOG = "sealserve-runtime-log"


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A server's key and attested certificate.

    Attributes:
        key_pem: private key, PKCS #8, unencrypted. Secret.
        certificate_pem: the certificate with its evidence.
        expires: when it ends; the quote speaks for that too.
    """

    key_pem: bytes = field(repr=False)
    certificate_pem: bytes
    expires: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustReport:
    """Everything that was verified about a server before it was trusted.

    Attributes:
        certificate_pem: the certificate; its key is the one to pin.
        key_sha384: SHA-384 of its SubjectPublicKeyInfo, bound in the quote.
        td: the facts from the quote.
        events: the runtime event log that replays to RTMR3; ``None`` if the
            evidence carries none.
        verdict: every rule of the policy and its outcome.
    """

    certificate_pem: bytes
    key_sha384: bytes
    td: VerifiedTd
    events: tuple[RuntimeEvent, ...] | None
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object."""
        events = None if self.events is None else [event.to_dict() for event in self.events]
        return {
            "certificate": self.certificate_pem.decode("ascii"),
            "key_sha384": self.key_sha384.hex(),
            "td": self.td.to_dict(),
            "events": events,
            "verdict": self.verdict.to_dict(),
        }

    def __str__(self) -> str:
        td = self.td
        lines = [
            f"platform      {'SIMULATION' if td.simulated else 'Intel TDX'}, anchor {td.anchor}",
            f"TCB           {td.tcb_status}, level of {td.tcb_date:%Y-%m-%d}",
            f"evaluation    {td.tcb_evaluation}, collateral ends {td.collateral_ends:%Y-%m-%d}",
            f"advisories    {', '.join(td.advisory_ids) or 'none'}",
            f"release       {self.verdict.release}",
            f"MRTD          {td.report.mrtd.hex()}",
            f"TLS key       SHA-384 {self.key_sha384.hex()}, bound in the quote",
            f"rules         {len(self.verdict.findings)} examined, all kept",
        ]
        lines += [f"event         {e.name} {_readable(e.payload)}" for e in self.events or ()]
        lines += [f"warning       {warning}" for warning in self.verdict.warnings]
        return "\n".join(lines)


def make_identity(
    quote_fn: Callable[[bytes], bytes],
    events: Sequence[RuntimeEvent],
    *,
    hostnames: Sequence[str] = (),
    lifetime: timedelta = timedelta(hours=24),
    simulated: bool = False,
) -> TlsIdentity:
    """Make a TLS key and a certificate that proves it lives in this TD.

    Args:
        quote_fn: makes a quote for 64 bytes of report data.
        events: the runtime events extended so far; the certificate carries them.
        hostnames: DNS names beside :data:`SERVER_NAME`.
        lifetime: how long key and certificate are good, from now.
        simulated: put the word SIMULATION in the subject.

    Returns:
        The identity. One quote was made.

    Raises:
        SealserveError: whatever ``quote_fn`` raises.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    expires = datetime.now(UTC).replace(microsecond=0) + lifetime
    claims = cbor.encode(
        {
            _CLAIM_KEY: cbor.encode((_SHA384, _key_digest(key.public_key()))),
            _CLAIM_END: int(expires.timestamp()),
            _CLAIM_LOG: encode_log(events),
        }
    )
    quote = quote_fn(binding.tls_report_data(claims))
    evidence = cbor.encode(cbor.Tag(_EVIDENCE_TAG, (quote, claims)))
    subject = "sealserve attested TLS key" + (", SIMULATION" if simulated else "")
    certificate = server_certificate(
        key,
        subject,
        [x509.DNSName(name) for name in (SERVER_NAME, *hostnames)],
        lifetime,
        evidence=x509.UnrecognizedExtension(EVIDENCE_OID, evidence),
    )
    return TlsIdentity(
        key_pem=key_pem(key),
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
        expires=expires,
    )


def check_certificate(
    der: bytes, verifier: Verifier, collateral: Collateral, policy: Policy, now: datetime
) -> TrustReport:
    """Decide whether the key in a certificate belongs to a trusted guest.

    Args:
        der: the certificate a server presented, in DER.
        verifier: with the anchor to believe.
        collateral: for the server's platform.
        policy: what the guest must be.
        now: the time of the decision, with a time zone.

    Returns:
        What was verified. Returned only if everything holds.

    Raises:
        InputError: ``binding.certificate_malformed``, ``cbor.*``, ``quote.*``
            or ``eventlog.*``.
        Refused: ``binding.no_evidence``, ``binding.no_key_claim``,
            ``binding.no_end_claim``, ``binding.certificate_time``,
            ``binding.key_mismatch``, ``binding.claims_mismatch``, and as
            :meth:`Verifier.verify` and :meth:`Verdict.raise_if_denied`.
    """
    certificate = _load(der)
    _check_time(certificate, now)
    quote, claims = _evidence(certificate)
    key_digest, ends, log = _claims(claims)
    if not hmac.compare_digest(key_digest, _key_digest(_public_key(certificate))):
        raise Refused(
            "binding.key_mismatch",
            "the evidence in this certificate speaks for another TLS key",
            hint="the server presents evidence that it did not make; do not send it anything",
        )
    td = verifier.verify(quote, collateral, now)
    if not hmac.compare_digest(td.report.report_data, binding.tls_report_data(claims)):
        raise Refused(
            "binding.claims_mismatch",
            "the quote in this certificate was not made for these claims",
            hint="the server presents evidence that it did not make; do not send it anything",
        )
    if now.timestamp() > ends:
        raise Refused(
            "binding.certificate_time",
            "the quote speaks for this TLS key up to a time that has passed",
            hint="whoever made this certificate has a key that is out of date; do not send it "
            "anything",
        )
    events = None if log is None else decode_log(log)
    verdict = appraise(policy, td, events, now=now)
    verdict.raise_if_denied()
    return TrustReport(
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
        key_sha384=key_digest,
        td=td,
        events=events,
        verdict=verdict,
    )


def _load(der: bytes) -> x509.Certificate:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise InputError(
            "binding.certificate_malformed",
            f"a certificate of {len(der)} bytes exceeds the limit of {MAX_CERTIFICATE_BYTES}",
        )
    try:
        return x509.load_der_x509_certificate(der)
    except UNREADABLE:
        raise InputError(
            "binding.certificate_malformed", "the server's certificate cannot be read"
        ) from None


def _public_key(certificate: x509.Certificate) -> PublicKeyTypes:
    try:
        return certificate.public_key()
    except UNREADABLE:
        raise InputError(
            "binding.certificate_malformed", "the key in the server's certificate cannot be read"
        ) from None


def _check_time(certificate: x509.Certificate, now: datetime) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now <= ends:
        raise Refused(
            "binding.certificate_time",
            f"the certificate is good from {begins.isoformat()} to {ends.isoformat()}, not now",
            hint="the server renews its certificate by itself; check both clocks",
        )


def _evidence(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    try:
        extension = certificate.extensions.get_extension_for_oid(EVIDENCE_OID)
    except x509.ExtensionNotFound:
        raise Refused(
            "binding.no_evidence",
            "the server's certificate carries no attestation evidence",
            hint=f"an attested server presents it under the name {SERVER_NAME}",
        ) from None
    except UNREADABLE:
        raise InputError(
            "binding.certificate_malformed", "the certificate's extensions cannot be read"
        ) from None
    value = extension.value
    raw = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
    match cbor.decode(raw):
        case cbor.Tag(number=number, value=(bytes() as quote, bytes() as claims)) if (
            number == _EVIDENCE_TAG
        ):
            return quote, claims
    raise InputError(
        "binding.evidence_malformed", "the evidence is not CBOR tag 60000 [quote, claims]"
    )


def _claims(raw: bytes) -> tuple[bytes, int, bytes | None]:
    """Digest of the key, its end in POSIX time, the runtime event log."""
    claims = cbor.decode(raw)
    if not isinstance(claims, dict):
        raise InputError("binding.evidence_malformed", "the claims are not a CBOR map")
    hashed, ends, log = (claims.get(name) for name in (_CLAIM_KEY, _CLAIM_END, _CLAIM_LOG))
    if not isinstance(hashed, bytes):
        raise Refused(
            "binding.no_key_claim",
            f"the evidence has no {_CLAIM_KEY!r}: it speaks for no TLS key",
        )
    if not isinstance(ends, int):
        raise Refused(
            "binding.no_end_claim",
            f"the evidence has no {_CLAIM_END!r}: it does not say until when it speaks for the key",
        )
    if not isinstance(log, (bytes, type(None))):
        raise InputError("binding.evidence_malformed", f"{_CLAIM_LOG!r} is not a byte string")
    match cbor.decode(hashed):
        case (int() as algorithm, bytes() as digest) if algorithm == _SHA384:
            return digest, ends, log
    raise Refused(
        "binding.no_key_claim", f"{_CLAIM_KEY!r} is not a SHA-384 digest (algorithm {_SHA384})"
    )


def _key_digest(key: PublicKeyTypes) -> bytes:
    spki = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha384(spki).digest()


def _readable(payload: bytes) -> str:
    """Text parts as text, the rest as hexadecimal: events mix both."""
    parts = payload.split(b"\0", 2)
    texts = [part.decode("ascii", "replace") for part in parts[:2]]
    if len(parts) == 3 and all(text.isprintable() and text.isascii() for text in texts):
        return f"{texts[0]} {texts[1]} {parts[2].hex()}"
    return payload.hex()
