"""The production guest code against a FUSE copy of the kernel's tree, in a process of its own."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sealserve.attestation.collateral import Collateral
from sealserve.attestation.verifier import Anchor, Verifier
from sealserve.errors import Refused
from sealserve.simulator.platform import ANCHOR_FILE, COLLATERAL_FILE, SimulatedPlatform
from sealserve.simulator.td import report_of
from sealserve.tdx.eventlog import RuntimeEvent, replay
from sealserve.tdx.guest import TdxGuest
from sealserve.tdx.quote import parse_quote
from sealserve.tdx.replay import compare, replay_logs
from tests.children import Child
from tests.conftest import missing

DATA = bytes(range(64))


@pytest.fixture(scope="module")
def platform_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("platform")
    SimulatedPlatform.create(directory, datetime.now(UTC))
    return directory


@pytest.fixture
def td(tmp_path: Path, platform_dir: Path) -> Iterator[Path]:
    """A freshly booted simulated TD; the directory of its sysfs."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("/dev/fuse", "load the fuse module, and be root or in the right group")
    mount = tmp_path / "sys"
    mount.mkdir()
    command = [sys.executable, "-m", "sealserve", "simulate", "td"]
    command += ["--platform", str(platform_dir), "--mount", str(mount)]
    with Child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = json.loads(process.stdout.readline())
        assert ready["simulation"] is True
        yield mount
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert b"SIMULATION" in process.stderr.read()
    assert not os.path.ismount(mount)


def test_a_quote_through_the_tree_verifies(td: Path, platform_dir: Path) -> None:
    raw = TdxGuest(td, allow_simulation=True).quote(DATA)
    verifier = Verifier(Anchor.load(platform_dir / ANCHOR_FILE))
    collateral = Collateral.load(platform_dir / COLLATERAL_FILE)
    facts = verifier.verify(raw, collateral, datetime.now(UTC))
    assert facts.simulated
    assert facts.report.report_data == DATA
    assert facts.report.mrtd == report_of().mrtd
    assert list((td / "kernel/config/tsm/report").iterdir()) == []


def test_it_says_simulation_and_needs_permission(td: Path) -> None:
    assert TdxGuest(td, allow_simulation=True).simulated
    with pytest.raises(Refused) as caught:
        TdxGuest(td).quote(DATA)
    assert caught.value.code == "tdx.simulation_denied"


def test_registers_are_extended_and_quoted(td: Path) -> None:
    guest = TdxGuest(td, allow_simulation=True)
    assert guest.read_rtmr(3) == bytes(48)
    events = [RuntimeEvent("broker", b"x"), RuntimeEvent("sealed")]
    for event in events:
        guest.extend_rtmr3(event.digest)
    assert guest.read_rtmr(3) == replay(events)
    assert parse_quote(guest.quote(DATA)).report.rtmr3 == replay(events)
    assert guest.read_rtmr(0) == report_of().rtmr0
    assert guest.read_mrtd() == report_of().mrtd


def test_parallel_callers_get_their_own_quotes(td: Path) -> None:
    guest = TdxGuest(td, allow_simulation=True)

    def ask(number: int) -> bool:
        data = bytes([number]) * 64
        return parse_quote(guest.quote(data)).report.report_data == data

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(ask, range(12)))


def test_configfs_manners(td: Path) -> None:
    report = td / "kernel/config/tsm/report/by-hand"
    report.mkdir()
    assert (report / "provider").read_bytes() == b"tdx_guest_SIMULATION\n"
    assert (report / "generation").read_bytes() == b"0\n"
    assert read_error(report / "outblob") == errno.EINVAL, "nothing was written yet"
    # 65 bytes: the kernel refuses them at close, where nobody sees it.
    for size, generation in ((65, b"1\n"), (63, b"2\n")):
        (report / "inblob").write_bytes(bytes(size))
        assert (report / "generation").read_bytes() == generation
        assert read_error(report / "outblob") == errno.EINVAL
    (report / "inblob").write_bytes(DATA)
    first = (report / "outblob").read_bytes()
    assert parse_quote(first).report.report_data == DATA
    assert (report / "outblob").read_bytes() == first, "cached for one generation"
    (report / "inblob").write_bytes(DATA)
    assert (report / "outblob").read_bytes() != first, "made anew for the next"
    assert write_error(report / "outblob", b"x") == errno.EACCES
    assert read_error(report / "inblob") == errno.EACCES
    report.rmdir()
    assert not report.exists()
    assert mkdir_error(td / "kernel/config/tsm/elsewhere") == errno.EPERM


