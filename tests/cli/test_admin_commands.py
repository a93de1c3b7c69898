"""Administration as a person types it: on the broker's directory, and through its port."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sealserve.address import Address
from sealserve.attestation import policy_file
from sealserve.attestation.policy import Policy, Release
from sealserve.broker.admin_service import AdminServer
from sealserve.broker.config import AdminConfig, BrokerConfig
from sealserve.broker.config_file import render
from sealserve.broker.directory import open_broker
from sealserve.logs import make_log
from tests.children import Child
from tests.cli.test_broker_commands import Owner, owner, refusal_of, result_of, sealserve

__all__ = ["owner"]


@dataclass(frozen=True)
class Office:
    """A broker's directory with one secret, its administration port, and people's keys."""

    owner: Owner
    address: str
    keys: Path

    @property
    def root(self) -> Path:
        return self.owner.broker

    def here(self, *arguments: str | Path) -> list[str | Path]:
        return [*arguments, "--broker", self.root]

    def there(self, person: str, *arguments: str | Path) -> list[str | Path]:
        identity = self.root / "broker.json"
        return [
            *arguments, "--admin", self.address, "--identity", self.keys / f"{person}.pem",
            "--broker-identity", identity,
        ]  # fmt: skip


@pytest.fixture
def office(owner: Owner, tmp_path: Path) -> Iterator[Office]:
    result_of(*owner.put())
    keys = tmp_path / "keys"
    keys.mkdir()
    for person, role in (("alice", "admin"), ("bob", "admin"), ("eve", "auditor")):
        made = result_of("broker", "admin-identity", person, "-o", keys)
        added = result_of(
            "broker", "principal", "add", person, "--certificate", keys / f"{person}.crt",
            "--role", role, "--broker", owner.broker,
        )  # fmt: skip
        assert added["spki_sha256"] == made["spki_sha256"]
    chosen = BrokerConfig(admin=AdminConfig(two_person=("destroy", "loosen")))
    (owner.broker / "broker.yaml").write_bytes(render(chosen))
    with open_broker(owner.broker) as opened:
        server = AdminServer(opened, Address("127.0.0.1", 0), make_log(io.StringIO()))
        server.start()
        yield Office(owner, str(server.address), keys)
        server.stop()


def _looser(office: Office, tmp_path: Path) -> Path:
    known = policy_file.load(office.owner.policy)
    registers = dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2"), "11" * 48)
    path = tmp_path / "looser.yaml"
    more = Release(label="r2", **registers)
    path.write_text(policy_file.dump(Policy(releases=(*known.releases, more))))
    return path


VIEWS = [
    ("secret", "list"), ("secret", "show", "models/demo"), ("resource", "list"),
    ("resource", "show", "models/demo"), ("lease", "list"), ("proposal", "list"),
    ("broker", "principal", "list"), ("audit", "show", "--last", "2"),
]  # fmt: skip


@pytest.mark.parametrize("command", VIEWS)
def test_a_view_is_the_same_here_and_there(office: Office, command: tuple[str, ...]) -> None:
    here = result_of(*office.here(*command))
    assert result_of(*office.there("eve", *command)) == here
    said = sealserve(*office.there("eve", *command))
    assert said.returncode == 0
    assert said.stdout.strip()


def test_the_status_is_the_same_here_and_there(office: Office) -> None:
    here = result_of("broker", "status", office.root)
    there = result_of(*office.there("eve", "broker", "status"))
    for status in (here, there):
        assert status["audit"]["checked"].pop("time")
    assert there == here
    assert "1 live" in sealserve(*office.there("eve", "broker", "status")).stdout


def test_a_secret_is_put_through_the_port(office: Office) -> None:
    given = office.owner
    put = office.there(
        "alice", "secret", "put", "models/demo", "--sealed-key", given.sealed_key,
        "--record", given.record, "--owner-pub", given.owner_pub, "--policy", given.policy,
        "--replace",
    )  # fmt: skip
    assert result_of(*put)["secret_version"] == 2
    assert "version 3, opens volume 'models'" in sealserve(*put).stdout
    eve = [*put[: put.index("--identity")], "--identity", office.keys / "eve.pem"]
    eve += ["--broker-identity", office.root / "broker.json"]
    assert refusal_of(*eve) == (3, "admin.role_insufficient")


def test_one_version_through_its_states(office: Office) -> None:
    def state(verb: str) -> dict[str, Any]:
        return result_of(*office.there("alice", "secret", verb, "models/demo", "--version", "1"))

    assert [state(verb)["state"] for verb in ("disable", "enable", "retire")] == [
        "disabled", "live", "retired",
    ]  # fmt: skip
    again = office.here("secret", "enable", "models/demo", "--version", "1")
    assert refusal_of(*again) == (3, "secret.state_forbids")


def test_a_looser_policy_waits_for_a_second_person(office: Office, tmp_path: Path) -> None:
    looser = _looser(office, tmp_path)
    dry = office.there("eve", "policy", "set", "models/demo", looser, "--dry-run")
    said = sealserve(*dry).stdout
    assert "!! loosened   releases" in said
    assert "nothing changed" in said
    proposed = sealserve(*office.there("alice", "policy", "set", "models/demo", looser, "--json"))
    assert proposed.returncode == 1
    proposal = json.loads(proposed.stdout)["proposal"]
    assert "r2" in " ".join(proposal["summary"])
    listed = sealserve(*office.here("proposal", "list")).stdout
    assert f"{proposal['id']}  open  policy.set  by alice" in listed
    approve = ("proposal", "approve", proposal["id"])
    assert refusal_of(*office.there("alice", *approve)) == (3, "proposal.own")
    assert result_of(*office.there("bob", *approve))["loosened"] is True
    shown = result_of(*office.there("eve", "resource", "show", "models/demo"))
    assert shown["policy"] == looser.read_text()


def test_the_local_command_line_waits_as_well(office: Office) -> None:
    destroy = office.here("secret", "destroy", "models/demo", "--version", "1", "--yes")
    done = sealserve(*destroy)
    assert done.returncode == 1
    assert "NOT DONE YET: needs a second person (destroy)" in done.stdout
    (proposal,) = result_of(*office.here("proposal", "list"))["proposals"]
    assert proposal["proposer"].startswith("local:")
    own = office.here("proposal", "approve", proposal["id"])
    assert refusal_of(*own) == (3, "proposal.own")
    withdrawn = sealserve(*office.there("bob", "proposal", "withdraw", proposal["id"]))
    assert withdrawn.stdout.strip() == f"{proposal['id']}: withdrawn"


def test_an_auditor_exports_and_verifies_from_afar(office: Office, tmp_path: Path) -> None:
    export = tmp_path / "audit.jsonl"
    wrote = result_of(*office.there("eve", "audit", "export", export))
    identity = office.root / "broker.json"
    offline = result_of("audit", "verify", "--export", export, "--identity", identity)
    assert (offline["lines"], offline["head"]) == (wrote["lines"], wrote["head"])
    head = f"{wrote['lines']}:{wrote['head']}"
    verify = office.there("eve", "audit", "verify", "--expect-head", head)
    assert result_of(*verify)["whole"] is True
    wrong = office.there("eve", "audit", "verify", "--expect-head", "1:" + "0" * 64)
    assert refusal_of(*wrong) == (3, "audit.head_differs")
    tail = sealserve(*office.there("eve", "audit", "tail", "--last", "1", "--json"))
    assert tail.stdout.strip() == export.read_text().splitlines()[-3]
    assert "secret.put" in sealserve(*office.here("audit", "tail")).stdout


def test_a_tail_that_follows_prints_what_comes(office: Office) -> None:
    command = [sys.executable, "-m", "sealserve", "audit", "tail", "--follow", "--json"]
    command += ["--last", "1", "--broker", str(office.root)]
    with Child(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        first = json.loads(following.stdout.readline())
        disable = office.here("secret", "disable", "models/demo", "--version", "1")
        result_of(*disable)
        second = json.loads(following.stdout.readline())
        following.terminate()
        assert following.wait(20) == 128 + 15
    assert second["sequence"] == first["sequence"] + 1
    assert (second["event"], second["principal"][:6]) == ("secret.disable", "local:")


def test_principals_come_and_go(office: Office) -> None:
    remove = office.there("alice", "broker", "principal", "remove")
    assert result_of(*remove[:3], "eve", *remove[3:])["removed"] is True
    views = refusal_of(*office.there("eve", "secret", "list"))
    assert views[0] in (3, 4)  # refused by the handshake, or by the next call
    assert sealserve(*remove[:3], "bob", *remove[3:]).returncode == 1  # an admin: a proposal


def test_a_key_is_never_overwritten_and_the_identity_is_looked_for_beside_it(
    office: Office,
) -> None:
    again = ("broker", "admin-identity", "alice", "-o", office.keys)
    assert refusal_of(*again) == (2, "file.exists")
    assert refusal_of("broker", "admin-identity", "A B") == (2, "principal.name_invalid")
    assert (office.keys / "alice.pem").stat().st_mode & 0o777 == 0o600
    short = ("secret", "list", "--admin", office.address, "--identity", office.keys / "alice.pem")
    assert refusal_of(*short) == (4, "file.unreadable")
    (office.keys / "broker.json").write_bytes((office.root / "broker.json").read_bytes())
    assert result_of(*short) == result_of(*office.here("secret", "list"))


BAD = {
    "secret.unknown": ("secret", "show", "models/none"),
    "resource.name_invalid": ("secret", "disable", "A", "--version", "1"),
    "secret.state_forbids": ("secret", "enable", "models/demo", "--version", "1"),
    "resource.unknown": ("resource", "show", "models/none"),
    "lease.id_invalid": ("lease", "revoke", "x"),
    "lease.unknown": ("lease", "revoke", "0" * 32),
    "proposal.unknown": ("proposal", "approve", "x"),
    "principal.unknown": ("broker", "principal", "remove", "nobody"),
    "file.unreadable": ("policy", "set", "models/demo", "/nonexistent"),
}
MORE_BAD = [
    ("resource.name_invalid", ("resource", "show", "A")),
    ("resource.name_invalid", ("resource", "remove", "A")),
    ("resource.name_invalid", ("lease", "list", "--resource", "A")),
    ("proposal.unknown", ("proposal", "withdraw", "x")),
    ("secret.unknown", ("secret", "retire", "models/demo", "--version", "9")),
    ("secret.unknown", ("secret", "destroy", "models/demo", "--version", "9", "--yes")),
]


def test_bad_input_has_the_same_code_here_and_there(office: Office) -> None:
    for code, command in [*BAD.items(), *MORE_BAD]:
        for spoken in (office.here(*command), office.there("alice", *command)):
            status, found = refusal_of(*spoken)
            assert (found, status in (2, 3, 4)) == (code, True), command


def test_bad_input_for_a_principal(office: Office, tmp_path: Path) -> None:
    def add(name: str, certificate: Path, role: str = "admin") -> list[str | Path]:
        command = ["broker", "principal", "add", name, "--certificate", certificate]
        return office.here(*command, "--role", role)

    good = office.keys / "alice.crt"
    assert refusal_of(*add("x", tmp_path / "absent")) == (4, "file.unreadable")
    assert refusal_of(*add("x", office.owner.policy)) == (2, "principal.certificate_unsuitable")
    assert refusal_of(*add("X", good)) == (2, "principal.name_invalid")
    assert refusal_of(*add("x", good, "god")) == (2, "principal.role_unknown")
    assert refusal_of(*add("x", good, "auditor")) == (3, "principal.key_known")


COMMANDS = [
    *(("secret", verb) for verb in ("put", "list", "show", "disable", "enable", "retire",
                                    "destroy")),
    ("resource", "list"), ("resource", "show"), ("resource", "remove"), ("policy", "set"),
    ("lease", "list"), ("lease", "revoke"), ("proposal", "list"), ("proposal", "approve"),
    ("proposal", "withdraw"), ("audit", "show"), ("audit", "tail"), ("audit", "verify"),
    ("audit", "export"), ("broker", "status"), ("broker", "admin-identity"),
    ("broker", "principal", "add"), ("broker", "principal", "list"),
    ("broker", "principal", "remove"),
]  # fmt: skip
_ARGUMENTS = {
    "show": ["models/demo"], "disable": ["m", "--version", "1"], "enable": ["m", "--version", "1"],
    "retire": ["m", "--version", "1"], "destroy": ["m", "--version", "1", "--yes"], "remove": ["m"],
    "revoke": ["x"], "approve": ["x"], "withdraw": ["x"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_has_an_example_and_json(command: tuple[str, ...]) -> None:
    text = " ".join(sealserve(*command, "--help").stdout.split())
    assert "Example:" in text
    assert f"sealserve {' '.join(command)}" in text
    assert "--json" in text


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[-1] in (*_ARGUMENTS, "list", "tail")])
def test_a_command_without_a_broker_says_what_to_name(command: tuple[str, ...]) -> None:
    arguments = [] if command == ("audit", "show") else _ARGUMENTS.get(command[-1], [])
    assert refusal_of(*command, *arguments) == (2, "admin.which_broker")


def test_both_ways_at_once_are_refused(office: Office) -> None:
    both = [*office.there("alice", "secret", "list"), "--broker", office.root]
    assert refusal_of(*both) == (2, "admin.which_broker")
    assert refusal_of("secret", "list", "--admin", office.address) == (2, "admin.which_broker")
    bad = ("secret", "list", "--admin", "nowhere", "--identity", office.keys / "alice.pem")
    assert refusal_of(*bad) == (2, "address.malformed")
