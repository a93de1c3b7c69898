"""What dcap-qvl says when it refuses, and our code for it.

Rules this module keeps:

* A known text becomes a stable code; an unknown one is ``quote.not_verified``.
  Either way the answer is no: a code only says why.
* The texts are those of dcap-qvl 0.7.
"""

from __future__ import annotations

from typing import Final

from sealserve.errors import InputError, Refused

__all__ = ["ASK_FOR_NEW", "refusal"]

ASK_FOR_NEW: Final = "fetch collateral for this platform again and retry"

# The first fragment found in the text wins, so the order is from the
# particular to the general.
_KNOWN_TEXTS: Final[tuple[tuple[str, str], ...]] = (
    ("CertRevoked", "chain.revoked"),
    ("CertExpired", "chain.expired"),
    ("CertNotValidYet", "chain.not_yet_valid"),
    ("UnknownRevocationStatus", "crl.missing"),
    ("CrlExpired", "crl.expired"),
    ("root CA CRL", "chain.wrong_root"),
    ("InvalidCrlSignature", "crl.signature"),
    ("CRL", "crl.malformed"),
    ("chain is too short", "chain.not_verified"),
    ("leaf certificate", "chain.not_verified"),
    ("Unknown QE vendor", "quote.qe_vendor"),
    ("ISV enclave report signature", "quote.signature"),
    ("Failed to decode quote", "quote.malformed"),
    ("Unsupported DCAP PCK cert format", "quote.certification_data"),
    ("QE report hash mismatch", "qe.key_binding"),
    ("QE auth data", "qe.key_binding"),
    ("Signature is invalid for qe_report", "qe.signature"),
    ("QE MRSIGNER", "qe.identity_mismatch"),
    ("QE ISVPRODID", "qe.identity_mismatch"),
    ("QE MISCSELECT", "qe.identity_mismatch"),
    ("QE ATTRIBUTES", "qe.identity_mismatch"),
    ("QE report validation", "qe.identity_mismatch"),
    ("QE ISVSVN", "qe.out_of_date"),
    ("No TCB levels found in QE Identity", "qe.out_of_date"),
    ("Failed to decode QE report", "quote.malformed"),
    ("Signature is invalid for tcb_info", "collateral.signature"),
    ("Signature is invalid for qe_identity", "collateral.signature"),
    ("Unrecognized TCB status", "collateral.malformed"),
    ("component count mismatch", "collateral.malformed"),
    ("is in the future", "collateral.not_yet_valid"),
    ("expired", "collateral.expired"),
    ("Expired", "collateral.expired"),
    ("Fmspc mismatch", "tcb.platform_mismatch"),
    ("non-TDX TCB info", "tcb.platform_mismatch"),
    ("Invalid key length", "collateral.signature"),
    ("is below minimum required from TDX module", "tcb.no_matching_level"),
    ("tcbDate", "collateral.malformed"),
    ("Failed to decode tdxModule", "collateral.malformed"),
    ("has invalid length", "collateral.malformed"),
    ("missing tdxModule", "collateral.malformed"),
    ("TDX module", "tcb.module_mismatch"),
    ("QE Identity", "collateral.malformed"),
    ("TCB Info", "collateral.malformed"),
    ("TcbInfo", "collateral.malformed"),
    ("QeIdentity", "collateral.malformed"),
    ("Revoked", "tcb.revoked"),
    ("No matching TCB level", "tcb.no_matching_level"),
    ("TEE_TCB_SVN2", "tcb.no_matching_level"),
    ("Debug mode", "td.debug"),
    ("TD profiling", "td.profiling"),
    ("SERVTD", "td.service_td"),
    ("MR service TD", "td.service_td"),
    ("SEPT_VE_DISABLE", "td.sept_ve_disable"),
    ("TD migration", "td.migratable"),
    ("Reserved bits", "td.reserved_bits"),
    ("certificate chain", "chain.not_verified"),
    ("Certificate chain", "chain.not_verified"),
    ("intermediate certificates", "chain.not_verified"),
    ("PCK certificate", "chain.not_verified"),
    ("root ca", "chain.not_verified"),
    ("Intel extension", "chain.pck_extension"),
    ("DER object", "chain.pck_extension"),
    ("subobject", "chain.pck_extension"),
    ("sequence", "chain.pck_extension"),
    ("CpuSvn", "chain.pck_extension"),
    ("PceSvn", "chain.pck_extension"),
    ("Fmspc", "chain.pck_extension"),
    ("ENUMERATED", "chain.pck_extension"),
    ("BOOLEAN", "chain.pck_extension"),
)

_HINTS: Final = {
    "collateral": ASK_FOR_NEW,
    "chain": "check that collateral and anchor belong together; " + ASK_FOR_NEW,
    "crl": ASK_FOR_NEW,
    "tcb": "the platform's firmware needs an update, or the collateral is of another platform",
    "td": "the guest was launched in a way that is never trusted; launch it without this",
}


def refusal(text: str) -> InputError | Refused:
    """The error for a text with which the library refused.

    Args:
        text: its words, with their causes.
    """
    text = " ".join(text.removeprefix("Verification failed:").split())[:300]
    code = next((code for part, code in _KNOWN_TEXTS if part in text), "quote.not_verified")
    kind = InputError if code.endswith(".malformed") else Refused
    return kind(code, f"the quote is not verified: {text}", hint=_HINTS.get(code.partition(".")[0]))
