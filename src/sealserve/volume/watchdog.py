"""The process that frees a hung writable mount: ``python -m sealserve.volume.watchdog``.

A filesystem that the kernel writes through a process of this machine can hang with
it: short of memory, the kernel waits for that process to take dirty pages, and that
process waits for memory. Nothing ends this but aborting the FUSE connection; then
writers get errors, and what was synced is on the disk.

Started only by `sealserve.volume.child`. Arguments: the FUSE process's id, its
mount's connection number, seconds to wait, and four inherited descriptors: heartbeat
(shared memory), a pidfd of that process, its mount directory, and a pipe to say "ready" into.

Rules this module keeps:

* It ends with the process that it watches.
* All it needs is opened, read once and locked in memory before it starts to watch. In
  the hour of need it must not wait for memory itself, nor let the kernel allocate any
  for it: in a full cgroup, opening a file already waits for what hangs. Nothing may be
  written before it is so far: it once hung in its own start.
* Busy is not hung, and neither is idle: for all of the time the heartbeat must stand
  still and the process must be seen stuck in the kernel, or stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import sys
import time
from pathlib import Path
from typing import Final

import structlog

from sealserve import logs
from sealserve.hardening import lock_memory

__all__ = ["HEARTBEAT_SIZE", "PATIENCE", "main"]

HEARTBEAT_SIZE: Final = 8
"""Bytes that the FUSE process changes with every request."""

PATIENCE: Final = 15.0
"""Seconds without a sign of life after which a stuck process's mount is hung."""

_LOOK_EVERY: Final = 1.0
_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_MNT_FORCE: Final = 1  # <sys/mount.h>; for FUSE it means: abort

# System calls have these numbers on every architecture; <linux/mount.h>.
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_FSCONFIG_CMD_CREATE: Final = 6


class _Connection:
    """What the kernel shows of the process that serves it, and how it is aborted."""

    def __init__(self, pid: int, number: int, directory: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._abort = -1
        with contextlib.suppress(OSError):  # fusectl is not mounted here, and we are not root
            connections = self._connections()
            self._abort = os.open(f"{number}/abort", os.O_WRONLY, dir_fd=connections)
            os.close(connections)
        self._stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        self._directory = bytes(Path(f"/proc/self/fd/{directory}").readlink())

    def _connections(self) -> int:
        """fusectl, where the system has it mounted, or else mounted nowhere (fsmount(2))."""
        if any(_CONNECTIONS.iterdir()):
            return os.open(_CONNECTIONS, os.O_PATH)
        call = self._libc.syscall
        context = call(_FSOPEN, b"fusectl", 0)
        call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        mounted = call(_FSMOUNT, context, 0, 0)
        if mounted < 0:
            raise OSError(ctypes.get_errno(), "fusectl cannot be mounted")
        os.close(context)
        return int(mounted)

    def is_stuck(self) -> bool:
        """Whether the process sleeps where no signal wakes it, or is stopped; idle, it does not."""
        return os.pread(self._stat, 64, 0).rpartition(b") ")[2][:1] in b"DTt"

    def abort(self) -> bool:
        """Fail all requests; whether that could be done."""
        if self._abort >= 0:
            return os.write(self._abort, b"1") == 1
        return bool(self._libc.umount2(self._directory, _MNT_FORCE) == 0)


def main(arguments: list[str]) -> int:
    """Watch until the process ends.

    Args:
        arguments: as the module says.

    Returns:
        The exit status: 0 if nothing hung, 1 if the connection was aborted.
    """
    pid, number, heartbeat_file, pidfd, directory, ready = (
        int(arguments[i]) for i in (0, 1, 3, 4, 5, 6)
    )
    patience = float(arguments[2])
    logs.configure(program="sealserve volume")
    log = structlog.get_logger("sealserve.volume.watchdog")
    connection = _Connection(pid, number, directory)
    os.close(directory)  # it would keep the mount busy
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    with mmap.mmap(heartbeat_file, HEARTBEAT_SIZE, prot=mmap.PROT_READ) as heartbeat:
        connection.is_stuck()
        lock_memory()
        last, quiet, previous = heartbeat[:], 0.0, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # the parent is gone; we end with the process
            os.write(ready, b"ready\n")
        os.close(ready)
        while not poll.poll(_LOOK_EVERY * 1000):
            # Of a pause in which we were stopped ourselves only a look's time counts.
            passed = min(time.monotonic() - previous, 2 * _LOOK_EVERY)
            previous = time.monotonic()
            if heartbeat[:] != last or not connection.is_stuck():
                last, quiet = heartbeat[:], 0.0
                continue
            quiet += passed
            if quiet > patience:
                done = connection.abort()
                log.error("volume_hung", pid=pid, seconds=round(quiet), aborted=done)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
