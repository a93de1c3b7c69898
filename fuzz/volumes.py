"""Headers of volumes that others made, to be imported."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Sequence

from fuzz.administration import broken_promise
from sealserve.volume.foreign_header import parse_foreign

__all__ = ["foreign_header", "foreign_header_seeds"]

_COPY = 0x4000
_START = 2 * _COPY + 258_048
_UUID = b"11111111-2222-3333-4444-555555555555"
_LUKS2 = b"2"


def foreign_header(data: bytes) -> None:
    """LUKS1 as it is; behind a ``2`` the JSON of LUKS2, to which the rest is made."""
    area = _around(data[1:]) if data[:1] == _LUKS2 else data.ljust(_START, b"\0")
    header = parse_foreign(area)
    inside = 0 < header.size <= header.start <= len(area) and header.start % 512 == 0
    if not (inside and header.unit in (512, 4096) and len(header.uuid) == 36):
        raise broken_promise()


def foreign_header_seeds() -> Sequence[bytes]:
    """One of each version."""
    return [_luks1(), _LUKS2 + json.dumps(_metadata()).encode()]


def _luks1() -> bytes:
    head = struct.pack(
        ">6sH32s32s32sII20s32sI40s", b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256",
        _START // 512, 64, bytes(20), bytes(32), 1000, _UUID,
    )  # fmt: skip
    slots = [struct.pack(">II32sII", 0x00AC71F3, 2000, bytes(32), 8, 4000)]
    slots += [struct.pack(">II32sII", 0x0000DEAD, 0, bytes(32), 512 * n, 4000) for n in range(7)]
    return head + b"".join(slots)


def _metadata() -> dict[str, object]:
    salt = base64.b64encode(bytes(32)).decode()
    return {
        "keyslots": {
            "0": {
                "type": "luks2", "key_size": 64,
                "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
                "area": {
                    "type": "raw", "offset": str(2 * _COPY), "size": "258048",
                    "encryption": "aes-xts-plain64", "key_size": 64,
                },
                "kdf": {"type": "argon2i", "time": 4, "memory": 65536, "cpus": 4, "salt": salt},
            }
        },
        "tokens": {},
        "segments": {
            "0": {
                "type": "crypt", "offset": str(_START), "size": "dynamic", "iv_tweak": "0",
                "encryption": "aes-xts-plain64", "sector_size": 512,
            }
        },
        "digests": {
            "0": {
                "type": "pbkdf2", "keyslots": ["0"], "segments": ["0"], "hash": "sha256",
                "iterations": 1000, "salt": salt, "digest": salt,
            }
        },
        "config": {"json_size": str(_COPY - 4096), "keyslots_size": "258048"},
    }  # fmt: skip


def _around(text: bytes) -> bytes:
    area = bytearray(_START)
    for at, magic in ((0, b"LUKS\xba\xbe"), (_COPY, b"SKUL\xba\xbe")):
        binary = struct.pack(
            ">6sHQQ48s32s64s40s48sQ", magic, 2, _COPY, 3, b"", b"sha256", bytes(64), _UUID, b"", at
        )
        copy = binary.ljust(4096, b"\0") + text[: _COPY - 4096].ljust(_COPY - 4096, b"\0")
        area[at : at + _COPY] = copy
        area[at + 448 : at + 480] = hashlib.sha256(copy).digest()
    return bytes(area)
