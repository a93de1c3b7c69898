"""Other programs: started with argument lists, watched, and never told a secret but by a pipe.

Rules this module keeps:

* A key travels through an anonymous pipe that is read once; what is on a command
  line, in the environment or on a disk can be read by others.
* Every program has a time limit and is killed with SIGKILL at its end:
  ``cryptsetup`` in a key derivation ignores SIGTERM.
* A program's own words on stderr go into the error, one line of them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from sealserve.errors import InputError, Unavailable
from sealserve.volume.record import KEY_SIZE

__all__ = [
    "Runner",
    "filesystem_type",
    "find_tool",
    "is_mounted",
    "mount_source",
    "read_key",
    "run",
    "secret_pipe",
]

_SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"

_PACKAGE_OF: Final = {
    "cryptsetup": "cryptsetup-bin",
    "veritysetup": "cryptsetup-bin",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.erofs": "erofs-utils",
    "fsck.erofs": "erofs-utils",
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "fuse2fs": "fuse2fs",
    "fusermount": "fuse3",
    "fusermount3": "fuse3",
    "losetup": "mount",
    "mount": "mount",
    "umount": "mount",
}


class Runner(Protocol):
    """How a program is run; tests put their own in its place."""

    def __call__(
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        timeout: float = 60,
        accept: Sequence[int] = (0,),
        stdout: int | None = None,
    ) -> str:
        """Run a program to its end and return its stdout."""


def find_tool(name: str) -> str:
    """The path of a system program, also where ``sbin`` is not on the PATH.

    Raises:
        Unavailable: ``volume.tool_missing``.
    """
    for directory in f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}".split(":"):
        candidate = Path(directory, name)
        if directory and os.access(candidate, os.X_OK):
            return str(candidate)
    package = _PACKAGE_OF.get(name, name)
    raise Unavailable(
        "volume.tool_missing",
        f"the program {name} is not installed",
        hint=f"install the system package {package}",
    )


def run(
    command: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    timeout: float = 60,
    accept: Sequence[int] = (0,),
    stdout: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end.

    Args:
        command: name and arguments; the name is looked up by `find_tool`.
        pass_fds: descriptors that the program inherits under the same numbers.
        timeout: seconds until it is killed.
        accept: exit statuses that are no failure.
        stdout: a descriptor that gets its stdout, where that is a secret.
        environment: what it finds there beside the path and the locale.

    Returns:
        Its stdout; nothing if that went elsewhere.

    Raises:
        Unavailable: ``volume.tool_missing``, ``volume.tool_failed``, ``volume.tool_timeout``.
    """
    name, *arguments = command
    try:
        done = subprocess.run(
            [find_tool(name), *arguments],
            pass_fds=tuple(pass_fds),
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={"PATH": _SYSTEM_PATH, "LC_ALL": "C", **(environment or {})},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(
            "volume.tool_timeout", f"{name} did not end within {timeout:g} s and was killed"
        ) from None
    if done.returncode not in accept:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise Unavailable(
            "volume.tool_failed",
            f"{name} ended with status {done.returncode}: {lines[-1] if lines else 'no message'}",
        )
    return done.stdout or ""


@contextlib.contextmanager
def secret_pipe(secret: bytes | bytearray) -> Iterator[int]:
    """A descriptor from which a child can read a secret, once.

    Args:
        secret: at most 4096 bytes, which a pipe always takes at once.

    Yields:
        The pipe's reading end, to be named in ``pass_fds``.
    """
    reader, writer = os.pipe()
    try:
        try:
            os.write(writer, secret)
        finally:
            os.close(writer)
        yield reader
    finally:
        os.close(reader)


def read_key(descriptor: int, limit: int = KEY_SIZE) -> bytearray:
    """Read a secret from a descriptor to its end, and close it unless it is a standard stream.

    Nothing is stripped: a key may hold newlines and NULs.

    Returns:
        The bytes; one more than ``limit`` when there were too many, which no
        check of a key lets pass. The caller wipes them.

    Raises:
        InputError: ``volume.key_unreadable``.
    """
    key = bytearray(limit + 1)
    size = 0
    try:
        with memoryview(key) as view:
            while size < len(key) and (count := os.readv(descriptor, [view[size:]])):
                size += count
        if descriptor > 2:
            os.close(descriptor)
        # A closed standard stream's number would go to the next file that is
        # opened, and a child gets /dev/null under that number.
    except OSError as error:
        raise InputError(
            "volume.key_unreadable",
            f"cannot read the key from descriptor {descriptor}: {error.strerror}",
        ) from None
    del key[size:]
    return key


def is_mounted(path: Path) -> bool:
    """Whether something is mounted exactly there; true also for a dead FUSE mount."""
    return _mount_entry(path) is not None


def mount_source(path: Path) -> str | None:
    """What is mounted exactly there: a device, or the file that a loop device stands for."""
    entry = _mount_entry(path)
    if entry is None:
        return None
    source = os.fsdecode(_unescape(entry[entry.index(b"-") + 2]))
    backing = Path("/sys/block", Path(source).name, "loop/backing_file")
    try:
        return backing.read_text().removesuffix("\n") if source.startswith("/dev/") else source
    except OSError:
        return source


def filesystem_type(path: str) -> str:
    """What a path lies on, ``ext4`` for example, found out without touching it."""
    best, kind = b"", ""
    with Path("/proc/self/mountinfo").open("rb") as table:
        for line in table:
            fields = line.split()
            mountpoint = _unescape(fields[4]).rstrip(b"/") + b"/"
            if os.fsencode(path).startswith(mountpoint) and len(mountpoint) >= len(best):
                best, kind = mountpoint, fields[fields.index(b"-") + 1].decode()
    return kind


def _mount_entry(path: Path) -> list[bytes] | None:
    """The fields of the topmost mount at a path (proc(5), mountinfo)."""
    wanted = os.fsencode(path.parent.resolve() / path.name)
    with Path("/proc/self/mountinfo").open("rb") as table:
        entries = [fields for line in table if _unescape((fields := line.split())[4]) == wanted]
    return entries[-1] if entries else None


def _unescape(field: bytes) -> bytes:
    """mountinfo writes blank, tab, newline and backslash as octal (proc(5))."""
    for escape, plain in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n")):
        field = field.replace(escape, plain)
    return field.replace(b"\\134", b"\\")
