"""The commands `attest`, `policy` and `simulate`, run as a person would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sealserve.attestation import policy_file
from sealserve.attestation.policy import Policy
from sealserve.simulator.platform import SimulatedPlatform
from sealserve.simulator.td import SoftwareTd, report_of
from sealserve.tdx.eventlog import RuntimeEvent, encode_log
from sealserve.tdx.evidence import AzureEvidence
from tests.children import Child
from tests.conftest import missing
from tests.tdx.azure_guest import hcl_report
from tests.vectors import vector_path

INSIDE = "2025-07-01T00:00:00Z"
EVENTS = (RuntimeEvent("broker", b"b"), RuntimeEvent("sealed"))


def sealserve(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sealserve", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class Site:
    """A directory with a platform, a quote of a sealed TD, its log and a policy."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        platform = SimulatedPlatform.create(directory / "platform", datetime.now(UTC))
        td = SoftwareTd(platform)
        for event in EVENTS:
            td.extend(3, event.digest)
        self.quote = directory / "quote.hex"
        self.quote.write_text(td.quote(bytes(64)).hex())
        self.events = directory / "events.json"
        self.events.write_bytes(encode_log(EVENTS))
        self.policy = directory / "policy.yaml"
        self.evidence: list[str | Path] = [
            self.quote,
            "--collateral",
            directory / "platform" / "collateral.json",
            "--anchor",
            directory / "platform" / "anchor.der",
            "--events",
            self.events,
        ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site(tmp_path_factory.mktemp("site"))
    made = sealserve(
        *("policy", "init", "--from-quote", site.quote, "-o", site.policy, "--label", "demo"),
        *("--event", "sealed", "--server-platform", "--simulation"),
    )
    assert made.returncode == 0, made.stderr
    assert "SIMULATION" in made.stdout
    return site


def test_show_prints_registers_and_that_nothing_is_verified() -> None:
    path = vector_path("dcap-qvl/tdx_quote")
    people = sealserve("attest", "show", path)
    assert people.returncode == 0
    assert "NOT VERIFIED" in people.stdout
    document = json.loads(sealserve("attest", "show", path, "--json").stdout)
    assert document["report"]["mrtd"].startswith("91eb2b44d141d4ec")
    assert document["report"]["mrtd"] in people.stdout
    assert (document["fmspc"], document["ca"]) == ("b0c06f000000", "platform")


def test_quotes_are_read_in_the_forms_in_which_they_are_passed_around(tmp_path: Path) -> None:
    """What `attest quote --json` prints was not read by any other command."""
    raw = vector_path("dcap-qvl/tdx_quote").read_bytes()
    forms = {
        "hex": raw.hex(),
        "lines": "0x" + "\n".join(raw.hex()[i : i + 64] for i in range(0, 2 * len(raw), 64)),
        "json": json.dumps({"provider": "configfs", "quote": raw.hex()}),
    }
    wanted = sealserve("attest", "show", vector_path("dcap-qvl/tdx_quote"), "--json").stdout
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        assert sealserve("attest", "show", tmp_path / name, "--json").stdout == wanted, name
    foreign = sealserve("attest", "show", vector_path("dstack/quote-report.json"), "--json")
    assert json.loads(foreign.stdout)["report"]["mrtd"].startswith("b24d3b24e9e3c160")


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("dcap-qvl/sgx_quote", 3, "quote.not_tdx"),
        ("go-tdx-guest/report.dat", 3, "quote.unsupported_version"),
        ("trustee/az-tdx-vtpm/evidence-v1.json", 2, "quote.malformed"),
        ("trustee/az-tdx-vtpm/hcl-report.bin", 3, "quote.unsupported_version"),
    ],
)
def test_what_is_no_tdx_quote_is_told(name: str, status: int, code: str) -> None:
    result = sealserve("attest", "show", vector_path(name))
    assert (result.returncode, code in result.stderr) == (status, True), result.stderr


