"""A simulated TDX platform: quotes and collateral that differ from Intel's in the root alone.

Rules this module keeps:

* Byte-exact: quote, TCB info, QE identity and CRLs have Intel's layout and are
  judged by the production verifier.
* Recognisable: the FMSPC is not one of Intel's, and every certificate's
  subject says SIMULATION.

Sources: Intel TDX DCAP Quoting Library API (quote), PCS API version 4 (TCB
info, QE identity).
"""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from sealserve.files import make_directory, read_limited, require_absent, write_atomically
from sealserve.simulator.der import PckExtension
from sealserve.simulator.pki import TestPki, raw_public_key, raw_signature
from sealserve.tdx.quote import QE_VENDOR_INTEL, TEE_TYPE_TDX, TdReport, encode_body

__all__ = [
    "ANCHOR_FILE",
    "COLLATERAL_FILE",
    "CollateralOptions",
    "QuotingEnclave",
    "SimulatedPlatform",
]

ANCHOR_FILE = "anchor.der"
COLLATERAL_FILE = "collateral.json"
_KEYS_FILE = "platform.json"

FMSPC = bytes.fromhex("51494d000000")  # "QIM": no Intel platform begins with 0x51
_CPU_SVN = bytes([3, 3, 2, 2, 4, 1, 0, 5]) + bytes(8)
_PCE_SVN = 11
_TDX_SVN = bytes([5, 0, 2]) + bytes(13)
_QE_SIGNER = hashlib.sha256(b"SIMULATION quoting enclave signer").digest()
_QE_MEASUREMENT = hashlib.sha256(b"SIMULATION quoting enclave").digest()
_QE_ATTRIBUTES = bytes.fromhex("1500000000000000e700000000000000")
_QE_SVN = 6
_MAX_KEYS_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralOptions:
    """How the collateral departs from that of a platform in good order.

    Attributes:
        tcb_status, advisory_ids: of the platform's TCB level.
        module_status: of the TDX module's level.
        qe_status: of the quoting enclave's level.
        revoked: any of ``"pck"``, ``"pck_ca"``, ``"tcb_signer"``, ``"root"``.
        lifetime: from issue to the next update.
        evaluation_number: TCB evaluation data number.
        tcb_info, qe_identity: fields to replace in the signed documents.
    """

    tcb_status: str = "UpToDate"
    advisory_ids: tuple[str, ...] = ()
    module_status: str = "UpToDate"
    qe_status: str = "UpToDate"
    revoked: frozenset[str] = frozenset()
    lifetime: timedelta = timedelta(days=30)
    evaluation_number: int = 17
    tcb_info: Mapping[str, Any] = field(default_factory=dict)
    qe_identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotingEnclave:
    """The enclave that signs quotes; as it stands here it fits the QE identity.

    Attributes:
        misc_select: 4 bytes.
        attributes: flags and XFRM, 16 bytes.
        mrsigner: hash of its signing key, 32 bytes.
        product_id: 2 is the TD quoting enclave.
        svn: its security version.
        auth_data: bound in its report; the real one has exactly 32 bytes.
        report_data_tail: what follows the binding, 32 bytes.
    """

    misc_select: bytes = bytes(4)
    attributes: bytes = _QE_ATTRIBUTES
    mrsigner: bytes = _QE_SIGNER
    product_id: int = 2
    svn: int = _QE_SVN
    auth_data: bytes = bytes(range(32))
    report_data_tail: bytes = bytes(32)

    def report(self, attestation_key: bytes) -> bytes:
        """Its SGX report (384 bytes), which names the key it attests with."""
        return (
            _CPU_SVN
            + self.misc_select
            + bytes(28)
            + self.attributes
            + _QE_MEASUREMENT
            + bytes(32)
            + self.mrsigner
            + bytes(96)
            + struct.pack("<HH", self.product_id, self.svn)
            + bytes(60)
            + hashlib.sha256(attestation_key + self.auth_data).digest()
            + self.report_data_tail
        )


