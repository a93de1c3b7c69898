"""The byte layout of TDX quotes, versions 4 and 5.

Rules this module keeps:

* Every offset and length of a quote stands here and nowhere else; the
  simulator encodes with the same tables that the parser reads.
* Parsing trusts nothing: the size is capped first, lengths are checked before
  they are used, and a quote that is not a TDX quote of version 4 or 5 is
  refused before any cryptography looks at it.
* Parsing proves nothing: a :class:`Quote` is unverified until
  :class:`sealserve.attestation.verifier.Verifier` says otherwise.
* A quote is malleable outside its signed part (padding, certificate framing),
  so its identity is :attr:`Quote.signed_digest`, never a hash of the file.

Source: Intel TDX DCAP Quoting Library API, appendix 3 (version 4) and 4
(version 5); all integers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sealserve.errors import InputError, Refused
from sealserve.files import read_limited

__all__ = [
    "MAX_QUOTE_BYTES",
    "MAX_QUOTE_FILE_BYTES",
    "MIN_QUOTE_BYTES",
    "QE_VENDOR_INTEL",
    "TEE_TYPE_TDX",
    "Quote",
    "TdReport",
    "encode_body",
    "load_quote",
    "parse_quote",
    "quote_of_file",
]

MAX_QUOTE_BYTES = 32 * 1024
"""Largest quote looked at; the kernel's own limit before Linux 7.0."""

MIN_QUOTE_BYTES = 1020
"""Below this a quote cannot hold header, body, signature and QE report."""

MAX_QUOTE_FILE_BYTES = 4 * MAX_QUOTE_BYTES
"""Largest file a quote is read from: hexadecimal, with line breaks or a report around it."""

TEE_TYPE_TDX = 0x81
TEE_TYPE_SGX = 0x00
ATTESTATION_KEY_ECDSA_P256 = 2
QE_VENDOR_INTEL = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

_LARGEST_VERSION = 15  # of a quote that may be one; beyond, it is something else

_HEADER = struct.Struct("<HHIHH16s20s")  # version, key type, TEE type, 2 x SVN, vendor, user data
_BODY_DESCRIPTOR = struct.Struct("<HI")  # version 5 only: body type, body size
_LENGTH = struct.Struct("<I")
_CERTIFICATION = struct.Struct("<HI")  # type and size of what follows signature and key
_CERTIFICATION_QE_REPORT = 6
_SIGNATURE_BYTES = 64
_ATTESTATION_KEY_BYTES = 64

