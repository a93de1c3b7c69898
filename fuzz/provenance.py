"""What comes from outside about models' makers: signatures, and documents of trust."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ec

from fuzz.administration import broken_promise
from sealserve.provenance.bundle import read_bundle
from sealserve.provenance.trust import Trust, key_hint, public_pem

__all__ = ["signature", "signature_seeds", "trust", "trust_seeds"]


def signature(data: bytes) -> None:
    """What was read and is handed on reads as the same."""
    bundle = read_bundle(data, where="model.sig")
    if read_bundle(bundle.raw, where="model.sig") != bundle:
        raise broken_promise()


def trust(data: bytes) -> None:
    """A document of trust has one form, and names somebody."""
    read = Trust.from_pem(data)
    if Trust.from_pem(read.pem) != read or not read.names:
        raise broken_promise()


@functools.cache
def _public() -> bytes:
    return public_pem(ec.derive_private_key(4711, ec.SECP256R1()).public_key())


def trust_seeds() -> Sequence[bytes]:
    """One key."""
    return [_public()]


def signature_seeds() -> Sequence[bytes]:
    """A signature of the right form that holds for nothing, by a key and by a certificate."""
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "1", "digest": {"sha256": "0" * 64}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": "a", "algorithm": "sha256", "digest": "0" * 64}],
        },
    }
    materials = (
        {"publicKey": {"hint": key_hint(_public())}, "tlogEntries": []},
        {"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}]}},
    )
    envelope = {
        "payload": base64.b64encode(json.dumps(statement).encode()).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": "AAAA", "keyid": ""}],
    }
    media_type = "application/vnd.dev.sigstore.bundle.v0.3+json"
    return [
        json.dumps(
            {
                "mediaType": media_type,
                "verificationMaterial": material,
                "dsseEnvelope": envelope,
            }
        ).encode()
        for material in materials
    ]
