"""A filesystem with one file in it, spoken straight to the kernel through ``/dev/fuse``.

Rules this module keeps:

* The format is ``<linux/fuse.h>``, an interface that the kernel keeps compatible; we speak
  version 7.31 (Linux 5.4). A request that is not known here is answered with ENOSYS,
  on which the kernel does without.
* Requests are answered in the order in which they came. The file is told of a small read
  as soon as it waits: so the disk works on all that wait while one is verified and
  decrypted.
* Whatever the file raises becomes EIO, unless it is `Denied`; the file is told.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import stat
import struct
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from sealserve.errors import Unavailable
from sealserve.volume.process import run

__all__ = ["Denied", "File", "FileServer", "Stop", "mount"]

_VERSION: Final = (7, 31)
_MAX_IO: Final = 1 << 20  # bytes in one request; every kernel allows as many
_BUFFER_SIZE: Final = _MAX_IO + 4096  # a write, and what stands before it
_MOST_WAITING: Final = 64  # requests that the kernel hands out before one is answered
_SMALL: Final = 64 << 10  # a larger read is one of many in order, which the system sees by itself
_DEVICE: Final = "/dev/fuse"

# <sys/mount.h>
_MS_RDONLY: Final = 1
_MS_NOSUID_NODEV_NOEXEC: Final = 2 | 4 | 8

_ROOT: Final = 1
_FILE: Final = 2
_BLOCK: Final = 4096
_VALID: Final = 3600  # seconds for which the kernel need not ask again

_LOOKUP: Final = 1
_FORGET: Final = 2
_GETATTR: Final = 3
_SETATTR: Final = 4
_OPEN: Final = 14
_READ: Final = 15
_WRITE: Final = 16
_STATFS: Final = 17
_FSYNC: Final = 20
_INIT: Final = 26
_OPENDIR: Final = 27
_READDIR: Final = 28
_INTERRUPT: Final = 36
_BATCH_FORGET: Final = 42
_UNANSWERED: Final = frozenset({_FORGET, _INTERRUPT, _BATCH_FORGET})

_ASYNC_READ: Final = 1 << 0
_ATOMIC_O_TRUNC: Final = 1 << 3  # without it, opening with O_TRUNC would be a change of size
_BIG_WRITES: Final = 1 << 5
_ASYNC_DIO: Final = 1 << 15
_WRITEBACK_CACHE: Final = 1 << 16
_MAX_PAGES: Final = 1 << 22
_WANTED: Final = _ASYNC_READ | _ATOMIC_O_TRUNC | _BIG_WRITES | _ASYNC_DIO | _MAX_PAGES

_SET_MODE_OR_OWNER: Final = 1 | 2 | 4
_SET_SIZE: Final = 8

_Read = tuple[int, int, int]
"""Request, offset, size."""

_REQUEST: Final = struct.Struct("<IIQQ16x")  # length, operation, request, node
_ANSWER: Final = struct.Struct("<IiQ")  # length, negative errno, request
_INIT_IN: Final = struct.Struct("<4I")
_INIT_OUT: Final = struct.Struct("<4I2H2I2H32x")
_TRANSFER_IN: Final = struct.Struct("<8xQI20x")  # of a read or write: offset, size
_SETATTR_IN: Final = struct.Struct("<I12xQ")  # which, size
_ATTRIBUTES: Final = struct.Struct("<3Q24x12x6I4x")
_ENTRY: Final = struct.Struct("<4Q8x")
_VALIDITY: Final = struct.Struct("<Q8x")
_OPENED: Final = struct.pack("<QII", 0, 0, 0)
_STATFS_OUT: Final = struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, _BLOCK, 255, _BLOCK, 0)
_WRITTEN: Final = struct.Struct("<II")
_DIRENT: Final = struct.Struct("<QQII")


class Denied(Exception):
    """An answer that is an error of the caller's, with its number from `errno`."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class File(Protocol):
    """The one file."""

    @property
    def size(self) -> int:
        """Bytes, a multiple of 512."""

    @property
    def writable(self) -> bool:
        """Whether it may be opened for writing."""

    def prepare(self, offset: int, size: int) -> None:
        """This will be read soon. Does not wait, and does not raise."""

    def read(self, offset: int, size: int) -> bytearray:
        """Up to ``size`` bytes; fewer only at the end of the file."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of it; ``data`` is gone when this returns."""

    def truncate(self, size: int) -> None:
        """Change the size."""

    def flush(self) -> None:
        """Make what was written durable."""

    def failed(self, error: Exception) -> None:
        """One of the others raised this; the caller gets EIO."""


