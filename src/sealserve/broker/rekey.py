"""Another key-encryption key under everything that a broker keeps.

Rules this module keeps:

* All rows change in one transaction, together with the audit line, or none does.
  What is slow (asking an HSM or Vault for each row) is done before it; rows that
  were written meanwhile are done then, and the transaction is tried again.
* Nothing is committed that the new key was not seen to open.
* Until the transaction is committed the old configuration holds, afterwards the
  new one (`kek_provider.settle`), whenever the process is killed.
* The old key is not touched: backups made under it need it.
* Of the operator's file the lines change that have to. Where that cannot be, the
  file as it was stays beside the new one.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from sealserve.broker import audit, config_file
from sealserve.broker.config import BrokerConfig, KekConfig
from sealserve.broker.config_file import CONFIG_FILE, MAX_CONFIG_BYTES
from sealserve.broker.directory import Broker, open_broker
from sealserve.broker.kek_provider import NEXT_CONFIG, make_kek
from sealserve.broker.keys import KeyEncryptionKey, not_usable
from sealserve.broker.tables import BrokerKeyRow, SecretRow
from sealserve.errors import Refused, Unavailable
from sealserve.files import read_limited, sync_path, write_atomically

__all__ = ["Rekeyed", "rekey"]

_OLD_CONFIG: Final = f"{CONFIG_FILE}.old"
_ROUNDS: Final = 5

_Row = BrokerKeyRow | SecretRow
_Place = tuple[str, int, bytes]
"""Name, version and the value as it is wrapped under the old key."""


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """What `rekey` did.

    Attributes:
        before: the id of the key that was left.
        after: the id of the key that holds now.
        values: how many values were wrapped anew.
        kek: the configuration of the new key.
        old_config: where the operator's file is kept, if it had to be written anew.
    """

    before: str
    after: str
    values: int
    kek: KekConfig
    old_config: Path | None = None


def rekey(root: Path, provider: str, settings: Sequence[str] = ()) -> Rekeyed:
    """Wrap everything under another key-encryption key.

    Args:
        root: the broker's directory; a broker may be serving from it.
        provider: ``file`` makes a new key file beside the old one; ``pkcs11`` and
            ``vault`` take a key that is there.
        settings: ``NAME=VALUE`` for fields of the section ``kek``.

    Raises:
        InputError: ``broker.config_invalid``.
        Refused: ``kek.same_key``, ``kek.*``.
        Unavailable: ``kek.*``, ``store.*``, ``file.unwritable``.
    """
    with open_broker(root) as broker:
        written = _written(root)
        chosen = _chosen(root, config_file.parse(written), provider, settings)
        revised = config_file.revise(written, chosen)
        old = None if revised is not None else root / _OLD_CONFIG
        (root / NEXT_CONFIG).unlink(missing_ok=True)  # of a rekey that came to nothing
        made = root / chosen.kek.file if chosen.kek.provider == "file" else None
        new = make_kek(chosen.kek, root)
        try:
            before = broker.kek.id
            if new.id == before:
                raise Refused("kek.same_key", "this is the key that the broker has already")
            if old is not None:
                write_atomically(old, written)
            write_atomically(root / NEXT_CONFIG, revised or config_file.render(chosen))
            values = _rewrap(broker, before, new)
        except BaseException:
            # If the database does not say which key holds, both have to stay.
            with suppress(Unavailable):
                if broker.store.kek_id() != new.id:
                    (root / NEXT_CONFIG).unlink(missing_ok=True)
                    if old is not None:
                        old.unlink(missing_ok=True)
                    if made is not None:
                        made.unlink()
            raise
        finally:
            new.close()
        (root / NEXT_CONFIG).replace(root / CONFIG_FILE)
        sync_path(root)
    return Rekeyed(before, new.id, values, chosen.kek, old)


def _written(root: Path) -> bytes:
    """What stands in the file now, not what was true when the broker was opened."""
    path = root / CONFIG_FILE
    return read_limited(path, MAX_CONFIG_BYTES) if path.exists() else b""


def _chosen(root: Path, now: BrokerConfig, provider: str, settings: Sequence[str]) -> BrokerConfig:
    if provider == "file" and not settings:
        settings = (f"file=kek-{secrets.token_hex(4)}",)
    chosen = config_file.with_kek(now, provider, settings, where="--kek")
    if chosen.kek.provider == "file" and (root / chosen.kek.file).exists():
        raise Refused(
            "kek.file_exists",
            "there is a file of this name already",
            where=str(root / chosen.kek.file),
            hint="name another with --kek-set file=NAME; old keys are kept for old backups",
        )
    return chosen


def _rewrap(broker: Broker, before: str, new: KeyEncryptionKey) -> int:
    prepared: dict[_Place, bytes] = {}
    for _ in range(_ROUNDS):
        with broker.store.reading() as session:
            found = [_place(row) for row in _rows(session)]
        for place in found:
            if place not in prepared:
                prepared[place] = _under(new, broker.kek, place)
        with broker.store.writing() as session:
            rows = _rows(session, lock=True)
            if any(row.kek_id != before for row in rows):
                raise Unavailable(
                    "kek.changed",
                    "another `rekey` has changed the key meanwhile",
                    hint="look at `sealserve audit show`, and run it again if need be",
                )
            if all(_place(row) in prepared for row in rows):
                for row in rows:
                    row.wrapped, row.kek_id = prepared[_place(row)], new.id
                audit.append(
                    session,
                    {
                        "event": "broker.rekey",
                        "kek_before": before,
                        "kek_after": new.id,
                        "values": len(rows),
                    },
                )
                return len(rows)
    raise Unavailable(
        "kek.rows_changing",
        "secrets are being put faster than they can be wrapped anew",
        hint="run it again in a quiet hour; nothing was changed",
    )


def _rows(session: Session, *, lock: bool = False) -> list[_Row]:
    keys = select(BrokerKeyRow).order_by(BrokerKeyRow.name)
    kept = select(SecretRow).where(SecretRow.wrapped.is_not(None))
    kept = kept.order_by(SecretRow.id, SecretRow.version)
    if lock:
        keys, kept = keys.with_for_update(), kept.with_for_update()
    return [*session.scalars(keys), *session.scalars(kept)]


def _place(row: _Row) -> _Place:
    name = row.name if isinstance(row, BrokerKeyRow) else row.id
    return name, row.version, row.wrapped or b""


def _under(new: KeyEncryptionKey, old: KeyEncryptionKey, place: _Place) -> bytes:
    name, version, wrapped = place
    value = old.unwrap(wrapped, name=name, version=version)
    again = new.wrap(value, name=name, version=version)
    if not hmac.compare_digest(new.unwrap(again, name=name, version=version), value):
        raise not_usable()
    return again
