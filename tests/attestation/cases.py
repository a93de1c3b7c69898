"""One evidence a row: what both verifiers must say about it.

A row names the outcome: a TCB status for a genuine TD, else the code of the
refusal. Where the second verifier is stricter the row says so, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from sealserve.attestation.anchor import INTEL, Anchor
from sealserve.simulator.platform import FMSPC, CollateralOptions, QuotingEnclave, SimulatedPlatform
from tests.attestation.evidence import (
    GOOD_SVN,
    OLD_SVN,
    QE_LEVEL,
    STATUSES,
    Given,
    another_platforms_quote,
    broken_signature,
    chain_in_another_order,
    chain_in_collateral,
    chain_without_ca,
    chain_without_root,
    components,
    crl_of_another_ca,
    cut,
    documents_by_pck,
    edited,
    enclave,
    flipped,
    given,
    inner_type,
    level,
    long_chain,
    module,
    options,
    pad,
    pck,
    pck_ca,
    point_at_infinity,
    put,
    qe_identity,
    relaunched,
    short_signature,
    signed_text,
    signer,
    signer_below_ca,
    signer_below_pck,
    stating,
    strangers_chain_in_collateral,
    strangers_crl,
    svn,
    swapped_key,
    tcb_info,
    td,
    unused_bit,
    with_pki,
)
from tests.simulated import ISSUED, NOW

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: what is done.
        make: makes the evidence.
        outcome: a TCB status, or the code of a refusal.
        second: the reference verifier's code where it is stricter.
        why: the reason for that.
    """

    name: str
    make: Callable[[], Given]
    outcome: str
    second: str | None = None
    why: str = ""


def _good() -> Iterator[Case]:
    for name, body_type, pad_to in (
        ("version 4", None, 0),
        ("version 4, padded", None, 8000),
        ("TD 1.0 in version 5", 2, 0),
        ("TD 1.5", 3, 0),
        ("TD 1.5, padded", 3, 8000),
        ("TD 1.5 extended", 4, 0),
        ("TD 1.5 extended, largest", 4, 32768),
    ):
        yield Case(
            name,
            lambda b=body_type, p=pad_to: given(body_type=b, pad_to=p),
            "UpToDate",  # type: ignore[misc]
        )
    yield Case("first second", lambda: given(now=ISSUED), "UpToDate")
    last = ISSUED + timedelta(days=30, seconds=-1)
    yield Case("last second", lambda: given(now=last), "UpToDate")
    yield Case("PCK chain in the collateral", chain_in_collateral, "UpToDate")
    yield Case("chain in another order", chain_in_another_order, "UpToDate")
    yield Case("chain without its root", chain_without_root, "UpToDate")
    yield Case("platform without instance id", stating(piid=None), "UpToDate")
    yield Case(
        "all flags off", stating(dynamic_platform=False, cached_keys=False, smt=False), "UpToDate"
    )
    yield Case("PCE version of two bytes", stating(pce_svn=200), "UpToDate")
    yield Case("PKS, key locker and performance monitor", td("000000d000000080"), "UpToDate")
    yield Case("no TDX module number", lambda: given(tee_tcb_svn=svn(6, 0, 3)), "UpToDate")
    yield Case("fields of the future", tcb_info(somethingNew={"a": [1]}), "UpToDate")
    yield Case("module id in lower case", tcb_info(
        tdxModuleIdentities=[module((4, "UpToDate"), name="tdx_01")]), "UpToDate")  # fmt: skip


