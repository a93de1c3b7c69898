"""Azure evidence: from a genuine TD to the runtime data and the vTPM key that it speaks for.

Rules this module keeps:

* It begins where a verifier ended: only a :class:`VerifiedTd` gets in, never a
  parsed quote. Of the two verifiers the reference alone knows TDs with a
  paravisor; the primary refuses them all.
* The chain has no gap: the quote's report data are SHA-256 of the runtime data
  and 32 zeros, and the runtime data hold the 64 bytes that were asked for.
  The TDREPORT in the report takes no part: nobody outside its machine can
  check it.
* What it establishes is less than a TDX quote does elsewhere: the RTMRs of such
  a TD are zero, and what booted is known from PCR quotes of the vTPM key alone.
  Nor is it said that the TD is Azure's: any TD may make up runtime data. That is
  for who compares MRTD with the measurement of Azure's paravisor.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sealserve.attestation.anchor import Anchor
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.reference import ReferenceVerifier
from sealserve.attestation.verified import VerifiedTd
from sealserve.errors import Refused
from sealserve.tdx.evidence import AzureEvidence
from sealserve.tdx.hcl import RuntimeData, parse_hcl_report, parse_runtime_data

__all__ = ["VerifiedAzureTd", "bound_runtime_data", "verify_azure"]


@dataclass(frozen=True, slots=True)
class VerifiedAzureTd:
    """A genuine TD and the runtime data that it speaks for. Whether it is trusted is not said."""

    td: VerifiedTd
    runtime: RuntimeData

    def to_dict(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {"td": self.td.to_dict(), "runtime_data": self.runtime.to_dict()}


def verify_azure(
    evidence: AzureEvidence,
    anchor: Anchor,
    collateral: Collateral,
    now: datetime,
    report_data: bytes | None,
) -> VerifiedAzureTd:
    """From evidence as it came to what a genuine TD says about itself.

    Args:
        evidence: quote and paravisor's report.
        anchor: the root to believe.
        collateral: Intel's statements about the platform.
        now: the time to verify for, with a time zone.
        report_data: the 64 bytes that were asked for; ``None`` leaves open what
            request the evidence answers.

    Raises:
        InputError, Refused: as
            :meth:`~sealserve.attestation.verifier.Verifier.verify` and
            :func:`bound_runtime_data`.
    """
    verifier = ReferenceVerifier(anchor, paravisor=True)
    td = verifier.verify(evidence.quote, collateral, now)
    return VerifiedAzureTd(td, bound_runtime_data(td, evidence.hcl_report, report_data))


def bound_runtime_data(td: VerifiedTd, hcl_report: bytes, report_data: bytes | None) -> RuntimeData:
    """What a genuine Azure TD says about itself, for this request.

    Args:
        td: facts of the evidence's quote, from a verifier.
        hcl_report: the paravisor's report that came with it.
        report_data: the 64 bytes that the evidence must speak for, unless ``None``.

    Returns:
        The runtime data, as genuine as the TD; whether they are acceptable is
        for a policy to say.

    Raises:
        InputError: ``azure.report_too_large``, ``azure.report_malformed`` or
            ``azure.runtime_malformed``.
        Refused: ``binding.azure_runtime_data`` if the quote is not for them, or
            ``binding.azure_user_data`` if they are not for this request.
    """
    report = parse_hcl_report(hcl_report)
    # The bytes first: nothing of the document is read before it is bound.
    if not hmac.compare_digest(report.report_data, td.report.report_data):
        raise Refused(
            "binding.azure_runtime_data",
            "the quote does not speak for the runtime data of this report",
            hint="quote and report must come from one request",
        )
    runtime = parse_runtime_data(report.runtime_json)
    if report_data is not None and not hmac.compare_digest(runtime.user_data, report_data):
        raise Refused(
            "binding.azure_user_data",
            "the evidence speaks for other user data than was asked for",
            hint="it answers another request: ask for evidence anew",
        )
    return runtime
