"""The process that shows a volume's inside as one file: ``python -m sealserve.volume.fuse``.

Started only by `sealserve.volume.child`. Arguments: mode, mount directory, then
six inherited descriptors: volume file, status (a pipe), lifeline (a pipe), heartbeat
(shared memory, see `sealserve.volume.watchdog`), settings (JSON), key (a pipe).

Rules this module keeps:

* The key comes through a pipe and is wiped once the cipher has it. The process
  can not be dumped or traced, and leaves no core.
* Whatever goes wrong in a read becomes EIO: no exception reaches libfuse, no
  unverified byte reaches the reader. The first few failures are logged.
* It ends with its parent, on SIGTERM, and when its filesystem is unmounted, and
  leaves neither mount nor directory. It knows of its parent's end by the lifeline,
  which the kernel closes when the whole process is gone. (A signal on the parent's
  death comes with the death of one *thread*, while others of that process live.)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import mfusepy
import structlog

from sealserve import logs
from sealserve.errors import SealserveError, Unavailable
from sealserve.hardening import forbid_core_dumps, lock_memory, mark_io_flusher
from sealserve.volume import state as states
from sealserve.volume.child import FILE_NAME, lazy_unmount
from sealserve.volume.cipher import XTS_KEY_SIZE, sector_cipher, wipe
from sealserve.volume.engine import PlainView, SealedView, WritableView
from sealserve.volume.luks2 import Layout
from sealserve.volume.process import mount_source, read_key
from sealserve.volume.record import BLOCK_SIZE, decode_payload
from sealserve.volume.watchdog import HEARTBEAT_SIZE

__all__ = ["main"]

_CAP_WRITEBACK_CACHE: Final = 1 << 16  # <fuse_common.h> of libfuse 3
_PATH: Final = f"/{FILE_NAME}"
_MAX_LOGGED: Final = 10
_REPEAT_PAUSE: Final = 0.1

_T = TypeVar("_T")

_log = structlog.get_logger("sealserve.volume.fuse")


class _OneFile(mfusepy.Operations):  # type: ignore[misc]
    """A directory with one file in it: the view."""

    use_ns = True

    def __init__(
        self, view: SealedView | PlainView, mode: str, status: int, heartbeat: memoryview
    ) -> None:
        self._view = view
        self._heartbeat = heartbeat
        self._mode = mode
        self._status = status
        self._failures = 0
        self._writable = isinstance(view, WritableView)

    def init_with_config(self, connection: Any, _config: Any) -> None:
        # The maker's small writes are gathered by the kernel: 6 times as fast. Not
        # those of a mounted volume: what is written must be on the disk at its fsync.
        if self._mode == "fill" and connection is not None and mfusepy.fuse_version_major == 3:
            connection.want |= connection.capable & _CAP_WRITEBACK_CACHE
        with contextlib.suppress(BrokenPipeError):  # the parent is gone: see `_Lifeline`
            os.write(self._status, b"ready\n")
        os.close(self._status)
        # By now libfuse's own handler is in place, and ends the loop in order.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        del fh
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2, **self._owner()}
        if path == _PATH:
            mode = stat.S_IFREG | (0o600 if self._writable else 0o400)
            size = self._view.size
            return {
                "st_mode": mode,
                "st_nlink": 1,
                "st_size": size,
                "st_blocks": size // 512,
                "st_blksize": BLOCK_SIZE,
                **self._owner(),
            }
        raise mfusepy.FuseOSError(errno.ENOENT)

    def readdir(self, path: str, fh: int) -> list[str]:
        del path, fh
        return [".", "..", FILE_NAME]

    def open(self, path: str, flags: int) -> int:
        if path != _PATH:
            raise mfusepy.FuseOSError(errno.ENOENT)
        if not self._writable and flags & os.O_ACCMODE != os.O_RDONLY:
            raise mfusepy.FuseOSError(errno.EROFS)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> ctypes.Array[ctypes.c_char]:
        del path, fh
        found = self._guard(lambda: self._view.pread(offset, size))
        # mfusepy copies from here into libfuse's buffer; as bytes it would be copied twice.
        return (ctypes.c_char * len(found)).from_buffer(found)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        del path, fh
        view = self._view
        if not isinstance(view, WritableView):
            raise mfusepy.FuseOSError(errno.EROFS)
        return self._guard(lambda: view.pwrite(offset, data))

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        del path, fh
        if length == self._view.size:
            return 0
        view = self._view
        if self._mode != "fill" or not isinstance(view, WritableView):
            raise mfusepy.FuseOSError(errno.EPERM)
        self._guard(lambda: view.truncate(length))  # mkfs.erofs finds out how large it will be
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        del path, datasync, fh
        if isinstance(self._view, WritableView):
            self._guard(self._view.flush)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        del path, times  # the writeback cache sets times; the view has none
        return 0

    def _owner(self) -> dict[str, int]:
        return {"st_uid": os.geteuid(), "st_gid": os.getegid()}

    def _guard(self, work: Callable[[], _T]) -> _T:
        self._heartbeat[0] += 1
        try:
            return work()
        except Exception as error:
            self._failures += 1
            if self._failures <= _MAX_LOGGED:
                # Not the text of an unknown exception: it could hold data.
                ours = isinstance(error, SealserveError)
                reason = str(error) if ours else type(error).__name__
                _log.error("io_failed", error=reason, last=self._failures == _MAX_LOGGED)
            raise mfusepy.FuseOSError(errno.EIO) from None


class _Lifeline(threading.Thread):
    """Takes down what stands on our file, and ends this process, once the parent is gone."""

    def __init__(self, descriptor: int, directory: Path, mountpoint: str | None) -> None:
        super().__init__(name="lifeline", daemon=True)
        self._descriptor = descriptor
        self._file = str(directory / FILE_NAME)
        self._mountpoint = Path(mountpoint) if mountpoint else None
        self.cut = False

    def run(self) -> None:
        os.read(self._descriptor, 1)
        self.cut = True
        # The filesystem on top goes first: what it still has to write, we still take.
        self.unmount_top()
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            # A signal between libfuse's look at its flag and its next read is
            # noticed only with the next request; there may never be one.
            time.sleep(_REPEAT_PAUSE)

    def forget(self) -> None:
        """Remove what the parent would have removed: the mount's state, and its mount point."""
        state = states.abandoned(self._mountpoint) if self._mountpoint else None
        if state is None:
            return
        if state.made:
            with contextlib.suppress(OSError):
                Path(state.mountpoint).rmdir()
        states.forget(Path(state.mountpoint))

    def unmount_top(self) -> None:
        """A loop device under that mount goes with it (it was attached so)."""
        if self._mountpoint and mount_source(self._mountpoint) == self._file:
            with contextlib.suppress(SealserveError):
                lazy_unmount(self._mountpoint)


