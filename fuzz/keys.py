"""What comes from outside to the broker's keys and secrets: Vault's answers, files taken over."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fuzz.administration import broken_promise
from sealserve.broker import backup as backups
from sealserve.broker.kek_vault import VaultWrapper
from sealserve.broker.keys import DATA_KEY_BYTES, NotOpened
from sealserve.broker.legacy import parse_secrets
from sealserve.broker.protocol import MAX_SECRET_BYTES, resource_name
from sealserve.errors import Refused
from sealserve.https import Answer

__all__ = [
    "backup",
    "backup_seeds",
    "legacy_secrets",
    "legacy_secrets_seeds",
    "vault_answer",
    "vault_answer_seeds",
]

_VAULT = VaultWrapper("http://127.0.0.1:1", "transit", "k", Path("absent"))


def vault_answer(data: bytes) -> None:
    """Two bytes of status, then the body; what is accepted is a data key."""
    answer = Answer(int.from_bytes(data[:2], "big"), {}, data[2:])
    try:
        key = _VAULT._key_of(_VAULT._data("decrypt", answer))
    except NotOpened:
        raise Refused("kek.unwrap_failed", "Vault says no") from None
    _hold(len(key) == DATA_KEY_BYTES)


def vault_answer_seeds() -> Sequence[bytes]:
    good = {"data": {"plaintext": "A" * 43 + "="}, "warnings": None}
    sealed = {"errors": ["Vault is sealed"]}
    return [
        (200).to_bytes(2, "big") + json.dumps(good).encode(),
        *(
            status.to_bytes(2, "big") + json.dumps(sealed).encode()
            for status in (400, 403, 404, 429, 503)
        ),
    ]


def legacy_secrets(data: bytes) -> None:
    """What is accepted has names that guests can ask for, and fits into the store."""
    for name, secret in parse_secrets(data, "secret.json").items():
        _hold(resource_name(name) == name)
        _hold(1 <= len(secret) <= MAX_SECRET_BYTES)


def legacy_secrets_seeds() -> Sequence[bytes]:
    return [json.dumps({"hb_password": "x", "image/2": "\u00df"}).encode(), b'{"a": "b"}']


def backup(data: bytes) -> None:
    """What is accepted has exactly the parts that its manifest states."""
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place) / "scratch"
        scratch.mkdir()
        file = Path(place) / "backup"
        file.write_bytes(data)
        manifest = backups._unpack(file, scratch)
        for name, part in manifest.files.items():
            content = (scratch / name).read_bytes()
            _hold(hashlib.sha256(content).hexdigest() == part.sha256)
        there = sorted(each.name for each in scratch.iterdir())
        _hold(there == sorted(["manifest.json", *manifest.files]))


def backup_seeds() -> Sequence[bytes]:
    parts = {"broker.json": b"{}", "broker.yaml": b"", "broker.db": b"SQLite"}
    files = {
        name: {"size": len(part), "sha256": hashlib.sha256(part).hexdigest()}
        for name, part in parts.items()
    }
    manifest = {
        "broker": "0" * 64, "name": "acme", "created": "2026-11-26T12:00:00+00:00",
        "kek_id": "file:0", "audit_count": 1, "audit_sha256": "0" * 64, "files": files,
    }  # fmt: skip
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, part in {"manifest.json": json.dumps(manifest).encode(), **parts}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(part)
            archive.addfile(entry, io.BytesIO(part))
    return [stream.getvalue()[:5120]]


def _hold(promise: bool) -> None:
    if not promise:
        raise broken_promise()
