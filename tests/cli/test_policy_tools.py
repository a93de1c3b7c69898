"""The commands `policy schema`, `diff`, `init --add-to`, `explain`, and `attest measure`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from sealserve.attestation import policy_file
from sealserve.attestation.policy import PlatformFlags
from sealserve.cli.measure import measure
from sealserve.errors import SealserveError
from sealserve.guest.measure import events_ahead
from sealserve.simulator.platform import CollateralOptions, SimulatedPlatform
from sealserve.simulator.td import SoftwareTd
from sealserve.tdx.eventlog import RuntimeEvent, decode_log, replay
from sealserve.volume.owner import init_owner, load_owner_key
from sealserve.volume.record import sign_record
from tests.vectors import vector_path
from tests.volume.test_record import example


def sealserve(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sealserve", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class Site:
    """A platform, a fresh guest, one that has measured, and a release policy for both."""

    def __init__(self, directory: Path) -> None:
        self.platform = SimulatedPlatform.create(directory, datetime.now(UTC))
        td = SoftwareTd(self.platform)
        self.fresh, self.measured = directory / "fresh.bin", directory / "measured.bin"
        self.fresh.write_bytes(td.quote(bytes(64)))
        td.extend(3, RuntimeEvent("sealed").digest)
        self.measured.write_bytes(td.quote(bytes(64)))
        self.policy = directory / "policy.yaml"
        made = sealserve(
            *("policy", "init", "--from-quote", self.fresh, "-o", self.policy, "--label", "one"),
            *("--server-platform", "--simulation"),
        )
        assert made.returncode == 0, made.stderr
        self.trust = ["--collateral", directory / "collateral.json"]
        self.trust += ["--anchor", directory / "anchor.der"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def test_the_schema_is_printed() -> None:
    document = json.loads(sealserve("policy", "schema").stdout)
    assert document["title"] == "sealserve policy"
    assert "releases" in document["properties"]


def test_a_diff_is_loud_about_what_it_lets_in(site: Site, tmp_path: Path) -> None:
    same = sealserve("policy", "diff", site.policy, site.policy)
    assert (same.returncode, same.stdout.strip()) == (0, "the same")
    stricter = tmp_path / "stricter.yaml"
    policy = policy_file.load(site.policy)
    policy_file.write(replace(policy, platform_flags=PlatformFlags()), stricter)
    tightened = sealserve("policy", "diff", site.policy, stricter)
    assert tightened.returncode == 1
    assert "!!" not in tightened.stdout
    assert "not loosened anywhere" in tightened.stdout
    loosened = sealserve("policy", "diff", stricter, site.policy)
    assert loosened.returncode == 1
    assert "!! loosened   platform_flags.smt: refused -> allowed" in loosened.stdout
    assert "LOOSENED in 3 place(s)" in loosened.stdout
    document = json.loads(sealserve("policy", "diff", stricter, site.policy, "--json").stdout)
    assert (document["same"], document["loosened"], len(document["changes"])) == (False, True, 3)


def test_a_release_is_added(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(SoftwareTd(site.platform, "another").quote(bytes(64)))
    policy = tmp_path / "policy.yaml"
    policy.write_text("# kept\n" + site.policy.read_text())
    add = ["policy", "init", "--from-quote", other, "--add-to", policy, "--label", "two", "--json"]
    added = sealserve(*add)
    assert added.returncode == 0, added.stderr
    assert json.loads(added.stdout)["labels"] == ["one", "two"]
    assert policy.read_text().startswith("# kept\n")
    for quote, label in ((site.fresh, "one"), (other, "two")):
        verdict = sealserve("policy", "explain", quote, "--policy", policy, *site.trust)
        assert f"TRUSTED: release {label}" in verdict.stdout
    twice = sealserve(*add)
    assert (twice.returncode, "policy.cannot_append" in twice.stderr) == (2, True)


def test_explain_can_judge_as_a_broker_does(site: Site) -> None:
    explain = ["policy", "explain", "--policy", site.policy, *site.trust]
    for quote, release, status in (
        (site.fresh, False, 0),
        (site.fresh, True, 0),
        (site.measured, False, 0),
        (site.measured, True, 3),
    ):
        result = sealserve(*explain, quote, *(["--for-release"] if release else []))
        assert result.returncode == status, result.stdout + result.stderr
        assert ("policy.rtmr3_unknown" in result.stdout) == (status == 3)


def test_explain_tells_what_intel_will_change(site: Site, tmp_path: Path) -> None:
    early = tmp_path / "early.json"
    options = CollateralOptions(evaluation_number=18, tcb_status="OutOfDate")
    early.write_bytes(site.platform.collateral(datetime.now(UTC) - timedelta(hours=1), options))
    explain = ["policy", "explain", site.fresh, "--policy", site.policy, *site.trust]
    result = sealserve(*explain, "--early-collateral", early)
    assert result.returncode == 0
    assert "warning: LOCK-OUT AHEAD" in result.stdout
    assert "policy.tcb_status" in result.stdout
    quiet = sealserve(*explain, "--early-collateral", site.trust[1])
    assert "LOCK-OUT" not in quiet.stdout


def test_explain_names_the_component_that_is_behind(tmp_path: Path) -> None:
    """A real platform of 2025 against Intel's statements of 2026."""
    quote = vector_path("dcap-qvl/tdx_quote")
    policy = tmp_path / "p.yaml"
    made = ["policy", "init", "--from-quote", quote, "--server-platform", "-o", policy]
    assert sealserve(*made).returncode == 0
    parts = json.loads(vector_path("dcap-qvl/tdx_quote_td15ex_collateral.json").read_bytes())
    del parts["pck_certificate_chain"]  # of the other machine
    collateral = tmp_path / "2026.json"
    collateral.write_text(json.dumps(parts))
    result = sealserve(
        *("policy", "explain", quote, "--policy", policy, "--collateral", collateral),
        *("--at", "2026-10-20T00:00:00Z"),
    )
    assert result.returncode == 3
    assert "policy.tcb_status" in result.stdout
    assert "TDX Late Microcode Update (OS/VMM) has 3, needs 4" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["diff", "QUOTE", "POLICY"], 2, "policy.malformed"),
        (["diff", "/absent", "POLICY"], 4, "file.unreadable"),
        (["init", "--from-quote", "QUOTE"], 2, "policy.which_file"),
        (["init", "--from-quote", "QUOTE", "-o", "x", "--add-to", "y"], 2, "policy.which_file"),
        (
            ["init", "--from-quote", "QUOTE", "--add-to", "POLICY", "--simulation"],
            2,
            "policy.which_file",
        ),
        (["init", "--from-quote", "QUOTE", "--add-to", "/absent"], 4, "file.unreadable"),
        (
            ["explain", "QUOTE", "--for-release", "--events", "QUOTE", "--policy", "POLICY"],
            2,
            "policy.events_before_release",
        ),
        (
            ["explain", "QUOTE", "--early-collateral", "POLICY", "--policy", "POLICY"],
            2,
            "collateral.malformed",
        ),
    ],
)
def test_bad_input_has_a_code(site: Site, arguments: list[str], status: int, code: str) -> None:
    places = {"QUOTE": site.fresh, "POLICY": site.policy}
    more = site.trust if arguments[0] == "explain" else []
    result = sealserve("policy", *(places.get(each, each) for each in arguments), *more)
    assert result.returncode == status, result.stderr
    assert code in result.stderr
    assert "Traceback" not in result.stderr


