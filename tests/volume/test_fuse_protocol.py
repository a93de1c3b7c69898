"""One file, asked for as the kernel asks: over a socket, and by the kernel itself."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sealserve.errors import Unavailable
from sealserve.volume.fuse_protocol import Denied, FileServer, Stop, _mount_as_user, mount
from tests.volume.conftest import need_tools, tool

CONTENT = os.urandom(3 << 20)
LOOKUP, FORGET, SETATTR, OPEN, READ, WRITE, FSYNC, INIT = 1, 2, 4, 14, 15, 16, 20, 26
ROOT, FILE = 1, 2


@dataclass
class Memory:
    """A file that writes down what it is told."""

    writable: bool = True
    content: bytearray = field(default_factory=lambda: bytearray(CONTENT))
    told: list[tuple[str, int, int]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.content)

    def prepare(self, offset: int, size: int) -> None:
        self.told.append(("prepare", offset, size))

    def read(self, offset: int, size: int) -> bytearray:
        self.told.append(("read", offset, size))
        if offset == 4096:
            raise ValueError("a bad block")
        return self.content[offset : offset + size]

    def write(self, offset: int, data: memoryview) -> None:
        self.told.append(("write", offset, len(data)))
        self.content[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        del size
        raise Denied(errno.EPERM)

    def flush(self) -> None:
        self.told.append(("flush", 0, 0))

    def failed(self, error: Exception) -> None:
        self.failures.append(error)


class Kernel:
    """The other end of what the server takes for ``/dev/fuse``."""

    def __init__(self, file: Memory, *, gather_writes: bool = False) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs.setblocking(False)
        self._ours.settimeout(10)
        self._server = FileServer(
            self._theirs.fileno(), "volume", file, gather_writes=gather_writes
        )
        self._stop = Stop()
        self._thread = threading.Thread(target=self._server.serve, args=(self._stop,))

    def ask(self, number: int, operation: int, node: int, body: bytes = b"") -> None:
        head = struct.pack("<IIQQ16x", 40 + len(body), operation, number, node)
        self._ours.send(head + body)

    def answer(self) -> tuple[int, int, bytes]:
        """Number of the request, error, content."""
        raw = self._ours.recv(2 << 20)
        length, error, number = struct.unpack_from("<IiQ", raw)
        assert length == len(raw)
        return number, error, raw[16:]

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.ask()
        if self._thread.ident:
            self._thread.join(10)
            assert not self._thread.is_alive()
        self._ours.close()
        self._theirs.close()
        os.close(self._stop.descriptor)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def kernel(memory: Memory) -> Iterator[Kernel]:
    made = Kernel(memory)
    yield made
    made.close()


def transfer(offset: int, size: int, data: bytes = b"") -> bytes:
    return struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0) + data


def test_reads_that_wait_together_are_all_announced_before_the_first_is_done(
    kernel: Kernel, memory: Memory
) -> None:
    for number, offset in enumerate((8192, 0, 65536)):
        kernel.ask(number, READ, FILE, transfer(offset, 4096))
    kernel.start()
    for number, offset in enumerate((8192, 0, 65536)):
        assert kernel.answer() == (number, 0, CONTENT[offset : offset + 4096])
    assert memory.told == [
        (what, offset, 4096) for what in ("prepare", "read") for offset in (8192, 0, 65536)
    ]


def test_a_large_read_is_not_announced(kernel: Kernel, memory: Memory) -> None:
    """The system reads ahead by itself there; told of each piece, it reads more slowly."""
    kernel.start()
    for number, size in enumerate((64 << 10, 128 << 10)):
        kernel.ask(number, READ, FILE, transfer(0, size))
        assert kernel.answer() == (number, 0, CONTENT[:size])
    assert [size for what, _, size in memory.told if what == "prepare"] == [64 << 10]


def test_a_write_stays_where_it_came_between_reads(kernel: Kernel, memory: Memory) -> None:
    kernel.ask(1, READ, FILE, transfer(0, 4096))
    kernel.ask(2, WRITE, FILE, transfer(0, 4096, bytes(4096)))
    kernel.ask(3, READ, FILE, transfer(0, 4096))
    kernel.start()
    assert kernel.answer() == (1, 0, CONTENT[:4096])
    assert kernel.answer() == (2, 0, struct.pack("<II", 4096, 0))
    assert kernel.answer() == (3, 0, bytes(4096))
    assert [what for what, _, _ in memory.told if what != "prepare"] == ["read", "write", "read"]


def test_a_read_that_fails_is_eio_and_the_others_are_answered(
    kernel: Kernel, memory: Memory
) -> None:
    kernel.start()
    for number, offset in enumerate((0, 4096, 8192)):
        kernel.ask(number, READ, FILE, transfer(offset, 4096))
    assert kernel.answer() == (0, 0, CONTENT[:4096])
    assert kernel.answer() == (1, -errno.EIO, b"")
    assert kernel.answer() == (2, 0, CONTENT[8192 : 8192 + 4096])
    assert [str(error) for error in memory.failures] == ["a bad block"]


def test_what_is_denied_has_its_own_error_and_is_no_failure(kernel: Kernel, memory: Memory) -> None:
    kernel.start()
    for number, (operation, node, body, error) in enumerate(
        [
            (LOOKUP, ROOT, b"other\0", errno.ENOENT),
            (LOOKUP, FILE, b"volume\0", errno.ENOENT),
            (SETATTR, FILE, struct.pack("<I12xQ64x", 8, 0), errno.EPERM),
            (SETATTR, FILE, struct.pack("<I12xQ64x", 1, 0), errno.EPERM),
            (SETATTR, ROOT, struct.pack("<I12xQ64x", 32, 0), errno.EPERM),
            (9999, FILE, b"", errno.ENOSYS),
        ]
    ):
        kernel.ask(number, operation, node, body)
        assert kernel.answer() == (number, -error, b"")
    memory.writable = False
    kernel.ask(7, OPEN, FILE, struct.pack("<II", os.O_RDWR, 0))
    assert kernel.answer() == (7, -errno.EROFS, b"")
    kernel.ask(8, OPEN, FILE, struct.pack("<II", os.O_RDONLY, 0))
    assert kernel.answer() == (8, 0, bytes(16))
    assert not memory.failures


def test_what_wants_no_answer_gets_none(kernel: Kernel, memory: Memory) -> None:
    kernel.start()
    for operation in (FORGET, 36, 42):  # also INTERRUPT and BATCH_FORGET
        kernel.ask(0, operation, FILE, bytes(16))
    kernel.ask(1, FSYNC, FILE, bytes(16))
    assert kernel.answer() == (1, 0, b"")
    assert memory.told == [("flush", 0, 0)]


def test_a_message_cut_short_is_eio(kernel: Kernel, memory: Memory) -> None:
    kernel.start()
    kernel.ask(1, WRITE, FILE, bytes(12))
    assert kernel.answer() == (1, -errno.EIO, b"")
    assert len(memory.failures) == 1


@pytest.mark.parametrize("gather", [False, True])
def test_only_what_the_kernel_offers_is_asked_for(memory: Memory, gather: bool) -> None:
    kernel = Kernel(memory, gather_writes=gather)
    kernel.start()
    for offered in (0, 1 << 16 | 1 << 5, 0xFFFFFFFF):
        kernel.ask(1, INIT, 0, struct.pack("<4I", 7, 31, 65536, offered))
        number, error, content = kernel.answer()
        major, minor, readahead, flags = struct.unpack_from("<4I", content)
        assert (number, error, major, minor, readahead) == (1, 0, 7, 31, 65536)
        assert len(content) == 64
        assert flags & ~offered == 0
        assert bool(flags & 1 << 16) == (gather and offered != 0)
    kernel.close()


@pytest.fixture
def mounted(memory: Memory, tmp_path: Path) -> Iterator[Callable[[bool], Path]]:
    """Shows the file by a real kernel."""
    need_tools()
    served: list[tuple[threading.Thread, int, Stop]] = []

    def show(read_only: bool) -> Path:
        memory.writable = not read_only
        descriptor, stop = mount(tmp_path, read_only=read_only), Stop()
        server = FileServer(descriptor, "volume", memory)
        thread = threading.Thread(target=server.serve, args=(stop,))
        thread.start()
        served.append((thread, descriptor, stop))
        return tmp_path / "volume"

    yield show
    if os.geteuid() == 0:
        tool("umount", str(tmp_path))
    else:
        tool("fusermount3", "-u", str(tmp_path))
    for thread, descriptor, stop in served:
        thread.join(10)  # without being told to: the mount is gone
        assert not thread.is_alive()
        os.close(descriptor)
        os.close(stop.descriptor)


def test_the_kernel_sees_a_directory_with_one_file(
    mounted: Callable[[bool], Path], tmp_path: Path
) -> None:
    file = mounted(True)
    assert [path.name for path in tmp_path.iterdir()] == ["volume"]
    status = file.stat()
    assert (status.st_size, status.st_mode, status.st_nlink) == (len(CONTENT), 0o100400, 1)
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    assert tmp_path.stat().st_mode == 0o40700
    assert os.statvfs(tmp_path).f_namemax == 255
    with file.open("rb", buffering=0) as stream:
        stream.seek(8192)
        assert stream.read() == CONTENT[8192:]
        stream.seek(4096)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.preadv(stream.fileno(), [bytearray(1)], 4096)
    for refused in (
        lambda: file.open("r+b"),
        lambda: file.chmod(0o777),
        lambda: (tmp_path / "new").touch(),
        file.unlink,
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            refused()
    assert not (tmp_path / "other").exists()


def test_the_kernel_writes_and_flushes(mounted: Callable[[bool], Path], memory: Memory) -> None:
    descriptor = os.open(mounted(False), os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 2 << 20) as zeros, os.fdopen(descriptor, "wb", buffering=0) as stream:
        os.pwrite(descriptor, zeros, 1 << 20)
        os.fsync(descriptor)
        assert memory.content == CONTENT[: 1 << 20] + bytes(2 << 20)
        # As much at once as every kernel allows.
        assert sorted(memory.told) == [
            ("flush", 0, 0), ("write", 1 << 20, 1 << 20), ("write", 2 << 20, 1 << 20)
        ]  # fmt: skip
        with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
            stream.truncate(4096)
    assert not memory.failures


def test_fusermount3_hands_over_the_same(tmp_path: Path, memory: Memory) -> None:
    """As everybody but root mounts."""
    need_tools()
    descriptor = _mount_as_user(tmp_path, True)
    try:
        os.set_blocking(descriptor, False)
        assert not os.get_inheritable(descriptor)
        (line,) = [
            line
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if str(tmp_path) in line
        ]
        source, _, kind, options = line.split()[:4]
        assert (source, kind) == ("sealserve", "fuse")
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(options.split(","))
        stop, server = Stop(), FileServer(descriptor, "volume", memory)
        thread = threading.Thread(target=server.serve, args=(stop,))
        thread.start()
        with (tmp_path / "volume").open("rb", buffering=0) as stream:
            assert stream.read(4096) == CONTENT[:4096]
    finally:
        tool("fusermount3", "-u", str(tmp_path))
    thread.join(10)
    assert not thread.is_alive()
    os.close(descriptor)
    os.close(stop.descriptor)


def test_what_cannot_be_mounted_on_is_said(tmp_path: Path) -> None:
    need_tools()
    if os.geteuid() == 0:
        with pytest.raises(Unavailable) as raised:
            mount(tmp_path / "missing", read_only=True)
        assert raised.value.code == "volume.fuse_failed"
    with pytest.raises(Unavailable, match="fusermount3 ended with status 1"):
        _mount_as_user(tmp_path / "missing", True)


def test_when_its_server_ends_the_filesystem_is_dead(tmp_path: Path) -> None:
    need_tools()
    descriptor = mount(tmp_path, read_only=True)
    os.close(descriptor)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        list(tmp_path.iterdir())
    tool("umount", str(tmp_path)) if os.geteuid() == 0 else tool("fusermount3", "-u", str(tmp_path))
