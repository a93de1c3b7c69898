"""The commands `attest quote --provider` and `attest replay`, run as a person would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sealserve.tdx.eventlog import RuntimeEvent, encode_log, replay
from tests.simulated import platform, report
from tests.vectors import read_vector, vector_path

COS = "go-tdx-guest/ccel/"


def sealserve(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sealserve", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def cos(*more: str | Path) -> list[str | Path]:
    table = vector_path(COS + "ccel_table.dat")
    return ["attest", "replay", vector_path(COS + "ccel_data.dat"), "--table", table, *more]


def test_a_log_is_replayed_to_four_registers() -> None:
    people = sealserve(*cos())
    assert people.returncode == 0, people.stderr
    assert [line[:18] for line in people.stdout.splitlines()] == [
        "rtmr0 3fa2f61f395b",
        "rtmr1 f62dbc072bd5",
        "rtmr2 4969684dc873",
        "rtmr3 000000000000",
    ]
    document = json.loads(sealserve(*cos("--json")).stdout)
    assert document["registers"]["rtmr0"].startswith("3fa2f61f395b")
    assert len(document["boot_events"]) == 43


def test_a_log_explains_its_quote_and_no_other() -> None:
    explained = sealserve(*cos("--quote", vector_path(COS + "cos-113-tdx-quote.dat")))
    assert explained.returncode == 0, explained.stderr
    assert "NOT VERIFIED" in explained.stdout
    assert explained.stdout.count("matches") == 4
    other = sealserve(*cos("--quote", vector_path("dcap-qvl/tdx_quote"), "--json"))
    assert other.returncode == 3
    document = json.loads(other.stdout)
    assert (document["explained"], document["verified"]) == (False, False)
    assert [match["matches"] for match in document["matches"]] == [False, False, False, True]


def test_another_projects_report_explains_its_own_quote() -> None:
    report = vector_path("dstack/quote-report.json")
    told = sealserve("attest", "replay", report, "--quote", report)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("matches") == 4
    other = sealserve(
        "attest", "replay", vector_path("dstack/tdx-lite-getquote.json"), "--quote", report
    )
    assert other.returncode == 3


def test_one_changed_digest_is_told(tmp_path: Path) -> None:
    raw = bytearray(read_vector(COS + "ccel_data.dat"))
    raw[100] ^= 1  # in the first event's digest
    (tmp_path / "log").write_bytes(raw)
    quote = vector_path(COS + "cos-113-tdx-quote.dat")
    told = sealserve("attest", "replay", tmp_path / "log", "--quote", quote)
    assert told.returncode == 3
    assert told.stdout.count("DIFFERS") == 1


def test_a_runtime_log_is_replayed_to_rtmr3(tmp_path: Path) -> None:
    events = (RuntimeEvent("broker", b"b"), RuntimeEvent("sealed"))
    (tmp_path / "events.json").write_bytes(encode_log(events))
    (tmp_path / "quote").write_bytes(platform().quote(report(rtmr3=replay(events))))
    log, quote = tmp_path / "events.json", tmp_path / "quote"
    kept = sealserve("attest", "replay", log, "--quote", quote)
    assert kept.returncode == 0, kept.stderr
    (tmp_path / "events.json").write_bytes(encode_log((*events, RuntimeEvent("late"))))
    assert sealserve("attest", "replay", log, "--quote", quote).returncode == 3


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["quote", "--provider", "sev"], 2, "tdx.provider_unknown"),
        (["quote", "--provider", "configfs", "--sysfs", "/proc"], 4, "tdx.no_configfs"),
        (["replay", "/nonexistent"], 4, "file.unreadable"),
        (["replay", __file__], 2, "eventlog.malformed"),
        (["replay", "/dev/zero"], 2, "file.too_large"),
    ],
)
def test_bad_input_has_a_code(arguments: list[str], status: int, code: str) -> None:
    data = ["--report-data", "00" * 64] if arguments[0] == "quote" else []
    result = sealserve("attest", *arguments, *data)
    assert result.returncode == status
    assert code in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("device", ["/dev/tdx_guest", "/dev/tpmrm0"])
def test_a_chosen_way_is_used_even_if_it_is_closed(device: str) -> None:
    if Path(device).exists():
        pytest.skip(f"this machine has {device}")
    provider = {"/dev/tdx_guest": "qgs", "/dev/tpmrm0": "azure"}[device]
    result = sealserve("attest", "quote", "--provider", provider, "--report-data", "00" * 64)
    assert result.returncode == 4
    assert device in result.stderr


@pytest.mark.parametrize("command", ["quote", "replay"])
def test_help_teaches(command: str) -> None:
    result = sealserve("attest", command, "--help")
    assert result.returncode == 0
    assert "Example: sealserve" in " ".join(result.stdout.split())
