"""Mutants of LUKS2 headers by the thousand: of bytes, text and structure."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 512, 4096, 2**31, 2**32 - 1, 2**63, 2**64, 10**400, 0.5, 1e308,
    float("nan"), "", "0", "1", "-1", "dynamic", "4096", "16777216", "9" * 400, "crypt", "linear",
    "aes-xts-plain64", "cipher_null-ecb", "sha256", "sha1", "luks2", "raw", "none", "A" * 44,
    "\ud800", "\0", "\u0660", [], {}, ["0"], ["1"], [[]], {"0": {}}, {"": None},
    ["online-reencrypt"],
)  # fmt: skip
_PIECES = (
    b"{}", b"[]", b'"0"', b"null", b"true", b"1e9", b"-1", b"9" * 5000, b'":', b"\\ud800",
    b"\\u0000", b"\0", b"\xff", b"\xef\xbb\xbf", b"[" * 3000, b'{"a":' * 2000, b"NaN",
    b"Infinity", b"-0",
    b"/**/",
)  # fmt: skip
_METADATA_SIZES = (0, 1, 4095, 4096, 0x4000, 0x8000, 0x400000, 2**63, 2**64 - 1)


def mutants(area: bytes, metadata_size: int, seed: int) -> Iterator[bytes]:
    """Endlessly many; all are as long as ``area`` or shorter.

    Args:
        area: an accepted header area.
        metadata_size: of its copies.
        seed: the same one gives the same mutants.
    """
    dice = random.Random(seed)
    text = area[4096:metadata_size].rstrip(b"\0")
    while True:
        kind = dice.randrange(10)
        if kind < 5:
            changed = _with_text(area, metadata_size, _other_structure(text, dice))
        elif kind < 8:
            changed = _with_text(area, metadata_size, _other_text(text, dice))
        elif kind == 8:
            changed = _other_bytes(area, metadata_size, dice)
        else:
            changed = area[: dice.randrange(len(area))]
        yield changed


def _other_structure(text: bytes, dice: random.Random) -> bytes:
    root = json.loads(text)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        parent, name = dice.choice(list(_places(root)) or [(root, "segments")])
        match dice.randrange(5):
            case 0:
                del parent[name]
            case 1 if isinstance(parent, dict):
                parent[dice.choice(("x", "0", "1", "flags", "type", "priority"))] = parent.pop(name)
            case 2 if isinstance(parent, dict):
                other = dice.choice(("1", "flags", "integrity", "requirements", "surprise"))
                parent[other] = copy.deepcopy(dice.choice((parent[name], dice.choice(_ODD))))
            case 3 if isinstance(parent[name], int):
                parent[name] += dice.choice((-1, 1, 2**31, -(2**31)))
            case _:
                parent[name] = copy.deepcopy(dice.choice(_ODD))
    return json.dumps(root, ensure_ascii=True).encode()


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(pairs):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _other_text(text: bytes, dice: random.Random) -> bytes:
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(len(text) + 1)
        cut = dice.choice((0, 1, 1, 8, 60, len(text)))
        put = dice.choice((dice.randbytes(dice.randrange(9)), dice.choice(_PIECES)))
        text = text[:at] + put + text[at + cut :]
    if dice.randrange(20) == 0:
        text = text * dice.choice((2, 50, 3000))
    return text


def _with_text(area: bytes, size: int, text: bytes) -> bytes:
    changed = bytearray(area)
    padded = text[: size - 4096].ljust(size - 4096, b"\0")
    for at in (0, size):
        changed[at + 4096 : at + size] = padded
        _renew(changed, at, size)
    return bytes(changed)


def _other_bytes(area: bytes, size: int, dice: random.Random) -> bytes:
    changed = bytearray(area)
    if dice.randrange(4) == 0:
        for at in (0, size):
            changed[at + 8 : at + 16] = struct.pack(">Q", dice.choice(_METADATA_SIZES))
    for _ in range(dice.randrange(4)):
        where = dice.choice((dice.randrange(512), dice.randrange(4096), dice.randrange(size)))
        put = dice.randbytes(dice.randrange(1, 9))
        for at in (0, size) if dice.randrange(2) else (dice.choice((0, size)),):
            changed[at + where : at + where + len(put)] = put
    if dice.randrange(4):
        for at in (0, size):
            _renew(changed, at, size)
    return bytes(changed[: len(area)])


def _renew(area: bytearray, at: int, size: int) -> None:
    area[at + 448 : at + 512] = bytes(64)
    area[at + 448 : at + 480] = hashlib.sha256(area[at : at + size]).digest()
