"""The process that shows a volume's inside as one file: ``python -m sealserve.volume.fuse``.

Started only by `sealserve.volume.child`. Arguments: mode, mount directory, then
six inherited descriptors: volume file, status (a pipe), lifeline (a pipe), heartbeat
(shared memory, see `sealserve.volume.watchdog`), settings (JSON), key (a pipe).

Rules this module keeps:

* The key comes through a pipe and is wiped once the cipher has it. The process
  can not be dumped or traced, and leaves no core.
* Whatever goes wrong in a read becomes EIO: no
  unverified byte reaches the reader. The first few failures are logged.
* It ends with its parent, on SIGTERM, and when its filesystem is unmounted, and
  leaves neither mount nor directory. It knows of its parent's end by the lifeline,
  which the kernel closes when the whole process is gone. (A signal on the parent's
  death comes with the death of one *thread*, while others of that process live.)
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final

import structlog

from sealserve import logs
from sealserve.errors import SealserveError, Unavailable
from sealserve.hardening import forbid_core_dumps, lock_memory, mark_io_flusher
from sealserve.volume import state as states
from sealserve.volume.child import DIRECTORY_PREFIX, FILE_NAME, lazy_unmount
from sealserve.volume.cipher import XTS_KEY_SIZE, sector_cipher, wipe
from sealserve.volume.engine import PlainView, SealedView, WritableView
from sealserve.volume.fuse_protocol import Denied, FileServer, Stop, mount
from sealserve.volume.luks2 import Layout
from sealserve.volume.process import mount_source, read_key
from sealserve.volume.record import decode_payload
from sealserve.volume.watchdog import HEARTBEAT_SIZE

__all__ = ["main"]

_MAX_LOGGED: Final = 10

_log = structlog.get_logger("sealserve.volume.fuse")


class _VolumeFile:
    """A view as the one file: see `sealserve.volume.fuse_protocol.File`."""

    def __init__(self, view: SealedView | PlainView, mode: str, heartbeat: memoryview) -> None:
        self._view = view
        self._heartbeat = heartbeat
        self._mode = mode
        self._failures = 0
        self.writable = isinstance(view, WritableView)

    @property
    def size(self) -> int:
        return self._view.size

    def prepare(self, offset: int, size: int) -> None:
        self._view.prepare(offset, size)

    def read(self, offset: int, size: int) -> bytearray:
        self._heartbeat[0] += 1
        return self._view.pread(offset, size)

    def write(self, offset: int, data: memoryview) -> None:
        self._heartbeat[0] += 1
        self._writable_view().pwrite(offset, data)

    def truncate(self, size: int) -> None:
        if size == self._view.size:
            return
        if self._mode != "fill":
            raise Denied(errno.EPERM)
        self._writable_view().truncate(size)  # mkfs.erofs finds out how large it will be

    def flush(self) -> None:
        self._heartbeat[0] += 1
        if self.writable:
            self._writable_view().flush()

    def failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures <= _MAX_LOGGED:
            # Not the text of an unknown exception: it could hold data.
            ours = isinstance(error, SealserveError)
            reason = str(error) if ours else type(error).__name__
            _log.error("io_failed", error=reason, last=self._failures == _MAX_LOGGED)

    def _writable_view(self) -> WritableView:
        if not isinstance(self._view, WritableView):
            raise Denied(errno.EROFS)
        return self._view


class _Lifeline(threading.Thread):
    """Takes down what stands on our file, and ends this process, once the parent is gone."""

    def __init__(
        self, descriptor: int, directory: Path, mountpoint: str | None, stop: Stop
    ) -> None:
        super().__init__(name="lifeline", daemon=True)
        self._descriptor = descriptor
        self._stop = stop
        self._file = str(directory / FILE_NAME)
        self._mountpoint = Path(mountpoint) if mountpoint else None
        self.cut = False

    def run(self) -> None:
        os.read(self._descriptor, 1)
        self.cut = True
        # The filesystem on top goes first: what it still has to write, we still take.
        self.unmount_top()
        self._stop.ask()

    def forget(self) -> None:
        """Remove what the parent would have removed: the mount's state, and its mount point."""
        if self._mountpoint is None:
            return
        state = states.abandoned(self._mountpoint)
        if state is None:
            if self._mountpoint.name.startswith(DIRECTORY_PREFIX):  # an import's, never announced
                with contextlib.suppress(OSError):
                    self._mountpoint.rmdir()
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
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.ask())
    mode, name, *numbers = arguments
    file, status, lifeline_end, heartbeat_file, settings_file, key_pipe = map(int, numbers)
    directory = Path(name)
    forbid_core_dumps()
    logs.configure(program="sealserve volume")
    with os.fdopen(settings_file, "rb") as stream:
        settings = json.load(stream)
    lifeline = _Lifeline(lifeline_end, directory, settings.get("mountpoint"), stop)
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
            _serve(_VolumeFile(view, mode, heartbeat), mode, directory, status, stop)
            if isinstance(view, WritableView):
                view.flush()
        except SealserveError as error:
            _report(status, error)
            return error.exit_status
        except OSError as error:
            _log.error("serving_failed", error=error.strerror)
            return 1
        finally:
            view.close()
    finally:
        if lifeline.cut:  # also what was mounted in the meantime
            lifeline.unmount_top()
            lifeline.forget()
        _tidy_up(directory)
    return 0


def _serve(file: _VolumeFile, mode: str, directory: Path, status: int, stop: Stop) -> None:
    descriptor = mount(directory, read_only=not file.writable)
    try:
        # The maker's small writes are gathered by the kernel: 6 times as fast. Not
        # those of a mounted volume: what is written must be on the disk at its fsync.
        server = FileServer(descriptor, FILE_NAME, file, gather_writes=mode == "fill")
        with contextlib.suppress(BrokenPipeError):  # the parent is gone: see `_Lifeline`
            os.write(status, b"ready\n")
        os.close(status)
        server.serve(stop)
    finally:
        os.close(descriptor)


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
    outcome = main(sys.argv[1:])
    # The interpreter gives signals back their defaults before it ends. Being told to end
    # just then must not turn success into a death by signal.
    for ended in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ended, signal.SIG_IGN)
    sys.exit(outcome)
