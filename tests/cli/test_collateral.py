"""The commands `collateral` and `simulate pccs`, run as a person would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sealserve.attestation.collateral import Collateral
from sealserve.simulator.platform import ANCHOR_FILE, COLLATERAL_FILE, SimulatedPlatform
from sealserve.simulator.td import SoftwareTd
from tests.children import Child
from tests.vectors import vector_path

FMSPC = "51494d000000"


def sealserve(*arguments: str | Path, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"XDG_DATA_HOME": str(home)} if home else {})}
    return subprocess.run(
        [sys.executable, "-m", "sealserve", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )


class Site:
    def __init__(self, directory: Path) -> None:
        self.platform = directory / "platform"
        made = SimulatedPlatform.create(self.platform, datetime.now(UTC))
        self.anchor = self.platform / ANCHOR_FILE
        self.file = self.platform / COLLATERAL_FILE
        self.quote = directory / "quote.bin"
        self.quote.write_bytes(SoftwareTd(made).quote(bytes(64)))
        self.url = ""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    command = [sys.executable, "-m", "sealserve", "simulate", "pccs"]
    command += ["--platform", str(site.platform), "--listen", "127.0.0.1:0"]
    with Child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        assert ready["simulation"] is True
        site.url = ready["url"]
        try:
            yield site
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) == 0


def test_from_a_pccs_to_an_offline_verifier(site: Site, tmp_path: Path) -> None:
    trust = ["--anchor", site.anchor]
    online = ["--store", tmp_path / "online"]
    fetched = sealserve(
        "collateral", "fetch", "--quote", site.quote, "--url", site.url, *online, *trust, "--json"
    )
    assert fetched.returncode == 0, fetched.stderr
    document = json.loads(fetched.stdout)
    assert document["fmspc"] == FMSPC
    assert document["warnings"] == []
    assert document["simulation"] is True
    assert {each["part"] for each in document["deadlines"]} >= {"pck_crl", "tcb_info"}
    bundle = tmp_path / "bundle.json"
    assert sealserve("collateral", "export", *online, "-o", bundle).returncode == 0
    again = sealserve("collateral", "export", *online, "-o", bundle)
    assert (again.returncode, "file.exists" in again.stderr) == (2, True)
    imported = sealserve(
        "collateral", "import", bundle, "--store", tmp_path / "offline", *trust, "--json"
    )
    assert imported.returncode == 0, imported.stderr
    (file,) = json.loads(imported.stdout)["files"]
    verified = sealserve("attest", "verify", site.quote, "--collateral", file, *trust)
    assert verified.returncode == 1
    assert "VERIFIED" in verified.stdout


def test_the_store_is_the_users_unless_named(site: Site, tmp_path: Path) -> None:
    fetch = ["collateral", "fetch", "--fmspc", FMSPC.upper(), "--url", site.url]
    made = sealserve(*fetch, "--anchor", site.anchor, home=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "sealserve" / "collateral" / f"{FMSPC}.platform.json").exists()
    shown = sealserve("collateral", "show", "--check", home=tmp_path)
    assert shown.returncode == 0
    assert shown.stdout.startswith(f"SIMULATION: platform model {FMSPC}")
    intel = vector_path("dcap-qvl/tdx_quote_collateral.json")
    assert "SIMULATION" not in sealserve("collateral", "show", "--file", intel).stdout


def test_a_single_file_is_kept_and_imported(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "intel.json"
    fetch = ["collateral", "fetch", "--fmspc", FMSPC, "--url", site.url, "-o", file]
    for _ in range(2):  # a new one may replace it
        made = sealserve(*fetch, "--anchor", site.anchor)
        assert made.returncode == 0, made.stderr
    assert Collateral.load(file).fmspc == FMSPC
    kept = sealserve(
        "collateral", "import", file, "--store", tmp_path / "s", "--anchor", site.anchor
    )
    assert kept.returncode == 0, kept.stderr
    newer = SimulatedPlatform.load(site.platform).collateral(datetime.now(UTC))
    file.write_bytes(newer)
    older = sealserve(*fetch, "--anchor", site.anchor)
    assert (older.returncode, "collateral.rollback" in older.stderr) == (3, True)
    assert file.read_bytes() == newer


def test_ends_that_are_near_are_told(site: Site, tmp_path: Path) -> None:
    platform = SimulatedPlatform.load(site.platform)
    file = tmp_path / "c.json"
    for age, status, word in (
        (timedelta(days=10), 0, ""),
        (timedelta(days=20), 1, "9 day(s)"),
        (timedelta(days=29, hours=12), 1, "URGENT"),
        (timedelta(days=31), 1, "expired"),
    ):
        file.write_bytes(platform.collateral(datetime.now(UTC) - age))
        shown = sealserve("collateral", "show", "--file", file, "--check")
        assert shown.returncode == status, (age, shown.stdout)
        assert word in shown.stdout
        assert sealserve("collateral", "show", "--file", file).returncode == 0


def test_the_real_thing_is_shown() -> None:
    file = vector_path("dcap-qvl/tdx_quote_collateral.json")
    document = json.loads(sealserve("collateral", "show", "--file", file, "--json").stdout)
    (entry,) = document["collateral"]
    assert (entry["fmspc"], entry["evaluation"]) == ("b0c06f000000", 17)
    assert entry["warnings"]


def test_a_renewed_platform_is_served_renewed(site: Site, tmp_path: Path) -> None:
    fetch = ["collateral", "fetch", "--fmspc", FMSPC, "--url", site.url, "--store", tmp_path]
    assert sealserve(*fetch, "--anchor", site.anchor).returncode == 0
    before = Collateral.load(tmp_path / f"{FMSPC}.platform.json")
    assert sealserve("simulate", "platform", site.platform).returncode == 0
    assert sealserve(*fetch, "--anchor", site.anchor).returncode == 0
    after = Collateral.load(tmp_path / f"{FMSPC}.platform.json")
    assert after.issued["tcb_info"] >= before.issued["tcb_info"]
    assert after.parts["tcb_info_signature"] != before.parts["tcb_info_signature"]


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["fetch"], 2, "collateral.which_platform"),
        (["fetch", "--fmspc", FMSPC, "--quote", __file__], 2, "collateral.which_platform"),
        (["fetch", "--quote", __file__], 3, "quote.unsupported_version"),
        (["fetch", "--fmspc", "B0C0"], 2, "collateral.fmspc_malformed"),
        (["fetch", "--fmspc", FMSPC, "--url", "http://pccs.example"], 2, "collateral.url_invalid"),
        (["fetch", "--fmspc", FMSPC, "--url", "http://127.0.0.1:1"], 4, "collateral.unreachable"),
        (["show", "--file", __file__], 2, "collateral.malformed"),
        (["show", "--file", "/absent"], 4, "file.unreadable"),
        (["export", "--store", "/absent", "-o", "/tmp/x"], 4, "collateral.store_empty"),
        (["import", __file__], 2, "collateral.bundle_malformed"),
        (["import", "/absent"], 4, "file.unreadable"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_bad_input_has_a_code(
    arguments: list[str], status: int, code: str, form: list[str]
) -> None:
    result = sealserve("collateral", *arguments, *form)
    assert result.returncode == status, result.stderr
    if form:
        assert json.loads(result.stderr)["error"]["code"] == code
    else:
        assert code in result.stderr
    assert "Traceback" not in result.stderr


def test_intels_store_takes_no_simulation(site: Site, tmp_path: Path) -> None:
    refused = sealserve("collateral", "import", site.file, "--store", tmp_path)
    assert refused.returncode == 3
    assert "chain.wrong_root" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["fetch", "show", "export", "import"])
def test_help_teaches(command: str) -> None:
    result = sealserve("collateral", command, "--help")
    assert result.returncode == 0
    assert "Example: sealserve" in " ".join(result.stdout.split())
