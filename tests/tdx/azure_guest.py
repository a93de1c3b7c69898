"""A fake Azure guest: a TPM that speaks TPM 2.0 bytes, and the paravisor behind it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

from tests.simulated import platform, report
from tests.vectors import read_vector

__all__ = ["FakeVtpm", "hcl_report", "quote_of", "runtime_of"]

REPORT_INDEX, USER_INDEX = 0x01400001, 0x01400002
OWNER = 0x40000001
JSON_AT = 1236


def runtime_of(raw: bytes) -> bytes:
    """The runtime JSON of a report."""
    (size,) = struct.unpack_from("<I", raw, JSON_AT - 4)
    return raw[JSON_AT : JSON_AT + size]


def hcl_report(user_data: bytes, change: Callable[[bytes], bytes] = bytes) -> bytes:
    """The published report, made anew for other user data; ``change`` edits its JSON."""
    raw = read_vector("trustee/az-tdx-vtpm/hcl-report.bin")
    runtime = runtime_of(raw).replace(b"0" * 128, user_data.hex().upper().encode())
    runtime = change(runtime)
    tdreport = bytearray(raw[32 : 32 + 1024])
    tdreport[128:192] = hashlib.sha256(runtime).digest() + bytes(32)
    header = bytearray(raw[:32])
    struct.pack_into("<I", header, 8, JSON_AT + len(runtime))
    request = struct.pack("<IIIII", 20 + len(runtime), 1, 4, 1, len(runtime))
    return (bytes(header + tdreport) + bytes(160) + request + runtime).ljust(2600, b"\0")


def quote_of(tdreport: bytes) -> bytes:
    """What the metadata service makes of a TDREPORT."""
    return platform().quote(report(report_data=tdreport[128:192]))


class FakeVtpm:
    """Two NV indices, read and written as the TPM library's specification has it.

    Attributes:
        codes: response codes to answer with before anything is done.
        make_report: the paravisor: user data -> report.
        defined: whether the user data index is there.
        commands: codes of the commands it got.
    """

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.make_report: Callable[[bytes], bytes] = hcl_report
        self.defined = True
        self.user_size = 64
        self.has_report = True
        self.user_data = bytes(64)
        self.commands: list[int] = []

    def __call__(self, command: bytes) -> bytes:
        tag, size, code = struct.unpack_from(">HII", command)
        assert size == len(command)
        self.commands.append(code)
        if self.codes:
            refused = self.codes.pop(0)
            if refused:
                return struct.pack(">HII", 0x8001, 10, refused)
        if code == 0x169:
            assert tag == 0x8001
            return self._public(*struct.unpack_from(">I", command, 10))
        assert tag == 0x8002
        (auth,) = struct.unpack_from(">I", command, 10)
        assert auth == OWNER
        at = 14 if code == 0x12A else 18
        assert command[at : at + 13] == bytes.fromhex("00000009400000090000000000")
        return self._run(code, command, command[at + 13 :])

    def _run(self, code: int, command: bytes, parameters: bytes) -> bytes:
        if code == 0x12A:
            assert parameters[:2] == b"\0\0", "an empty authorisation"
            length, index, algorithm, _, policy, size = struct.unpack(">HIHIHH", parameters[2:])
            assert (length, index, algorithm, policy, size) == (14, USER_INDEX, 0x0B, 0, 64)
            if self.defined:
                return struct.pack(">HII", 0x8001, 10, 0x14C)
            self.defined = True
            return self._answer(b"")
        (index,) = struct.unpack_from(">I", command, 14)
        if code == 0x137:
            assert index == USER_INDEX
            assert self.defined
            (length,) = struct.unpack_from(">H", parameters)
            self.user_data = parameters[2 : 2 + length]
            assert parameters[2 + length :] == b"\0\0"
            assert length == 64
            return self._answer(b"")
        assert code == 0x14E
        assert index == REPORT_INDEX
        length, offset = struct.unpack(">HH", parameters)
        part = self.make_report(self.user_data)[offset : offset + length]
        return self._answer(struct.pack(">H", len(part)) + part)

    def _public(self, index: int) -> bytes:
        there = self.has_report if index == REPORT_INDEX else self.defined
        if not there:
            return struct.pack(">HII", 0x8001, 10, 0x18B)
        size = len(self.make_report(self.user_data)) if index == REPORT_INDEX else self.user_size
        public = struct.pack(">IHIHH", index, 0x0B, 0x20002, 0, size)
        body = struct.pack(">H", len(public)) + public + struct.pack(">H", 34) + bytes(34)
        return struct.pack(">HII", 0x8001, 10 + len(body), 0) + body

    def _answer(self, parameters: bytes) -> bytes:
        session = b"\0\0\x01\0\0"
        body = struct.pack(">I", len(parameters)) + parameters + session
        return struct.pack(">HII", 0x8002, 10 + len(body), 0) + body
