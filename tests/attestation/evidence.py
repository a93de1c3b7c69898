"""Simulated evidence, good or wrong in one way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from sealserve.attestation.anchor import Anchor
from sealserve.simulator.der import PckExtension
from sealserve.simulator.pki import Signer, TestPki, issue, raw_public_key, raw_signature
from sealserve.simulator.platform import (
    FMSPC,
    CollateralOptions,
    QuotingEnclave,
    SimulatedPlatform,
)
from tests.simulated import ISSUED, NOW, platform, report


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a verifier is given: a good TD of the common platform unless said otherwise."""

    quote: bytes
    collateral: bytes
    anchor: Anchor
    now: datetime = NOW


def given(
    *,
    on: SimulatedPlatform | None = None,
    body_type: int | None = 3,
    pad_to: int = 0,
    enclave: QuotingEnclave | None = None,
    options: CollateralOptions | None = None,
    edit_quote: Callable[[bytearray], object] | None = None,
    parts: dict[str, str] | None = None,
    anchor: Anchor | None = None,
    now: datetime = NOW,
    **registers: bytes,
) -> Given:
    """Evidence of a TD, changed in the ways named."""
    on = on or platform()
    quote = bytearray(
        on.quote(report(**registers), body_type=body_type, pad_to=pad_to, enclave=enclave)
    )
    if edit_quote is not None:
        edit_quote(quote)
    return Given(
        quote=bytes(quote),
        collateral=json.dumps(
            {**json.loads(on.collateral(ISSUED, options)), **(parts or {})}
        ).encode(),
        anchor=anchor or Anchor.simulation(on.pki.root_der),
        now=now,
    )


def unused_bit(part: str) -> Callable[[], Given]:
    """One octet that nothing signs: the signature of a CRL or certificate is said to be a bit less.

    A bit string may say so if its last bit is zero, so papers are made until it is.
    """

    def make() -> Given:
        while True:
            on = SimulatedPlatform.new(NOW) if part.endswith("chain") else platform()
            evidence = given(on=on, parts={"pck_certificate_chain": on.pki.pck_chain})
            parts: dict[str, str] = json.loads(evidence.collateral)
            if part.endswith("chain"):
                first, *others = x509.load_pem_x509_certificates(parts[part].encode())
                if (der := _with_unused_bit(first)) is not None:
                    chain = (x509.load_der_x509_certificate(der), *others)
                    pem = b"".join(each.public_bytes(Encoding.PEM) for each in chain)
                    return replace(evidence, collateral=_replaced(parts, part, pem.decode()))
            else:
                crl = x509.load_der_x509_crl(bytes.fromhex(parts[part]))
                if (der := _with_unused_bit(crl)) is not None:
                    return replace(evidence, collateral=_replaced(parts, part, der.hex()))

    return make


def _with_unused_bit(signed: x509.Certificate | x509.CertificateRevocationList) -> bytes | None:
    if signed.signature[-1] & 1:
        return None
    der = signed.public_bytes(Encoding.DER)
    at = len(der) - len(signed.signature) - 1
    return der[:at] + b"\1" + der[at + 1 :]


def _replaced(parts: dict[str, str], name: str, value: str) -> bytes:
    return json.dumps({**parts, name: value}).encode()


def svn(module: int, number: int, other: int, *more: int) -> bytes:
    """A TEE TCB SVN: version and number of the TDX module, then the other components."""
    return bytes([module, number, other, *more]).ljust(16, b"\0")


GOOD_SVN = svn(6, 1, 3)
OLD_SVN = svn(4, 1, 2)
DATE = "2024-03-13T00:00:00Z"


def level(status: str = "UpToDate", **changes: Any) -> dict[str, Any]:
    """A TCB level that the common platform reaches."""
    tcb = {
        "sgxtcbcomponents": [{"svn": n} for n in (3, 3, 2, 2, 4, 1, 0, 5, *[0] * 8)],
        "pcesvn": 11,
        "tdxtcbcomponents": [{"svn": n} for n in (5, 0, 2, *[0] * 13)],
    }
    own = {key: changes.pop(key) for key in tuple(changes) if key in tcb}
    return {"tcb": {**tcb, **own}, "tcbDate": DATE, "tcbStatus": status, **changes}


def components(*versions: int) -> list[dict[str, int]]:
    return [{"svn": n} for n in (*versions, *[0] * (16 - len(versions)))]


def module(*levels: tuple[int, str], name: str = "TDX_01", **changes: Any) -> dict[str, Any]:
    """A TDX module identity with levels of (least version, status)."""
    return {
        "id": name,
        "mrsigner": "00" * 48,
        "attributes": "00" * 8,
        "attributesMask": "FF" * 8,
        "tcbLevels": [
            {"tcb": {"isvsvn": n}, "tcbDate": DATE, "tcbStatus": status} for n, status in levels
        ],
        **changes,
    }


