"""What follows the TD report in a quote: signature, attestation key, the quoting enclave's papers.

Rules this module keeps:

* Nothing here is covered by the quote's own signature. The framing has one
  right form, so every length must fill what surrounds it exactly.
* Splitting proves nothing: the parts are unverified.

Source: Intel TDX DCAP Quoting Library API, appendix 3.8 to 3.11; all integers
are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from sealserve.errors import InputError, Refused
from sealserve.tdx.quote import Quote

__all__ = ["PCK_CHAIN", "QeReport", "SignatureData", "split_signature_data"]

PCK_CHAIN = 5
"""Certification data type: the PCK certificate chain in PEM, leaf first."""

_PCK_FORMS = range(1, 6)  # the forms in which a quote may name its PCK certificate
_LENGTH_BYTES = 4  # of the length field between the TD report and the signature data
_HEAD = struct.Struct("<64s64sHI")  # signature, attestation key, type and size of the rest
_QE = struct.Struct("<384s64sH")  # QE report, its signature, size of the authentication data
_TYPED = struct.Struct("<HI")
_REPORT = struct.Struct("<16s4s28s16s32s32s32s96sHH60s64s")


@dataclass(frozen=True, slots=True, kw_only=True)
class QeReport:
    """The SGX report of the quoting enclave.

    Attributes:
        raw: its 384 bytes, which the PCK key signs.
        misc_select: 4 bytes.
        attributes: flags and XFRM, 16 bytes.
        mrsigner: hash of the enclave's signing key, 32 bytes.
        product_id, svn: as its signer numbered them, 16 bits each.
        report_data: 64 bytes.
    """

    raw: bytes
    misc_select: bytes
    attributes: bytes
    mrsigner: bytes
    product_id: int
    svn: int
    report_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureData:
    """The parts of a quote that no signature of its own covers.

    Attributes:
        signature: over header and TD report, ``r || s`` (64 bytes).
        attestation_key: P-256 public key ``x || y`` (64 bytes).
        qe_report: the quoting enclave's report.
        qe_signature: over that report by the PCK key, ``r || s`` (64 bytes).
        qe_auth_data: bound, with the attestation key, by the QE report data.
        certification_type: form of ``certification``; :data:`PCK_CHAIN` in
            every quote seen in the field.
        certification: how the PCK certificate is named.
    """

    signature: bytes
    attestation_key: bytes
    qe_report: QeReport
    qe_signature: bytes
    qe_auth_data: bytes
    certification_type: int
    certification: bytes


def split_signature_data(quote: Quote) -> SignatureData:
    """The signature data of a parsed quote.

    Raises:
        InputError: ``quote.malformed`` if a length does not fit.
        Refused: ``quote.certification_data`` if the PCK certificate is named
            in a form that is not defined.
    """
    data = quote.raw[len(quote.signed_part) + _LENGTH_BYTES :]
    signature, key, _, _ = _unpack(_HEAD, data, 0, "the signature")
    report, qe_signature, auth_size = _unpack(_QE, data, _HEAD.size, "the QE report")
    auth_start = _HEAD.size + _QE.size
    auth_end = auth_start + auth_size
    kind, size = _unpack(_TYPED, data, auth_end, "the PCK certification data")
    start = auth_end + _TYPED.size
    if start + size != len(data):
        raise InputError(
            "quote.malformed", f"{size} bytes of PCK certification data do not fill the quote"
        )
    if kind not in _PCK_FORMS:
        raise Refused(
            "quote.certification_data", f"PCK certification data of type {kind} is not defined"
        )
    return SignatureData(
        signature=signature,
        attestation_key=key,
        qe_report=_qe_report(report),
        qe_signature=qe_signature,
        qe_auth_data=data[auth_start:auth_end],
        certification_type=kind,
        certification=data[start:],
    )


def _qe_report(raw: bytes) -> QeReport:
    _, misc_select, _, attributes, _, _, mrsigner, _, product_id, svn, _, report_data = (
        _REPORT.unpack(raw)
    )
    return QeReport(
        raw=raw,
        misc_select=misc_select,
        attributes=attributes,
        mrsigner=mrsigner,
        product_id=product_id,
        svn=svn,
        report_data=report_data,
    )


def _unpack(layout: struct.Struct, data: bytes, start: int, what: str) -> tuple[Any, ...]:
    if start + layout.size > len(data):
        raise InputError("quote.malformed", f"the signature data ends inside {what}")
    return layout.unpack_from(data, start)
