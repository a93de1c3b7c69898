"""An export of the audit chain: a file that is checked with the broker's public identity alone.

One JSON object a line: the chain's lines as they were hashed, after each line that the
broker signed ``{"checkpoint": ...}``, and last ``{"end": ...}``, its signature that the
export ends there.

Rules this module keeps:

* Any changed, removed, reordered or inserted line is found, and so is a cut-off end:
  the file must end with the signed end of its last line.
* What cannot be found from one file alone: that an *older* export of the same broker,
  whole as it was, stands in its place. For that the reader names a head that he has
  seen before (`require_head`), or an earlier export.
* The file is read line by line; a line has a limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sealserve.broker.audit_chain import START, ChainHead, canonical, next_end
from sealserve.broker.checkpoints import CHECKPOINT, END, Statement
from sealserve.broker.identity import BrokerIdentity
from sealserve.errors import InputError, Refused, Unavailable
from sealserve.files import atomic_file

__all__ = ["MAX_LINE_BYTES", "Checked", "check", "lines_of", "require_head", "verify_file", "write"]

MAX_LINE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found whole.

    Attributes:
        head: where the chain ends.
        checkpoints: how many stand in it.
        signed: the broker's word on where it ends.
        earlier: the end that the chain had at the line which was asked for.
    """

    head: ChainHead
    checkpoints: int
    signed: Statement
    earlier: ChainHead | None

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "whole": True,
            "lines": self.head.count,
            "head": self.head.sha256,
            "checkpoints": self.checkpoints,
            "signed": self.signed.time,
        }


def write(path: Path, parts: Iterable[str]) -> None:
    """Write an export, whole or not at all, mode 0600.

    Args:
        path: the file; one that is there is replaced.
        parts: its lines, from `lines_of`.

    Raises:
        Unavailable: ``file.unwritable``.
    """
    hint = "give a file in a directory that exists and has space"
    with atomic_file(path, mode=0o600, hint=hint) as file:
        for part in parts:
            file.write(part.encode() + b"\n")


def lines_of(lines: Iterable[str], marks: Iterable[Statement], end: Statement) -> Iterator[str]:
    """The lines of an export.

    Args:
        lines: of the chain, from the first on.
        marks: its checkpoints, oldest first.
        end: the signed end at the last line.
    """
    waiting = {mark.count: mark for mark in marks}
    for number, line in enumerate(lines, 1):
        yield line
        if number in waiting:
            yield canonical({"checkpoint": waiting[number].to_dict()})
    yield canonical({"end": end.to_dict()})


def verify_file(
    path: Path, identity: BrokerIdentity, *, expect: ChainHead | None = None
) -> Checked:
    """Check an export, with nothing but the broker's public document.

    Args:
        path: the export.
        identity: the broker that must have signed it.
        expect: a head that this chain is known to have had.

    Raises:
        Refused: as `check`; ``audit.head_differs``, ``audit.truncated`` against ``expect``.
        InputError: ``audit.export_malformed``, ``audit.checkpoint_malformed``.
        Unavailable: ``file.unreadable``.
    """
    try:
        with path.open("rb") as file:
            checked = check(_pieces(file, str(path)), identity, at=expect.count if expect else None)
    except OSError as error:
        raise Unavailable(
            "file.unreadable", f"cannot read: {error.strerror}", where=str(path)
        ) from None
    if expect is not None:
        require_head(checked.head, checked.earlier, expect)
    return checked


def check(lines: Iterable[str], identity: BrokerIdentity, *, at: int | None = None) -> Checked:
    """Check the lines of an export.

    Args:
        lines: of the file, without their ends.
        identity: the broker that must have signed.
        at: a line's number; the end that the chain had there is told.

    Raises:
        Refused: ``audit.order_broken``, ``audit.checkpoint_invalid``,
            ``audit.checkpoint_mismatch``, ``audit.truncated``.
        InputError: ``audit.checkpoint_malformed``.
    """
    end, marks, last = START, 0, None
    earlier = START if at == 0 else None
    for number, text in enumerate(lines, 1):
        if last is not None:
            raise Refused(
                "audit.order_broken",
                "something follows the end of the export",
                where=f"line {number} of the file",
            )
        statement, kind = _statement_in(text, f"line {number} of the file")
        if statement is None:
            end = next_end(text, end)
            earlier = end if end.count == at else earlier
            continue
        statement.require_signed(identity, where=f"line {number} of the file")
        if statement.head != end or statement.type != kind:
            raise Refused(
                "audit.checkpoint_mismatch",
                f"the broker signed other lines: its statement names line {statement.count}",
                where=f"line {number} of the file",
                hint="lines were changed, removed or added before this place",
            )
        if kind == END:
            last = statement
        else:
            marks += 1
    if last is None:
        raise Refused(
            "audit.truncated",
            f"the export does not end with the broker's signed end, but at line {end.count}",
            hint="its end was cut off; make the export anew",
        )
    return Checked(end, marks, last, earlier)


def require_head(found: ChainHead, there: ChainHead | None, expected: ChainHead) -> None:
    """Hold a chain that was checked to a head that it is known to have had.

    Args:
        found: its end.
        there: the end that it had at the expected line; ``None`` if it is shorter.
        expected: the head that was kept.

    Raises:
        Refused: ``audit.truncated``, ``audit.head_differs``.
    """
    if there is None:
        raise Refused(
            "audit.truncated",
            f"the chain ends at line {found.count}, but had {expected.count} lines before",
            hint="lines are missing at the end: this is an older state of the log",
        )
    if there != expected:
        raise Refused(
            "audit.head_differs",
            "the line is another than the one you know",
            where=f"line {expected.count}",
            hint="the lines up to here were replaced, or the head is of another broker",
        )


def _statement_in(text: str, where: str) -> tuple[Statement | None, str]:
    if not text.startswith(('{"checkpoint":', '{"end":')):
        return None, ""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = {}
    match document:
        case {"checkpoint": value, **rest} if not rest:
            return Statement.from_dict(value, where=where), CHECKPOINT
        case {"end": value, **rest} if not rest:
            return Statement.from_dict(value, where=where), END
    raise InputError("audit.checkpoint_malformed", "no checkpoint of an audit chain", where=where)


def _pieces(file: Any, where: str) -> Iterator[str]:
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        place = f"{where}: line {number}"
        if not raw.endswith(b"\n"):
            if len(raw) > MAX_LINE_BYTES:
                raise InputError(
                    "audit.export_malformed", f"more than {MAX_LINE_BYTES} bytes", where=place
                )
            raise Refused("audit.truncated", "the last line is cut off", where=place)
        try:
            yield raw[:-1].decode("ascii")
        except UnicodeDecodeError:
            raise InputError("audit.export_malformed", "is not ASCII", where=place) from None
