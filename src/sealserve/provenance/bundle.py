"""A model's signature as a document, read strictly before anything believes it.

Rules this module keeps:

* Nothing here is believed: whether the signature holds is for `sealserve.provenance.verify`.
* The library gets the bundle that was understood here, written anew, never the bytes
  that came: two readers cannot see two documents.
* One form of manifest is accepted: every file by its SHA-256, no links. So "the signature
  covers this directory" has one meaning.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sealserve.errors import InputError

__all__ = ["MAX_SIGNATURE_BYTES", "Bundle", "read_bundle"]

MAX_SIGNATURE_BYTES: Final = 4 << 20
"""Room for the manifest of more than ten thousand files."""

_MAX_CHAIN: Final = 8

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _PublicKey(_Strict):
    hint: _Digest


class _Certificate(_Strict):
    rawBytes: str  # noqa: N815 - the bundle's own names


class _Chain(_Strict):
    certificates: Annotated[list[_Certificate], Field(min_length=1, max_length=_MAX_CHAIN)]


class _Material(_Strict):
    publicKey: _PublicKey | None = None  # noqa: N815
    x509CertificateChain: _Chain | None = None  # noqa: N815
    # Witnesses that only a network could confirm: allowed, and not looked at.
    tlogEntries: list[Any] = Field(default_factory=list, exclude=True)  # noqa: N815
    timestampVerificationData: Any = Field(default=None, exclude=True)  # noqa: N815


class _Signature(_Strict):
    sig: str
    keyid: str = ""


class _Envelope(_Strict):
    payload: str
    payloadType: Literal["application/vnd.in-toto+json"]  # noqa: N815
    signatures: Annotated[list[_Signature], Field(min_length=1, max_length=1)]


class _Bundle(_Strict):
    mediaType: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]  # noqa: N815
    verificationMaterial: _Material  # noqa: N815
    dsseEnvelope: _Envelope  # noqa: N815


class _Signed(BaseModel):
    """A part of the statement, which may say more: its signer vouches for all of it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Serialization(_Signed):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: Literal[False]


class _Resource(_Signed):
    name: Annotated[str, Field(min_length=1, max_length=4096)]
    algorithm: Literal["sha256"]
    digest: _Digest


class _Predicate(_Signed):
    serialization: _Serialization
    resources: list[_Resource]


class _Subject(_Signed):
    name: str
    digest: dict[str, str]


class _Statement(_Signed):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    predicateType: Literal["https://model_signing/signature/v1.0"]  # noqa: N815
    subject: Annotated[list[_Subject], Field(min_length=1, max_length=1)]
    predicate: _Predicate


@dataclass(frozen=True)
class Bundle:
    """What a signature's file says.

    Attributes:
        raw: the bundle, written anew.
        key: how it names the key that made it; None when a certificate speaks for it.
        leaf: that certificate, DER.
        files: names and SHA-256 of the files it is about, by name.
    """

    raw: bytes
    key: str | None
    leaf: bytes | None
    files: dict[str, str]


def read_bundle(raw: bytes, *, where: str) -> Bundle:
    """Read a signature; whether it holds is another matter.

    Args:
        raw: a Sigstore bundle with an in-toto statement, JSON.
        where: the file, for errors.

    Raises:
        InputError: ``provenance.signature_malformed``.
    """
    if len(raw) > MAX_SIGNATURE_BYTES:
        raise _malformed(f"larger than {MAX_SIGNATURE_BYTES} bytes", where)
    try:
        bundle = _Bundle.model_validate_json(raw)
        payload = _decoded(bundle.dsseEnvelope.payload)
        _decoded(bundle.dsseEnvelope.signatures[0].sig)
        statement = _Statement.model_validate_json(payload)
        material = bundle.verificationMaterial
        chain = material.x509CertificateChain
        if (material.publicKey is None) == (chain is None):
            raise ValueError("not exactly one of publicKey and x509CertificateChain")
        certificates = [_decoded(each.rawBytes) for each in chain.certificates] if chain else []
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part)[:40] for part in first["loc"][:6])
        raise _malformed(f"{place}: {first['msg']}" if place else first["msg"], where) from None
    except ValueError as error:
        raise _malformed(str(error), where) from None
    files = {resource.name: resource.digest for resource in statement.predicate.resources}
    if len(files) != len(statement.predicate.resources):
        raise _malformed("a file stands twice in the manifest", where)
    return Bundle(
        raw=_written(bundle),
        key=material.publicKey.hint if material.publicKey else None,
        leaf=certificates[0] if certificates else None,
        files=files,
    )


def _written(bundle: _Bundle) -> bytes:
    return bundle.model_dump_json(exclude_none=True).encode()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None


def _malformed(why: str, where: str) -> InputError:
    return InputError(
        "provenance.signature_malformed",
        f"no signature that can be checked here: {why}",
        where=where,
        hint="by a key or a certificate, files by SHA-256, no links: `sealserve model sign` "
        "and `model_signing sign key` make such",
    )
