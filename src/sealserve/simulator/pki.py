"""The test PKI of a simulated platform: root, PCK chain, TCB signer, CRLs.

Each subject says SIMULATION. The shape is Intel's: root → PCK Platform CA →
PCK certificate, root → TCB signing certificate, all ECDSA P-256.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from sealserve.certificates import key_pem
from sealserve.errors import InputError
from sealserve.simulator.der import SGX_EXTENSION_OID, PckExtension

__all__ = ["Signer", "TestPki", "issue", "raw_public_key", "raw_signature"]

_LIFETIME = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Signer:
    """A key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class TestPki:
    """All signers of a simulated platform, and the key its quoting enclave attests with."""

    __test__ = False  # not a test, whatever its name begins with

    root: Signer
    pck_ca: Signer
    pck: Signer
    tcb_signer: Signer
    attestation_key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, extension: PckExtension, now: datetime) -> Self:
        """A new PKI, good from a day before ``now`` for ten years."""
        root_key = _new_key()
        root = Signer(root_key, _certificate("SGX Root CA", root_key, None, now, ca=True))
        pck_ca = issue("SGX PCK Platform CA", root, now, ca=True)
        return cls(
            root=root,
            pck_ca=pck_ca,
            pck=issue("SGX PCK Certificate", pck_ca, now, extension=extension.to_der()),
            tcb_signer=issue("SGX TCB Signing", root, now),
            attestation_key=_new_key(),
        )

    @property
    def root_der(self) -> bytes:
        """The root certificate, the anchor of everything here."""
        return self.root.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pck_chain(self) -> str:
        """PCK certificate, its CA and the root in PEM, as a quote carries them."""
        return _pem(self.pck, self.pck_ca, self.root)

    @property
    def pck_crl_chain(self) -> str:
        """Issuer chain of the PCK CRL in PEM."""
        return _pem(self.pck_ca, self.root)

    @property
    def tcb_chain(self) -> str:
        """Issuer chain of TCB info and QE identity in PEM."""
        return _pem(self.tcb_signer, self.root)

    def crl(
        self, issuer: Signer, revoked: tuple[Signer, ...], begins: datetime, ends: datetime
    ) -> bytes:
        """A certificate revocation list in DER."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.certificate.subject)
            .last_update(begins)
            .next_update(ends)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
                critical=False,
            )
        )
        for signer in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(signer.certificate.serial_number)
                .revocation_date(begins)
                .build()
            )
        return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def to_json(self) -> bytes:
        """All keys and certificates. Test keys, but still to be kept to oneself."""
        signers = {
            "root": self.root,
            "pck_ca": self.pck_ca,
            "pck": self.pck,
            "tcb_signer": self.tcb_signer,
        }
        document: dict[str, dict[str, str]] = {
            name: {"key": key_pem(signer.key).decode(), "certificate": _pem(signer)}
            for name, signer in signers.items()
        }
        document["attestation_key"] = {"key": key_pem(self.attestation_key).decode()}
        return json.dumps({"SIMULATION": document}, indent=1).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """The PKI that :meth:`to_json` wrote.

        Raises:
            InputError: ``simulator.platform_malformed``.
        """
        try:
            document = json.loads(raw)["SIMULATION"]
            signers = {
                name: Signer(
                    _load_key(document[name]["key"]),
                    x509.load_pem_x509_certificate(document[name]["certificate"].encode()),
                )
                for name in ("root", "pck_ca", "pck", "tcb_signer")
            }
            return cls(attestation_key=_load_key(document["attestation_key"]["key"]), **signers)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "simulator.platform_malformed",
                f"the simulated platform's keys cannot be read: {type(error).__name__}",
                hint="make a new platform with `sealserve simulate platform DIR`",
            ) from None


def raw_signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA P-256 with SHA-256, as ``r || s`` (64 bytes), the form DCAP uses."""
    r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key as ``x || y`` (64 bytes)."""
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def issue(
    name: str,
    issuer: Signer,
    now: datetime,
    *,
    ca: bool = False,
    extension: bytes | None = None,
    lifetime: timedelta = _LIFETIME,
) -> Signer:
    """A new key with a certificate, good from a day before ``now``.

    Args:
        name: the subject's common name, after the word SIMULATION.
        issuer: who signs; nothing checks that it may.
        now: see above.
        ca: whether it may issue in turn.
        extension: value of Intel's SGX extension.
        lifetime: from a day before ``now``.
    """
    key = _new_key()
    certificate = _certificate(
        name, key, issuer, now, ca=ca, extension=extension, lifetime=lifetime
    )
    return Signer(key, certificate)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: Signer | None,
    now: datetime,
    *,
    ca: bool,
    extension: bytes | None = None,
    lifetime: timedelta = _LIFETIME,
) -> x509.Certificate:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"SIMULATION {name}"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SIMULATION, not Intel"),
        ]
    )
    issuer_key = issuer.key if issuer else key
    begins = now.astimezone(UTC).replace(microsecond=0) - timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + lifetime)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.BasicConstraints(ca=ca, path_length=(0 if issuer else 1) if ca else None),
            critical=True,
        )
        .add_extension(_key_usage(ca), critical=True)
    )
    if extension is not None:
        oid = x509.ObjectIdentifier(SGX_EXTENSION_OID)
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, extension), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=not ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(*signers: Signer) -> str:
    return "".join(
        signer.certificate.public_bytes(serialization.Encoding.PEM).decode() for signer in signers
    )


def _load_key(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an EC key")
    return key