def test_a_real_quote_verifies_but_is_not_appraised_without_a_policy() -> None:
    result = sealserve(
        *("attest", "verify", vector_path("dcap-qvl/tdx_quote"), "--at", INSIDE),
        *("--collateral", vector_path("dcap-qvl/tdx_quote_collateral.json")),
    )
    assert result.returncode == 1
    assert "VERIFIED, NOT APPRAISED" in result.stdout
    assert "UpToDate" in result.stdout


def test_a_real_quote_is_trusted_under_its_policy(tmp_path: Path) -> None:
    quote = vector_path("dcap-qvl/tdx_quote")
    policy = tmp_path / "policy.yaml"
    command = ["policy", "init", "--from-quote", quote, "-o", policy, "--server-platform"]
    assert sealserve(*command).returncode == 0
    evidence = [quote, "--at", INSIDE, "--policy", policy]
    evidence += ["--collateral", vector_path("dcap-qvl/tdx_quote_collateral.json")]
    trusted = sealserve("attest", "verify", *evidence)
    assert (trusted.returncode, "TRUSTED" in trusted.stdout) == (0, True)
    late = sealserve("attest", "verify", *evidence, "--at", "2025-07-19T10:00:35Z", "--json")
    assert late.returncode == 3
    assert json.loads(late.stderr)["error"]["code"] == "collateral.expired"


def test_exit_status_0_is_for_a_trusted_verdict_only(site: Site, tmp_path: Path) -> None:
    trusted = sealserve("attest", "verify", *site.evidence, "--policy", site.policy, "--json")
    assert trusted.returncode == 0, trusted.stderr
    document = json.loads(trusted.stdout)
    assert document["trusted"] is True
    assert document["td"]["simulated"] is True
    empty = tmp_path / "empty.yaml"
    policy_file.write(Policy(), empty)
    denied = sealserve("attest", "verify", *site.evidence, "--policy", empty)
    assert denied.returncode == 3
    assert "policy.no_releases" in denied.stderr


def test_a_quote_answers_one_request(site: Site) -> None:
    asked = ["attest", "verify", *site.evidence, "--policy", site.policy, "--report-data"]
    assert sealserve(*asked, "00" * 64).returncode == 0
    other = sealserve(*asked, "11" * 64)
    assert (other.returncode, "binding.report_data" in other.stderr) == (3, True)
    short = sealserve(*asked, "11")
    assert (short.returncode, "tdx.report_data_length" in short.stderr) == (2, True)


def test_azure_evidence_is_verified_down_to_its_runtime_data(tmp_path: Path) -> None:
    platform = SimulatedPlatform.create(tmp_path / "platform", datetime.now(UTC))
    data = bytes(range(64))
    raw = hcl_report(data)
    td = replace(report_of(), td_attributes=bytes(8), report_data=raw[160:224])
    (tmp_path / "evidence").write_bytes(AzureEvidence(platform.quote(td), raw).encode())
    command = ["attest", "verify", tmp_path / "evidence"]
    command += ["--anchor", tmp_path / "platform" / "anchor.der"]
    command += ["--collateral", tmp_path / "platform" / "collateral.json"]
    people = sealserve(*command, "--report-data", data.hex())
    assert people.returncode == 1, people.stderr
    assert data.hex() in people.stdout
    assert "SIMULATION" in people.stdout
    document = json.loads(sealserve(*command, "--json").stdout)
    assert (document["trusted"], document["runtime_data"]["user_data"]) == (None, data.hex())
    policy = tmp_path / "policy.yaml"
    policy_file.write(Policy(), policy)
    for more, code in (
        (["--report-data", "00" * 64], "binding.azure_user_data"),
        (["--policy", policy], "policy.azure"),
        (["--require-both"], "td.sept_ve_disable"),
    ):
        refused = sealserve(*command, *more)
        assert (refused.returncode, code in refused.stderr) == (3, True), refused.stderr