# The fields of the TD report body in order. Type 2 (TD 1.0) has the first
# block, type 3 (TD 1.5) the first two, type 4 (TD 1.5 extended) all three.
_TD10 = (
    ("tee_tcb_svn", 16),
    ("mrseam", 48),
    ("mrsignerseam", 48),
    ("seam_attributes", 8),
    ("td_attributes", 8),
    ("xfam", 8),
    ("mrtd", 48),
    ("mrconfigid", 48),
    ("mrowner", 48),
    ("mrownerconfig", 48),
    ("rtmr0", 48),
    ("rtmr1", 48),
    ("rtmr2", 48),
    ("rtmr3", 48),
    ("report_data", 64),
)
_TD15 = (("tee_tcb_svn2", 16), ("mrservicetd", 48))
_TD15EX = (
    ("vmid", 1),
    ("td_id", 32),
    ("dev_info", 48),
    ("init_service_td_hash", 48),
    ("init_service_td_attributes", 8),
    ("init_cpu_svn", 16),
    ("init_tee_tcb_svn", 16),
    ("init_tee_fmspc", 12),
    ("cur_service_td_hash", 48),
    ("cur_service_td_attributes", 8),
)
_BODY_LAYOUT = {2: _TD10, 3: _TD10 + _TD15, 4: _TD10 + _TD15 + _TD15EX}
_BODY_SIZE = {kind: sum(size for _, size in layout) for kind, layout in _BODY_LAYOUT.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """The registers of a TD, as its quote states them.

    Each field holds the raw bytes of the report; ``None`` marks a field that
    this body type does not have. Measurement registers are SHA-384 values
    (48 bytes); the attribute words are little-endian as the hardware writes
    them.
    """

    tee_tcb_svn: bytes
    mrseam: bytes
    mrsignerseam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mrservicetd: bytes | None = None
    vmid: bytes | None = None
    td_id: bytes | None = None
    dev_info: bytes | None = None
    init_service_td_hash: bytes | None = None
    init_service_td_attributes: bytes | None = None
    init_cpu_svn: bytes | None = None
    init_tee_tcb_svn: bytes | None = None
    init_tee_fmspc: bytes | None = None
    cur_service_td_hash: bytes | None = None
    cur_service_td_attributes: bytes | None = None

    def to_dict(self) -> dict[str, str]:
        """The fields that are present, as lower-case hexadecimal."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value.hex() for name, value in values if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A parsed, unverified quote.

    Attributes:
        version: 4 or 5.
        body_type: 2 (TD 1.0), 3 (TD 1.5) or 4 (TD 1.5 extended).
        report: the registers of the TD.
        signed_part: header and body, the bytes the attestation key signs.
        raw: the quote without its zero padding.
    """

    version: int
    body_type: int
    report: TdReport
    signed_part: bytes
    raw: bytes

    @property
    def signed_digest(self) -> bytes:
        """SHA-256 of the signed part: the one stable name of this quote."""
        return hashlib.sha256(self.signed_part).digest()

    def to_dict(self) -> dict[str, Any]:
        """The quote as a JSON object, registers in hexadecimal."""
        return {
            "version": self.version,
            "body_type": self.body_type,
            "signed_part_sha256": self.signed_digest.hex(),
            "report": self.report.to_dict(),
        }


def parse_quote(raw: bytes) -> Quote:
    """Split a TDX quote into its fields.

    Args:
        raw: the quote, at most :data:`MAX_QUOTE_BYTES`; zero padding after the
            signature data is allowed (some platforms pad to a fixed size).

    Returns:
        The parsed quote. Nothing in it is verified.

    Raises:
        InputError: ``quote.too_large``, ``quote.truncated`` or
            ``quote.malformed``.
        Refused: ``quote.unsupported_version``, ``quote.not_tdx``,
            ``quote.key_type``, ``quote.qe_vendor``, ``quote.certification_data``
            or ``quote.trailing_data``.
    """
    if len(raw) > MAX_QUOTE_BYTES:
        raise InputError(
            "quote.too_large",
            f"a quote of {len(raw)} bytes is larger than the limit of {MAX_QUOTE_BYTES}",
            hint="give the quote file itself, not an archive or a log",
        )
    raw = bytes(raw)
    version = _check_header(raw)
    if version == 4:
        body_type, start = 2, _HEADER.size
    else:
        body_type, start = _body_descriptor(raw)
    end = start + _BODY_SIZE[body_type]
    report = _decode_body(_take(raw, start, end, "the TD report"), body_type)
    (signature_size,) = _LENGTH.unpack(
        _take(raw, end, end + _LENGTH.size, "the signature data length")
    )
    quote_end = end + _LENGTH.size + signature_size
    _check_signature_data(_take(raw, end + _LENGTH.size, quote_end, "the signature data"))
    if any(raw[quote_end:]):
        raise Refused(
            "quote.trailing_data",
            f"{len(raw) - quote_end} bytes follow the quote and are not all zero",
            hint="padding must be zero; a quote with anything else behind it was tampered with",
        )
    return Quote(
        version=version,
        body_type=body_type,
        report=report,
        signed_part=raw[:end],
        raw=raw[:quote_end],
    )


def load_quote(path: Path | str) -> bytes:
    """Read a quote from a file, in one of the forms in which quotes are passed around.

    These are its bytes, the same in hexadecimal, and a JSON object that has it
    in hexadecimal as ``quote``: what ``attest quote --json`` prints, or another
    project's report.

    Raises:
        Unavailable: ``file.unreadable``.
        InputError: ``file.too_large``, or ``quote.malformed`` for a JSON object
            without a quote. The quote is not looked at further.
    """
    return quote_of_file(read_limited(path, MAX_QUOTE_FILE_BYTES), str(path))


def quote_of_file(content: bytes, where: str) -> bytes:
    """As :func:`load_quote`, of what was read of a file named ``where``.

    Raises:
        InputError: ``quote.malformed``.
    """
    try:
        text = content.decode("ascii").strip()
        if text.startswith("{"):
            text = _quote_in(text, where)
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        return content


def _quote_in(report: str, where: str) -> str:
    try:
        quote = json.loads(report)["quote"]
        bytes.fromhex(quote)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            "quote.malformed",
            "this JSON object has no member 'quote' in hexadecimal",
            where=where,
            hint="give the quote in binary or hexadecimal",
        ) from None
    return str(quote)


