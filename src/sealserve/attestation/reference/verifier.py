"""The order in which the second verifier asks its questions."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from sealserve.attestation.admission import Evidence, admit, load_chain
from sealserve.attestation.anchor import Anchor
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.reference.chain import Pki
from sealserve.attestation.reference.documents import (
    Level,
    QeIdentity,
    TcbInfo,
    read_qe_identity,
    read_tcb_info,
)
from sealserve.attestation.reference.pck import SGX_EXTENSION, PckPlatform, read_platform
from sealserve.attestation.reference.qe import check_key_binding, enclave_level
from sealserve.attestation.reference.signatures import is_signed, public_key
from sealserve.attestation.reference.tcb import merge, platform_level, relaunch_status
from sealserve.attestation.reference.td import check_td
from sealserve.attestation.verified import VerifiedTd
from sealserve.errors import Refused

__all__ = ["ReferenceVerifier"]

_ASK_FOR_NEW = "fetch collateral for this platform again and retry"


class ReferenceVerifier:
    """Verifies quotes under one anchor in Python. Holds no state between calls.

    A call takes about two milliseconds and holds the interpreter lock.

    Args:
        anchor: the root to believe.
        paravisor: accept TDs without SEPT_VE_DISABLE. Azure's have a paravisor
            inside that handles what the attribute would prevent, and never set
            it, so the primary verifier refuses them all. Everywhere else the
            host could exploit this.
    """

    def __init__(self, anchor: Anchor, *, paravisor: bool = False) -> None:
        self.anchor = anchor
        self._paravisor = paravisor
        self._root = anchor.certificate

    def verify(self, quote: bytes, collateral: Collateral, now: datetime) -> VerifiedTd:
        """As :meth:`sealserve.attestation.verifier.Verifier.verify`."""
        return self.judge(admit(quote, collateral, now))

    def judge(self, evidence: Evidence) -> VerifiedTd:
        """Verify evidence that has passed the door.

        Raises:
            InputError, Refused: the reasons of
                :meth:`sealserve.attestation.verifier.Verifier.verify`.
        """
        parts = evidence.collateral.parts
        pki = Pki(
            self._root,
            bytes.fromhex(parts["root_ca_crl"]),
            bytes.fromhex(parts["pck_crl"]),
            evidence.now,
        )
        tcb_info, qe_identity, signers_end = self._documents(pki, evidence)
        path = pki.verify(evidence.pck_chain, "PCK certificate chain")
        platform = read_platform(path[0])
        _check_signatures(evidence, path[0].public_key())
        quoting_enclave = enclave_level(evidence.signature_data.qe_report, qe_identity)
        report = evidence.quote.report
        launched, current = platform_level(tcb_info, platform, report)
        level = _verdict(launched, current, quoting_enclave)
        check_td(report, paravisor=self._paravisor)
        ends = min(
            *(each.not_valid_after_utc for each in (*path, self._root)),
            signers_end,
            evidence.collateral.ends,
        )
        evaluation = min(tcb_info.evaluation_number, qe_identity.evaluation_number)
        return self._facts(evidence, platform, level, ends, evaluation)

    def _documents(self, pki: Pki, evidence: Evidence) -> tuple[TcbInfo, QeIdentity, datetime]:
        """TCB info and QE identity, signed and current, and when their signers' papers end."""
        parts = evidence.collateral.parts
        ends = []
        verified: dict[str, object] = {}  # one signer usually signs both
        for name in ("tcb_info", "qe_identity"):
            pem = parts[f"{name}_issuer_chain"]
            if pem not in verified:
                path = pki.verify(load_chain(pem.encode(), name), f"{name}_issuer_chain")
                is_pck = any(each.oid == SGX_EXTENSION for each in path[0].extensions)
                if is_pck or len(path) != 1:
                    raise Refused(
                        "chain.wrong_role",
                        "this is not signed by Intel's TCB signing key, whose certificate the root "
                        "issues",
                        where=f"{name}_issuer_chain",
                    )
                ends += [each.not_valid_after_utc for each in path]
                verified[pem] = path[0].public_key()
            signature = bytes.fromhex(parts[f"{name}_signature"])
            if not is_signed(verified[pem], signature, parts[name].encode()):
                raise Refused(
                    "collateral.signature",
                    "the signature does not fit the document",
                    where=name,
                    hint=_ASK_FOR_NEW,
                )
        tcb_info = read_tcb_info(parts["tcb_info"])
        qe_identity = read_qe_identity(parts["qe_identity"])
        _check_current(tcb_info, "TCB info", evidence.now)
        _check_current(qe_identity, "QE identity", evidence.now)
        return tcb_info, qe_identity, min(ends)

    def _facts(
        self,
        evidence: Evidence,
        platform: PckPlatform,
        level: Level,
        ends: datetime,
        evaluation: int,
    ) -> VerifiedTd:
        quote = evidence.quote
        return VerifiedTd(
            report=quote.report,
            quote_version=quote.version,
            signed_part_sha256=quote.signed_digest,
            tcb_status=level.status,
            tcb_date=level.date,
            advisory_ids=tuple(sorted(set(level.advisory_ids))),
            tcb_evaluation=evaluation,
            fmspc=platform.fmspc,
            ppid=platform.ppid,
            piid=platform.piid,
            dynamic_platform=platform.dynamic_platform,
            cached_keys=platform.cached_keys,
            smt=platform.smt,
            collateral_ends=ends,
            verified_at=evidence.asked_at,
            anchor=self.anchor.name,
            simulated=self.anchor.simulated,
        )


def _check_signatures(evidence: Evidence, pck_key: object) -> None:
    """PCK key → QE report → attestation key → TD report."""
    data = evidence.signature_data
    if not is_signed(pck_key, data.qe_signature, data.qe_report.raw):
        raise Refused("qe.signature", "the PCK key did not sign the QE report")
    check_key_binding(data)
    key = public_key(data.attestation_key)
    if not is_signed(key, data.signature, evidence.quote.signed_part):
        raise Refused("quote.signature", "the attestation key did not sign this TD report")


def _check_current(document: TcbInfo | QeIdentity, what: str, now: datetime) -> None:
    if now < document.begins:
        raise Refused("collateral.not_yet_valid", f"the {what} is of the future")
    if now > document.ends:
        raise Refused("collateral.expired", f"the {what} has expired", hint=_ASK_FOR_NEW)


def _verdict(launched: Level, current: Level | None, quoting_enclave: Level) -> Level:
    """Platform, TDX module and quoting enclave as one level."""
    level = merge(launched, quoting_enclave)
    now = level if current is None else merge(current, quoting_enclave)
    if "Revoked" in (level.status, now.status):
        raise Refused("tcb.revoked", "Intel has revoked this TCB: its keys are not secret any more")
    # The date is that of the TCB it was launched with: grace is counted from there.
    return replace(
        level,
        status=relaunch_status(level.status, now.status),
        advisory_ids=(*level.advisory_ids, *now.advisory_ids),
    )
