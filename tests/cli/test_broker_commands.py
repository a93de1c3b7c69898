"""`sealserve broker`, `secret` and `audit`, as a person types them."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sealserve.attestation import policy_file
from sealserve.attestation.policy import Policy, Release
from sealserve.broker.deposit import seal_for
from sealserve.broker.identity import BrokerIdentity
from sealserve.cli import main
from sealserve.simulator.platform import SimulatedPlatform
from sealserve.volume.owner import init_owner, load_owner_key
from sealserve.volume.record import (
    KEY_SIZE,
    HeaderPin,
    VerityParameters,
    VolumeRecord,
    key_id_of,
    sign_record,
)

KEY = bytes(range(KEY_SIZE))


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def sealserve(*arguments: str | Path) -> Done:
    """Run the program's `main` in this process: a process of its own costs a second each."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["sealserve", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
    assert "Traceback" not in err.getvalue()
    assert "internal." not in err.getvalue()
    return Done(int(exited.value.code or 0), out.getvalue(), err.getvalue())


def result_of(*arguments: str | Path) -> dict[str, Any]:
    done = sealserve(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def refusal_of(*arguments: str | Path) -> tuple[int, str]:
    done = sealserve(*arguments, "--json")
    assert done.stdout == ""
    return done.returncode, json.loads(done.stderr)["error"]["code"]


@dataclass(frozen=True)
class Owner:
    """What an owner brings to the broker's operator."""

    broker: Path
    sealed_key: Path
    record: Path
    owner_pub: Path
    policy: Path

    def put(self, **changes: Path) -> list[str | Path]:
        given = {**vars(self), **changes}
        return [
            "secret", "put", "models/demo", "--broker", self.broker,
            "--sealed-key", given["sealed_key"], "--record", given["record"],
            "--owner-pub", given["owner_pub"], "--policy", given["policy"],
        ]  # fmt: skip


def record_for(key: bytes) -> VolumeRecord:
    """A record as `volume create` makes it: a header of 16 MiB, and 8 blocks of data."""
    header = 16 << 20
    return VolumeRecord(
        name="models",
        uuid="0f6ae7b6-2b1c-4a0e-9d3a-6f1b8a7c5d4e",
        version=1,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        data_size=8 * 4096,
        header=HeaderPin(sha256="ab" * 32, size=header),
        segment_offset=header,
        verity=VerityParameters(
            data_blocks=header // 4096 + 8,
            hash_offset=header + 8 * 4096,
            salt="cd" * 32,
            root_hash="ef" * 32,
        ),
        key_id=key_id_of(key),
    )


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    broker = tmp_path / "broker"
    result_of("broker", "init", broker, "--name", "acme", "--host", "127.0.0.1")
    private, public = init_owner(tmp_path / "owner")
    made = Owner(broker, *(tmp_path / name for name in ("key", "record")), public, tmp_path / "p")
    made.sealed_key.write_bytes(seal_for(BrokerIdentity.load(broker / "broker.json"), KEY))
    made.record.write_bytes(sign_record(record_for(KEY), load_owner_key(private)))
    releases = (
        Release(label="r1", **dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2"), "00" * 48)),
    )
    made.policy.write_text(policy_file.dump(Policy(releases=releases)))
    return made


def test_from_an_empty_place_to_a_listed_secret(owner: Owner, tmp_path: Path) -> None:
    stored = result_of(*owner.put())
    assert (stored["resource"], stored["secret_version"], stored["volume"]) == (
        "models/demo", 1, "models",
    )  # fmt: skip
    assert refusal_of(*owner.put()) == (3, "secret.exists")
    assert result_of(*owner.put(), "--replace")["secret_version"] == 2
    listed = result_of("secret", "list", "--broker", owner.broker)["secrets"]
    assert [(s["version"], s["state"]) for s in listed] == [(1, "retired"), (2, "live")]
    status = result_of("broker", "status", owner.broker)
    assert status["secrets"] == {"live": 1, "retired": 1}
    checked = status["audit"].pop("checked")
    assert (checked["first"], checked["last"]) == (1, 3)
    assert status["audit"] == {"lines": 3, "problem": None}
    assert status["leases"] == {"active": 0, "by_resource": {"models/demo": 0}}
    assert status["denials_last_hour"] == 0
    assert [resource["name"] for resource in status["resources"]] == ["models/demo"]
    shown = result_of("audit", "show", "--broker", owner.broker, "--last", "1")["lines"]
    assert [(e["event"], e["resource"], e["secret_version"]) for e in shown] == [
        ("secret.put", "models/demo", 2)
    ]
    assert result_of("audit", "verify", "--broker", owner.broker)["lines"] == 3
    export = tmp_path / "audit.jsonl"
    assert result_of("audit", "export", export, "--broker", owner.broker)["lines"] == 3
    identity = owner.broker / "broker.json"
    offline = ("audit", "verify", "--export", export, "--identity", identity)
    whole = result_of(*offline)
    assert (whole["lines"], whole["checkpoints"]) == (3, 1)
    head = f"{whole['lines']}:{whole['head']}"
    assert result_of(*offline, "--expect-head", head) == whole
    assert result_of("audit", "verify", "--broker", owner.broker, "--expect-head", head)["whole"]
    result_of(*owner.put(), "--replace")
    later = tmp_path / "later.jsonl"
    result_of("audit", "export", later, "--broker", owner.broker)
    forward = ("audit", "verify", "--export", later, "--identity", identity, "--earlier", export)
    backward = ("audit", "verify", "--export", export, "--identity", identity, "--earlier", later)
    assert result_of(*forward)["lines"] == 4
    assert refusal_of(*backward) == (3, "audit.truncated")


def test_what_verify_cannot_be_asked(owner: Owner, tmp_path: Path) -> None:
    cases: dict[str, tuple[str | Path, ...]] = {
        "audit.which_log": (),
        "audit.options_mismatch": ("--export", tmp_path / "e"),
        "audit.head_malformed": ("--broker", owner.broker, "--expect-head", "7"),
    }
    for code, options in cases.items():
        assert refusal_of("audit", "verify", *options) == (2, code)
    both = ("audit", "verify", "--broker", owner.broker, "--export", tmp_path / "e")
    assert refusal_of(*both) == (2, "audit.which_log")
    mixed = ("audit", "verify", "--broker", owner.broker, "--earlier", tmp_path / "e")
    assert refusal_of(*mixed) == (2, "audit.options_mismatch")


def test_the_same_in_sentences(owner: Owner) -> None:
    assert "version 1, opens volume 'models'" in sealserve(*owner.put()).stdout
    assert (
        "models/demo  version 1  live"
        in sealserve("secret", "list", "--broker", owner.broker).stdout
    )
    assert "audit chain: 1 lines, whole" in sealserve("broker", "status", owner.broker).stdout
    assert "secret.put" in sealserve("audit", "show", "--broker", owner.broker).stdout
    assert (
        "the chain is whole: 1 lines"
        in sealserve("audit", "verify", "--broker", owner.broker).stdout
    )


def test_what_does_not_fit_together_is_refused_and_stores_nothing(
    owner: Owner, tmp_path: Path
) -> None:
    identity = BrokerIdentity.load(owner.broker / "broker.json")
    stranger_private, stranger_public = init_owner(tmp_path / "stranger")
    other_key = tmp_path / "other.key"
    other_key.write_bytes(seal_for(identity, bytes(KEY_SIZE)))
    other_broker = tmp_path / "other"
    result_of("broker", "init", other_broker, "--name", "other")
    for_other = tmp_path / "for-other.key"
    for_other.write_bytes(seal_for(BrokerIdentity.load(other_broker / "broker.json"), KEY))
    bad_policy = tmp_path / "bad.yaml"
    bad_policy.write_text("surprise: 1\n")
    large = tmp_path / "large"
    large.write_bytes(bytes(2 << 20))
    cases: dict[tuple[int, str], dict[str, Path]] = {
        (3, "record.signature_invalid"): {"owner_pub": stranger_public},
        (3, "secret.key_mismatch"): {"sealed_key": other_key},
        (3, "sealing.not_opened"): {"sealed_key": for_other},
        (2, "deposit.malformed"): {"sealed_key": bad_policy},
        (2, "policy.malformed"): {"policy": bad_policy},
        (2, "file.too_large"): {"record": large},
        (4, "file.unreadable"): {"sealed_key": tmp_path / "absent"},
        (2, "owner.public_malformed"): {"owner_pub": owner.record},
    }
    for expected, changes in cases.items():
        assert refusal_of(*owner.put(**changes)) == expected
    assert stranger_private.exists()
    assert result_of("secret", "list", "--broker", owner.broker)["secrets"] == []
    # What the broker itself refused stands in its log; what was refused before, nowhere.
    logged = result_of("audit", "show", "--broker", owner.broker)["lines"]
    assert [(line["event"], line["code"]) for line in logged] == [
        ("admin.refused", "secret.key_mismatch"),
        ("admin.refused", "sealing.not_opened"),
        ("admin.refused", "deposit.malformed"),
        ("admin.refused", "policy.malformed"),
    ]


def test_a_broken_chain_shows_in_verify_status_and_export(owner: Owner, tmp_path: Path) -> None:
    result_of(*owner.put())
    with sqlite3.connect(owner.broker / "broker.db") as connection:
        connection.execute("DELETE FROM audit_lines")
    connection.close()
    assert refusal_of("audit", "verify", "--broker", owner.broker) == (3, "audit.truncated")
    export = tmp_path / "audit.jsonl"
    assert refusal_of("audit", "export", export, "--broker", owner.broker)[0] == 3
    assert not export.exists()
    problem = result_of("broker", "status", owner.broker)["audit"]["problem"]
    assert "audit.truncated" in problem


@pytest.mark.parametrize(
    "command",
    [
        ["broker", "status"],
        ["broker", "doctor"],
        ["secret", "list", "--broker"],
        ["audit", "show", "--broker"],
        ["audit", "verify", "--broker"],
    ],
)
def test_a_place_without_a_broker_is_said_so(tmp_path: Path, command: list[str]) -> None:
    assert refusal_of(*command, tmp_path) == (4, "broker.directory_missing")


def test_rekey_says_where_the_new_key_is(owner: Owner) -> None:
    result_of(*owner.put())
    done = result_of("broker", "rekey", owner.broker)
    assert done["values"] == 4
    assert (owner.broker / done["file"]).stat().st_size == 32
    assert result_of("broker", "status", owner.broker)["secrets"]["live"] == 1
    assert "keep the old key" in sealserve("broker", "rekey", owner.broker).stdout
    bad = ("broker", "rekey", owner.broker, "--kek", "tpm")
    assert refusal_of(*bad) == (2, "broker.config_invalid")
    taken = ("broker", "rekey", owner.broker, "--kek-set", "file=kek")
    assert refusal_of(*taken) == (3, "kek.file_exists")
    unready = ("broker", "init", owner.broker.parent / "n", "--name", "n", "--kek", "vault")
    assert refusal_of(*unready) == (2, "broker.config_invalid")


def test_backup_and_restore_name_the_head_and_the_key(owner: Owner, tmp_path: Path) -> None:
    result_of(*owner.put())
    made = result_of("broker", "backup", owner.broker, tmp_path / "b")
    end = result_of("audit", "verify", "--broker", owner.broker)
    assert made["head"] == f"{end['lines']}:{end['head']}"
    again = ("broker", "backup", owner.broker, tmp_path / "b")
    assert refusal_of(*again) == (2, "file.exists")
    given = ("broker", "restore", tmp_path / "b", tmp_path / "r", "--expect-head")
    assert refusal_of(*given, "7") == (2, "audit.head_malformed")
    assert refusal_of(*given, f"9:{'0' * 64}")[0] == 3
    done = result_of(*given, made["head"])
    assert (done["kek"], done["kek_id"]) == (str(tmp_path / "r" / "kek"), made["kek_id"])
    assert refusal_of("broker", "status", tmp_path / "r") == (4, "kek.unreadable")
    (owner.broker / "kek").rename(tmp_path / "r" / "kek")
    assert result_of("broker", "status", tmp_path / "r")["secrets"]["live"] == 1
    told = sealserve("broker", "restore", tmp_path / "b", tmp_path / "s").stdout
    assert "key to put back" in told
    assert refusal_of("broker", "restore", owner.policy, tmp_path / "t") == (2, "backup.malformed")


def test_init_twice_and_a_bad_name(owner: Owner, tmp_path: Path) -> None:
    again = ("broker", "init", owner.broker, "--name", "acme")
    assert refusal_of(*again) == (2, "broker.directory_exists")
    assert refusal_of("broker", "init", tmp_path / "b", "--name", "a/b") == (
        2,
        "broker.name_invalid",
    )


def test_a_readable_kek_is_refused(owner: Owner) -> None:
    (owner.broker / "kek").chmod(0o644)
    assert refusal_of("broker", "status", owner.broker) == (3, "kek.mode_too_wide")


def test_the_doctor_lists_and_its_exit_status_says_what_is_due(
    owner: Owner, tmp_path: Path
) -> None:
    result_of(*owner.put())
    report = result_of("broker", "doctor", owner.broker)
    assert report["due"] == 0
    assert [(f["code"], f["state"]) for f in report["findings"]] == [
        ("certificate.broker_ends", "later"),
        ("collateral.not_examined", "later"),
        ("policy.no_live_measurement", "later"),
    ]
    soon = sealserve("broker", "doctor", owner.broker, "--within", "2000")
    assert soon.returncode == 1
    assert "[certificate.broker_ends]" in soon.stdout
    assert soon.stdout.splitlines()[-1] == "1 finding(s) due"
    platform = SimulatedPlatform.new(datetime.now(UTC))
    collateral = tmp_path / "collateral.json"
    collateral.write_bytes(platform.collateral(datetime.now(UTC)))
    given = ("--collateral", collateral, "--early-collateral", collateral)
    report = result_of("broker", "doctor", owner.broker, *given)
    assert [f["code"] for f in report["findings"]][:4] == ["collateral.ends"] * 4
    (owner.broker / "kek").chmod(0o644)
    sick = sealserve("broker", "doctor", owner.broker, "--json")
    assert sick.returncode == 1
    assert json.loads(sick.stdout)["findings"][0]["code"] == "kek.unusable"


def test_what_the_doctor_cannot_read_is_named(owner: Owner, tmp_path: Path) -> None:
    absent = ("broker", "doctor", owner.broker, "--collateral", tmp_path / "absent")
    assert refusal_of(*absent) == (4, "file.unreadable")
    bad = ("broker", "doctor", owner.broker, "--early-collateral", owner.policy)
    assert refusal_of(*bad) == (2, "collateral.malformed")
