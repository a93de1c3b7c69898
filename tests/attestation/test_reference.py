"""The second verifier's own parts, against what is known of them from elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from datetime import UTC, datetime

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.attestation.anchor import INTEL, INTEL_ROOT_DER
from sealserve.attestation.reference import pck as pck_module
from sealserve.attestation.reference.chain import Pki
from sealserve.attestation.reference.documents import Level, read_qe_identity, read_tcb_info
from sealserve.attestation.reference.pck import SGX_EXTENSION, read_platform
from sealserve.attestation.reference.signatures import is_signed, public_key
from sealserve.attestation.reference.tcb import merge, relaunch_status
from sealserve.errors import InputError, Refused, SealserveError
from sealserve.simulator.pki import TestPki, issue, raw_public_key, raw_signature
from sealserve.tdx.quote import parse_quote
from sealserve.tdx.signature_data import split_signature_data
from tests.attestation.evidence import extension
from tests.simulated import ISSUED, NOW, platform
from tests.vectors import read_vector

QUOTES = ("dcap-qvl/tdx_quote", "dcap-qvl/tdx_quote_td15ex", "dcap-qvl/tdx_quote_outdated")


def test_the_built_in_root_is_intel_s() -> None:
    assert (
        hashlib.sha256(INTEL_ROOT_DER).hexdigest()
        == "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
    )
    assert "CN=Intel SGX Root CA" in INTEL.certificate.subject.rfc4514_string()
    fields = json.loads(read_vector("dcap-qvl/tdx_quote_collateral.json"))
    chain = x509.load_pem_x509_certificates(fields["tcb_info_issuer_chain"].encode())
    assert chain[-1].public_bytes(Encoding.DER) == INTEL_ROOT_DER


@pytest.mark.parametrize("name", QUOTES)
def test_a_real_pck_certificate_reads_as_the_library_reads_it(name: str) -> None:
    raw = read_vector(name)
    data = split_signature_data(parse_quote(raw))
    ours = read_platform(x509.load_pem_x509_certificates(data.certification)[0])
    theirs = dcap_qvl.parse_quote(raw).pck_extension()
    assert ours.ppid == theirs.ppid
    assert bytes(ours.components) == theirs.cpu_svn
    assert (ours.pce_svn, ours.pce_id, ours.fmspc) == (
        theirs.pce_svn,
        theirs.pce_id,
        theirs.fmspc,
    )
    assert ours.piid == theirs.platform_instance_id
    flags = [theirs.get_value(f"{SGX_EXTENSION.dotted_string}.7.{i}") for i in (1, 2, 3)]
    assert [ours.dynamic_platform, ours.cached_keys, ours.smt] == [f == b"\xff" for f in flags]


# The SGX extension


def stated(raw: bytes) -> object:
    return pck_module._platform(raw)


def test_the_extension_s_every_byte_matters_or_is_read() -> None:
    """A flipped byte is refused, or what it says has changed."""
    good = extension()
    read = stated(good)
    silent = []
    for offset in range(len(good)):
        mutant = bytearray(good)
        mutant[offset] ^= 0xFF
        try:
            if stated(bytes(mutant)) == read:
                silent.append(offset)
        except Refused:
            pass
    # The SGX type says which kind of server this is; nothing is decided by it.
    assert len(silent) == 1
    assert good[silent[0] - 2] == 10  # ENUMERATED


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "early"),
        (b"\x30", "early"),
        (b"\x30\x80\0\0", "shortest"),
        (b"\x30\x81\x01\0", "shortest"),
        (b"\x30\x83\0\0\0", "shortest"),
        (b"\x30\x82\x00\x90", "shortest"),
        (b"\x30\x05\0", "early"),
        (b"\x31\0", "sequence"),
        (b"\x30\0\0", "sequence"),
        (b"\x30\x02\x30\0", "early"),
        (extension() + b"\0", "sequence"),
        (extension().replace(b"\x0d\x01\x04", b"\x0d\x01\x01"), "twice"),
        (extension().replace(b"\x01\x01\xff", b"\x01\x01\x01"), "flag"),
        (extension().replace(b"\x0d\x01\x05", b"\x0d\x01\x08"), "no entry 5"),
        (extension(pce_svn=200).replace(b"\x02\x02\x00\xc8", b"\x02\x02\x00\x48"), "version"),
        (extension(pce_svn=200).replace(b"\x02\x02\x00\xc8", b"\x02\x02\x80\xc8"), "version"),
    ],
)
def test_an_extension_that_is_not_as_specified(raw: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why) as caught:
        stated(raw)
    assert caught.value.code == "chain.pck_extension"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 600), st.integers(0, 600))
def test_no_extension_makes_the_reader_stumble(content: bytes, start: int, end: int) -> None:
    good = extension()
    for raw in (content, good[:start] + content + good[end:]):
        with contextlib.suppress(Refused):
            stated(raw)


# Statuses, as Intel's verification library converges them


def status_of(platform_status: str, component: str) -> str:
    date = datetime(2025, 1, 1, tzinfo=UTC)
    one = Level(svn=0, status=platform_status, date=date, advisory_ids=())
    return merge(one, Level(svn=0, status=component, date=date, advisory_ids=())).status


ALL = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)


def test_an_old_component_ages_the_platform() -> None:
    assert {each: status_of(each, "OutOfDate") for each in ALL} == {
        "UpToDate": "OutOfDate",
        "SWHardeningNeeded": "OutOfDate",
        "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
        "OutOfDate": "OutOfDate",
        "OutOfDateConfigurationNeeded": "OutOfDateConfigurationNeeded",
        "Revoked": "Revoked",
    }
    for each in ALL:
        assert status_of(each, "UpToDate") == each
        assert status_of(each, "Revoked") == "Revoked"


def test_a_relaunch_is_advised_only_if_it_would_help() -> None:
    helps = ALL[:4]
    for launched, current in itertools.product(ALL[:6], ALL[:6]):
        advised = relaunch_status(launched, current)
        if launched in ALL[4:6] and current in helps:
            configuration = "Configuration" in launched + current
            suffix = "ConfigurationNeeded" if configuration else ""
            assert advised == "TDRelaunchAdvised" + suffix
        else:
            assert advised == launched


# Documents


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["id", "version", "tcbType", "fmspc", "tcbLevels", "tcb", "svn"]),
                inner,
                max_size=6,
            )
        ),
    )
)
def test_no_document_makes_the_reader_stumble(document: object) -> None:
    for read in (read_tcb_info, read_qe_identity):
        with pytest.raises(SealserveError):
            read(json.dumps(document))


@pytest.mark.parametrize("field", ["tcb_info", "qe_identity"])
def test_every_field_of_a_document_is_needed_or_known_to_be_optional(field: str) -> None:
    document = json.loads(json.loads(platform().collateral(ISSUED))[field])
    read = read_tcb_info if field == "tcb_info" else read_qe_identity
    read(json.dumps(document))
    for name in document:
        without = {key: value for key, value in document.items() if key != name}
        if name == "tdxModuleIdentities":
            assert read(json.dumps(without)).modules == ()  # type: ignore[union-attr]
            continue
        with pytest.raises(InputError) as caught:
            read(json.dumps(without))
        assert caught.value.code == "collateral.malformed"
        assert name in (caught.value.where or "")


# Certificates


def pki_of(pki: TestPki, **changes: bytes) -> Pki:
    ends = ISSUED.replace(year=ISSUED.year + 1)
    crls = {
        "root_crl": pki.crl(pki.root, (), ISSUED, ends),
        "pck_crl": pki.crl(pki.pck_ca, (), ISSUED, ends),
        **changes,
    }
    return Pki(pki.root.certificate, crls["root_crl"], crls["pck_crl"], NOW)


def certificates(pki: TestPki) -> list[x509.Certificate]:
    return [pki.pck.certificate, pki.pck_ca.certificate]


def test_a_chain_leads_to_the_anchor() -> None:
    pki = platform().pki
    assert pki_of(pki).verify(certificates(pki), "chain") == certificates(pki)


def test_an_issuer_must_be_allowed_to_sign_certificates() -> None:
    """Stricter than the primary, which does not read the key usage of an issuer."""
    pki = platform().pki
    key = pki.pck_ca.key
    name = pki.pck_ca.certificate.subject
    usage = {"key_cert_sign": False, "crl_sign": True, "digital_signature": True}
    others = (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    )
    ca = (
        _builder(name, pki.root.certificate.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage, **dict.fromkeys(others, False)), critical=True)
        .sign(pki.root.key, hashes.SHA256())
    )
    with pytest.raises(Refused, match="may not sign certificates"):
        pki_of(pki).verify([pki.pck.certificate, ca], "chain")


def test_an_issuer_below_one_that_allows_none() -> None:
    pki = platform().pki
    below = issue("below", pki.pck_ca, NOW, ca=True)
    leaf = issue("leaf", below, NOW)
    chain = [leaf.certificate, below.certificate, pki.pck_ca.certificate]
    with pytest.raises(Refused, match="longer than") as caught:
        pki_of(pki).verify(chain, "chain")
    assert caught.value.code == "chain.not_verified"


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.2.3")]), "unknown critical"),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), "unknown critical"),
    ],
)
def test_a_critical_extension_that_we_do_not_know(extra: x509.ExtensionType, why: str) -> None:
    pki = platform().pki
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = (
        _builder(_name("leaf"), pki.pck_ca.certificate.subject, key.public_key())
        .add_extension(extra, critical=True)
        .sign(pki.pck_ca.key, hashes.SHA256())
    )
    with pytest.raises(Refused, match=why):
        pki_of(pki).verify([leaf, pki.pck_ca.certificate], "chain")


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP256K1()])
def test_keys_of_another_curve(curve: ec.EllipticCurve) -> None:
    pki = platform().pki
    key = ec.generate_private_key(curve)
    leaf = _builder(_name("leaf"), pki.pck_ca.certificate.subject, key.public_key()).sign(
        pki.pck_ca.key, hashes.SHA256()
    )
    with pytest.raises(Refused, match="P-256"):
        pki_of(pki).verify([leaf, pki.pck_ca.certificate], "chain")


def test_signatures_with_another_hash() -> None:
    pki = platform().pki
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = _builder(_name("leaf"), pki.pck_ca.certificate.subject, key.public_key()).sign(
        pki.pck_ca.key, hashes.SHA384()
    )
    with pytest.raises(Refused, match="does not lead to the anchor"):
        pki_of(pki).verify([leaf, pki.pck_ca.certificate], "chain")


def test_a_crl_with_a_scope_is_no_full_crl() -> None:
    """It could leave this certificate out without saying that it is good."""
    pki = platform().pki
    scope = x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier("https://example.com/crl")],
        relative_name=None,
        only_contains_user_certs=False,
        only_contains_ca_certs=True,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(pki.pck_ca.certificate.subject)
        .last_update(ISSUED)
        .next_update(ISSUED.replace(year=ISSUED.year + 1))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(scope, critical=True)
        .sign(pki.pck_ca.key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    with pytest.raises(InputError) as caught:
        pki_of(pki, pck_crl=crl).verify(certificates(pki), "chain")
    assert caught.value.code == "crl.malformed"


@pytest.mark.parametrize("raw", [b"", b"\x30\x80", b"\x30\x03\x02\x01\x01", bytes(100)])
def test_a_crl_that_is_none(raw: bytes) -> None:
    for which in ("root_crl", "pck_crl"):
        with pytest.raises(InputError) as caught:
            pki_of(platform().pki, **{which: raw})
        assert caught.value.code == "crl.malformed"


# Signatures


def test_raw_signatures() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signature = raw_signature(key, b"data")
    point = public_key(raw_public_key(key))
    assert is_signed(point, signature, b"data")
    assert not is_signed(point, signature, b"date")
    assert not is_signed(point, signature[:63], b"data")
    assert not is_signed(point, signature + b"\0", b"data")
    assert not is_signed(point, bytes(64), b"data")
    assert not is_signed(point, b"\xff" * 64, b"data")
    assert not is_signed(None, signature, b"data")
    assert public_key(bytes(64)) is None
    assert public_key(b"\xff" * 64) is None
    assert public_key(bytes(63)) is None


def test_the_sgx_extension_has_intel_s_name() -> None:
    assert SGX_EXTENSION.dotted_string == "1.2.840.113741.1.13.1"


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(ISSUED)
        .not_valid_after(ISSUED.replace(year=ISSUED.year + 1))
    )
