"""Damage: thousands of mutants on which two verifiers agree, and every byte that is signed."""

from __future__ import annotations

from dataclasses import replace

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from sealserve.attestation.anchor import Anchor
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.library import LibraryVerifier
from sealserve.attestation.reference import ReferenceVerifier
from sealserve.attestation.verified import VerifiedTd, differences
from sealserve.attestation.verifier import Verifier
from sealserve.errors import SealserveError
from sealserve.tdx.quote import parse_quote
from tests.attestation.evidence import Given, given
from tests.attestation.mutants import collateral_mutants, quote_mutants
from tests.attestation.test_two_verifiers import judged
from tests.simulated import NOW

SEED = 20261123
BATCH = 1500
TRAILING = 64 + 64 + 6 + 384 + 64  # signature, key, framing, QE report, its signature


def quotes(evidence: Given) -> list[Given]:
    return [replace(evidence, quote=each) for each in quote_mutants(evidence.quote, BATCH, SEED)]


def collaterals(evidence: Given) -> list[Given]:
    mutants = collateral_mutants(evidence.collateral, BATCH, SEED)
    return [replace(evidence, collateral=each) for each in mutants]


# cryptography warns of odd serial numbers in damaged certificates.
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("mutate", [quotes, collaterals], ids=["quotes", "collateral"])
@pytest.mark.parametrize("body_type", [None, 4], ids=["version 4", "version 5"])
def test_both_verifiers_agree_on_every_mutant(mutate: object, body_type: int | None) -> None:
    """Four times 1500. Damage to what no signature covers and nobody reads may be accepted."""
    evidence = given(body_type=body_type)
    first, second = LibraryVerifier(evidence.anchor), ReferenceVerifier(evidence.anchor)
    good = judged(first, evidence)
    accepted = 0
    for number, mutant in enumerate(mutate(evidence)):  # type: ignore[operator]
        answers = judged(first, mutant), judged(second, mutant)
        genuine = [answer for answer in answers if isinstance(answer, VerifiedTd)]
        assert len(genuine) in (0, 2), (number, answers)
        for answer in genuine:
            accepted += 1
            # It is the same TD still: nothing that was believed has changed.
            assert isinstance(good, VerifiedTd)
            assert answer == replace(good, collateral_ends=answer.collateral_ends), number
        if genuine:
            assert differences(*genuine) == (), number
    assert accepted < 2 * BATCH * 0.15


@pytest.mark.parametrize("kind", [LibraryVerifier, ReferenceVerifier])
@pytest.mark.parametrize("body_type", [None, 4], ids=["version 4", "version 5"])
def test_no_byte_that_is_signed_bound_or_framed_can_change(
    kind: type[LibraryVerifier | ReferenceVerifier], body_type: int | None
) -> None:
    """Signed part, its length field, signature, attestation key, QE report and its signature."""
    evidence = given(body_type=body_type)
    verifier = kind(evidence.anchor)
    collateral = Collateral.from_json(evidence.collateral)
    end = len(parse_quote(evidence.quote).signed_part) + 4 + TRAILING
    quote = bytearray(evidence.quote)
    for offset in range(end):
        quote[offset] ^= 0xFF
        with pytest.raises(SealserveError):
            verifier.verify(bytes(quote), collateral, NOW)
        quote[offset] ^= 0xFF
    assert bytes(quote) == evidence.quote
    assert verifier.verify(bytes(quote), collateral, NOW).tcb_status == "UpToDate"


class Explosive:
    """Stands where cryptography stood."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"cryptography was asked: {name}")

    def __call__(self, *_: object, **__: object) -> object:
        raise AssertionError("cryptography was asked")


@pytest.mark.parametrize(
    ("offset", "content", "code"),
    [
        (None, b"\x01", "quote.trailing_data"),
        (None, bytes(100) + b"\x01", "quote.trailing_data"),
        (None, bytes(32768), "quote.too_large"),
        (0, b"\x03", "quote.unsupported_version"),
        (0, b"\x06", "quote.unsupported_version"),
        (2, b"\x03", "quote.key_type"),
        (4, b"\x00", "quote.not_tdx"),
    ],
)
def test_what_is_refused_before_any_cryptography(
    offset: int | None, content: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = given(body_type=None)
    collateral = Collateral.from_json(evidence.collateral)
    quote = bytearray(evidence.quote)
    start = len(quote) if offset is None else offset
    quote[start : start + len(content)] = content
    verifiers = _disarmed(evidence.anchor, monkeypatch)
    for verifier in verifiers:
        with pytest.raises(SealserveError) as caught:
            verifier.verify(bytes(quote), collateral, NOW)
        assert caught.value.code == code
        # And the explosives are live: the good quote sets them off.
        with pytest.raises(AssertionError, match="cryptography was asked"):
            verifier.verify(evidence.quote, collateral, NOW)


def _disarmed(
    anchor: Anchor, monkeypatch: pytest.MonkeyPatch
) -> list[LibraryVerifier | ReferenceVerifier | Verifier]:
    """Verifiers in a world where every signature, hash chain and certificate explodes."""
    first = LibraryVerifier(anchor)
    first._library = Explosive()
    both = Verifier(anchor, require_both=True)
    both._primary = first
    second = ReferenceVerifier(anchor)
    for module, name in (
        (x509, "load_pem_x509_certificates"),
        (x509, "load_der_x509_crl"),
        (ec, "ECDSA"),
        (dcap_qvl, "verify"),
        (dcap_qvl, "verify_with_root_ca"),
        (dcap_qvl, "parse_quote"),
    ):
        monkeypatch.setattr(module, name, Explosive())
    return [first, second, both]