@dataclass(frozen=True, slots=True)
class SimulatedPlatform:
    """One simulated machine with its PKI."""

    pki: TestPki

    @classmethod
    def new(cls, now: datetime, **changes: Any) -> Self:
        """A platform in memory.

        Args:
            now: its certificates begin a day before.
            changes: fields of :class:`~sealserve.simulator.der.PckExtension`;
                as on real servers the three flags are True unless given.
        """
        stated = {
            "ppid": secrets.token_bytes(16),
            "cpu_svn": _CPU_SVN,
            "pce_svn": _PCE_SVN,
            "fmspc": FMSPC,
            "piid": secrets.token_bytes(16),
            **changes,
        }
        return cls(TestPki.create(PckExtension(**stated), now))

    @classmethod
    def create(cls, directory: Path, now: datetime) -> Self:
        """Make a platform and write its keys, anchor and collateral (mode 0600).

        Raises:
            InputError: ``file.exists``.
            Unavailable: ``file.unwritable``.
        """
        keys = directory / _KEYS_FILE
        require_absent(keys, hint="use another directory, or renew its collateral")
        platform = cls.new(now)
        make_directory(directory, mode=0o700)
        write_atomically(directory / ANCHOR_FILE, platform.pki.root_der, mode=0o600)
        write_atomically(keys, platform.pki.to_json(), mode=0o600)
        platform.write_collateral(directory, now)
        return platform

    @classmethod
    def create_or_renew(cls, directory: Path, now: datetime) -> Self:
        """The platform in a directory with fresh collateral; a new one if there is none."""
        if not (directory / _KEYS_FILE).exists():
            return cls.create(directory, now)
        platform = cls.load(directory)
        platform.write_collateral(directory, now)
        return platform

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The platform that :meth:`create` wrote.

        Raises:
            Unavailable: ``file.unreadable``.
            InputError: ``file.too_large``, ``simulator.platform_malformed``.
        """
        hint = f"`sealserve simulate platform {directory}` makes a simulated platform"
        return cls(
            TestPki.from_json(read_limited(directory / _KEYS_FILE, _MAX_KEYS_BYTES, hint=hint))
        )

    def write_collateral(self, directory: Path, now: datetime) -> None:
        """Write collateral that is good from an hour ago for 30 days.

        Raises:
            Unavailable: ``file.unwritable``.
        """
        collateral = self.collateral(now - timedelta(hours=1))
        write_atomically(directory / COLLATERAL_FILE, collateral, mode=0o600)

    def collateral(self, issued: datetime, options: CollateralOptions | None = None) -> bytes:
        """A JSON object of collateral, as :class:`~...collateral.Collateral` reads it."""
        options = options or CollateralOptions()
        begins = issued.astimezone(UTC).replace(microsecond=0)
        ends = begins + options.lifetime
        pki = self.pki
        tcb_info = json.dumps(_tcb_info(begins, ends, options), separators=(",", ":"))
        qe_identity = json.dumps(_qe_identity(begins, ends, options), separators=(",", ":"))
        by_root = tuple(
            signer
            for name, signer in (
                ("root", pki.root),
                ("pck_ca", pki.pck_ca),
                ("tcb_signer", pki.tcb_signer),
            )
            if name in options.revoked
        )
        by_ca = (pki.pck,) if "pck" in options.revoked else ()
        sign = pki.tcb_signer.key
        return json.dumps(
            {
                "pck_crl_issuer_chain": pki.pck_crl_chain,
                "root_ca_crl": pki.crl(pki.root, by_root, begins, ends).hex(),
                "pck_crl": pki.crl(pki.pck_ca, by_ca, begins, ends).hex(),
                "tcb_info_issuer_chain": pki.tcb_chain,
                "tcb_info": tcb_info,
                "tcb_info_signature": raw_signature(sign, tcb_info.encode()).hex(),
                "qe_identity_issuer_chain": pki.tcb_chain,
                "qe_identity": qe_identity,
                "qe_identity_signature": raw_signature(sign, qe_identity.encode()).hex(),
            }
        ).encode()

    def quote(
        self,
        report: TdReport,
        *,
        body_type: int | None = None,
        pad_to: int = 0,
        enclave: QuotingEnclave | None = None,
    ) -> bytes:
        """A signed quote.

        Args:
            report: the registers to attest.
            body_type: ``None`` for a version 4 quote; 2, 3 or 4 for a version
                5 quote with that body.
            pad_to: least size, reached with zero bytes, as some clouds do.
            enclave: the quoting enclave; by default one in good order.
        """
        version = 4 if body_type is None else 5
        signed = struct.pack("<HHIHH", version, 2, TEE_TYPE_TDX, 0, 0)
        signed += QE_VENDOR_INTEL + bytes(20)
        # A TD that was never relaunched has had the same module all along.
        report = replace(report, tee_tcb_svn2=report.tee_tcb_svn2 or report.tee_tcb_svn)
        body = encode_body(report, body_type or 2)
        if body_type is not None:
            signed += struct.pack("<HI", body_type, len(body))
        signed += body
        key = self.pki.attestation_key
        papers = self._papers(enclave or QuotingEnclave(), raw_public_key(key))
        signature = raw_signature(key, signed) + raw_public_key(key) + _typed(6, papers)
        quote = signed + struct.pack("<I", len(signature)) + signature
        return quote.ljust(pad_to, b"\0")

    def _papers(self, enclave: QuotingEnclave, attestation_key: bytes) -> bytes:
        """QE report, its signature, authentication data and PCK chain."""
        report = enclave.report(attestation_key)
        signature = raw_signature(self.pki.pck.key, report)
        auth_data = struct.pack("<H", len(enclave.auth_data)) + enclave.auth_data
        chain = self.pki.pck_chain.encode() + b"\0"
        return report + signature + auth_data + _typed(5, chain)


def _typed(kind: int, content: bytes) -> bytes:
    return struct.pack("<HI", kind, len(content)) + content


def _tcb_info(begins: datetime, ends: datetime, options: CollateralOptions) -> dict[str, Any]:
    level_date = _iso(begins - timedelta(days=100))
    level: dict[str, Any] = {
        "tcb": {
            "sgxtcbcomponents": [{"svn": svn} for svn in _CPU_SVN],
            "pcesvn": _PCE_SVN,
            "tdxtcbcomponents": [{"svn": svn} for svn in _TDX_SVN],
        },
        "tcbDate": level_date,
        "tcbStatus": options.tcb_status,
    }
    if options.advisory_ids:
        level["advisoryIDs"] = list(options.advisory_ids)
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    module_level = {
        "tcb": {"isvsvn": 4},
        "tcbDate": level_date,
        "tcbStatus": options.module_status,
    }
    return {
        "id": "TDX",
        "version": 3,
        "issueDate": _iso(begins),
        "nextUpdate": _iso(ends),
        "fmspc": FMSPC.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": options.evaluation_number,
        "tdxModule": module,
        "tdxModuleIdentities": [{"id": "TDX_01", **module, "tcbLevels": [module_level]}],
        "tcbLevels": [level],
        **options.tcb_info,
    }


def _qe_identity(begins: datetime, ends: datetime, options: CollateralOptions) -> dict[str, Any]:
    return {
        "id": "TD_QE",
        "version": 2,
        "issueDate": _iso(begins),
        "nextUpdate": _iso(ends),
        "tcbEvaluationDataNumber": options.evaluation_number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11" + "00" * 15,
        "attributesMask": "FBFFFFFFFFFFFFFF" + "00" * 8,
        "mrsigner": _QE_SIGNER.hex().upper(),
        "isvprodid": 2,
        "tcbLevels": [
            {
                "tcb": {"isvsvn": 4},
                "tcbDate": _iso(begins - timedelta(days=100)),
                "tcbStatus": options.qe_status,
            }
        ],
        **options.qe_identity,
    }


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