def main(arguments: list[str]) -> int:
    """Serve until unmounted or told to stop.

    Args:
        arguments: mode, directory and the six descriptors.

    Returns:
        The exit status; 0 when nothing that was written is lost.
    """
    # Until libfuse listens for it; a directory would be left behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    mode, name, *numbers = arguments
    file, status, lifeline_end, heartbeat_file, settings_file, key_pipe = map(int, numbers)
    directory = Path(name)
    forbid_core_dumps()
    logs.configure(program="sealserve volume")
    with os.fdopen(settings_file, "rb") as stream:
        settings = json.load(stream)
    lifeline = _Lifeline(lifeline_end, directory, settings.get("mountpoint"))
    lifeline.start()
    try:
        try:
            view = _open_view(mode, file, settings, read_key(key_pipe, XTS_KEY_SIZE))
        except SealserveError as error:
            _report(status, error)
            return error.exit_status
        try:
            if mode == "write":
                lock_memory()
                mark_io_flusher()
            heartbeat = memoryview(mmap.mmap(heartbeat_file, HEARTBEAT_SIZE)).cast("Q")
            _serve(view, mode, directory, status, heartbeat)
            if isinstance(view, WritableView):
                view.flush()
        except RuntimeError:  # libfuse's main loop ended with an error; it has said why
            return 1
        except OSError as error:
            _log.error("flush_failed", error=error.strerror)
            return 1
        finally:
            view.close()
    finally:
        if lifeline.cut:  # also what was mounted in the meantime
            lifeline.unmount_top()
            lifeline.forget()
        _tidy_up(directory)
    return 0


def _serve(
    view: SealedView | PlainView, mode: str, directory: Path, status: int, heartbeat: memoryview
) -> None:
    mfusepy.FUSE(
        _OneFile(view, mode, status, heartbeat),
        str(directory),
        foreground=True,
        nothreads=True,
        fsname="sealserve",
        nodev=True,
        nosuid=True,
        noexec=True,
        ro=not isinstance(view, WritableView),
        attr_timeout=3600,
        entry_timeout=3600,
    )


def _open_view(
    mode: str, file: int, settings: dict[str, Any], key: bytearray
) -> SealedView | PlainView:
    try:
        match mode:
            case "read":
                return SealedView(file, decode_payload(settings["record"].encode()), key)
            case "write":
                record = decode_payload(settings["record"].encode())
                return WritableView.of_record(file, record, key)
            case "foreign":
                unit = settings["unit"]
                cipher = sector_cipher(key, unit)
                start, size = settings["start"], settings["size"]
                return PlainView(file, cipher, start=start, size=size, unit=unit)
            case _:
                layout = Layout(settings["segment_offset"])
                uuid, size = settings["uuid"], settings["size"]
                return WritableView(file, uuid=uuid, layout=layout, size=size, key=key)
    except OSError as error:
        raise Unavailable(
            "volume.unreadable", f"cannot read the volume: {error.strerror}"
        ) from None
    finally:
        wipe(key)


def _report(status: int, error: SealserveError) -> None:
    answer = {"class": type(error).__name__, **error.to_dict()}
    with contextlib.suppress(BrokenPipeError):
        os.write(status, json.dumps(answer).encode() + b"\n")


def _tidy_up(directory: Path) -> None:
    # Whoever wrote when the parent died may still hold our file open.
    with contextlib.suppress(SealserveError):
        lazy_unmount(directory)
    with contextlib.suppress(OSError):
        directory.rmdir()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
