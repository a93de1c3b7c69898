"""The audit log: an append-only chain of lines in the broker's database.

Rules this module keeps:

* A line is canonical JSON (sorted keys, no spaces, ASCII). It holds its own
  number and the SHA-256 of the line before it; the first one holds 64 zeros.
* A line is written once and never again touched; a second table keeps the
  number of lines and the last one's hash, so that a cut-off end shows.
* Lines hold digests, names, codes and reasons; never a secret, never a quote.

Whoever can rewrite the whole database can also rewrite the chain and its head:
against that, export the head regularly to where that person cannot reach.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sealserve.broker.store import Store
from sealserve.broker.tables import AuditHeadRow, AuditLineRow
from sealserve.errors import InternalError, Refused
from sealserve.files import atomic_file

__all__ = ["GENESIS", "AuditLog", "ChainHead", "append", "describe"]

GENESIS: Final = "0" * 64
"""What the first line names as the hash of the line before it."""

_HEAD_ID: Final = 1
_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class ChainHead:
    """Where a chain ends: the number of its lines and the last one's SHA-256 (hex)."""

    count: int
    sha256: str


def append(session: Session, entry: Mapping[str, Any], *, now: datetime | None = None) -> ChainHead:
    """Add one line, as a part of the caller's transaction.

    Args:
        session: from `Store.writing`; the line is durable when that block ends.
        entry: what happened, as JSON values. ``sequence``, ``previous`` and ``time``
            are added here.
        now: the line's time (UTC); the wall clock's if not given.

    Returns:
        The new end of the chain.
    """
    # FOR UPDATE is for databases with concurrent writers; SQLite has one, and ignores it.
    head = session.get(AuditHeadRow, _HEAD_ID, with_for_update=True)
    if head is None:
        raise InternalError("audit.head_missing", "the audit chain's head row is missing")
    sequence = head.count + 1
    line = _canonical(
        {
            **entry,
            "sequence": sequence,
            "previous": head.sha256,
            "time": (now or datetime.now(UTC)).isoformat(timespec="milliseconds"),
        }
    )
    digest = _sha256(line)
    session.add(AuditLineRow(sequence=sequence, line=line, sha256=digest))
    head.count, head.sha256 = sequence, digest
    return ChainHead(sequence, digest)


