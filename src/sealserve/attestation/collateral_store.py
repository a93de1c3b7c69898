"""A directory of collateral, one file for each platform model, that never goes back.

Rules this module keeps:

* Nothing is kept that is not Intel's (or the simulation anchor's), not yet or
  no longer valid, or older than what is here: a lower evaluation number or an
  earlier issue of any part is refused, because whoever can replay old
  collateral can hide a revocation or a known hole.
* A PCK certificate chain that comes along is left out: it is of one machine,
  and what is kept serves all of a model.
* A file is replaced whole, by rename, under a lock that all processes take.
  Each file is plain collateral, so that whoever takes a collateral file can be
  pointed at one.
* A bundle carries signed statements only, so it needs no trust: importing asks
  the same questions as fetching. All of a bundle is kept, or nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from sealserve.attestation.anchor import Anchor
from sealserve.attestation.collateral import Collateral, require_current
from sealserve.attestation.collateral_check import check_signatures
from sealserve.errors import InputError, Refused, SealserveError, Unavailable
from sealserve.files import write_atomically

__all__ = [
    "MAX_BUNDLE_BYTES",
    "CollateralStore",
    "collateral_at",
    "decode_bundle",
    "encode_bundle",
    "nothing_stored",
    "platform_model",
    "require_not_older",
    "stored_names",
]

MAX_BUNDLE_BYTES: Final = 64 << 20
_MAX_ENTRIES: Final = 256
_FORMAT: Final = "sealserve collateral bundle 1"
_NAME: Final = re.compile(r"([0-9a-f]{12})\.(platform|processor)\.json")


class CollateralStore:
    """Collateral by platform model (FMSPC) and certificate authority.

    Args:
        directory: made at the first :meth:`put`.
        anchor: whose statements are kept.
    """

    def __init__(self, directory: Path, anchor: Anchor) -> None:
        self._directory = directory
        self._anchor = anchor

    def path(self, fmspc: str, ca: str = "platform") -> Path:
        """Where the collateral of a platform model stands."""
        return self._directory / f"{fmspc}.{ca}.json"

    def get(self, fmspc: str, ca: str = "platform") -> Collateral:
        """The collateral of a platform model. It may have expired.

        Raises:
            Unavailable: ``collateral.not_stored``, ``file.unreadable``.
            InputError: ``collateral.malformed`` naming the file.
        """
        path = self.path(fmspc, ca)
        if not path.exists():
            raise Unavailable(
                "collateral.not_stored",
                f"no collateral for platform model {fmspc} ({ca} CA)",
                where=str(self._directory),
                hint=f"`sealserve collateral fetch --fmspc {fmspc} --ca {ca}` gets it",
            )
        return _load(path)

    def entries(self) -> tuple[Collateral, ...]:
        """All that is here, by platform model.

        Raises:
            InputError, Unavailable: as :meth:`get`.
        """
        return tuple(_load(self._directory / name) for name in stored_names(self._directory))

    def put(self, *collateral: Collateral, now: datetime) -> tuple[Path, ...]:
        """Keep collateral; all of it, or none if anything is refused.

        Args:
            collateral: as it was read.
            now: the time, with a time zone.

        Returns:
            The file of each.

        Raises:
            Refused: ``collateral.rollback``, ``collateral.expired``,
                ``collateral.not_yet_valid``, and as
                :func:`~sealserve.attestation.collateral_check.check_signatures`.
            InputError: ``collateral.malformed``, ``collateral.store_full``.
            Unavailable: ``collateral.store_unusable``, ``file.unwritable``.
        """
        for each in collateral:
            with _naming(f"platform model {each.fmspc}"):
                require_current(each, now)
                check_signatures(each, self._anchor)
        with self._locked():
            held = {(c.fmspc, c.ca): c for c in self.entries()}
            for each in collateral:
                for (fmspc, _), old in held.items():
                    if fmspc == each.fmspc:
                        require_not_older(each, old, same_ca=each.ca == old.ca)
                held[each.fmspc, each.ca] = each
            if len(held) > _MAX_ENTRIES:
                raise InputError(
                    "collateral.store_full",
                    f"the store holds {_MAX_ENTRIES} platform models at most",
                    where=str(self._directory),
                )
            for each in collateral:
                path = self.path(each.fmspc, each.ca)
                write_atomically(path, each.for_any_machine().to_json())
        return tuple(self.path(each.fmspc, each.ca) for each in collateral)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, so that comparing and replacing are one step."""
        try:
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            lock = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(self._directory, error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def stored_names(directory: Path) -> list[str]:
    """The names of the collateral files in a store: ``FMSPC.CA.json``.

    Raises:
        Unavailable: ``collateral.store_unusable``.
    """
    try:
        return sorted(path.name for path in directory.iterdir() if _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unusable(directory, error) from None


def collateral_at(path: Path) -> tuple[Collateral, ...]:
    """The collateral in a file, or all of a store's.

    Raises:
        Unavailable: ``collateral.not_stored``: nothing is there; ``file.unreadable``.
        InputError: ``collateral.malformed``, ``file.too_large``.
    """
    if not path.is_dir():
        return (Collateral.load(path),)
    names = stored_names(path)
    if not names:
        raise nothing_stored(path)
    return tuple(_load(path / name) for name in names)


def nothing_stored(directory: Path) -> Unavailable:
    """The error for a store that is empty."""
    return Unavailable(
        "collateral.not_stored",
        "this directory holds no collateral",
        where=str(directory),
        hint=f"`sealserve collateral fetch --quote QUOTE --store {directory}` gets it",
    )


def require_not_older(new: Collateral, old: Collateral, *, same_ca: bool = True) -> None:
    """Refuse to go back behind what was known already.

    Args:
        new: what is offered.
        old: what is held for the same platform model.
        same_ca: whether the PCK CRLs of the two can be compared.

    Raises:
        Refused: ``collateral.rollback``.
    """
    for part, offered, held in (
        ("TCB info", new.evaluation_number, old.evaluation_number),
        ("QE identity", new.qe_evaluation_number, old.qe_evaluation_number),
    ):
        if offered < held:
            raise _rollback(new, f"the {part}'s evaluation number {offered} is below {held}")
    for part, issued in new.issued.items():
        if issued < old.issued[part] and (same_ca or part != "pck_crl"):
            raise _rollback(
                new,
                f"{part} was issued {issued.isoformat()}, before {old.issued[part].isoformat()}",
            )


def platform_model(text: str) -> str:
    """An FMSPC as people write it: 12 hexadecimal digits, in lower case.

    Raises:
        InputError: ``collateral.fmspc_malformed``.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{12}", text):
        raise InputError(
            "collateral.fmspc_malformed",
            f"{text[:40]!r} is not an FMSPC",
            hint="it has 12 hexadecimal digits; `sealserve collateral fetch --quote` reads it "
            "from a quote",
        )
    return text.lower()


def encode_bundle(collateral: Sequence[Collateral]) -> bytes:
    """Collateral of several platform models as one file."""
    document = {"format": _FORMAT, "collateral": [dict(each.parts) for each in collateral]}
    return json.dumps(document, indent=1).encode() + b"\n"


def decode_bundle(raw: bytes) -> tuple[Collateral, ...]:
    """Read a bundle, or the one collateral in a file of its own; nothing is verified.

    Raises:
        InputError: ``collateral.bundle_malformed``, ``collateral.malformed``.
    """
    if len(raw) > MAX_BUNDLE_BYTES:
        raise InputError(
            "collateral.bundle_malformed", f"a bundle has at most {MAX_BUNDLE_BYTES} bytes"
        )
    try:
        document = json.loads(raw)
        if isinstance(document, dict) and "tcb_info" in document:
            return (Collateral.from_json(raw),)
        entries = document["collateral"]
        if document["format"] != _FORMAT or not isinstance(entries, list):
            raise ValueError("another format")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            "collateral.bundle_malformed",
            "this is not a bundle of collateral",
            hint="`sealserve collateral export` writes one",
        ) from None
    if len(entries) > _MAX_ENTRIES:
        raise InputError(
            "collateral.bundle_malformed", f"a bundle holds {_MAX_ENTRIES} platform models at most"
        )
    return tuple(Collateral.from_json(json.dumps(entry).encode()) for entry in entries)


def _load(path: Path) -> Collateral:
    with _naming(str(path)):
        return Collateral.load(path)


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Say in an error which of several things it is about."""
    try:
        yield
    except SealserveError as error:
        error.where = where if error.where in (None, where) else f"{where}: {error.where}"
        raise


def _rollback(new: Collateral, reason: str) -> Refused:
    return Refused(
        "collateral.rollback",
        f"this is older than what is held: {reason}",
        where=f"platform model {new.fmspc}",
        hint="ask a source that is up to date; what is held stays in force",
    )


def _unusable(directory: Path, error: OSError) -> Unavailable:
    return Unavailable(
        "collateral.store_unusable", f"cannot be used: {error.strerror}", where=str(directory)
    )
