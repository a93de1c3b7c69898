"""The audit chain as such: lines, their hashes, where a chain ends. No database.

Rules this module keeps:

* A line is canonical JSON (sorted keys, no spaces, ASCII). It holds its own
  number and the SHA-256 of the line before it; the first one holds 64 zeros.
* What is checked is the text of a line, byte for byte as it was hashed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sealserve.errors import InputError, Refused

__all__ = ["GENESIS", "START", "ChainHead", "canonical", "describe", "next_end", "sha256_of"]

GENESIS: Final = "0" * 64
"""What the first line names as the hash of the line before it."""

_HEAD = re.compile(r"([0-9]{1,15}):([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ChainHead:
    """Where a chain ends: the number of its lines and the last one's SHA-256 (hex)."""

    count: int
    sha256: str

    @classmethod
    def parse(cls, text: str, *, where: str) -> ChainHead:
        """Read what `__str__` wrote.

        Args:
            text: ``COUNT:SHA256``.
            where: the option it came from, for the error.

        Raises:
            InputError: ``audit.head_malformed``.
        """
        parts = _HEAD.fullmatch(text)
        if parts is None:
            raise InputError(
                "audit.head_malformed",
                f"{text[:80]!r} is no head of a chain",
                where=where,
                hint="give COUNT:SHA256, as `sealserve audit verify` prints it",
            )
        return cls(int(parts[1]), parts[2])

    def __str__(self) -> str:
        return f"{self.count}:{self.sha256}"


START: Final = ChainHead(0, GENESIS)
"""The end of a chain without lines."""


def canonical(entry: Mapping[str, Any]) -> str:
    """The one text of a JSON object that is hashed or signed."""
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def sha256_of(line: str) -> str:
    """The SHA-256 of a line, hex."""
    return hashlib.sha256(line.encode()).hexdigest()


def next_end(line: str, end: ChainHead) -> ChainHead:
    """Check that a line follows an end.

    Args:
        line: the next line's text.
        end: of the lines before it.

    Returns:
        The end with this line.

    Raises:
        Refused: ``audit.order_broken``.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if (
        not isinstance(entry, dict)
        or entry.get("sequence") != end.count + 1
        or entry.get("previous") != end.sha256
    ):
        raise Refused(
            "audit.order_broken",
            "the line does not follow the one before it",
            where=f"line {end.count + 1}",
            hint="one of the two was changed, or lines were removed, swapped or replaced;"
            " compare with your last export",
        )
    return ChainHead(end.count + 1, sha256_of(line))


def describe(entry: Mapping[str, Any]) -> str:
    """One line of the log, parsed, as text for people."""
    subject = entry.get("resource") or entry.get("subject") or entry.get("lease") or ""
    what = entry.get("verdict") or entry.get("action") or ""
    head = f"{entry['time']}  {entry['event']}  {what}  {subject}"
    simulated = "  SIMULATION" if "SIMULATION" in entry.get("anchor", "") else ""
    by = f"  by {entry['principal']}" if "principal" in entry else ""
    by += f", approved by {entry['approver']}" if "approver" in entry else ""
    origin = f"  from {entry['peer']}" if "peer" in entry else ""
    details = []
    for reason in entry.get("reasons", ()):
        if "expected" in reason:
            why = f"expected {reason['expected']}, found {reason['actual']}"
        else:
            why = reason.get("message", "")
        details.append(f"\n    {reason['code']}: {why}")
    return " ".join(f"{head}{by}{origin}{simulated}".split()) + "".join(details)
