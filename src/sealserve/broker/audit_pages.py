"""The audit chain as an administration port gives it: in pages. No database.

Rules this module keeps: what comes is from elsewhere and is not believed: its form
is checked here, its truth by `audit_export` and `audit_chain`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from google.protobuf.message import Message

from sealserve.broker.audit_chain import GENESIS, ChainHead, canonical, next_end
from sealserve.broker.checkpoints import Statement
from sealserve.errors import InputError, Refused
from sealserve.wire.broker.admin import v1_pb2

__all__ = ["export_parts", "newest", "since"]

Perform = Callable[[Message], dict[str, Any]]

_PAGE_LINES: Final = 1000


def newest(perform: Perform, count: int) -> list[str]:
    """The last lines, oldest first.

    Args:
        perform: asks the broker.
        count: how many, from the end.
    """
    first = _page(perform, v1_pb2.AuditReadRequest(limit=min(count, _PAGE_LINES), from_end=True))
    after = max(_number(first, "length") - count, 0)
    lines: list[str] = []
    while True:
        page = _page(perform, v1_pb2.AuditReadRequest(after=after, limit=_PAGE_LINES))
        lines += _lines(page)
        after += len(_lines(page))
        if not _lines(page) or len(lines) >= count:
            return lines[-count:]


def since(perform: Perform, lines: list[str]) -> Iterator[list[str]]:
    """The given lines, then whatever comes after them, page by page, for ever.

    An empty page says that there is nothing new; the reader waits as he likes.

    Args:
        perform: asks the broker.
        lines: the newest ones, from `newest`.

    Raises:
        Refused: ``audit.order_broken``: a line does not follow the one before it.
    """
    end = _before(lines)
    while True:
        for line in lines:
            end = next_end(line, end)
        yield lines
        page = _page(perform, v1_pb2.AuditReadRequest(after=end.count, limit=_PAGE_LINES))
        if _number(page, "length") < end.count:
            raise Refused(
                "audit.truncated",
                f"the chain had {end.count} lines and has {_number(page, 'length')}",
                hint="lines were removed; compare with your last export",
            )
        lines = _lines(page)


def export_parts(perform: Perform) -> Iterator[str]:
    """The lines of an export (`audit_export`), as the broker has them now.

    Raises:
        Refused: ``audit.truncated``: fewer lines come than it signed.
    """
    end = Statement.from_dict(
        perform(v1_pb2.AuditSealRequest()).get("end"), where="the broker's answer"
    )
    after = 0
    while after < end.count:
        page = _page(perform, v1_pb2.AuditReadRequest(after=after, limit=_PAGE_LINES))
        marks = {mark.count: mark for mark in _marks(page)}
        lines = _lines(page)[: end.count - after]
        if not lines:
            raise Refused(
                "audit.truncated", f"the chain ends at line {after}, but line {end.count} is signed"
            )
        for line in lines:
            after += 1
            yield line
            if after in marks:
                yield canonical({"checkpoint": marks[after].to_dict()})
    yield canonical({"end": end.to_dict()})


def _page(perform: Perform, request: Message) -> dict[str, Any]:
    page = perform(request)
    lines = page.get("lines")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise _malformed()
    return page


def _lines(page: dict[str, Any]) -> list[str]:
    lines: list[str] = page["lines"]
    return lines


def _number(page: dict[str, Any], name: str) -> int:
    value = page.get(name)
    if not isinstance(value, int):
        raise _malformed()
    return value


def _marks(page: dict[str, Any]) -> list[Statement]:
    given = page.get("checkpoints")
    if not isinstance(given, list):
        raise _malformed()
    return [Statement.from_dict(each, where="the broker's answer") for each in given]


def _before(lines: list[str]) -> ChainHead:
    """The end that the first line says it follows."""
    if not lines:
        return ChainHead(0, GENESIS)
    try:
        first = json.loads(lines[0])
        return ChainHead(int(first["sequence"]) - 1, str(first["previous"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _malformed() from None


def _malformed() -> InputError:
    return InputError("admin.answer_malformed", "the broker's answer holds no audit lines")
