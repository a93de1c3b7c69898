"""Is this the quoting enclave that Intel vouches for, and did it make this attestation key?

Source: Intel PCS API version 4, "Get TD QE Identity" (how to verify an enclave
against its identity); TDX DCAP Quoting Library API, appendix 3.
"""

from __future__ import annotations

import hashlib
from typing import Final

from sealserve.attestation.reference.documents import Level, QeIdentity
from sealserve.attestation.reference.tcb import first_reached, masked_equal
from sealserve.errors import Refused
from sealserve.tdx.signature_data import QeReport, SignatureData

__all__ = ["check_key_binding", "enclave_level"]

_DEBUG: Final = 0x02  # in the first byte of the attributes
_AUTH_DATA_BYTES: Final = 32


def check_key_binding(data: SignatureData) -> None:
    """The QE report must name the attestation key.

    Raises:
        Refused: ``qe.key_binding``.
    """
    bound = hashlib.sha256(data.attestation_key + data.qe_auth_data).digest()
    named = data.qe_report.report_data
    # Stricter than the primary, which leaves the second half alone: Intel's QE fills it with zeros.
    if len(data.qe_auth_data) != _AUTH_DATA_BYTES or named != bound.ljust(len(named), b"\0"):
        raise Refused("qe.key_binding", "the QE report does not name the attestation key")


def enclave_level(report: QeReport, identity: QeIdentity) -> Level:
    """The level that the quoting enclave has reached.

    Raises:
        Refused: ``qe.identity_mismatch`` or ``qe.out_of_date``.
    """
    for what, fits in (
        ("signer", report.mrsigner == identity.mrsigner),
        ("product id", report.product_id == identity.product_id),
        ("debug attribute", not report.attributes[0] & _DEBUG),
        (
            "MISCSELECT",
            masked_equal(report.misc_select, identity.misc_select, identity.misc_select_mask),
        ),
        (
            "attributes",
            masked_equal(report.attributes, identity.attributes, identity.attributes_mask),
        ),
    ):
        if not fits:
            raise Refused(
                "qe.identity_mismatch", f"the quoting enclave's {what} is not what Intel states"
            )
    level = first_reached(identity.levels, report.svn)
    if level is None:
        raise Refused(
            "qe.out_of_date", f"no level of the quoting enclave is as low as {report.svn}"
        )
    return level
