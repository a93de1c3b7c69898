"""The audit log: an append-only chain of lines in the broker's database.

Rules this module keeps (`audit_chain` keeps those about a line itself):

* A line is written once and never again touched; a second table keeps the
  number of lines and the last one's hash, so that a cut-off end shows.
* Lines hold digests, names, codes and reasons; never a secret, never a quote.
* Nothing is signed that was not checked: a checkpoint is made over lines that
  follow the checkpoint before it.

Whoever can write to the database can cut the chain off behind its last checkpoint, or
behind an earlier one together with the later checkpoints. Only a head that was kept
elsewhere shows that.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sealserve.broker.audit_chain import (
    GENESIS,
    START,
    ChainHead,
    canonical,
    describe,
    next_end,
    sha256_of,
)
from sealserve.broker.audit_export import lines_of, require_head, write
from sealserve.broker.checkpoints import CHECKPOINT, END, Signer, Statement
from sealserve.broker.identity import BrokerIdentity
from sealserve.broker.store import Store
from sealserve.broker.tables import AuditCheckpointRow, AuditHeadRow, AuditLineRow
from sealserve.errors import InputError, InternalError, Refused

__all__ = ["GENESIS", "AuditLog", "ChainHead", "append", "describe"]

_HEAD_ID: Final = 1
_BATCH: Final = 1000


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
    line = canonical(
        {
            **entry,
            "sequence": sequence,
            "previous": head.sha256,
            "time": (now or datetime.now(UTC)).isoformat(timespec="milliseconds"),
        }
    )
    digest = sha256_of(line)
    session.add(AuditLineRow(sequence=sequence, line=line, sha256=digest))
    head.count, head.sha256 = sequence, digest
    return ChainHead(sequence, digest)


class AuditLog:
    """Reading, checking and signing the chain of one store.

    Args:
        store: where it stands.
        identity: the broker whose checkpoints are checked with it; none are without it.
    """

    def __init__(self, store: Store, identity: BrokerIdentity | None = None) -> None:
        self._store = store
        self._identity = identity

    def append(self, entry: Mapping[str, Any]) -> ChainHead:
        """Add one line in a transaction of its own; on disk when this returns."""
        with self._store.writing() as session:
            return append(session, entry)

    def lines(self, *, last: int | None = None, until: int | None = None) -> Iterator[str]:
        """The lines, oldest first.

        Args:
            last: only so many, from the end.
            until: the number of the last line; to the end if not given.
        """
        statement = select(AuditLineRow.line).order_by(AuditLineRow.sequence)
        if until is not None:
            statement = statement.where(AuditLineRow.sequence <= until)
        with self._store.reading() as session:
            if last is not None:
                newest = select(AuditLineRow.sequence).order_by(AuditLineRow.sequence.desc())
                chosen = newest.limit(last).subquery()
                statement = statement.where(AuditLineRow.sequence.in_(select(chosen.c.sequence)))
            streamed = session.scalars(statement.execution_options(yield_per=_BATCH))
            with closing(streamed) as lines:
                yield from lines

    def page(self, after: int, *, limit: int) -> list[str]:
        """Some lines from a place on, oldest first.

        Args:
            after: the number of the line before the first.
            limit: at most so many.
        """
        wanted = select(AuditLineRow.line).where(AuditLineRow.sequence > after)
        with self._store.reading() as session:
            return list(session.scalars(wanted.order_by(AuditLineRow.sequence).limit(limit)))

    def end_at(self, sequence: int) -> ChainHead | None:
        """The end that the chain had at this line, as the line's own row states it."""
        with self._store.reading() as session:
            row = session.get(AuditLineRow, sequence)
            return None if row is None else ChainHead(row.sequence, row.sha256)

    def length(self) -> int:
        """The number of the last line: how many there are, if none is missing."""
        with self._store.reading() as session:
            return session.scalar(select(func.max(AuditLineRow.sequence))) or 0

    def verify(self, expect: ChainHead | None = None) -> ChainHead:
        """Check every line, every checkpoint and the end.

        Args:
            expect: a head that this chain is known to have had.

        Returns:
            The end of the chain, now checked.

        Raises:
            Refused: ``audit.line_missing``, ``audit.line_changed``, ``audit.order_broken``,
                ``audit.checkpoint_invalid``, ``audit.checkpoint_mismatch`` or
                ``audit.truncated``, at the first place that is wrong;
                ``audit.head_differs`` against ``expect``.
        """
        end = self.follow(START)
        if expect is not None:
            require_head(end, self.end_at(expect.count) if expect.count else START, expect)
        return end

    def follow(self, after: ChainHead, each: Callable[[str], None] = lambda _: None) -> ChainHead:
        """Check the lines after a known end, and the checkpoints over them.

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
            known = session.get(AuditLineRow, after.count) if after.count else None
            if after.count and (known is None or known.sha256 != after.sha256):
                raise Refused(
                    "audit.line_missing",
                    "this line was there before, and is gone or another now",
                    where=f"line {after.count}",
                    hint="lines were removed or replaced; compare with your last export",
                )
            signed = self._signed_after(session, after.count) if self._identity else {}
            end = after
            with closing(session.execute(ordered.execution_options(yield_per=_BATCH))) as rows:
                for row in rows:
                    end = _checked(row.sequence, row.line, row.sha256, end)
                    mark = signed.pop(end.count, None)
                    if mark is not None:
                        _require_at(mark, end)
                    each(row.line)
        if end != stated or signed:
            cut = max([stated.count, *signed])
            raise Refused(
                "audit.truncated",
                f"the chain ends at line {end.count}, but its head or a checkpoint names"
                f" line {cut}",
                hint="lines are missing at the end, or the head was changed",
            )
        return end

    def checkpoints(self, *, after: int = 0, until: int | None = None) -> list[Statement]:
        """The checkpoints over lines from a place on, oldest first; not checked.

        Args:
            after: the number of a line; only what stands behind it.
            until: the number of the last line.
        """
        with self._store.reading() as session:
            found = self._signed_after(session, after)
        return [mark for count, mark in found.items() if until is None or count <= until]

    def unsigned(self) -> int:
        """How many lines there are after the last checkpoint."""
        with self._store.reading() as session:
            return _head_of(session).count - _last_signed(session).count

    def checkpoint(self, signer: Signer, *, now: datetime | None = None) -> ChainHead:
        """Check what is new since the last checkpoint, and sign where the chain stands.

        Args:
            signer: of this broker.
            now: the statement's time (UTC); the wall clock's if not given.

        Returns:
            The end that a checkpoint stands at now.

        Raises:
            Refused: as `verify`: nothing is signed over a broken chain.
        """
        with self._store.reading() as session:
            before = _last_signed(session)
        end = self.follow(before)
        if end == before:
            return end
        mark = signer.sign(CHECKPOINT, end, now=now)
        with self._store.writing() as session:
            # Whoever holds the head's row is the only one to sign: replicas take turns.
            session.get(AuditHeadRow, _HEAD_ID, with_for_update=True)
            if session.get(AuditCheckpointRow, end.count) is None:
                session.add(
                    AuditCheckpointRow(
                        sequence=mark.count,
                        sha256=mark.sha256,
                        time=mark.time,
                        signature=base64.b64decode(mark.signature),
                    )
                )
        return end

    def export(self, path: Path, signer: Signer) -> ChainHead:
        """Check the chain, sign its end, and write an export (`audit_export`).

        Returns:
            The end of what was written.

        Raises:
            Refused: as `verify`.
            Unavailable: ``file.unwritable``.
        """
        self.verify()
        head = self.checkpoint(signer)
        marks = self.checkpoints(until=head.count)
        write(path, lines_of(self.lines(until=head.count), marks, signer.sign(END, head)))
        return head

    def _signed_after(self, session: Session, after: int) -> dict[int, Statement]:
        rows = session.scalars(
            select(AuditCheckpointRow)
            .where(AuditCheckpointRow.sequence > after)
            .order_by(AuditCheckpointRow.sequence)
        )
        return {row.sequence: self._statement_of(row) for row in rows}

    def _statement_of(self, row: AuditCheckpointRow) -> Statement:
        if self._identity is None:
            raise InternalError("audit.identity_missing", "checkpoints need a broker's identity")
        where = f"checkpoint at line {row.sequence}"
        document = {
            "type": CHECKPOINT,
            "broker": self._identity.spki_sha256.hex(),
            "count": row.sequence,
            "sha256": row.sha256,
            "time": row.time,
            "signature": base64.b64encode(row.signature).decode(),
        }
        try:
            mark = Statement.from_dict(document, where=where)
        except InputError as error:
            raise Refused("audit.checkpoint_invalid", error.message, where=where) from None
        mark.require_signed(self._identity, where=where)
        return mark


def _require_at(mark: Statement, end: ChainHead) -> None:
    if mark.head != end:
        raise Refused(
            "audit.checkpoint_mismatch",
            "the line is not the one that the broker signed",
            where=f"line {end.count}",
            hint="the lines up to here were replaced; compare with your last export",
        )


def _checked(sequence: int, line: str, digest: str, end: ChainHead) -> ChainHead:
    place = f"line {end.count + 1}"
    if sequence != end.count + 1:
        raise Refused(
            "audit.line_missing",
            f"the next line there is has number {sequence}",
            where=place,
            hint="a line was removed; compare with your last export",
        )
    if sha256_of(line) != digest:
        raise Refused(
            "audit.line_changed",
            "the line does not have the hash it was written with",
            where=place,
            hint="the line was changed; compare with your last export",
        )
    return next_end(line, end)


def _head_of(session: Session) -> ChainHead:
    head = session.get(AuditHeadRow, _HEAD_ID)
    if head is None:
        raise Refused(
            "audit.truncated",
            "the chain's head is missing",
            hint="the database was changed; compare with your last export",
        )
    return ChainHead(head.count, head.sha256)


def _last_signed(session: Session) -> ChainHead:
    newest = select(AuditCheckpointRow).order_by(AuditCheckpointRow.sequence.desc()).limit(1)
    row = session.scalar(newest)
    return START if row is None else ChainHead(row.sequence, row.sha256)