def tcb_info(**fields: Any) -> Callable[[], Given]:
    return lambda: given(options=CollateralOptions(tcb_info=fields))


def qe_identity(**fields: Any) -> Callable[[], Given]:
    return lambda: given(options=CollateralOptions(qe_identity=fields))


def options(**fields: Any) -> Callable[[], Given]:
    return lambda: given(options=CollateralOptions(**fields))


def enclave(**fields: Any) -> Callable[[], Given]:
    return lambda: given(enclave=QuotingEnclave(**fields))


def td(attributes: str) -> Callable[[], Given]:
    return lambda: given(td_attributes=bytes.fromhex(attributes))


def flipped(offset: int) -> Callable[[], Given]:
    """A version 4 quote, whose offsets are the best known, with one bit changed."""

    def flip(quote: bytearray) -> None:
        quote[offset] ^= 1

    return lambda: given(body_type=None, edit_quote=flip)


def put(offset: int, content: bytes, body_type: int | None = None) -> Callable[[], Given]:
    def edit(quote: bytearray) -> None:
        quote[offset : offset + len(content)] = content

    return lambda: given(body_type=body_type, edit_quote=edit)


def cut(size: int) -> Callable[[], Given]:
    def edit(quote: bytearray) -> None:
        del quote[size:]

    return lambda: given(body_type=None, edit_quote=edit)


def pad(content: bytes) -> Callable[[], Given]:
    return lambda: given(edit_quote=lambda quote: quote.extend(content))


def inner_type(kind: int) -> Callable[[], Given]:
    return put(1252, kind.to_bytes(2, "little"))


# Certificates that do not fit


def with_pki(change: Callable[[TestPki], TestPki], **extra: Any) -> Callable[[], Given]:
    return lambda: given(on=SimulatedPlatform(change(platform().pki)), **extra)


def extension(**changes: Any) -> bytes:
    stated: dict[str, Any] = {
        "ppid": bytes(16),
        "cpu_svn": bytes([3, 3, 2, 2, 4, 1, 0, 5, *[0] * 8]),
        "pce_svn": 11,
        "fmspc": FMSPC,
        "piid": bytes(16),
        **changes,
    }
    return PckExtension(**stated).to_der()


def pck(issuer: str = "pck_ca", **changes: Any) -> Callable[[TestPki], TestPki]:
    """Another PCK certificate."""

    def change(pki: TestPki) -> TestPki:
        how: dict[str, Any] = {"extension": extension(), "now": NOW, **changes}
        begins = how.pop("now")
        return replace(pki, pck=issue("SGX PCK Certificate", getattr(pki, issuer), begins, **how))

    return change


def stating(**changes: Any) -> Callable[[], Given]:
    return with_pki(pck(extension=extension(**changes)))


def pck_ca(**changes: Any) -> Callable[[TestPki], TestPki]:
    def change(pki: TestPki) -> TestPki:
        how = {"ca": True, "now": NOW, **changes}
        ca = issue("SGX PCK Platform CA", pki.root, how.pop("now"), **how)
        return pck()(replace(pki, pck_ca=ca))

    return change


def signer(**changes: Any) -> Callable[[TestPki], TestPki]:
    def change(pki: TestPki) -> TestPki:
        how = {"now": NOW, **changes}
        return replace(pki, tcb_signer=issue("SGX TCB Signing", pki.root, how.pop("now"), **how))

    return change


def pck_signs_documents(pki: TestPki) -> TestPki:
    return replace(pki, tcb_signer=pki.pck)


def below_pck(pki: TestPki) -> TestPki:
    """A certificate that the PCK key issued, though it is no CA's."""
    return replace(pki, tcb_signer=issue("SGX TCB Signing", pki.pck, NOW))


def chain_of(*signers: Signer) -> str:
    return "".join(each.certificate.public_bytes(Encoding.PEM).decode() for each in signers)


def documents_by_pck() -> Given:
    pki = platform().pki
    chain = chain_of(pki.pck, pki.pck_ca, pki.root)
    return given(
        on=SimulatedPlatform(pck_signs_documents(pki)),
        parts={"tcb_info_issuer_chain": chain, "qe_identity_issuer_chain": chain},
    )


def signer_below_pck() -> Given:
    pki = below_pck(platform().pki)
    chain = chain_of(pki.tcb_signer, pki.pck, pki.pck_ca, pki.root)
    return given(
        on=SimulatedPlatform(pki),
        parts={"tcb_info_issuer_chain": chain, "qe_identity_issuer_chain": chain},
    )