# --- attest measure -------------------------------------------------------------


class Deployment:
    """A broker's document, an owner's key and a signed record: all that a measurement needs."""

    def __init__(self, directory: Path, identity: Path) -> None:
        private, public = init_owner(directory)
        self.record = directory / "record.json"
        self.record.write_bytes(sign_record(example(), load_owner_key(private)))
        self.files = {
            "--broker-identity": identity,
            "--record": self.record,
            "--owner-pub": public,
        }

    @property
    def arguments(self) -> list[str]:
        return [str(part) for pair in self.files.items() for part in pair]


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    made = sealserve("broker", "init", tmp_path / "broker", "--name", "acme")
    assert made.returncode == 0, made.stderr
    return Deployment(tmp_path / "owner", tmp_path / "broker" / "broker.json")


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(measure)
    return app


def test_a_measurement_is_the_one_a_guest_will_have(
    deployment: Deployment, command: typer.Typer, tmp_path: Path
) -> None:
    log = tmp_path / "events.json"
    result = CliRunner().invoke(command, [*deployment.arguments, "-o", str(log), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    events = events_ahead(
        deployment.files["--broker-identity"],
        deployment.files["--record"],
        deployment.files["--owner-pub"],
    )
    td = SoftwareTd(SimulatedPlatform.new(datetime.now(UTC)))
    for event, told in zip(events, document["events"], strict=True):
        td.extend(3, event.digest)
        assert told["rtmr3_after"] == td.report.rtmr3.hex()
    assert document["rtmr3"] == td.report.rtmr3.hex() == replay(events).hex()
    assert decode_log(log.read_bytes()) == events
    assert [event.name for event in events][:2] == ["broker", "volume"]
    people = CliRunner().invoke(command, deployment.arguments)
    assert f"RTMR3    {document['rtmr3']}" in people.stdout


def test_a_measurement_changes_with_each_thing_measured(
    deployment: Deployment, command: typer.Typer, tmp_path: Path
) -> None:
    def rtmr3() -> str:
        result = CliRunner().invoke(command, [*deployment.arguments, "--json"])
        return str(json.loads(result.stdout)["rtmr3"])

    before = rtmr3()
    key = load_owner_key(deployment.record.parent / "owner.key")
    models = tuple(
        entry.model_copy(update={"version": entry.version + 1}) for entry in example().models
    )
    deployment.record.write_bytes(sign_record(example(models=models), key))
    assert rtmr3() != before
    deployment.record.write_bytes(sign_record(example(), key))
    assert rtmr3() == before
    made = sealserve("broker", "init", tmp_path / "other", "--name", "acme")
    assert made.returncode == 0
    deployment.files["--broker-identity"] = tmp_path / "other" / "broker.json"
    assert rtmr3() != before


def test_a_record_of_another_owner_is_not_measured(
    deployment: Deployment, command: typer.Typer
) -> None:
    deployment.record.write_bytes(sign_record(example(), Ed25519PrivateKey.generate()))
    result = CliRunner().invoke(command, deployment.arguments)
    assert isinstance(result.exception, SealserveError)


@pytest.mark.parametrize("missing", ["--broker-identity", "--record", "--owner-pub"])
def test_a_missing_file_is_named(
    deployment: Deployment, command: typer.Typer, missing: str
) -> None:
    deployment.files[missing] = Path("/absent")
    result = CliRunner().invoke(command, deployment.arguments)
    assert isinstance(result.exception, SealserveError)
    assert "/absent" in str(result.exception)