class AuditLog:
    """Reading and checking the chain of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def append(self, entry: Mapping[str, Any]) -> ChainHead:
        """Add one line in a transaction of its own; on disk when this returns."""
        with self._store.writing() as session:
            return append(session, entry)

    def lines(self, *, last: int | None = None) -> Iterator[str]:
        """The lines, oldest first.

        Args:
            last: only so many, from the end.
        """
        statement = select(AuditLineRow.line).order_by(AuditLineRow.sequence)
        with self._store.reading() as session:
            if last is not None:
                newest = select(AuditLineRow.sequence).order_by(AuditLineRow.sequence.desc())
                chosen = newest.limit(last).subquery()
                statement = statement.where(AuditLineRow.sequence.in_(select(chosen.c.sequence)))
            yield from session.scalars(statement.execution_options(yield_per=_BATCH))

    def end_at(self, sequence: int) -> ChainHead | None:
        """The end that the chain had at this line, as the line's own row states it."""
        with self._store.reading() as session:
            row = session.get(AuditLineRow, sequence)
            return None if row is None else ChainHead(row.sequence, row.sha256)

    def length(self) -> int:
        """How many lines there are."""
        with self._store.reading() as session:
            return session.scalar(select(func.count()).select_from(AuditLineRow)) or 0

    def export(self, path: Path) -> int:
        """Write all lines to a file, one JSON object a line, whole or not at all.

        Returns:
            How many lines were written.

        Raises:
            Unavailable: ``file.unwritable``.
        """
        count = 0
        hint = "give a file in a directory that exists and has space"
        with atomic_file(path, mode=0o600, hint=hint) as file:
            for line in self.lines():
                file.write(line.encode() + b"\n")
                count += 1
        return count

    def verify(self) -> ChainHead:
        """Check every line and the end.

        Returns:
            The end of the chain, now checked.

        Raises:
            Refused: ``audit.line_missing``, ``audit.line_changed``, ``audit.order_broken``
                or ``audit.truncated``, at the first line that is wrong.
        """
        return self.follow(ChainHead(0, GENESIS))

    def follow(self, after: ChainHead, each: Callable[[str], None] = lambda _: None) -> ChainHead:
        """Check the lines after a known end.

        Args:
            after: an end that this chain had before.
            each: is handed each line in turn, once it is checked.

        Returns:
            The end of the chain now.

        Raises:
            Refused: as `verify`.
        """
        statement = select(AuditLineRow.sequence, AuditLineRow.line, AuditLineRow.sha256)
        newer = statement.where(AuditLineRow.sequence > after.count)
        ordered = newer.order_by(AuditLineRow.sequence)
        # One session is one snapshot: a line appended meanwhile is in neither or both.
        with self._store.reading() as session:
            stated = _head_of(session)
            rows = session.execute(ordered.execution_options(yield_per=_BATCH))
            known = session.get(AuditLineRow, after.count) if after.count else None
            if after.count and (known is None or known.sha256 != after.sha256):
                raise Refused(
                    "audit.line_missing",
                    "this line was there before, and is gone or another now",
                    where=f"line {after.count}",
                    hint="lines were removed or replaced; compare with your last export",
                )
            found = _check(((row.sequence, row.line, row.sha256) for row in rows), after, each)
        if found != stated:
            raise Refused(
                "audit.truncated",
                f"the chain ends at line {found.count}, but its head names line {stated.count}",
                hint="lines are missing at the end, or the head was changed",
            )
        return found


def describe(entry: Mapping[str, Any]) -> str:
    """One line of the log, parsed, as text for people."""
    subject = entry.get("resource", "(no resource)")
    head = f"{entry['time']}  {entry['event']}  {entry.get('verdict', '')}  {subject}"
    simulated = "  SIMULATION" if "SIMULATION" in entry.get("anchor", "") else ""
    origin = f"  from {entry['peer']}" if "peer" in entry else ""
    details = []
    for reason in entry.get("reasons", ()):
        if "expected" in reason:
            why = f"expected {reason['expected']}, found {reason['actual']}"
        else:
            why = reason.get("message", "")
        details.append(f"\n    {reason['code']}: {why}")
    return " ".join(f"{head}{origin}{simulated}".split()) + "".join(details)


def _check(
    rows: Iterable[tuple[int, str, str]], after: ChainHead, each: Callable[[str], None]
) -> ChainHead:
    end = after
    for sequence, line, digest in rows:
        place = f"line {end.count + 1}"
        if sequence != end.count + 1:
            raise Refused(
                "audit.line_missing",
                f"the next line there is has number {sequence}",
                where=place,
                hint="a line was removed; compare with your last export",
            )
        if _sha256(line) != digest:
            raise Refused(
                "audit.line_changed",
                "the line does not have the hash it was written with",
                where=place,
                hint="the line was changed; compare with your last export",
            )
        if not _follows(line, end):
            raise Refused(
                "audit.order_broken",
                "the line does not follow the one before it",
                where=place,
                hint="lines were removed, swapped or replaced; compare with your last export",
            )
        end = ChainHead(sequence, digest)
        each(line)
    return end


def _follows(line: str, end: ChainHead) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return (
        isinstance(entry, dict)
        and entry.get("sequence") == end.count + 1
        and entry.get("previous") == end.sha256
    )


def _head_of(session: Session) -> ChainHead:
    head = session.get(AuditHeadRow, _HEAD_ID)
    if head is None:
        raise Refused(
            "audit.truncated",
            "the chain's head is missing",
            hint="the database was changed; compare with your last export",
        )
    return ChainHead(head.count, head.sha256)


def _canonical(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _sha256(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()
