"""``sealserve model keygen``, ``sign`` and ``verify``: who made a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli.console import JsonFlag, emit

__all__ = ["keygen", "sign", "verify"]

_Version = Annotated[Path, typer.Argument(help="The directory of one version: models/NAME/1.")]


def keygen(
    directory: Annotated[Path, typer.Argument(help="Where the keys go; made if missing.")],
    json: JsonFlag = False,
) -> None:
    """Make a key pair to sign models with (ECDSA, P-256).

    model-signer.key stays with whoever makes models. model-signer.pub goes to those
    who are to believe its signatures.

    Example: sealserve model keygen ~/signer
    """
    from sealserve.provenance import make_signing_key

    private, public = make_signing_key(directory)
    emit(
        {"signing_key": str(private), "signing_pub": str(public)},
        as_json=json,
        text=f"made {private} (keep it) and {public} (give it to those who check models)",
    )


def sign(
    directory: _Version,
    key: Annotated[Path, typer.Option(help="The private key: ECDSA, PEM, not encrypted.")],
    certificates: Annotated[
        Path | None,
        typer.Option(help="PEM: the key's certificate, those above it, the root last."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a signature that is there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Sign a model: write model.sig, an OpenSSF Model Signing signature, beside it.

    It names every file with its SHA-256. Seal the model afterwards: a sealed volume
    never changes.

    Example: sealserve model sign tree/models/resnet50/1 --key ~/signer/model-signer.key
    """
    from sealserve.provenance import Signing, sign_model

    signing = Signing.load(key, certificates)
    signature = sign_model(directory, signing, replace=force)
    names = signing.trust.names
    emit(
        {"signature": str(signature), "trust": list(names)},
        as_json=json,
        text=f"made {signature}; it is checked against {names[0]}",
    )


def verify(
    directory: _Version,
    signed_by: Annotated[
        Path, typer.Option(help="PEM: public keys and root certificates that are trusted.")
    ],
    json: JsonFlag = False,
) -> None:
    """Check a model's signature, and that it is about all of the model and nothing else.

    Example: sealserve model verify tree/models/resnet50/1 --signed-by ~/signer/model-signer.pub
    """
    from sealserve.provenance import load_trust, verify_model

    verified = verify_model(directory, load_trust(signed_by))
    emit(
        {"directory": str(directory), "signer": verified.signer, "files": verified.files},
        as_json=json,
        text=f"{directory}: {verified.files} files, signed by {verified.signer}",
    )
