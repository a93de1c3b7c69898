"""The parent's side of `sealserve.volume.fuse`: start it, hear from it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sealserve import errors
from sealserve.errors import SealserveError, Unavailable
from sealserve.volume.process import find_tool, is_mounted, run, secret_pipe
from sealserve.volume.watchdog import HEARTBEAT_SIZE, PATIENCE

__all__ = [
    "DIRECTORY_PREFIX",
    "FILE_NAME",
    "FuseChild",
    "end_process",
    "lazy_unmount",
    "require_fuse",
]

FILE_NAME: Final = "volume"
"""Name of the one file in the child's filesystem."""

DIRECTORY_PREFIX: Final = "sealserve-volume-"
"""With which the name of its mount directory begins."""

_START_TIMEOUT: Final = 60.0  # an Argon2id keyslot at its bound takes 5 s, a loaded machine more
_STOP_TIMEOUT: Final = 10.0
_UNMOUNTED_TIMEOUT: Final = 2.0


class FuseChild:
    """A process of its own that shows a volume's inside as one file.

    The key goes to it through a pipe, the open volume file as a descriptor; its
    command line holds numbers and a directory, its environment nothing new.

    Its lifeline is a pipe of which this side holds the writing end: when that is
    closed, by `close` or by the end of this process, however it came, the child
    takes down what stands on it and ends.
    """

    def __init__(
        self, mode: str, descriptor: int, settings: Mapping[str, Any], key: bytes | bytearray
    ) -> None:
        """Start the child and wait until its file can be opened.

        Args:
            mode: ``read`` (sealed volume), ``write`` (writable one), ``fill`` (one
                that is being made) or ``foreign`` (no volume of ours, read-only).
            descriptor: the volume file.
            settings: what `sealserve.volume.fuse` expects for this mode.
            key: the volume key; for ``foreign`` the key of its cipher.

        Raises:
            SealserveError: what went wrong in the child, or
                Unavailable ``volume.fuse_failed`` when it could not say.
        """
        require_fuse()
        try:
            self.directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX))
        except OSError as error:
            raise Unavailable(
                "volume.fuse_failed",
                f"cannot make a directory to mount on: {error.strerror}",
                hint="name a writable directory in TMPDIR",
            ) from None
        status, status_writer = os.pipe()
        lifeline_reader, lifeline = os.pipe()
        self._own_ends = [status, lifeline]
        self._watchdog: subprocess.Popen[bytes] | None = None
        heartbeat = os.memfd_create("heartbeat")
        self._own_ends.append(heartbeat)
        try:
            try:
                os.ftruncate(heartbeat, HEARTBEAT_SIZE)
                given = (descriptor, status_writer, lifeline_reader, heartbeat)
                self._process = self._start(mode, given, settings, key)
            finally:
                os.close(status_writer)
                os.close(lifeline_reader)
        except BaseException:
            self._close_own_ends()
            self.directory.rmdir()
            raise
        try:
            _await_ready(status)
            if mode == "write":
                self._watch(heartbeat)
        except BaseException:
            self._process.kill()  # nothing was written yet
            self.close()
            raise

    @property
    def file(self) -> Path:
        """The decrypted volume, as one file that only this user may read."""
        return self.directory / FILE_NAME

    @property
    def pid(self) -> int:
        """Process id, for logs."""
        return self._process.pid

    def close(self) -> int:
        """Unmount and end the child; harmless when it has ended.

        Returns:
            The child's exit status: 0 when all it was given to write is on the disk.
        """
        # Unmounting comes first: the kernel then hands over what it still holds,
        # and the child ends by itself, with status 0.
        lazy_unmount(self.directory)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_UNMOUNTED_TIMEOUT)
        status = end_process(self._process)
        if self._watchdog:
            end_process(self._watchdog)
        lazy_unmount(self.directory)
        self._close_own_ends()
        # The child removes it too.
        with contextlib.suppress(FileNotFoundError):
            self.directory.rmdir()
        return status

    def _close_own_ends(self) -> None:
        while self._own_ends:
            os.close(self._own_ends.pop())

    def _start(
        self,
        mode: str,
        descriptors: tuple[int, ...],
        settings: Mapping[str, Any],
        key: bytes | bytearray,
    ) -> subprocess.Popen[bytes]:
        with (
            os.fdopen(os.memfd_create("settings"), "w+b") as settings_file,
            secret_pipe(key) as key_reader,
        ):
            settings_file.write(json.dumps(settings).encode())
            settings_file.seek(0)
            inherited = (*descriptors, settings_file.fileno(), key_reader)
            # -P: a module in the current directory must not be taken for ours.
            command = [sys.executable, "-P", "-m", "sealserve.volume.fuse"]
            command += [mode, str(self.directory), *map(str, inherited)]
            return subprocess.Popen(
                command,
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C goes to the whole process group; the order in which
                # things close is the parent's to decide.
                start_new_session=True,
            )

    def _watch(self, heartbeat: int) -> None:
        """Start the watchdog, and wait until no lack of memory can stop it any more."""
        pidfd = os.pidfd_open(self._process.pid)
        directory = os.open(self.directory, os.O_PATH)
        ready, ready_writer = os.pipe()
        try:
            inherited = (heartbeat, pidfd, directory, ready_writer)
            number = self.directory.stat().st_dev
            command = [sys.executable, "-P", "-m", "sealserve.volume.watchdog"]
            command += [*map(str, (self._process.pid, number, PATIENCE, *inherited))]
            try:
                self._watchdog = subprocess.Popen(
                    command,
                    pass_fds=inherited,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            finally:
                os.close(ready_writer)
            _await_ready(ready, "watchdog")
        finally:
            os.close(ready)
            os.close(directory)
            os.close(pidfd)


def require_fuse() -> None:
    """Make sure that FUSE can be used here.

    Raises:
        Unavailable: ``volume.fuse_missing``, ``volume.tool_missing``.
    """
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Unavailable(
            "volume.fuse_missing",
            "this user may not open /dev/fuse, or the kernel has no FUSE",
            hint="modprobe fuse; in a container, pass the device /dev/fuse",
        )
    if os.geteuid() != 0:
        find_tool("fusermount3")


def _await_ready(status: int, who: str = "FUSE process") -> None:
    answer = b""
    deadline = time.monotonic() + _START_TIMEOUT
    while not answer.endswith(b"\n"):
        ready, _, _ = select.select([status], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise Unavailable(
                "volume.fuse_failed", f"the {who} was not ready in {_START_TIMEOUT:g} s"
            )
        piece = os.read(status, 65536)
        if not piece:
            break
        answer += piece
    if answer != b"ready\n":
        raise _error_of(answer)


def _error_of(answer: bytes) -> SealserveError:
    """The child's own error, in the parent."""
    try:
        fields = json.loads(answer)
        kind = getattr(errors, fields.pop("class"))
        rebuilt = kind(fields.pop("code"), fields.pop("message"), **fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Unavailable(
            "volume.fuse_failed",
            "the FUSE process ended before its file was there",
            hint="its own message stands above; can this user mount FUSE filesystems?",
        )
    if not isinstance(rebuilt, SealserveError):
        raise TypeError("not one of our errors")
    return rebuilt


def end_process(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM, and SIGKILL if that is not enough; returns the exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def lazy_unmount(directory: Path) -> None:
    """Take a mount away even if its server is dead or it is in use.

    Parent and child may both be at it: whoever comes second finds it done.
    """
    command = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    while is_mounted(directory):
        try:
            run([*command, str(directory)])
        except Unavailable:
            if is_mounted(directory):
                raise