def _statuses() -> Iterator[Case]:
    for status in STATUSES:
        yield Case(f"platform {status}", options(tcb_status=status), status)
    yield Case("advisories", options(advisory_ids=("INTEL-SA-2", "INTEL-SA-1")), "UpToDate")
    yield Case("module out of date", options(module_status="OutOfDate"), "OutOfDate")
    yield Case("quoting enclave out of date", options(qe_status="OutOfDate"), "OutOfDate")
    yield Case(
        "quoting enclave needs configuration", options(qe_status="ConfigurationNeeded"), "UpToDate"
    )
    for status, merged in (
        ("SWHardeningNeeded", "OutOfDate"),
        ("ConfigurationNeeded", "OutOfDateConfigurationNeeded"),
        ("ConfigurationAndSWHardeningNeeded", "OutOfDateConfigurationNeeded"),
        ("OutOfDateConfigurationNeeded", "OutOfDateConfigurationNeeded"),
    ):
        yield Case(
            f"{status} with an old quoting enclave",
            options(tcb_status=status, qe_status="OutOfDate"),
            merged,
        )
    newer = level("UpToDate", tdxtcbcomponents=components(5, 0, 9))
    yield Case("second level", tcb_info(tcbLevels=[newer, level("OutOfDate")]), "OutOfDate")
    older = level("OutOfDate", pcesvn=3)
    yield Case("levels upside down", tcb_info(tcbLevels=[older, level()]), "UpToDate")
    yield Case(
        "module's own versions do not count among components",
        tcb_info(tcbLevels=[level(tdxtcbcomponents=components(9, 9, 2))]),
        "UpToDate",
    )
    yield Case(
        "second level of the module",
        tcb_info(tdxModuleIdentities=[module((7, "UpToDate"), (5, "OutOfDate"))]),
        "OutOfDate",
    )
    yield Case("relaunch advised", relaunched(), "TDRelaunchAdvised")
    yield Case("relaunch advised, extended", relaunched(body_type=4), "TDRelaunchAdvised")
    yield Case(
        "relaunch advised, configuration needed",
        relaunched(status="ConfigurationNeeded"),
        "TDRelaunchAdvisedConfigurationNeeded",
    )
    yield Case("updated to what is old too", relaunched(current=OLD_SVN), "OutOfDate")
    yield Case("old evaluation number", options(evaluation_number=3), "UpToDate")
    yield Case(
        "QE identity of an older evaluation", qe_identity(tcbEvaluationDataNumber=9), "UpToDate"
    )


def _framing() -> Iterator[Case]:
    for size in (0, 40, 300, 700, 1100, 1300, 3000):
        yield Case(f"cut to {size}", cut(size), "quote.truncated")
    yield Case("one byte behind it", pad(b"\1"), "quote.trailing_data")
    yield Case("garbage far behind", pad(bytes(5000) + b"\1"), "quote.trailing_data")
    yield Case("too large", pad(bytes(32768)), "quote.too_large")
    yield Case("version 3", put(0, b"\3"), "quote.unsupported_version")
    yield Case("version 6", put(0, b"\6"), "quote.unsupported_version")
    yield Case("SGX", put(4, b"\0"), "quote.not_tdx")
    yield Case("another TEE", put(4, b"\x82"), "quote.not_tdx")
    yield Case("another key type", put(2, b"\3"), "quote.key_type")
    yield Case("another vendor", put(12, b"x"), "quote.qe_vendor")
    yield Case("SGX body", put(48, b"\1", 3), "quote.not_tdx")
    yield Case("unknown body", put(48, b"\5", 3), "quote.malformed")
    yield Case("body of another size", put(50, b"\0", 3), "quote.malformed")
    yield Case("no QE report", put(764, b"\5"), "quote.certification_data")
    yield Case("PCK certificate of unknown form", inner_type(9), "quote.certification_data")
    yield Case("PCK certificate by its id", inner_type(3), "quote.certification_data")
    yield Case("chain that is no PEM", put(1300, b"!"), "chain.malformed")
    yield Case("chain that begins with the CA", put(1258, b"x"), "chain.not_verified")
    yield Case("chain of no certificates", put(1253, b"\0\1\0\0\0"), "quote.malformed")
    yield Case("chain of one size too few", put(1254, b"\0"), "quote.malformed")


def _signatures() -> Iterator[Case]:
    for offset, what, code in (
        (8, "header", "quote.signature"),
        (28, "user data", "quote.signature"),
        (48, "TEE TCB SVN", "quote.signature"),
        (64, "MRSEAM", "quote.signature"),
        (184, "MRTD", "quote.signature"),
        (376, "RTMR0", "quote.signature"),
        (567, "RTMR3", "quote.signature"),
        (631, "report data", "quote.signature"),
        (636, "signature, r", "quote.signature"),
        (699, "signature, s", "quote.signature"),
        (704, "attestation key", "qe.key_binding"),
        (770, "QE report", "qe.signature"),
        (1090, "QE report data", "qe.signature"),
        (1160, "QE report's signature", "qe.signature"),
        (1225, "QE authentication data", "qe.key_binding"),
    ):
        yield Case(f"flipped in the {what}", flipped(offset), code)
    yield Case("attacker's attestation key", swapped_key, "qe.key_binding")
    yield Case("point at infinity as key", point_at_infinity, "qe.key_binding")
    yield Case("another platform's quote", another_platforms_quote, "chain.not_verified")
    yield Case("zero signature", put(636, bytes(64)), "quote.signature")
    yield Case("zero signature of the QE", put(1154, bytes(64)), "qe.signature")


