"""Check a model's signature, and that it is about all of the model and nothing else.

Rules this module keeps:

* A key is found by the name in the signature, and only among those that are trusted.
* Every file in the directory, but for the signature itself, is one that was signed. The
  library leaves out what a signer chose to ignore; here nothing is left out, for a
  runtime may read it.
* The file names in a message come from the signed manifest or from the directory, shown
  escaped and cut.
* A signature says who signed these bytes. It does not say under which name, or in which
  version, they may be served: a volume's record does.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from sealserve.errors import Refused, Unavailable
from sealserve.files import read_limited
from sealserve.provenance.bundle import MAX_SIGNATURE_BYTES, Bundle, read_bundle
from sealserve.provenance.library import SIGNATURE_NAME, memory_file, require_library
from sealserve.provenance.trust import Trust

__all__ = ["Verified", "verify_model"]

_SHOWN: Final = 5
# The library's message is the repr of a list, which escapes quotes where a digest has others.
_CHANGED: Final = re.compile(r"Hash mismatch for \\?'(.{1,4096}?)\\?': Expected")


@dataclass(frozen=True)
class Verified:
    """A model whose signature holds.

    Attributes:
        signer: ``key sha256:...`` or ``certificate sha256:... (its subject)``.
        files: how many files were signed.
    """

    signer: str
    files: int


def verify_model(directory: Path, trust: Trust) -> Verified:
    """Check the signature of a model.

    Reads every file of it once. Nothing keeps whoever may write to the directory from
    changing a file afterwards: what that means depends on where it lies.

    Args:
        directory: of one version; the signature is ``model.sig`` in it.
        trust: whose signatures count.

    Raises:
        InputError: ``provenance.signature_malformed``, ``file.too_large``.
        Refused: ``provenance.signature_missing``, ``provenance.signer_unknown``,
            ``provenance.signature_invalid``, ``provenance.content_differs``.
        Unavailable: ``provenance.extra_missing``, ``provenance.model_unreadable``.
    """
    require_library()
    place = directory.resolve()
    file = place / SIGNATURE_NAME
    if not file.is_file():
        raise Refused(
            "provenance.signature_missing",
            f"the model has no signature: there is no {SIGNATURE_NAME} in it",
            where=str(directory),
            hint="`sealserve model sign` makes one, before the model is sealed",
        )
    raw = read_limited(file, MAX_SIGNATURE_BYTES)
    bundle = read_bundle(raw, where=str(file))
    with ExitStack() as files:
        checker = _checker(bundle, trust, files, str(file))
        _check(checker, place, files.enter_context(memory_file(bundle.raw)), bundle)
    return Verified(_signer(bundle), len(bundle.files))


def _checker(bundle: Bundle, trust: Trust, files: ExitStack, where: str) -> Any:
    """The library's verifier for this signature."""
    from model_signing import hashing, verifying

    checker = verifying.Config().set_hashing_config(
        # What a signer ignored is added to this by the library; `_check` takes it out again.
        hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)
    )
    if bundle.key is not None:
        pem = dict(trust.keys).get(bundle.key)
        if pem is None:
            raise _unknown(f"the key sha256:{bundle.key}", where)
        return checker.use_elliptic_key_verifier(public_key=files.enter_context(memory_file(pem)))
    if not trust.roots:
        raise _unknown("a certificate, and no root is trusted", where)
    return checker.use_certificate_verifier(
        certificate_chain=[files.enter_context(memory_file(root)) for root in trust.roots]
    )


def _check(checker: Any, directory: Path, signature: Path, bundle: Bundle) -> None:
    where = str(directory)
    try:
        checker.verify(directory, signature)
    except OSError as error:
        raise _unreadable(error, where) from None
    except InvalidSignature:
        raise _invalid("it does not fit the signed statement", where) from None
    except Exception as error:  # the library's parsers raise whatever theirs do
        text = str(error)
        if isinstance(error, ValueError) and text.startswith(("Signature mismatch", "Cannot use")):
            raise _differs(_differences(_names(directory), bundle, text), where) from None
        if type(error).__module__.startswith("OpenSSL"):
            raise _unknown("a certificate that stands under no trusted root", where) from None
        raise _invalid(_shown([text]), where) from None
    present = _names(directory)
    if present != set(bundle.files):
        raise _differs(_differences(present, bundle), where)


def _names(directory: Path) -> set[str]:
    """Every file below a directory, and every link, but for the signature."""
    names = set()
    try:
        for parent, directories, files in os.walk(directory, onerror=_raise):
            links = [name for name in directories if Path(parent, name).is_symlink()]
            for name in files + links:
                names.add(Path(parent, name).relative_to(directory).as_posix())
    except OSError as error:
        raise _unreadable(error, str(directory)) from None
    return names - {SIGNATURE_NAME}


def _raise(error: OSError) -> None:
    raise error


def _unreadable(error: OSError, where: str) -> Unavailable:
    return Unavailable(
        "provenance.model_unreadable",
        f"cannot read the model: {error.strerror or 'unreadable'}",
        where=where,
    )


def _differences(present: set[str], bundle: Bundle, text: str = "") -> str:
    """What is wrong with a directory, for people; ``text`` is what the library says of it."""
    for what, names in (
        ("was not signed", present - set(bundle.files)),
        ("is missing", set(bundle.files) - present),
        ("was changed", set(_CHANGED.findall(text))),
    ):
        if names:
            return f"{_shown(sorted(names))} {what}"
    return "its files are not those that were signed"


def _shown(names: list[str]) -> str:
    shown = ", ".join(ascii(name[:80]) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _signer(bundle: Bundle) -> str:
    if bundle.leaf is None:
        return f"key sha256:{bundle.key}"
    try:
        subject = x509.load_der_x509_certificate(bundle.leaf).subject.rfc4514_string()
    except ValueError:
        subject = "a name that cannot be shown"
    return f"certificate sha256:{hashlib.sha256(bundle.leaf).hexdigest()} ({subject[:200]!a})"


def _unknown(who: str, where: str) -> Refused:
    return Refused(
        "provenance.signer_unknown",
        f"the model is signed by somebody who is not trusted: {who}",
        where=where,
        hint="if the signer is to be trusted, name the public key or the root certificate",
    )


def _invalid(why: str, where: str) -> Refused:
    return Refused(
        "provenance.signature_invalid", f"the model's signature does not hold: {why}", where=where
    )


def _differs(what: str, where: str) -> Refused:
    return Refused(
        "provenance.content_differs",
        f"the model is not the one that was signed: {what}",
        where=where,
        hint="get it again from where it was signed, or have it signed anew",
    )
