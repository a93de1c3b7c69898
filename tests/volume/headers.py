"""A maker of hostile LUKS2 headers: whatever an attacker can write, with valid checksums."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

COPY = 0x4000


def metadata(area: bytes) -> dict[str, Any]:
    """The JSON of the primary copy."""
    return json.loads(area[4096:COPY].rstrip(b"\0"))


def with_text(area: bytes, text: bytes, *, copies: tuple[int, ...] = (0, COPY)) -> bytes:
    """The area with another JSON text, checksums renewed."""
    changed = bytearray(area)
    for at in copies:
        changed[at + 4096 : at + COPY] = text.ljust(COPY - 4096, b"\0")
        renew_checksum(changed, at)
    return bytes(changed)


def with_metadata(area: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """The area with edited JSON."""
    root = metadata(area)
    edit(root)
    return with_text(area, json.dumps(root).encode())


def with_binary(area: bytes, offset: int, value: bytes, *, both: bool = True) -> bytes:
    """The area with other bytes in its binary headers."""
    changed = bytearray(area)
    for at in (0, COPY) if both else (0,):
        changed[at + offset : at + offset + len(value)] = value
        renew_checksum(changed, at)
    return bytes(changed)


def renew_checksum(area: bytearray, at: int) -> None:
    area[at + 448 : at + 512] = bytes(64)
    size = struct.unpack(">Q", area[at + 8 : at + 16])[0]
    area[at + 448 : at + 480] = hashlib.sha256(area[at : at + min(size, COPY)]).digest()


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    *parents, last = path.split("/")

    def edit(root: dict[str, Any]) -> None:
        for part in parents:
            root = root[part]
        root[last] = value

    return edit


def _drop(path: str) -> Callable[[dict[str, Any]], None]:
    *parents, last = path.split("/")

    def edit(root: dict[str, Any]) -> None:
        for part in parents:
            root = root[part]
        del root[last]

    return edit


_ARGON2_BOMB = {
    "type": "argon2id",
    "time": 2**32 - 1,
    "memory": 4 * 1024 * 1024,
    "cpus": 4,
    "salt": "A" * 43 + "=",
}

EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    # the attacks of CVE-2025-59054 and their neighbours
    "null keyslot cipher": _set("keyslots/0/area/encryption", "cipher_null-ecb"),
    "null segment cipher": _set("segments/0/encryption", "cipher_null-ecb"),
    "null kernel cipher": _set("segments/0/encryption", "capi:ecb(cipher_null)-plain"),
    "other segment cipher": _set("segments/0/encryption", "aes-cbc-essiv:sha256"),
    "iv_tweak": _set("segments/0/iv_tweak", "8"),
    "segment offset": _set("segments/0/offset", "16781312"),
    "segment size": _set("segments/0/size", "4096"),
    "sector size": _set("segments/0/sector_size", 512),
    "sector size as text": _set("segments/0/sector_size", "4096"),
    "segment flags": _set("segments/0/flags", ["in-reencryption"]),
    "linear segment": _set("segments/0/type", "linear"),
    "integrity": _set("segments/0/integrity", {"type": "none"}),
    "two segments": lambda root: root["segments"].update({"1": root["segments"]["0"]}),
    "segment renamed": lambda root: root.update(segments={"1": root["segments"]["0"]}),
    "no segment": _set("segments", {}),
    "requirements": _set("config/requirements", {"mandatory": ["online-reencrypt"]}),
    "config flags": _set("config/flags", ["allow-discards"]),
    "json size": _set("config/json_size", "4096"),
    "keyslots size": _set("config/keyslots_size", "4096"),
    "token": _set("tokens", {"0": {"type": "luks2-keyring", "keyslots": ["0"]}}),
    "argon2 bomb": _set("keyslots/0/kdf", _ARGON2_BOMB),
    "argon2 time": _set("keyslots/0/kdf", {**_ARGON2_BOMB, "memory": 65536}),
    "argon2 memory": _set("keyslots/0/kdf", {**_ARGON2_BOMB, "time": 4}),
    "argon2 without memory": _set("keyslots/0/kdf", {**_ARGON2_BOMB, "time": 4, "memory": 0}),
    "argon2i": _set("keyslots/0/kdf/type", "argon2i"),
    "pbkdf2 bomb": _set("keyslots/0/kdf/iterations", 2**31),
    "weak pbkdf2": _set("keyslots/0/kdf/iterations", 1),
    "negative pbkdf2": _set("keyslots/0/kdf/iterations", -1000),
    "boolean pbkdf2": _set("keyslots/0/kdf/iterations", True),
    "kdf hash": _set("keyslots/0/kdf/hash", "sha1"),
    "short salt": _set("keyslots/0/kdf/salt", "AAAA"),
    "salt not base64": _set("keyslots/0/kdf/salt", "*" * 44),
    "salt not text": _set("keyslots/0/kdf/salt", 7),
    "kdf missing": _drop("keyslots/0/kdf"),
    "kdf null": _set("keyslots/0/kdf", None),
    "two keyslots": lambda root: root["keyslots"].update({"1": root["keyslots"]["0"]}),
    "keyslot priority": _set("keyslots/0/priority", 2),
    "keyslot key size": _set("keyslots/0/key_size", 32),
    "keyslot type": _set("keyslots/0/type", "reencrypt"),
    "area offset": _set("keyslots/0/area/offset", "0"),
    "area size": _set("keyslots/0/area/size", "18446744073709551615"),
    "area type": _set("keyslots/0/area/type", "none"),
    "stripes": _set("keyslots/0/af/stripes", 1),
    "stripe hash": _set("keyslots/0/af/hash", "md5"),
    "digest bomb": _set("digests/0/iterations", 2**31),
    "weak digest": _set("digests/0/iterations", 1),
    "digest hash": _set("digests/0/hash", "sha1"),
    "short digest": _set("digests/0/digest", "AAAA"),
    "digest segments": _set("digests/0/segments", []),
    "digest keyslots": _set("digests/0/keyslots", ["0", "1"]),
    "two digests": lambda root: root["digests"].update({"1": root["digests"]["0"]}),
    "unknown part": _set("surprise", {}),
    "part missing": _drop("tokens"),
    "part of another kind": _set("keyslots", []),
}

CRAFTED: dict[str, Callable[[bytes], bytes]] = (
    {
        name: (lambda area, edit=edit: with_metadata(area, edit))  # type: ignore[misc]
        for name, edit in EDITS.items()
    }
    | {
        "no magic": lambda area: with_binary(area, 0, b"XXXX"),
        "LUKS1": lambda area: with_binary(area, 6, b"\0\1"),
        "metadata size": lambda area: with_binary(area, 8, struct.pack(">Q", 0x8000)),
        "endless metadata size": lambda area: with_binary(area, 8, b"\xff" * 8),
        "label": lambda area: with_binary(area, 24, b"evil"),
        "checksum algorithm": lambda area: with_binary(area, 72, b"md5\0\0\0"),
        "another uuid": lambda area: with_binary(area, 168, b"99999999"),
        "subsystem": lambda area: with_binary(area, 208, b"evil"),
        "header offset": lambda area: with_binary(area, 256, b"\xff" * 8),
        "padding": lambda area: with_binary(area, 300, b"x"),
        "tail": lambda area: with_binary(area, 4000, b"x"),
        "primary only": lambda area: area[:COPY] + bytes(COPY) + area[2 * COPY :],
        "secondary only": lambda area: bytes(COPY) + area[COPY:],
        "sequence ids differ": lambda area: with_binary(area, 16, b"\0" * 7 + b"\x63", both=False),
        "checksum": lambda area: area[:448] + b"\xff" + area[449:],
        "newer secondary": lambda area: with_text(
            area, json.dumps(metadata(area) | {"tokens": {"0": {}}}).encode(), copies=(COPY,)
        ),
        "doubled key": lambda area: with_text(
            area, json.dumps(metadata(area)).encode().replace(b"{", b'{"tokens": {}, ', 1)
        ),
        "bytes behind": lambda area: with_text(area, json.dumps(metadata(area)).encode() + b"\0 "),
        "two documents": lambda area: with_text(area, json.dumps(metadata(area)).encode() + b" {}"),
        "fraction": lambda area: with_text(
            area, json.dumps(metadata(area)).encode().replace(b": 4096}", b": 4096.0}")
        ),
        "not a number": lambda area: with_text(
            area, json.dumps(metadata(area)).encode().replace(b": 4096}", b": NaN}")
        ),
        "deep": lambda area: with_text(area, b"[" * 12288),
        "long number": lambda area: with_text(area, b"[" + b"9" * 12000 + b"]"),
        "not text": lambda area: with_text(area, b"\xff\xfe{}"),
        "empty": lambda area: with_text(area, b""),
        "a list": lambda area: with_text(area, b"[]"),
        "cut off": lambda area: area[:-4096],
        "zeros": lambda area: bytes(len(area)),
    }
)