def _chains() -> Iterator[Case]:
    stranger = Anchor.simulation(SimulatedPlatform.new(NOW).pki.root_der)
    yield Case("another simulation's root", lambda: given(anchor=stranger), "chain.wrong_root")
    yield Case("Intel's root", lambda: given(anchor=INTEL), "chain.wrong_root")
    for who in ("pck", "pck_ca", "tcb_signer", "root"):
        yield Case(f"{who} revoked", options(revoked=frozenset({who})), "chain.revoked")
    day = timedelta(days=1)
    yield Case("PCK expired", with_pki(pck(lifetime=day / 2)), "chain.expired")
    yield Case("PCK CA expired", with_pki(pck_ca(lifetime=day / 2)), "collateral.expired")
    yield Case("PCK of next week", with_pki(pck(now=NOW + 7 * day)), "chain.not_yet_valid")
    yield Case("PCK that is a CA", with_pki(pck(ca=True)), "chain.not_verified")
    yield Case("PCK CA that is none", with_pki(pck_ca(ca=False)), "chain.not_verified")
    yield Case("PCK without platform", with_pki(pck(extension=None)), "chain.pck_extension")
    yield Case("platform in no DER", with_pki(pck(extension=b"\x30\x82")), "chain.pck_extension")
    yield Case("empty platform", with_pki(pck(extension=b"\x30\0")), "chain.pck_extension")
    yield Case("FMSPC of 5 bytes", stating(fmspc=FMSPC[:5]), "chain.pck_extension")
    yield Case("strange PCK chain", strangers_chain_in_collateral, "chain.not_verified")
    yield Case("PCK chain with a gap", chain_without_ca, "chain.not_verified")
    yield Case("very long PCK chain", long_chain, "chain.not_verified")
    yield Case("signer expired", with_pki(signer(lifetime=day / 2)), "collateral.expired")
    yield Case("signer that is a CA", with_pki(signer(ca=True)), "chain.not_verified")
    yield Case("PCK signs documents", documents_by_pck, "chain.wrong_role")
    yield Case("PCK CA issues a signer", signer_below_ca, "chain.wrong_role")
    yield Case("PCK issues certificates", signer_below_pck, "chain.not_verified")
    yield Case("strange root CRL", strangers_crl("root_ca_crl"), "chain.wrong_root")
    yield Case("strange PCK CRL", strangers_crl("pck_crl"), "crl.signature")
    yield Case("PCK CRL of another CA", crl_of_another_ca, "crl.missing")
    for part, code in (
        ("pck_certificate_chain", "chain.not_verified"),
        ("tcb_info_issuer_chain", "chain.not_verified"),
        ("qe_identity_issuer_chain", "chain.not_verified"),
        ("root_ca_crl", "chain.wrong_root"),
        ("pck_crl", "crl.malformed"),
    ):
        yield Case(f"unused bit in a signature of the {part}", unused_bit(part), code)
    yield Case(
        "components that are not CPUSVN",
        stating(components=bytes([2, *[9] * 15])),
        "UpToDate",
        second="chain.pck_extension",
        why="the specification compares the components, the library compares CPUSVN; Intel "
        "states both alike, so a certificate that does not is refused",
    )


