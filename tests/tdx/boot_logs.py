"""Boot event logs for tests: an encoder of our own."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Entry", "acpi_table", "encode", "spec_id"]

NO_ACTION = 3
SHA384 = 0x0C


@dataclass(frozen=True)
class Entry:
    """One entry as the firmware writes it; ``index`` counts from MRTD."""

    index: int
    kind: int
    digest: bytes
    text: bytes = b""

    def encode(self) -> bytes:
        head = struct.pack("<IIIH", self.index, self.kind, 1, SHA384)
        return head + self.digest + struct.pack("<I", len(self.text)) + self.text


def spec_id(
    algorithms: Iterable[tuple[int, int]] = ((SHA384, 48),),
    *,
    name: bytes = b"Spec ID Event03\0",
    vendor: bytes = b"",
) -> bytes:
    """The first event of a log."""
    listed = list(algorithms)
    body = name + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(listed))
    body += b"".join(struct.pack("<HH", *each) for each in listed)
    body += bytes([len(vendor)]) + vendor
    return struct.pack("<II20sI", 1, NO_ACTION, bytes(20), len(body)) + body


def encode(entries: Iterable[Entry], padding: bytes = b"\xff" * 64) -> bytes:
    return spec_id() + b"".join(entry.encode() for entry in entries) + padding


def acpi_table(size: int, *, cc_type: int = 2, signature: bytes = b"CCEL") -> bytes:
    raw = bytearray(
        struct.pack("<4sIBB6s8sI4sI", signature, 56, 1, 0, b"TEST", b"TEST", 1, b"TEST", 1)
        + struct.pack("<BBHQQ", cc_type, 0, 0, size, 0x1000)
    )
    raw[9] = -sum(raw) % 256
    return bytes(raw)
