"""Sign models: a manifest of every file, signed with the owner's ECDSA key, beside the model.

Rules this module keeps:

* The key is read from its file once, by this process; the library sees it in a memory file.
* A signature that is there is never replaced by itself: it may be somebody else's.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sealserve.certificates import key_pem
from sealserve.errors import InputError, Unavailable
from sealserve.files import make_directory, read_limited, require_absent, write_atomically
from sealserve.provenance.bundle import MAX_SIGNATURE_BYTES
from sealserve.provenance.library import SIGNATURE_NAME, memory_file, require_library
from sealserve.provenance.trust import Trust, key_hint, public_pem

__all__ = ["PRIVATE_NAME", "PUBLIC_NAME", "Signing", "make_signing_key", "sign_model"]

PRIVATE_NAME: Final = "model-signer.key"
PUBLIC_NAME: Final = "model-signer.pub"
_MAX_PEM: Final = 16 * 1024


def make_signing_key(directory: Path) -> tuple[Path, Path]:
    """Make a key pair to sign models with: ECDSA on P-256.

    Args:
        directory: gets ``model-signer.key`` (mode 0600) and ``model-signer.pub``.

    Returns:
        The two paths, private key first.

    Raises:
        InputError: ``file.exists``.
        Unavailable: ``file.unwritable``.
    """
    private, public = directory / PRIVATE_NAME, directory / PUBLIC_NAME
    make_directory(directory, mode=0o700)
    require_absent(private)
    require_absent(public)
    key = ec.generate_private_key(ec.SECP256R1())
    write_atomically(private, key_pem(key), mode=0o600, replace=False)
    write_atomically(public, public_pem(key.public_key()), replace=False)
    return private, public


@dataclass(frozen=True)
class Signing:
    """What models are signed with.

    Attributes:
        key: the private key, PEM.
        certificates: the signer's certificate and those between it and a root, PEM; none
            when the key speaks for itself.
        trust: what a signature made with it is checked against.
    """

    key: bytes
    certificates: tuple[bytes, ...]
    trust: Trust

    def __repr__(self) -> str:
        return f"Signing({', '.join(self.trust.names)})"

    @classmethod
    def load(cls, key: Path, certificates: Path | None = None) -> Self:
        """Read a key, and the certificates that speak for it.

        Args:
            key: a private key, PEM, not encrypted, that nobody else may read.
            certificates: the signer's certificate first, then those above it.

        Raises:
            InputError: ``provenance.key_malformed``, ``provenance.key_exposed``,
                ``provenance.certificate_malformed``.
            Unavailable: ``file.unreadable``.
        """
        pem = read_limited(key, _MAX_PEM)
        if key.stat().st_mode & 0o077:
            raise InputError(
                "provenance.key_exposed",
                "others may read or change this private key",
                where=str(key),
                hint=f"chmod 600 {key}",
            )
        try:
            loaded = serialization.load_pem_private_key(pem, password=None)
            public = public_pem(getattr(loaded, "public_key", object)())
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise InputError(
                "provenance.key_malformed",
                "not an ECDSA private key (P-256, P-384 or P-521) in PEM form, not encrypted",
                where=str(key),
                hint="`sealserve model keygen DIR` makes one",
            ) from None
        if certificates is None:
            return cls(pem, (), Trust(((key_hint(public), public),)))
        chain = _chain(certificates, public)
        return cls(pem, chain, Trust((), (chain[-1],)))


def sign_model(directory: Path, signing: Signing, *, replace: bool = False) -> Path:
    """Sign a model: write ``model.sig`` into its directory.

    Args:
        directory: of one version.
        signing: with what.
        replace: a signature that is there.

    Returns:
        The signature's file.

    Raises:
        InputError: ``provenance.model_missing``, ``file.exists``,
            ``provenance.unsignable`` (a link, a device, too many files).
        Unavailable: ``provenance.extra_missing``, ``provenance.model_unreadable``,
            ``file.unwritable``.
    """
    require_library()
    place = directory.resolve()
    if not place.is_dir():
        raise InputError("provenance.model_missing", "not a directory", where=str(directory))
    target = place / SIGNATURE_NAME
    if not replace:
        require_absent(target, hint="`sealserve model sign --force` replaces it")
    content = _sign(place, signing)
    if len(content) > MAX_SIGNATURE_BYTES:
        raise _unsignable("it has too many files for one signature", place)
    write_atomically(target, content)
    return target


def _sign(directory: Path, signing: Signing) -> bytes:
    from model_signing import hashing
    from model_signing import signing as library

    with ExitStack() as files:
        maker = library.Config().set_hashing_config(
            hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)
        )
        _use_signer(maker, signing, files)
        target = files.enter_context(memory_file())
        try:
            maker.sign(directory, target)
        except OSError as error:
            raise Unavailable(
                "provenance.model_unreadable",
                f"cannot read the model: {error.strerror or 'unreadable'}",
                where=str(directory),
            ) from None
        except ValueError as error:
            raise _unsignable(str(error)[:300], directory) from None
        return target.read_bytes()


def _use_signer(maker: Any, signing: Signing, files: ExitStack) -> None:
    key = files.enter_context(memory_file(signing.key))
    if not signing.certificates:
        maker.use_elliptic_key_signer(private_key=key)
        return
    leaf, *above = (files.enter_context(memory_file(pem)) for pem in signing.certificates)
    maker.use_certificate_signer(private_key=key, signing_certificate=leaf, certificate_chain=above)


def _chain(path: Path, public: bytes) -> tuple[bytes, ...]:
    try:
        chain = x509.load_pem_x509_certificates(read_limited(path, _MAX_PEM))
        first = public_pem(chain[0].public_key())
    except (ValueError, UnsupportedAlgorithm):
        chain, first = [], b""
    if first != public or len(chain) < 2:
        raise InputError(
            "provenance.certificate_malformed",
            "not the key's certificate and at least one above it, in PEM form",
            where=str(path),
            hint="the signer's own certificate stands first, the root last",
        )
    return tuple(each.public_bytes(serialization.Encoding.PEM) for each in chain)


def _unsignable(why: str, directory: Path) -> InputError:
    return InputError(
        "provenance.unsignable",
        f"the model cannot be signed: {why}",
        where=str(directory),
        hint="ordinary files and directories only",
    )
