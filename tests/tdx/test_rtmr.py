"""The measurement registers: read, extended, and believed only when they hold what they must."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.tdx import rtmr
from sealserve.tdx.rtmr import MEASUREMENTS, Registers
from tests.tdx.fake_kernel import error

DIGEST = bytes(range(48))


class FakeRegisters:
    """Four files that extend as the kernel does, unless told otherwise."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = root / MEASUREMENTS
        self.directory.mkdir(parents=True)
        for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"):
            (self.directory / f"{name}:sha384").write_bytes(bytes(48))
        self.extensions = [b""]  # what somebody else extends after us
        self.trouble: OSError | None = None
        self.deaf = False
        monkeypatch.setattr(rtmr, "write_attribute", self.write)

    def write(self, path: Path, data: bytes) -> None:
        if self.trouble:
            raise self.trouble
        for digest in (data, *filter(None, self.extensions)):
            if not self.deaf:
                path.write_bytes(hashlib.sha384(path.read_bytes() + digest).digest())


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRegisters:
    return FakeRegisters(tmp_path, monkeypatch)


def test_an_extension_is_read_back(tmp_path: Path, kernel: FakeRegisters) -> None:
    registers = Registers(tmp_path)
    assert registers.available
    registers.extend_rtmr3(DIGEST)
    once = hashlib.sha384(bytes(48) + DIGEST).digest()
    assert registers.read_rtmr(3) == once
    registers.extend_rtmr3(DIGEST)
    assert registers.read_rtmr(3) == hashlib.sha384(once + DIGEST).digest()
    assert [registers.read_rtmr(index) for index in range(3)] == [bytes(48)] * 3
    assert registers.read_mrtd() == bytes(48)


def test_another_writer_in_between_is_noticed(tmp_path: Path, kernel: FakeRegisters) -> None:
    kernel.extensions = [b"x" * 48]
    with pytest.raises(Refused) as caught:
        Registers(tmp_path).extend_rtmr3(DIGEST)
    assert caught.value.code == "tdx.extend_mismatch"


def test_a_kernel_that_does_not_extend_is_noticed(tmp_path: Path, kernel: FakeRegisters) -> None:
    kernel.deaf = True
    with pytest.raises(Refused) as caught:
        Registers(tmp_path).extend_rtmr3(DIGEST)
    assert caught.value.code == "tdx.extend_mismatch"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EACCES, "tdx.extend_failed"),
        (errno.EINVAL, "tdx.extend_failed"),
        (errno.EIO, "tdx.extend_failed"),
        (errno.ENOENT, "tdx.no_rtmr"),
    ],
)
def test_a_refused_extension(tmp_path: Path, kernel: FakeRegisters, number: int, code: str) -> None:
    kernel.trouble = error(number)
    # OSError picks FileNotFoundError and its like by number, as the kernel's do.
    with pytest.raises(Unavailable) as caught:
        Registers(tmp_path).extend_rtmr3(DIGEST)
    assert caught.value.code == code
    assert Registers(tmp_path).read_rtmr(3) == bytes(48)


def test_a_kernel_without_registers_refuses_with_its_reason(tmp_path: Path) -> None:
    registers = Registers(tmp_path)
    assert not registers.available
    for use in (
        lambda: registers.read_rtmr(0),
        registers.read_mrtd,
        lambda: registers.extend_rtmr3(DIGEST),
    ):
        with pytest.raises(Unavailable) as caught:
            use()
        assert caught.value.code == "tdx.no_rtmr"
        assert "6.16" in str(caught.value)


@pytest.mark.parametrize("content", [b"", bytes(47), bytes(49), None])
def test_a_register_has_48_bytes(
    tmp_path: Path, kernel: FakeRegisters, content: bytes | None
) -> None:
    path = kernel.directory / "rtmr2:sha384"
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(Unavailable) as caught:
        Registers(tmp_path).read_rtmr(2)
    assert caught.value.code == "tdx.sysfs"


def test_wrong_indices_and_digests_are_refused_early(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="RTMR4"):
        Registers(tmp_path).read_rtmr(4)
    with pytest.raises(InputError) as caught:
        Registers(tmp_path).extend_rtmr3(bytes(32))
    assert caught.value.code == "tdx.digest_length"
