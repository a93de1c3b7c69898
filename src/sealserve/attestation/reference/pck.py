"""What a PCK certificate says about its platform: Intel's SGX extension, read from DER.

Rules this module keeps:

* Definite lengths in their shortest form only, each value as long as it says,
  each entry once: one meaning for one sequence of bytes.

Source: Intel SGX PCK Certificate and CRL Profile Specification, section 1.3.5;
ITU-T X.690, sections 8 and 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

from cryptography import x509

from sealserve.errors import Refused

__all__ = ["SGX_EXTENSION", "PckPlatform", "read_platform"]

SGX_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")

_BOOLEAN, _INTEGER, _OCTETS, _OID, _ENUMERATED, _SEQUENCE = 1, 2, 4, 6, 10, 0x30
# DER of 1.2.840.113741.1.13.1: entries are named by this and one or two arcs below 128.
_PREFIX: Final = bytes.fromhex("2a864886f84d010d01")

_Entries = dict[tuple[int, ...], tuple[int, bytes]]  # arcs below the prefix -> tag, content


@dataclass(frozen=True, slots=True, kw_only=True)
class PckPlatform:
    """The platform of a PCK certificate.

    Attributes:
        ppid: processor id.
        components: security version of each of the 16 SGX TCB components.
        pce_svn: security version of the provisioning certification enclave.
        pce_id: its id, 2 bytes.
        fmspc: platform model, 6 bytes.
        piid: platform instance id, 16 bytes; ``None`` if absent.
        dynamic_platform, cached_keys, smt: flags; ``None`` if not stated.
    """

    ppid: bytes
    components: tuple[int, ...]
    pce_svn: int
    pce_id: bytes
    fmspc: bytes
    piid: bytes | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt: bool | None


def read_platform(certificate: x509.Certificate) -> PckPlatform:
    """The platform that a PCK certificate is about.

    Raises:
        Refused: ``chain.pck_extension`` if the extension is missing or not as
            specified.
    """
    extensions = (each.value for each in certificate.extensions if each.oid == SGX_EXTENSION)
    extension = next(extensions, None)
    if not isinstance(extension, x509.UnrecognizedExtension):
        _refuse("is missing")
    return _platform(extension.value)


def _platform(raw: bytes) -> PckPlatform:
    tag, content, end = _value(raw, 0)
    if tag != _SEQUENCE or end != len(raw):
        _refuse("is not one sequence")
    entries = _entries(content)
    tcb = _entries(_require(entries, (2,), _SEQUENCE))
    flags = _entries(_require(entries, (7,), _SEQUENCE)) if (7,) in entries else {}
    cpu_svn = _sized(_require(tcb, (2, 18), _OCTETS), 16, "CPUSVN")
    # The specification compares the components; the primary verifier compares
    # CPUSVN. They are equal on every certificate seen, and must be here.
    components = tuple(_integer(_require(tcb, (2, i), _INTEGER)) for i in range(1, 17))
    if components != tuple(cpu_svn):
        _refuse("has TCB components that are not its CPUSVN")
    _require(entries, (5,), _ENUMERATED)
    return PckPlatform(
        ppid=_sized(_require(entries, (1,), _OCTETS), 16, "PPID"),
        components=components,
        pce_svn=_integer(_require(tcb, (2, 17), _INTEGER)),
        pce_id=_sized(_require(entries, (3,), _OCTETS), 2, "PCEID"),
        fmspc=_sized(_require(entries, (4,), _OCTETS), 6, "FMSPC"),
        piid=_sized(_require(entries, (6,), _OCTETS), 16, "PIID") if (6,) in entries else None,
        dynamic_platform=_flag(flags, (7, 1)),
        cached_keys=_flag(flags, (7, 2)),
        smt=_flag(flags, (7, 3)),
    )


def _entries(content: bytes) -> _Entries:
    """A sequence of (name, value) pairs; the names without their common prefix."""
    entries: _Entries = {}
    start = 0
    while start < len(content):
        tag, pair, start = _value(content, start)
        name_tag, name, middle = _value(pair, 0)
        value_tag, value, end = _value(pair, middle)
        arcs = tuple(name.removeprefix(_PREFIX))
        if (tag, name_tag, end) != (_SEQUENCE, _OID, len(pair)) or not name.startswith(_PREFIX):
            _refuse("has an entry that is not a name and a value")
        if not arcs or max(arcs) > 0x7F or arcs in entries:
            _refuse("names an entry twice or not at all")
        entries[arcs] = (value_tag, value)
    return entries


def _require(entries: _Entries, arcs: tuple[int, ...], tag: int) -> bytes:
    found = entries.get(arcs)
    if found is None or found[0] != tag:
        _refuse(f"has no entry {'.'.join(map(str, arcs))} of the right type")
    return found[1]


def _sized(value: bytes, size: int, name: str) -> bytes:
    if len(value) != size:
        _refuse(f"has a {name} of {len(value)} bytes, not {size}")
    return value


def _integer(content: bytes) -> int:
    """A version number: not negative, 16 bits, no superfluous zeros."""
    number = int.from_bytes(content, "big")
    if not content or len(content) != number.bit_length() // 8 + 1 or number > 0xFFFF:
        _refuse("has a version that is not an unsigned 16-bit number")
    return number


def _flag(entries: _Entries, arcs: tuple[int, ...]) -> bool | None:
    if arcs not in entries:
        return None
    content = _require(entries, arcs, _BOOLEAN)
    if content not in (b"\x00", b"\xff"):
        _refuse("has a flag that is neither true nor false")
    return content == b"\xff"


def _value(data: bytes, start: int) -> tuple[int, bytes, int]:
    """Tag, content and end of the value at ``start``."""
    if start + 2 > len(data):
        _refuse("ends too early")
    tag, size, begin = data[start], data[start + 1], start + 2
    if size >= 0x80:
        width = size & 0x7F
        length = data[begin : begin + width]
        size, begin = int.from_bytes(length, "big"), begin + width
        if not 1 <= width <= 2 or len(length) != width or size < 0x80 or length[0] == 0:
            _refuse("has a length that is not in its shortest form")
    if begin + size > len(data):
        _refuse("ends too early")
    return tag, data[begin : begin + size], begin + size


def _refuse(reason: str) -> NoReturn:
    raise Refused(
        "chain.pck_extension", f"the PCK certificate's description of its platform {reason}"
    )