def mount(directory: Path, *, read_only: bool) -> int:
    """Mount a filesystem that waits for its server; nodev, nosuid, noexec.

    Root does it by itself, everybody else through fusermount3.

    Args:
        directory: an empty directory of this user.
        read_only: whether the kernel refuses to write.

    Returns:
        The descriptor on which it is served; when it is closed, the filesystem is dead.

    Raises:
        Unavailable: ``volume.fuse_failed``, or as `sealserve.volume.process.run`.
    """
    try:
        mounted = _mount_as_root if os.geteuid() == 0 else _mount_as_user
        descriptor = mounted(directory, read_only)
    except OSError as error:
        raise Unavailable(
            "volume.fuse_failed",
            f"cannot mount a FUSE filesystem: {error.strerror}",
            where=str(directory),
            hint="can this user mount FUSE filesystems here?",
        ) from None
    os.set_blocking(descriptor, False)
    return descriptor


def _mount_as_root(directory: Path, read_only: bool) -> int:
    descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    flags = _MS_NOSUID_NODEV_NOEXEC | (_MS_RDONLY if read_only else 0)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id={os.getegid()}"
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(directory)
    if libc.mount(b"sealserve", target, b"fuse", ctypes.c_ulong(flags), options.encode()) != 0:
        os.close(descriptor)
        raise OSError(number := ctypes.get_errno(), os.strerror(number))
    return descriptor


def _mount_as_user(directory: Path, read_only: bool) -> int:
    options = f"{'ro' if read_only else 'rw'},nosuid,nodev,noexec,fsname=sealserve"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = theirs.fileno()
        command = ["fusermount3", "-o", options, "--", str(directory)]
        run(command, pass_fds=[number], environment={"_FUSE_COMMFD": str(number)})
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
    os.set_inheritable(descriptor, False)
    return descriptor


class Stop:
    """Tells a server to end, from another thread or from a signal's handler."""

    def __init__(self) -> None:
        self.asked = False
        self.descriptor = os.eventfd(0)

    def ask(self) -> None:
        """End when the answer that is worked on has been given."""
        self.asked = True
        os.eventfd_write(self.descriptor, 1)