def signer_below_ca() -> Given:
    """Issued by the CA of PCK certificates, but none of those."""
    pki = platform().pki
    pki = replace(pki, tcb_signer=issue("SGX TCB Signing", pki.pck_ca, NOW))
    chain = chain_of(pki.tcb_signer, pki.pck_ca, pki.root)
    return given(
        on=SimulatedPlatform(pki),
        parts={"tcb_info_issuer_chain": chain, "qe_identity_issuer_chain": chain},
    )


def chain_in_collateral() -> Given:
    return given(parts={"pck_certificate_chain": platform().pki.pck_chain})


def strangers_chain_in_collateral() -> Given:
    return given(parts={"pck_certificate_chain": SimulatedPlatform.new(NOW).pki.pck_chain})


def chain_in_another_order() -> Given:
    pki = platform().pki
    return given(parts={"pck_certificate_chain": chain_of(pki.pck, pki.root, pki.pck_ca)})


def chain_without_root() -> Given:
    pki = platform().pki
    return given(parts={"pck_certificate_chain": chain_of(pki.pck, pki.pck_ca)})


def chain_without_ca() -> Given:
    pki = platform().pki
    return given(parts={"pck_certificate_chain": chain_of(pki.pck, pki.root)})


def long_chain() -> Given:
    pki = platform().pki
    return given(parts={"pck_certificate_chain": chain_of(pki.pck, *[pki.pck_ca] * 5)})


def strangers_crl(which: str) -> Callable[[], Given]:
    def make() -> Given:
        other = json.loads(SimulatedPlatform.new(NOW).collateral(ISSUED))
        return given(parts={which: other[which]})

    return make


def crl_of_another_ca() -> Given:
    """Signed by this root, about another CA: it says nothing of this platform."""
    pki = platform().pki
    other = issue("SGX PCK Processor CA", pki.root, NOW, ca=True)
    crl = pki.crl(other, (), ISSUED, ISSUED + timedelta(days=30))
    return given(parts={"pck_crl": crl.hex()})


def broken_signature(name: str) -> Callable[[], Given]:
    def make() -> Given:
        signature = bytearray.fromhex(json.loads(platform().collateral(ISSUED))[name])
        signature[-1] ^= 1
        return given(parts={name: signature.hex()})

    return make


def short_signature() -> Given:
    signature = json.loads(platform().collateral(ISSUED))["tcb_info_signature"]
    return given(parts={"tcb_info_signature": signature[:-2]})


def edited(name: str, old: str, new: str) -> Callable[[], Given]:
    def make() -> Given:
        document = json.loads(platform().collateral(ISSUED))[name]
        assert old in document
        return given(parts={name: document.replace(old, new)})

    return make


def signed_text(name: str, old: str, new: str) -> Callable[[], Given]:
    """The same edit, signed: JSON that Intel would not write."""

    def make() -> Given:
        document = json.loads(platform().collateral(ISSUED))[name].replace(old, new)
        signature = raw_signature(platform().pki.tcb_signer.key, document.encode())
        return given(parts={name: document, f"{name}_signature": signature.hex()})

    return make


def swapped_key() -> Given:
    """The attacker's own attestation key, with a good signature by it."""
    mine = ec.generate_private_key(ec.SECP256R1())

    def edit(quote: bytearray) -> None:
        quote[636:700] = raw_signature(mine, bytes(quote[:632]))
        quote[700:764] = raw_public_key(mine)

    return given(body_type=None, edit_quote=edit)


def point_at_infinity() -> Given:
    return put(700, bytes(64))()


def another_platforms_quote() -> Given:
    return Given(
        quote=SimulatedPlatform.new(NOW).quote(report()),
        collateral=platform().collateral(ISSUED),
        anchor=Anchor.simulation(platform().pki.root_der),
    )


def relaunched(
    launch: bytes = OLD_SVN, current: bytes = GOOD_SVN, status: str = "UpToDate", body_type: int = 3
) -> Callable[[], Given]:
    """A TD that began on an old TDX module (out of date) and runs on an updated one."""
    info = {
        "tcbLevels": [level(status)],
        "tdxModuleIdentities": [module((6, "UpToDate"), (2, "OutOfDate"), (1, "Revoked"))],
    }
    return lambda: given(
        body_type=body_type,
        options=CollateralOptions(tcb_info=info),
        tee_tcb_svn=launch,
        tee_tcb_svn2=current,
    )


STATUSES = (
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
)
QE_LEVEL = {"tcb": {"isvsvn": 4}, "tcbDate": DATE, "tcbStatus": "UpToDate"}