def encode_body(report: TdReport, body_type: int) -> bytes:
    """The report as the bytes of a quote body; the inverse of parsing.

    Args:
        report: registers; fields of a later body type may be ``None``.
        body_type: 2, 3 or 4.

    Returns:
        584, 648 or 885 bytes. Missing fields become zero.
    """
    layout = _BODY_LAYOUT[body_type]
    parts = [getattr(report, name) or bytes(size) for name, size in layout]
    for (name, size), part in zip(layout, parts, strict=True):
        if len(part) != size:
            raise InputError("quote.malformed", f"{name} is {len(part)} bytes, expected {size}")
    return b"".join(parts)


def _check_header(raw: bytes) -> int:
    header = _take(raw, 0, _HEADER.size, "the header")
    version, key_type, tee_type, _, _, vendor, _ = _HEADER.unpack(header)
    if tee_type == TEE_TYPE_SGX and version in (3, 4, 5):
        raise Refused(
            "quote.not_tdx",
            "this is an SGX quote",
            hint="only quotes of TDX guests are accepted",
        )
    if version not in (4, 5):
        unlikely = "; this does not look like a quote" if version > _LARGEST_VERSION else ""
        raise Refused(
            "quote.unsupported_version",
            f"quote version {version} is not supported{unlikely}",
            hint="sealserve reads TDX quotes of version 4 and 5, in binary, in hexadecimal, or as "
            "'quote' in a JSON object",
        )
    if tee_type != TEE_TYPE_TDX:
        raise Refused("quote.not_tdx", f"TEE type {tee_type:#x} is not TDX ({TEE_TYPE_TDX:#x})")
    if key_type != ATTESTATION_KEY_ECDSA_P256:
        raise Refused(
            "quote.key_type", f"attestation key type {key_type} is not ECDSA P-256 (type 2)"
        )
    if vendor != QE_VENDOR_INTEL:
        raise Refused("quote.qe_vendor", f"quoting enclave vendor {vendor.hex()} is not Intel")
    return int(version)


def _body_descriptor(raw: bytes) -> tuple[int, int]:
    end = _HEADER.size + _BODY_DESCRIPTOR.size
    body_type, size = _BODY_DESCRIPTOR.unpack(_take(raw, _HEADER.size, end, "the body descriptor"))
    if body_type == 1:
        raise Refused("quote.not_tdx", "the quote body (type 1) is an SGX enclave report")
    if _BODY_SIZE.get(body_type) != size:
        raise InputError(
            "quote.malformed", f"quote body type {body_type} with {size} bytes is not defined"
        )
    return body_type, end


def _check_signature_data(data: bytes) -> None:
    """The framing that no signature covers: it has one right form, so demand it."""
    start = _SIGNATURE_BYTES + _ATTESTATION_KEY_BYTES
    head = _take(data, start, start + _CERTIFICATION.size, "the certification data")
    kind, size = _CERTIFICATION.unpack(head)
    if kind != _CERTIFICATION_QE_REPORT:
        raise Refused(
            "quote.certification_data",
            f"certification data of type {kind} is not a QE report (type 6)",
        )
    if start + _CERTIFICATION.size + size != len(data):
        raise InputError(
            "quote.malformed", f"{size} bytes of certification data do not fill the signature data"
        )


def _decode_body(body: bytes, body_type: int) -> TdReport:
    values: dict[str, bytes] = {}
    offset = 0
    for name, size in _BODY_LAYOUT[body_type]:
        values[name] = body[offset : offset + size]
        offset += size
    return TdReport(**values)


def _take(raw: bytes, start: int, end: int, what: str) -> bytes:
    if end > len(raw):
        raise InputError(
            "quote.truncated",
            f"the quote ends at byte {len(raw)}, inside {what} (bytes {start} to {end})",
            hint="fetch the quote again",
        )
    return raw[start:end]