def _documents() -> Iterator[Case]:
    yield Case(
        "TCB info signed badly", broken_signature("tcb_info_signature"), "collateral.signature"
    )
    yield Case(
        "QE identity signed badly",
        broken_signature("qe_identity_signature"),
        "collateral.signature",
    )
    yield Case("signature too short", short_signature, "collateral.signature")
    yield Case(
        "TCB info edited", edited("tcb_info", '"pcesvn":11', '"pcesvn":10'), "collateral.signature"
    )
    yield Case(
        "TCB info reformatted",
        edited("tcb_info", '"version":3', '"version": 3'),
        "collateral.signature",
    )
    yield Case(
        "QE identity edited",
        edited("qe_identity", '"isvprodid":2', '"isvprodid":1'),
        "collateral.signature",
    )
    yield Case("expired", options(lifetime=timedelta(minutes=30)), "collateral.expired")
    day = timedelta(days=1)
    yield Case("a second too late", lambda: given(now=ISSUED + 30 * day), "collateral.expired")
    yield Case("tomorrow's", lambda: given(now=ISSUED - day), "collateral.not_yet_valid")
    yield Case("TCB info of version 4", tcb_info(version=4), "collateral.unsupported")
    yield Case("TCB info of another type", tcb_info(tcbType=1), "collateral.unsupported")
    yield Case("QE identity for SGX", qe_identity(id="QE"), "collateral.malformed")
    yield Case("QE identity of version 9", qe_identity(version=9), "collateral.malformed")
    yield Case("unknown status", options(tcb_status="Splendid"), "collateral.malformed")
    yield Case(
        "status no platform has", options(tcb_status="TDRelaunchAdvised"), "collateral.malformed"
    )
    yield Case(
        "status no module has", options(module_status="ConfigurationNeeded"), "collateral.malformed"
    )
    yield Case(
        "status no enclave has", options(qe_status="SWHardeningNeeded"), "collateral.malformed"
    )
    yield Case(
        "15 components",
        tcb_info(tcbLevels=[level(sgxtcbcomponents=components()[:15])]),
        "collateral.malformed",
    )
    yield Case(
        "no TDX components",
        tcb_info(tcbLevels=[level(tdxtcbcomponents=[])]),
        "collateral.malformed",
    )
    yield Case(
        "component of 16 bits",
        tcb_info(tcbLevels=[level(sgxtcbcomponents=components(256))]),
        "collateral.malformed",
    )
    yield Case(
        "level of no date", tcb_info(tcbLevels=[level(tcbDate="soon")]), "collateral.malformed"
    )
    undated = level(tcbDate="2024-03-13T00:00:00")
    yield Case("level of no time zone", tcb_info(tcbLevels=[undated]), "collateral.malformed")
    soon = {**QE_LEVEL, "tcbDate": "soon"}
    yield Case("QE level of no date", qe_identity(tcbLevels=[soon]), "collateral.malformed")
    odd = level(advisoryIDs=[1])
    yield Case("advisory that is a number", tcb_info(tcbLevels=[odd]), "collateral.malformed")
    yield Case("MRSIGNER in no digits", qe_identity(mrsigner="z" * 64), "collateral.malformed")
    yield Case("no TDX module", tcb_info(tdxModule=None), "collateral.malformed")
    yield Case("short MRSIGNER", qe_identity(mrsigner="00"), "collateral.malformed")
    yield Case(
        "a field twice",
        signed_text("tcb_info", '"version":3', '"version":3,"version":3'),
        "collateral.malformed",
    )
    yield Case("True as a number", tcb_info(tcbType=False), "collateral.malformed")


def _platforms() -> Iterator[Case]:
    yield Case("another platform model", tcb_info(fmspc="00" * 6), "tcb.platform_mismatch")
    yield Case("another PCE", tcb_info(pceId="0001"), "tcb.platform_mismatch")
    yield Case("PCE of another certificate", stating(pce_id=b"\1\0"), "tcb.platform_mismatch")
    yield Case("TCB info for SGX", tcb_info(id="SGX"), "tcb.platform_mismatch")
    yield Case("old CPU", stating(cpu_svn=bytes([2, *[9] * 15])), "tcb.no_matching_level")
    yield Case("old PCE", stating(pce_svn=10), "tcb.no_matching_level")
    yield Case("old TDX", lambda: given(tee_tcb_svn=svn(6, 1, 1)), "tcb.no_matching_level")
    yield Case(
        "old module, no number", lambda: given(tee_tcb_svn=svn(4, 0, 3)), "tcb.no_matching_level"
    )
    yield Case("old module", lambda: given(tee_tcb_svn=svn(3, 1, 3)), "tcb.no_matching_level")
    yield Case("old TDX now", lambda: given(tee_tcb_svn2=svn(6, 1, 1)), "tcb.no_matching_level")
    yield Case("old module now", lambda: given(tee_tcb_svn2=svn(3, 1, 3)), "tcb.no_matching_level")
    yield Case("no levels", tcb_info(tcbLevels=[]), "tcb.no_matching_level")
    yield Case("unknown module", lambda: given(tee_tcb_svn=svn(6, 2, 3)), "tcb.module_mismatch")
    yield Case(
        "unknown module now", lambda: given(tee_tcb_svn2=svn(6, 2, 3)), "tcb.module_mismatch"
    )
    yield Case("no modules", tcb_info(tdxModuleIdentities=[]), "tcb.module_mismatch")
    yield Case(
        "module signed by another", lambda: given(mrsignerseam=b"\1" * 48), "tcb.module_mismatch"
    )
    yield Case(
        "debug module", lambda: given(seam_attributes=b"\1" + bytes(7)), "tcb.module_mismatch"
    )
    masked = module((4, "UpToDate"), attributesMask="00" * 8)
    yield Case(
        "module attribute outside the mask",
        lambda: given(
            options=CollateralOptions(tcb_info={"tdxModuleIdentities": [masked]}),
            seam_attributes=b"\2" + bytes(7),
        ),
        "tcb.module_mismatch",
    )
    yield Case("platform revoked", options(tcb_status="Revoked"), "tcb.revoked")
    yield Case("module revoked", options(module_status="Revoked"), "tcb.revoked")
    yield Case("quoting enclave revoked", options(qe_status="Revoked"), "tcb.revoked")
    yield Case("module revoked now", relaunched(GOOD_SVN, svn(1, 1, 3)), "tcb.revoked")
    yield Case("module revoked at launch", relaunched(svn(1, 1, 3)), "tcb.revoked")