class FileServer:
    """Answers what the kernel asks about a directory with one file in it."""

    def __init__(
        self, descriptor: int, name: str, file: File, *, gather_writes: bool = False
    ) -> None:
        """Nothing is read yet.

        Args:
            descriptor: as `mount` returns it; stays the caller's to close.
            name: of the file, in the directory.
            file: the file.
            gather_writes: let the kernel gather small writes, and write them later.
        """
        self._descriptor = descriptor
        self._name = os.fsencode(name)
        self._file = file
        self._gather_writes = gather_writes
        self._request = bytearray(_BUFFER_SIZE)
        self._answers: Mapping[int, Callable[[int, memoryview], bytes]] = {
            _INIT: self._init,
            _LOOKUP: self._lookup,
            _GETATTR: self._getattr,
            _SETATTR: self._setattr,
            _OPEN: self._open,
            _WRITE: self._write,
            _STATFS: lambda _node, _body: _STATFS_OUT,
            _FSYNC: self._fsync,
            _OPENDIR: lambda _node, _body: _OPENED,
            _READDIR: self._readdir,
        }

    def serve(self, stop: Stop) -> None:
        """Answer until the filesystem is unmounted, or ``stop`` was asked for.

        Raises:
            OSError: what ``/dev/fuse`` answers when something is wrong with us.
        """
        something = select.poll()
        for descriptor in (stop.descriptor, self._descriptor):
            something.register(descriptor, select.POLLIN)
        reads: deque[_Read] = deque()
        # Looked at between any two answers: what has come in the meantime is announced
        # before the next answer is worked on.
        while self._take_what_waits(reads) and not stop.asked:
            if reads:
                self._answer_read(*reads.popleft())
            else:
                something.poll()

    def _take_what_waits(self, reads: deque[_Read]) -> bool:
        """Note and announce reads, answer all else; false when the mount is gone."""
        for _ in range(_MOST_WAITING):
            try:
                length = os.readv(self._descriptor, [self._request])
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOENT:  # whoever asked has gone away again
                    continue
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return False
                raise
            _, operation, request, node = _REQUEST.unpack_from(self._request)
            if operation == _READ:
                offset, size = _TRANSFER_IN.unpack_from(self._request, _REQUEST.size)
                if size <= _SMALL:
                    self._file.prepare(offset, size)
                reads.append((request, offset, size))
                continue
            while reads:
                self._answer_read(*reads.popleft())
            if operation not in _UNANSWERED:
                with memoryview(self._request)[_REQUEST.size : length] as body:
                    self._answer(request, operation, node, body)
        return True

    def _answer_read(self, request: int, offset: int, size: int) -> None:
        try:
            content = self._file.read(offset, size)
        except Exception as error:
            self._refuse(request, error)
        else:
            self._send(request, 0, content)

    def _answer(self, request: int, operation: int, node: int, body: memoryview) -> None:
        try:
            content = self._answers.get(operation, _unknown)(node, body)
        except Exception as error:
            self._refuse(request, error)
        else:
            self._send(request, 0, content)

    def _refuse(self, request: int, error: Exception) -> None:
        if not isinstance(error, Denied):
            self._file.failed(error)
        number = error.number if isinstance(error, Denied) else errno.EIO
        self._send(request, -number, b"")

    def _send(self, request: int, error: int, content: bytes | bytearray) -> None:
        header = _ANSWER.pack(_ANSWER.size + len(content), error, request)
        # Not there: whoever asked has gone away.
        with contextlib.suppress(FileNotFoundError):
            os.writev(self._descriptor, (header, content))

    def _init(self, _node: int, body: memoryview) -> bytes:
        _, _, readahead, offered = _INIT_IN.unpack_from(body)
        wanted = _WANTED | (_WRITEBACK_CACHE if self._gather_writes else 0)
        background = (_MOST_WAITING, _MOST_WAITING * 3 // 4)  # above which writers are slowed down
        pages = _MAX_IO // _BLOCK
        return _INIT_OUT.pack(
            *_VERSION, readahead, offered & wanted, *background, _MAX_IO, 1, pages, 0
        )

    def _lookup(self, node: int, body: memoryview) -> bytes:
        if node != _ROOT or bytes(body).rstrip(b"\0") != self._name:
            raise Denied(errno.ENOENT)
        return _ENTRY.pack(_FILE, 0, _VALID, _VALID) + self._attributes(_FILE)

    def _getattr(self, node: int, _body: memoryview) -> bytes:
        return _VALIDITY.pack(_VALID) + self._attributes(node)

    def _setattr(self, node: int, body: memoryview) -> bytes:
        which, size = _SETATTR_IN.unpack_from(body)
        if node != _FILE or which & _SET_MODE_OR_OWNER:
            raise Denied(errno.EPERM)
        if which & _SET_SIZE:
            self._file.truncate(size)
        return self._getattr(node, body)  # the gathered writes set times; we keep none

    def _open(self, _node: int, body: memoryview) -> bytes:
        (flags,) = struct.unpack_from("<I", body)
        if not self._file.writable and flags & os.O_ACCMODE != os.O_RDONLY:
            raise Denied(errno.EROFS)
        return _OPENED

    def _write(self, _node: int, body: memoryview) -> bytes:
        offset, size = _TRANSFER_IN.unpack_from(body)
        with body[_TRANSFER_IN.size : _TRANSFER_IN.size + size] as data:
            self._file.write(offset, data)
        return _WRITTEN.pack(size, 0)

    def _fsync(self, _node: int, _body: memoryview) -> bytes:
        self._file.flush()
        return b""

    def _readdir(self, _node: int, body: memoryview) -> bytes:
        (begin,) = struct.unpack_from("<8xQ", body)
        names = {b".": (_ROOT, stat.S_IFDIR), b"..": (_ROOT, stat.S_IFDIR)}
        names[self._name] = (_FILE, stat.S_IFREG)
        listing = b""
        for number, (name, (node, kind)) in enumerate(names.items(), 1):
            if number > begin:
                entry = _DIRENT.pack(node, number, len(name), kind >> 12) + name
                listing += entry + bytes(-len(entry) % 8)
        return listing

    def _attributes(self, node: int) -> bytes:
        if node == _ROOT:
            size, mode, links = 0, stat.S_IFDIR | 0o700, 2
        else:
            permissions = 0o600 if self._file.writable else 0o400
            size, mode, links = self._file.size, stat.S_IFREG | permissions, 1
        owner = (os.geteuid(), os.getegid())
        return _ATTRIBUTES.pack(node, size, size // 512, mode, links, *owner, 0, _BLOCK)


def _unknown(_node: int, _body: memoryview) -> bytes:
    raise Denied(errno.ENOSYS)
