"""NV indices of a TPM: against swtpm where it is installed, against bytes everywhere."""

from __future__ import annotations

import errno
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.errors import InputError, Unavailable
from sealserve.tdx import tpm
from sealserve.tdx.evidence import PassingTrouble
from sealserve.tdx.tpm import NvIndex, Transmit, device_transmit
from tests.children import Child
from tests.conftest import missing
from tests.tdx.fake_kernel import error

INDEX = 0x01400002


@pytest.fixture(scope="module")
def swtpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transmit]:
    """A software TPM 2.0 in a process of its own."""
    if not shutil.which("swtpm"):
        missing("swtpm", "install the package swtpm")
    state = tmp_path_factory.mktemp("swtpm")
    near = state / "tpm.sock"
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}"]
    command += ["--server", f"type=unixio,path={near}", "--flags", "not-need-init,startup-clear"]
    with Child(command) as process:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            _connect(connection, near, process)

            def transmit(message: bytes) -> bytes:
                connection.sendall(message)
                return connection.recv(4096)

            yield transmit
        process.terminate()


def _connect(connection: socket.socket, path: Path, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            connection.connect(str(path))
            return
        time.sleep(0.05)
    pytest.fail("swtpm did not start")


def test_a_tpm_of_others_defines_writes_and_reads(swtpm: Transmit) -> None:
    index = NvIndex(swtpm, INDEX)
    assert index.size() is None
    index.define(64)
    assert index.size() == 64
    index.define(64)  # another process may have been faster
    data = bytes(range(64))
    index.write(data)
    assert index.read(64) == data
    assert index.read(10) == data[:10]
    index.write(bytes(64))
    assert index.read(64) == bytes(64)


def test_a_tpm_of_others_takes_large_indices_in_parts(swtpm: Transmit) -> None:
    index = NvIndex(swtpm, 0x01400001)
    index.define(2000)
    data = bytes(n * 7 % 256 for n in range(2000))
    index.write(data)
    assert index.size() == 2000
    assert index.read(2000) == data


def test_a_tpm_of_others_refuses(swtpm: Transmit) -> None:
    index = NvIndex(swtpm, 0x01400003)
    for use in (lambda: index.read(8), lambda: index.write(b"x")):
        with pytest.raises(Unavailable) as caught:
            use()
        assert caught.value.code == "tdx.tpm_refused"
    index.define(8)
    with pytest.raises(Unavailable) as caught:
        index.write(bytes(9))
    assert caught.value.code == "tdx.tpm_refused"


@pytest.mark.parametrize("code", [0x908, 0x90A, 0x920, 0x922])
def test_a_busy_tpm_may_be_asked_again(code: int) -> None:
    with pytest.raises(PassingTrouble):
        NvIndex(lambda _: struct.pack(">HII", 0x8001, 10, code), INDEX).size()


GOOD_PUBLIC = struct.pack(">HIHIHH", 14, INDEX, 0x0B, 0x20002, 0, 64) + b"\0\0"


def plain(body: bytes, tag: int = 0x8001) -> bytes:
    return struct.pack(">HII", tag, 10 + len(body), 0) + body


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"\0" * 9,
        plain(GOOD_PUBLIC) + b"\0",
        plain(GOOD_PUBLIC, tag=0x8002),
        plain(b""),
        plain(b"\0\0"),
        plain(b"\xff\xff" + GOOD_PUBLIC[2:]),
        plain(struct.pack(">HIHIHH", 14, INDEX + 1, 0x0B, 0, 0, 64)),
        plain(struct.pack(">HIHIHH", 14, INDEX, 0x0B, 0, 99, 64)),
        plain(struct.pack(">HIHIH", 12, INDEX, 0x0B, 0, 0)),
    ],
)
def test_public_areas_have_one_form(response: bytes) -> None:
    assert NvIndex(lambda _: plain(GOOD_PUBLIC), INDEX).size() == 64
    with pytest.raises(InputError) as caught:
        NvIndex(lambda _: response, INDEX).size()
    assert caught.value.code == "tdx.tpm_malformed"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        struct.pack(">IH", 2, 8),
        struct.pack(">IH", 99, 8) + bytes(8),
        struct.pack(">IH", 6, 4) + bytes(4),  # less than was asked for
        struct.pack(">IH", 11, 9) + bytes(9),  # more
    ],
)
def test_what_is_read_has_the_size_that_was_asked_for(body: bytes) -> None:
    good = struct.pack(">IH", 10, 8) + b"8 bytes." + bytes(5)
    assert NvIndex(lambda _: plain(good, 0x8002), INDEX).read(8) == b"8 bytes."
    with pytest.raises(InputError) as caught:
        NvIndex(lambda _: plain(body, 0x8002), INDEX).read(8)
    assert caught.value.code == "tdx.tpm_malformed"


@given(st.binary(max_size=64), st.booleans())
def test_any_response_gives_a_result_or_a_typed_error(body: bytes, framed: bool) -> None:
    response = plain(body, 0x8002) if framed else body
    index = NvIndex(lambda _: response, INDEX)
    for use in (
        index.size,
        lambda: index.read(8),
        lambda: index.write(b"x"),
        lambda: index.define(8),
    ):
        with suppress(InputError, Unavailable, PassingTrouble):
            use()


def test_the_device_takes_a_command_and_gives_a_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "tpmrm0"
    device.write_bytes(b"........response")
    assert device_transmit(device)(b"command!") == b"response"
    with pytest.raises(Unavailable) as caught:
        device_transmit(tmp_path / "none")(b"")
    assert caught.value.code == "tdx.tpm"

    def busy(*_: object) -> int:
        raise error(errno.EBUSY)

    monkeypatch.setattr(tpm.os, "open", busy)
    with pytest.raises(PassingTrouble):
        device_transmit(device)(b"")