def test_explain_shows_every_rule(site: Site, tmp_path: Path) -> None:
    kept = sealserve("policy", "explain", *site.evidence, "--policy", site.policy)
    assert kept.returncode == 0, kept.stderr
    assert "TRUSTED: release demo" in kept.stdout
    assert "BROKEN" not in kept.stdout
    stricter = tmp_path / "stricter.yaml"
    text = site.policy.read_text().replace("allowed", "denied").replace("smt: true", "smt: false")
    stricter.write_text(text)
    broken = sealserve("policy", "explain", *site.evidence, "--policy", stricter)
    assert broken.returncode == 3
    for code in ("policy.simulation_denied", "policy.smt"):
        assert code in broken.stdout
    assert "kept   releases.mrtd" in broken.stdout
    document = json.loads(
        sealserve("policy", "explain", *site.evidence, "--policy", stricter, "--json").stdout
    )
    assert document["failures"] == ["policy.simulation_denied", "policy.smt"]


def test_check_names_what_a_policy_accepts(site: Site, tmp_path: Path) -> None:
    checked = sealserve("policy", "check", site.policy)
    assert checked.returncode == 0
    assert "demo" in checked.stdout
    assert "SIMULATION" in checked.stdout
    bad = tmp_path / "bad.yaml"
    bad.write_text("simulations: allowed")
    refused = sealserve("policy", "check", bad)
    assert refused.returncode == 2
    assert "simulations" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["attest", "show", __file__], 3, "quote.unsupported_version"),
        (["attest", "quote", "--report-data", "xyz"], 2, "attest.hex_malformed"),
        (["attest", "quote", "--report-data", "00"], 2, "tdx.report_data_length"),
        (["attest", "quote", "--sysfs", "/proc", "--report-data", "00" * 64], 4, "tdx.no_evidence"),
        (["simulate", "td", "--platform", "/proc", "--mount", "/proc"], 4, "file.unreadable"),
        (
            ["simulate", "impostor", "--victim", "localhost:1", "--listen", "localhost:0"],
            4,
            "simulator.victim",
        ),
        (
            ["simulate", "impostor", "--victim", "localhost", "--listen", "localhost:0"],
            2,
            "address.malformed",
        ),
    ],
)
def test_bad_input_has_a_code(arguments: list[str], status: int, code: str) -> None:
    result = sealserve(*arguments)
    assert result.returncode == status
    assert code in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("at", ["yesterday", "2025-07-01", "2025-07-01T00:00:00"])
def test_a_time_needs_a_zone(site: Site, at: str) -> None:
    result = sealserve("attest", "verify", *site.evidence, "--at", at)
    assert result.returncode == 2
    assert "attest.time_malformed" in result.stderr


def test_a_simulated_machine_from_platform_to_quote(tmp_path: Path) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("/dev/fuse", "load the fuse module, and be root or in the right group")
    for renewed in (False, True):
        made = sealserve("simulate", "platform", tmp_path / "p", "--json")
        assert made.returncode == 0, (renewed, made.stderr)
        assert json.loads(made.stdout)["simulation"] is True
    command = [sys.executable, "-m", "sealserve", "simulate", "td", "--firmware", "other"]
    command += ["--platform", str(tmp_path / "p"), "--mount", str(tmp_path / "td")]
    with Child(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline())["sysfs"] == str(tmp_path / "td")
            ask = ["attest", "quote", "--sysfs", tmp_path / "td", "--report-data", "ab" * 64]
            refused = sealserve(*ask)
            assert refused.returncode == 3
            assert "tdx.simulation_denied" in refused.stderr
            made = sealserve(*ask, "--simulation")
            assert "SIMULATION" in made.stderr
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    (tmp_path / "quote").write_text(made.stdout)
    verified = sealserve(
        *("attest", "verify", tmp_path / "quote", "--anchor", tmp_path / "p" / "anchor.der"),
        *("--collateral", tmp_path / "p" / "collateral.json", "--json"),
    )
    assert verified.returncode == 1
    document = json.loads(verified.stdout)
    assert document["trusted"] is None
    assert document["td"]["report"]["report_data"] == "ab" * 64


@pytest.mark.parametrize(
    "group", [["attest"], ["policy"], ["simulate"], ["attest", "verify"], ["policy", "explain"]]
)
def test_help_teaches(group: list[str]) -> None:
    result = sealserve(*group, "--help")
    assert result.returncode == 0
    assert len(group) == 1 or "Example: sealserve" in " ".join(result.stdout.split())
