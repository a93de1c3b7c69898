"""`sealserve secret` as a person types it: by a pipe, rotated, imported, destroyed."""

from __future__ import annotations

import json
import os
import pty
from pathlib import Path

import pytest

from sealserve.broker.directory import open_broker
from tests.cli.test_broker_commands import Owner, refusal_of, result_of, sealserve
from tests.cli.test_broker_commands import owner as owner  # the fixture

PLANTED = b"PLANTED \x00\xff\n"


def pipe_with(content: bytes) -> str:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return str(reading)


def _put(owner: Owner, secret: bytes = PLANTED, *options: str) -> list[str | Path]:
    return [
        "secret", "put", "secrets/db", "--broker", owner.broker, "--policy", owner.policy,
        "--secret-fd", pipe_with(secret), *options,
    ]  # fmt: skip


def _kept(root: Path, version: int = 1, name: str = "secrets/db") -> bytes:
    with open_broker(root) as broker:
        return broker.store.secret(name, version, broker.kek)


def test_any_bytes_come_by_a_pipe_and_two_versions_live(owner: Owner) -> None:
    done = result_of(*_put(owner, PLANTED, "--kind", "passphrase", "--expires", "2999-01-31"))
    assert (done["kind"], done["secret_version"], done["volume"]) == ("passphrase", 1, None)
    assert _kept(owner.broker) == PLANTED
    next_one = (
        "secret", "rotate", "secrets/db", "--broker", owner.broker,
        "--secret-fd", pipe_with(b"next"), "--retire-after", "3600",
    )  # fmt: skip
    assert result_of(*next_one)["version_before"] == 1
    assert (_kept(owner.broker, 1), _kept(owner.broker, 2)) == (PLANTED, b"next")
    shown = result_of("secret", "show", "secrets/db", "--broker", owner.broker)["versions"]
    assert [(v["state"], v["kind"]) for v in shown] == [("live", "passphrase")] * 2
    assert shown[0]["expires"] < "2999"
    for path in owner.broker.iterdir():
        assert b"PLANTED" not in path.read_bytes()


def test_a_secret_is_read_from_no_terminal_and_no_bad_place(owner: Owner, tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    given = ("secret", "put", "s", "--broker", owner.broker, "--policy", owner.policy)
    assert refusal_of(*given, "--secret-fd", str(terminal)) == (2, "secret.from_terminal")
    os.close(main)
    os.close(terminal)
    assert refusal_of(*given, "--secret-fd", "77") == (4, "secret.fd_unreadable")
    assert refusal_of(*given) == (2, "secret.which_source")
    assert refusal_of(*given, "--secret-fd", pipe_with(b"")) == (2, "deposit.key_size")
    assert refusal_of(*given, "--secret-fd", pipe_with(bytes(5000))) == (2, "deposit.key_size")
    half = ("--secret-fd", pipe_with(b"s"), "--record", owner.record)
    assert refusal_of(*given, *half) == (2, "secret.record_incomplete")
    nowhere = ("secret", "put", "s", "--policy", owner.policy, "--secret-fd", pipe_with(b"s"))
    assert refusal_of(*nowhere) == (2, "admin.which_broker")
    unknown = ("secret", "rotate", "none", "--broker", owner.broker, "--secret-fd", pipe_with(b"s"))
    assert refusal_of(*unknown) == (3, "resource.unknown")


def test_destroying_has_to_be_said_twice(owner: Owner) -> None:
    result_of(*_put(owner))
    destroy = ("secret", "destroy", "secrets/db", "--version", "1", "--broker", owner.broker)
    assert refusal_of(*destroy) == (2, "secret.destroy_unconfirmed")
    assert _kept(owner.broker) == PLANTED
    assert result_of(*destroy, "--yes")["state"] == "destroyed"


def test_the_originals_file_is_taken_over(owner: Owner, tmp_path: Path) -> None:
    file = tmp_path / "secret.json"
    file.write_text(json.dumps({"hb_password": "PLANTED geheim ß", "image": "two"}))
    given = ("secret", "import", file, "--policy", owner.policy, "--broker", owner.broker)
    done = result_of(*given, "--prefix", "legacy/")
    assert done == {"imported": ["legacy/hb_password", "legacy/image"], "left": []}
    assert _kept(owner.broker, 1, "legacy/hb_password") == "PLANTED geheim ß".encode()
    file.write_text(json.dumps({"hb_password": "other", "third": "three"}))
    done = result_of(*given, "--prefix", "legacy/")
    assert done == {"imported": ["legacy/third"], "left": ["legacy/hb_password"]}
    assert _kept(owner.broker, 1, "legacy/hb_password") == "PLANTED geheim ß".encode()
    assert "now delete" in sealserve(*given).stdout
    listed = result_of("secret", "list", "--broker", owner.broker)["secrets"]
    assert {s["kind"] for s in listed} == {"passphrase"}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "secret.import_malformed"),
        (b"[]", "secret.import_malformed"),
        (b"{}", "secret.import_malformed"),
        (b'{"a": "PLANTED", "a": "2"}', "secret.import_malformed"),
        (b'{"a": 7}', "secret.import_malformed"),
        (b'{"a": ""}', "secret.import_malformed"),
        (b'{"a": "\\ud800"}', "secret.import_malformed"),
        (b'{"a": "' + b"x" * 5000 + b'"}', "secret.import_malformed"),
        (b'{"a": "ok", "Bad Name": "PLANTED"}', "resource.name_invalid"),
        (b"[" * 50_000, "secret.import_malformed"),
        (b"\xff", "secret.import_malformed"),
    ],
)
def test_a_bad_file_imports_nothing(
    owner: Owner, tmp_path: Path, content: bytes, code: str
) -> None:
    file = tmp_path / "secret.json"
    file.write_bytes(content)
    given = ("secret", "import", file, "--policy", owner.policy, "--broker", owner.broker)
    assert refusal_of(*given) == (2, code)
    assert "PLANTED" not in sealserve(*given).stderr
    assert result_of("secret", "list", "--broker", owner.broker)["secrets"] == []
