"""The SGX extension of a PCK certificate, written in DER.

Only what that extension needs. Source: Intel SGX PCK Certificate and
Certificate Revocation List Profile Specification, section 1.3.5.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SGX_EXTENSION_OID", "PckExtension"]

SGX_EXTENSION_OID = "1.2.840.113741.1.13.1"

_BOOLEAN, _INTEGER, _OCTETS, _OID, _ENUMERATED, _SEQUENCE = 1, 2, 4, 6, 10, 0x30


@dataclass(frozen=True, slots=True, kw_only=True)
class PckExtension:
    """What a PCK certificate says about its platform.

    Attributes:
        ppid: processor id, 16 bytes.
        cpu_svn: security version of each of the 16 SGX TCB components.
        pce_svn: security version of the provisioning certification enclave.
        fmspc: platform model, 6 bytes.
        piid: platform instance id, 16 bytes; ``None`` leaves it out, as
            certificates of single-socket platforms do, and the flags with it.
        pce_id: id of the provisioning certification enclave, 2 bytes.
        components: what is stated of each component beside ``cpu_svn``;
            ``None``, as on every real platform, states the same.
        dynamic_platform, cached_keys, smt: platform configuration flags.
    """

    ppid: bytes
    cpu_svn: bytes
    pce_svn: int
    fmspc: bytes
    piid: bytes | None
    pce_id: bytes = bytes(2)
    components: bytes | None = None
    dynamic_platform: bool = True
    cached_keys: bool = True
    smt: bool = True

    def to_der(self) -> bytes:
        """The extension's value."""
        stated = self.cpu_svn if self.components is None else self.components
        components = [
            _entry((2, index), _integer(svn)) for index, svn in enumerate(stated, start=1)
        ]
        tcb = _sequence(
            *components,
            _entry((2, 17), _integer(self.pce_svn)),
            _entry((2, 18), _value(_OCTETS, self.cpu_svn)),
        )
        configuration = _sequence(
            _entry((7, 1), _boolean(self.dynamic_platform)),
            _entry((7, 2), _boolean(self.cached_keys)),
            _entry((7, 3), _boolean(self.smt)),
        )
        scalable = 1  # SGX type of a server platform
        entries = [
            _entry((1,), _value(_OCTETS, self.ppid)),
            _entry((2,), tcb),
            _entry((3,), _value(_OCTETS, self.pce_id)),
            _entry((4,), _value(_OCTETS, self.fmspc)),
            _entry((5,), _value(_ENUMERATED, bytes([scalable]))),
        ]
        if self.piid is not None:
            entries += [_entry((6,), _value(_OCTETS, self.piid)), _entry((7,), configuration)]
        return _sequence(*entries)


def _entry(arcs: tuple[int, ...], value: bytes) -> bytes:
    base = tuple(int(arc) for arc in SGX_EXTENSION_OID.split("."))
    return _sequence(_oid(base + arcs), value)


def _value(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _sequence(*items: bytes) -> bytes:
    return _value(_SEQUENCE, b"".join(items))


def _integer(number: int) -> bytes:
    # One bit more than the number needs, so that the sign stays positive.
    return _value(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _boolean(value: bool) -> bytes:
    return _value(_BOOLEAN, b"\xff" if value else b"\x00")


def _oid(arcs: tuple[int, ...]) -> bytes:
    content = bytearray([40 * arcs[0] + arcs[1]])
    for arc in arcs[2:]:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | (arc & 0x7F))
        content += bytes(reversed(groups))
    return _value(_OID, bytes(content))
