"""How a quote is asked for, against a scripted kernel: every trouble it may answer with.

The same code against a file system that behaves like the kernel's is tested in
tests/simulator/test_sysfs.py.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.tdx.configfs import ConfigfsProvider
from sealserve.tdx.quote import MAX_QUOTE_BYTES, parse_quote
from tests.tdx.fake_kernel import Answer, FakeKernel, answer_for, error, fake_kernel

DATA = bytes(range(64))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    with fake_kernel(tmp_path, monkeypatch) as fake:
        yield fake


def provider(
    root: Path, pauses: list[float] | None = None, *, allow_simulation: bool = False
) -> ConfigfsProvider:
    sleep = (pauses if pauses is not None else []).append
    return ConfigfsProvider(root, allow_simulation=allow_simulation, sleep=sleep)


def test_a_quote_is_what_the_kernel_answers(tmp_path: Path, kernel: FakeKernel) -> None:
    configfs = provider(tmp_path)
    assert parse_quote(configfs.collect(DATA).quote).report.report_data == DATA
    assert configfs.simulated is False
    assert configfs.name == "configfs"


def test_padding_by_the_platform_is_kept(tmp_path: Path, kernel: FakeKernel) -> None:
    kernel.answers = [lambda data: answer_for(data).ljust(8000, b"\0")]
    assert len(provider(tmp_path).collect(DATA).quote) == 8000


@pytest.mark.parametrize(
    "trouble",
    [
        error(errno.EBUSY),
        error(errno.EINTR),
        error(errno.ETIMEDOUT),
        error(errno.EIO),
        b"",
        bytes(1019),
        lambda data: answer_for(data)[:-1],  # cut off, yet long enough to be one
        answer_for(bytes(64)),  # an answer to somebody else
    ],
)
def test_passing_trouble_is_retried_with_growing_pauses(
    tmp_path: Path, kernel: FakeKernel, trouble: Answer
) -> None:
    kernel.answers = [trouble, trouble, answer_for]
    pauses: list[float] = []
    assert provider(tmp_path, pauses).collect(DATA).quote
    assert len(pauses) == 2
    assert pauses[1] > pauses[0]


@pytest.mark.parametrize("trouble", [error(errno.EBUSY), b"short", answer_for(bytes(64))])
def test_retries_end(tmp_path: Path, kernel: FakeKernel, trouble: Answer) -> None:
    kernel.answers = [trouble]
    with pytest.raises(Unavailable) as caught:
        provider(tmp_path).collect(DATA)
    assert caught.value.code == "tdx.quote_failed"
    assert kernel.asked == 8


@pytest.mark.parametrize("step", [0, 2])
def test_another_writer_or_a_lost_write_is_noticed(
    tmp_path: Path, kernel: FakeKernel, step: int
) -> None:
    kernel.steps = [step]
    with pytest.raises(Unavailable, match="generation"):
        provider(tmp_path).collect(DATA)
    kernel.steps = [step, 1]
    assert provider(tmp_path).collect(DATA).quote


def test_a_directory_that_was_written_before_is_not_used(
    tmp_path: Path, kernel: FakeKernel
) -> None:
    kernel.first_generation = 1
    with pytest.raises(Unavailable, match="generation went from 1 to 2"):
        provider(tmp_path).collect(DATA)


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (error(errno.EINVAL), "tdx.sysfs"),
        (error(errno.ENXIO), "tdx.no_provider"),
        (error(errno.EFBIG), "tdx.sysfs"),
        (error(errno.ENOMEM), "tdx.sysfs"),
        (error(errno.EPERM), "tdx.permission"),
        (bytes(MAX_QUOTE_BYTES + 1), "tdx.quote_failed"),
    ],
)
def test_lasting_trouble_is_not_retried(
    tmp_path: Path, kernel: FakeKernel, trouble: Answer, code: str
) -> None:
    kernel.answers = [trouble]
    with pytest.raises(Unavailable) as caught:
        provider(tmp_path).collect(DATA)
    assert caught.value.code == code
    assert kernel.asked == 1


@pytest.mark.parametrize(
    ("number", "code", "asked"),
    [(errno.EBUSY, "", 1), (errno.EINVAL, "tdx.sysfs", 0), (errno.EACCES, "tdx.permission", 0)],
)
def test_trouble_with_the_write_is_told_apart_too(
    tmp_path: Path,
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: str,
    asked: int,
) -> None:
    troubles = [error(number)]

    def write(path: Path, data: bytes) -> None:
        if troubles:
            raise troubles.pop()
        kernel.write(path, data)

    monkeypatch.setattr("sealserve.tdx.configfs.write_attribute", write)
    if code:
        with pytest.raises(Unavailable) as caught:
            provider(tmp_path).collect(DATA)
        assert caught.value.code == code
    else:
        assert provider(tmp_path).collect(DATA).quote
    assert kernel.asked == asked


def test_an_answer_that_is_no_tdx_quote_is_refused_at_once(
    tmp_path: Path, kernel: FakeKernel
) -> None:
    kernel.answers = [bytes(2000)]
    with pytest.raises(Refused) as caught:
        provider(tmp_path).collect(DATA)
    assert caught.value.code == "quote.unsupported_version"
    assert kernel.asked == 1


@pytest.mark.parametrize("content", [b"sev_guest\n", b"", b"tdx_guest2", b"\xff\x1b[31m"])
def test_another_provider_is_refused(tmp_path: Path, kernel: FakeKernel, content: bytes) -> None:
    kernel.provider = [content]
    with pytest.raises(Refused) as caught:
        provider(tmp_path, allow_simulation=True).collect(DATA)
    assert caught.value.code == "tdx.provider"
    assert kernel.asked == 0


def test_a_provider_that_changes_between_requests_is_refused(
    tmp_path: Path, kernel: FakeKernel
) -> None:
    kernel.provider = [b"tdx_guest\n", b"sev_guest\n"]
    with pytest.raises(Refused) as caught:
        provider(tmp_path).collect(DATA)
    assert caught.value.code == "tdx.provider"


def test_no_provider_behind_configfs(tmp_path: Path, kernel: FakeKernel) -> None:
    kernel.provider = [error(errno.ENXIO)]
    with pytest.raises(Unavailable) as caught:
        provider(tmp_path).collect(DATA)
    assert caught.value.code == "tdx.no_provider"


def test_passing_trouble_while_looking_is_no_stranger(tmp_path: Path, kernel: FakeKernel) -> None:
    kernel.provider = [error(errno.EBUSY), b"tdx_guest\n"]
    assert provider(tmp_path).simulated is False
    kernel.provider = [error(errno.EBUSY)]
    with pytest.raises(Unavailable) as caught:
        _ = provider(tmp_path).simulated
    assert caught.value.code == "tdx.quote_failed"


def test_a_counter_that_is_no_number(
    tmp_path: Path, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = kernel.read
    monkeypatch.setattr(
        "sealserve.tdx.configfs.read_attribute",
        lambda path, limit=4096: b"?" if path.name == "generation" else read(path, limit),
    )
    with pytest.raises(Unavailable) as caught:
        provider(tmp_path).collect(DATA)
    assert caught.value.code == "tdx.sysfs"


def test_simulation_is_refused_unless_allowed(tmp_path: Path, kernel: FakeKernel) -> None:
    kernel.provider = [b"tdx_guest_SIMULATION\n"]
    with pytest.raises(Refused) as caught:
        provider(tmp_path).collect(DATA)
    assert caught.value.code == "tdx.simulation_denied"
    allowed = provider(tmp_path, allow_simulation=True)
    assert allowed.simulated is True
    assert allowed.collect(DATA).quote


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_has_64_bytes(tmp_path: Path, kernel: FakeKernel, size: int) -> None:
    with pytest.raises(InputError) as caught:
        provider(tmp_path).collect(bytes(size))
    assert caught.value.code == "tdx.report_data_length"


def test_a_machine_without_tdx_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        provider(tmp_path).collect(DATA)
    assert caught.value.code == "tdx.no_configfs"
    assert "6.7" in str(caught.value)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EACCES, "tdx.permission"),
        (errno.EPERM, "tdx.permission"),
        (errno.ENXIO, "tdx.no_provider"),
        (errno.ENOSPC, "tdx.sysfs"),
        (errno.EBUSY, "tdx.quote_failed"),
    ],
)
def test_a_request_that_cannot_be_made(
    tmp_path: Path, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise error(number)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(Unavailable) as caught:
        provider(tmp_path).collect(DATA)
    assert caught.value.code == code


def test_a_directory_that_cannot_be_removed_hides_nothing(
    tmp_path: Path, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Path.rmdir
    left: list[Path] = []

    def refuse(path: Path) -> None:
        left.append(path)
        raise error(errno.EBUSY)

    monkeypatch.setattr(Path, "rmdir", refuse)
    assert provider(tmp_path).collect(DATA).quote
    monkeypatch.setattr(Path, "rmdir", remove)
    for path in left:
        path.rmdir()


def test_two_parallel_callers_get_their_own_quotes(tmp_path: Path, kernel: FakeKernel) -> None:
    """The second finds the quoting service busy, waits, and is served then."""
    refused = threading.Event()
    # The first quote is not ready before the other caller has been turned away.
    kernel.entered = lambda: refused.wait(10) or None

    def pause(_: float) -> None:
        refused.set()

    configfs = ConfigfsProvider(tmp_path, sleep=pause)
    assert configfs.simulated is False

    def ask(number: int) -> bool:
        data = bytes([number]) * 64
        return parse_quote(configfs.collect(data).quote).report.report_data == data

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, (1, 2))) == [True, True]
    assert kernel.refusals >= 1
    assert kernel.asked == 2


def test_what_a_crashed_process_left_behind_is_removed(tmp_path: Path) -> None:
    """A real process makes a request and is killed in the middle of it."""
    reports = tmp_path / "kernel/config/tsm/report"
    reports.mkdir(parents=True)
    code = (
        "import os, pathlib, signal, sys\n"
        "from sealserve.tdx import configfs\n"
        "configfs.read_attribute = (lambda read: lambda path, limit=4096:\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if path.name == 'provider'\n"
        "    else read(path, limit))(configfs.read_attribute)\n"
        "configfs.ConfigfsProvider(pathlib.Path(sys.argv[1])).simulated\n"
    )
    crashed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert crashed.returncode == -9
    assert len(list(reports.iterdir())) == 1
    with pytest.raises(Unavailable):  # a directory on disk has no attributes
        _ = provider(tmp_path).simulated
    assert list(reports.iterdir()) == []


def test_only_what_is_ours_beyond_doubt_is_removed(tmp_path: Path) -> None:
    reports = tmp_path / "kernel/config/tsm/report"
    reports.mkdir(parents=True)
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    mine = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    chance = "0123456789abcdef"
    gone, reused = "4194305", str(os.getpid())  # beyond the largest process id; our own
    leftovers = {
        f"sealserve-{namespace}-{gone}-7-{chance}",
        f"sealserve-{namespace}-{reused}-{int(mine) + 1}-{chance}",
    }
    others = {
        f"sealserve-{namespace}-{os.getpid()}-{mine}-{chance}",  # alive
        f"sealserve-{namespace + 1}-{gone}-7-{chance}",  # another container's
        f"sealserve-0-{gone}-7-{chance}",
        f"sealserve-{namespace}-{gone}-0-{chance}",
        f"sealserve-{gone}-{chance}",
        f"other-{namespace}-{gone}-7-{chance}",
        "by-hand",
    }
    for name in leftovers | others:
        (reports / name).mkdir()
    with pytest.raises(Unavailable):
        _ = provider(tmp_path).simulated
    assert {path.name for path in reports.iterdir()} == others


def test_without_procfs_nothing_is_removed(tmp_path: Path) -> None:
    reports = tmp_path / "sys/kernel/config/tsm/report"
    left = reports / "sealserve-4026531836-4194305-7-0123456789abcdef"
    left.mkdir(parents=True)
    with pytest.raises(Unavailable):
        _ = ConfigfsProvider(tmp_path / "sys", proc=tmp_path / "proc").simulated
    assert list(reports.iterdir()) == [left]