def test_register_manners(td: Path) -> None:
    registers = td / "class/misc/tdx_guest/measurements"
    assert sorted(path.name for path in registers.iterdir()) == [
        "mrtd:sha384",
        "rtmr0:sha384",
        "rtmr1:sha384",
        "rtmr2:sha384",
        "rtmr3:sha384",
    ]
    before = (registers / "rtmr3:sha384").read_bytes()
    for data in (b"", bytes(47), bytes(49), bytes(96)):
        expected = errno.EINVAL if data else None
        assert write_error(registers / "rtmr3:sha384", data) == expected
    assert write_error(registers / "rtmr3:sha384", bytes(48), offset=48) == errno.EINVAL
    assert (registers / "rtmr3:sha384").read_bytes() == before
    for name in ("mrtd:sha384", "rtmr0:sha384"):
        assert write_error(registers / name, bytes(48)) == errno.EACCES


def test_the_boot_log_is_where_the_kernel_shows_it(td: Path) -> None:
    tables = td / "firmware/acpi/tables"
    files = sorted(path.relative_to(tables) for path in tables.rglob("*") if path.is_file())
    assert files == [Path("CCEL"), Path("data/CCEL")]
    log, table = (tables / "data/CCEL").read_bytes(), (tables / "CCEL").read_bytes()
    quoted = parse_quote(TdxGuest(td, allow_simulation=True).quote(DATA)).report
    matches = compare(replay_logs(log, table=table).registers, quoted)
    assert [match.matches for match in matches] == [True] * 4
    for path, content in ((tables / "CCEL", table), (tables / "data/CCEL", log)):
        status = path.stat()
        assert stat.S_IMODE(status.st_mode) == 0o400
        assert status.st_size == len(content)
        assert write_error(path, b"x") == errno.EACCES
        assert path.read_bytes() == content
    assert mkdir_error(tables / "data/more") == errno.EPERM


def test_the_boot_log_explains_a_quote_by_command(td: Path, tmp_path: Path) -> None:
    tables, quote = td / "firmware/acpi/tables", tmp_path / "quote"
    quote.write_bytes(TdxGuest(td, allow_simulation=True).quote(DATA))
    explained = attest_replay(tables / "data/CCEL", tables / "CCEL", quote)
    assert explained.returncode == 0, explained.stderr
    assert explained.stdout.count("matches") == 4

    changed = bytearray((tables / "data/CCEL").read_bytes())
    first = 32 + int.from_bytes(changed[28:32], "little")  # behind the log's head
    changed[first + 14] ^= 1  # register, type, count and algorithm come before the digest
    (tmp_path / "log").write_bytes(changed)
    told = attest_replay(tmp_path / "log", tables / "CCEL", quote)
    assert told.returncode == 3, told.stderr
    assert (told.stdout.count("DIFFERS"), told.stdout.count("matches")) == (1, 3)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path, platform_dir: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "sealserve", "simulate", "td", "--mount"]
    command += [str(tmp_path / "file" / "td"), "--platform", str(platform_dir)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 4
    assert "simulator.mount_failed" in result.stderr


def attest_replay(log: Path, table: Path, quote: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sealserve", "attest", "replay", str(log)]
    command += ["--table", str(table), "--quote", str(quote)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def read_error(path: Path) -> int | None:
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno
    return None


def write_error(path: Path, data: bytes, offset: int = 0) -> int | None:
    try:
        file = os.open(path, os.O_WRONLY)
    except OSError as error:
        return error.errno
    try:
        os.pwrite(file, data, offset)
    except OSError as error:
        return error.errno
    finally:
        os.close(file)
    return None


def mkdir_error(path: Path) -> int | None:
    try:
        path.mkdir()
    except OSError as error:
        return error.errno
    return None