def _enclaves() -> Iterator[Case]:
    mismatch = "qe.identity_mismatch"
    yield Case("enclave of another signer", enclave(mrsigner=bytes(32)), mismatch)
    yield Case("identity of another signer", qe_identity(mrsigner="00" * 32), mismatch)
    yield Case("another enclave", enclave(product_id=1), mismatch)
    yield Case("another MISCSELECT", enclave(misc_select=b"\1\0\0\0"), mismatch)
    yield Case("MISCSELECT, last byte", enclave(misc_select=b"\0\0\0\1"), mismatch)
    yield Case("debug enclave", enclave(attributes=b"\x17" + bytes(15)), mismatch)
    yield Case("other attributes", enclave(attributes=b"\x35" + bytes(15)), mismatch)
    yield Case(
        "attributes outside the mask",
        enclave(attributes=b"\x15" + bytes(7) + b"\xff" * 8),
        "UpToDate",
    )
    blind = CollateralOptions(qe_identity={"attributesMask": "00" * 16})
    debug = QuotingEnclave(attributes=b"\x17" + bytes(15))
    yield Case("debug enclave, mask blind", lambda: given(enclave=debug, options=blind), mismatch)
    yield Case("old enclave", enclave(svn=3), "qe.out_of_date")
    yield Case("no enclave levels", qe_identity(tcbLevels=[]), "qe.out_of_date")
    yield Case("31 bytes of authentication data", enclave(auth_data=bytes(31)), "qe.key_binding")
    yield Case(
        "something behind the key binding",
        enclave(report_data_tail=b"\1" * 32),
        "UpToDate",
        second="qe.key_binding",
        why="Intel's quoting enclave fills the second half of its report data with zeros; the "
        "library does not look there",
    )


def _tds() -> Iterator[Case]:
    for name, attributes, code in (
        ("debug", "0100001000000000", "td.debug"),
        ("profiling", "1000001000000000", "td.profiling"),
        ("profiling, last bit", "4000001000000000", "td.profiling"),
        ("reserved bit 1", "0200001000000000", "td.reserved_bits"),
        ("reserved bit 7", "8000001000000000", "td.reserved_bits"),
        ("reserved bit 23", "0000801000000000", "td.reserved_bits"),
        ("reserved bit 32", "0000001001000000", "td.reserved_bits"),
        ("reserved bit 61", "0000001000000020", "td.reserved_bits"),
        ("migratable", "0000003000000000", "td.migratable"),
        ("service TD attribute", "0000021000000000", "td.service_td"),
        ("no SEPT_VE_DISABLE", "0000000000000000", "td.sept_ve_disable"),
    ):
        yield Case(name, td(attributes), code)
    yield Case("service TD", lambda: given(mrservicetd=b"\1" * 48), "td.service_td")


CASES: tuple[Case, ...] = (
    *_good(),
    *_statuses(),
    *_framing(),
    *_signatures(),
    *_chains(),
    *_documents(),
    *_platforms(),
    *_enclaves(),
    *_tds(),
)
