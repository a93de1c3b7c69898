"""How the guest asks the kernel, against a scripted kernel: every trouble it may answer with.

The same code against a file system that behaves like the kernel's is tested in
tests/simulator/test_sysfs.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.tdx import guest as guest_module
from sealserve.tdx.guest import TdxGuest, read_boot_id
from sealserve.tdx.quote import MAX_QUOTE_BYTES

QUOTE = bytes(range(256)) * 8
DATA = bytes(64)


class Kernel:
    """Answers reads of ``outblob`` from a script; the last answer repeats."""

    def __init__(self, root: Path) -> None:
        self.reports = root / "kernel/config/tsm/report"
        self.reports.mkdir(parents=True)
        self.provider: bytes | OSError = b"tdx_guest\n"
        self.answers: list[bytes | OSError] = [QUOTE]
        self.steps = [1]
        self.generation = 0
        self.asked = 0

    def read(self, path: Path, limit: int) -> bytes:
        assert path.parent.parent == self.reports
        assert path.parent.is_dir()
        if path.name == "generation":
            return b"%d\n" % self.generation
        if path.name == "provider":
            answer = self.provider
        else:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.asked += 1
        if isinstance(answer, OSError):
            raise answer
        return answer[:limit]

    def write(self, path: Path, data: bytes) -> None:
        assert path.name == "inblob"
        assert data == DATA
        self.generation += self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    fake = Kernel(tmp_path)
    monkeypatch.setattr(guest_module, "_read", fake.read)
    monkeypatch.setattr(guest_module, "_write", fake.write)
    yield fake
    assert list(fake.reports.iterdir()) == [], "a request directory was left behind"


def make_guest(root: Path, pauses: list[float] | None = None, **options: bool) -> TdxGuest:
    return TdxGuest(root, sleep=(pauses if pauses is not None else []).append, **options)


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_a_quote_is_what_the_kernel_answers(tmp_path: Path, kernel: Kernel) -> None:
    guest = make_guest(tmp_path)
    assert guest.quote(DATA) == QUOTE
    assert guest.simulated is False


@pytest.mark.parametrize(
    "trouble",
    [
        error(errno.EBUSY),
        error(errno.EINTR),
        error(errno.ETIMEDOUT),
        error(errno.EIO),
        b"",
        bytes(1019),
    ],
)
def test_passing_trouble_is_retried_with_growing_pauses(
    tmp_path: Path, kernel: Kernel, trouble: bytes | OSError
) -> None:
    kernel.answers = [trouble, trouble, QUOTE]
    pauses: list[float] = []
    assert make_guest(tmp_path, pauses).quote(DATA) == QUOTE
    assert len(pauses) == 2
    assert pauses[1] > pauses[0]


@pytest.mark.parametrize("trouble", [error(errno.EBUSY), b"short"])
def test_retries_end(tmp_path: Path, kernel: Kernel, trouble: bytes | OSError) -> None:
    kernel.answers = [trouble]
    with pytest.raises(Unavailable) as caught:
        make_guest(tmp_path).quote(DATA)
    assert caught.value.code == "tdx.quote_failed"
    assert kernel.asked == 6


@pytest.mark.parametrize("step", [0, 2])
def test_another_writer_or_a_lost_write_is_noticed(
    tmp_path: Path, kernel: Kernel, step: int
) -> None:
    kernel.steps = [step]
    with pytest.raises(Unavailable, match="generation"):
        make_guest(tmp_path).quote(DATA)
    kernel.steps = [step, 1]
    assert make_guest(tmp_path).quote(DATA) == QUOTE


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (error(errno.EINVAL), "tdx.sysfs"),
        (error(errno.ENXIO), "tdx.no_provider"),
        (error(errno.EFBIG), "tdx.sysfs"),
        (error(errno.ENOMEM), "tdx.sysfs"),
        (bytes(MAX_QUOTE_BYTES + 1), "tdx.quote_failed"),
    ],
)
def test_lasting_trouble_is_not_retried(
    tmp_path: Path, kernel: Kernel, trouble: bytes | OSError, code: str
) -> None:
    kernel.answers = [trouble]
    with pytest.raises(Unavailable) as caught:
        make_guest(tmp_path).quote(DATA)
    assert caught.value.code == code
    assert kernel.asked == 1


@pytest.mark.parametrize("provider", [b"sev_guest\n", b"", b"tdx_guest2", b"\xff\x1b[31m"])
def test_another_provider_is_refused(tmp_path: Path, kernel: Kernel, provider: bytes) -> None:
    kernel.provider = provider
    with pytest.raises(Refused) as caught:
        make_guest(tmp_path, allow_simulation=True).quote(DATA)
    assert caught.value.code == "tdx.provider"
    assert kernel.asked == 0


def test_no_provider_behind_configfs(tmp_path: Path, kernel: Kernel) -> None:
    kernel.provider = error(errno.ENXIO)
    with pytest.raises(Unavailable) as caught:
        make_guest(tmp_path).quote(DATA)
    assert caught.value.code == "tdx.no_provider"


def test_simulation_is_refused_unless_allowed(tmp_path: Path, kernel: Kernel) -> None:
    kernel.provider = b"tdx_guest_SIMULATION\n"
    for use in (
        lambda guest: guest.simulated,
        lambda guest: guest.quote(DATA),
        lambda guest: guest.read_rtmr(3),
        lambda guest: guest.extend_rtmr3(bytes(48)),
    ):
        with pytest.raises(Refused) as caught:
            use(make_guest(tmp_path))
        assert caught.value.code == "tdx.simulation_denied"
    allowed = make_guest(tmp_path, allow_simulation=True)
    assert allowed.simulated is True
    assert allowed.quote(DATA) == QUOTE


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_has_64_bytes(tmp_path: Path, kernel: Kernel, size: int) -> None:
    with pytest.raises(InputError) as caught:
        make_guest(tmp_path).quote(bytes(size))
    assert caught.value.code == "tdx.report_data_length"


def test_a_machine_without_tdx_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        TdxGuest(tmp_path).quote(DATA)
    assert caught.value.code == "tdx.no_configfs"
    assert "6.7" in str(caught.value)


def test_a_kernel_without_registers_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = TdxGuest(tmp_path)
    monkeypatch.setitem(guest.__dict__, "simulated", False)
    for use in (lambda: guest.read_rtmr(0), guest.read_mrtd, lambda: guest.extend_rtmr3(bytes(48))):
        with pytest.raises(Unavailable) as caught:
            use()
        assert caught.value.code == "tdx.no_rtmr"
        assert "6.16" in str(caught.value)


def test_wrong_indices_and_digests_are_refused_early(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="RTMR4"):
        TdxGuest(tmp_path).read_rtmr(4)
    with pytest.raises(InputError) as caught:
        TdxGuest(tmp_path).extend_rtmr3(bytes(32))
    assert caught.value.code == "tdx.digest_length"


def test_the_boot_id_is_16_bytes_and_stays() -> None:
    assert len(read_boot_id()) == 16
    assert read_boot_id() == read_boot_id()


@pytest.mark.parametrize("content", [None, "", "not a uuid"])
def test_no_boot_id(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "boot_id"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Unavailable) as caught:
        read_boot_id(path)
    assert caught.value.code == "tdx.no_boot_id"
