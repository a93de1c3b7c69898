"""A simulated TD as a FUSE copy of the sysfs tree that a TDX guest has.

Rules this module keeps:

* The kernel's manners, also the awkward ones: an ``inblob`` is committed when
  it is closed and its error is lost; ``outblob`` fails with EINVAL unless
  exactly 64 bytes were committed, and is cached for one generation;
  ``generation`` counts writes; an RTMR takes exactly 48 bytes at offset 0; only
  the owner reads the boot event log, the whole area with its padding.
* The provider text is the simulator's own, so that nobody takes it for real.

So the production code of :mod:`sealserve.tdx.guest` is what runs.
Source: Linux ``drivers/virt/coco/guest/report.c`` and ``tsm-mr.c``, and
``drivers/acpi/sysfs.c``.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mfusepy

from sealserve.errors import Unavailable
from sealserve.simulator.td import SoftwareTd
from sealserve.tdx.guest import SIMULATED_PROVIDER

__all__ = ["mount"]

_REPORTS = "/kernel/config/tsm/report"
_MEASUREMENTS = "/class/misc/tdx_guest/measurements"
_TABLES = "/firmware/acpi/tables"
_REPORT_DATA_BYTES = 64
_REGISTER_BYTES = 48
_WRITE_LIMIT = 4096
_EXTENDABLE = (2, 3)

# Attribute of a report directory -> its mode.
_ATTRIBUTES = {"inblob": 0o200, "outblob": 0o400, "provider": 0o444, "generation": 0o444}


@dataclass(slots=True)
class _Report:
    """One directory under ``report/``, as configfs-tsm keeps it."""

    inblob: bytes = b""
    write_generation: int = 0
    read_generation: int = 0
    outblob: bytes = b""

    def commit(self, data: bytes) -> None:
        """What the kernel does when ``inblob`` is closed; a failure changes no more than this."""
        self.write_generation += 1
        if len(data) <= _REPORT_DATA_BYTES:
            self.inblob = data

    def read(self, attribute: str, quote: Callable[[bytes], bytes]) -> bytes:
        if attribute == "provider":
            return SIMULATED_PROVIDER.encode() + b"\n"
        if attribute == "generation":
            return b"%d\n" % self.write_generation
        if len(self.inblob) != _REPORT_DATA_BYTES:
            raise mfusepy.FuseOSError(errno.EINVAL)
        if self.read_generation != self.write_generation:
            self.outblob = quote(self.inblob)
            self.read_generation = self.write_generation
        return self.outblob


@dataclass(slots=True)
class _OpenFile:
    path: str
    written: bytearray = field(default_factory=bytearray)
    dirty: bool = False


class _Tree(mfusepy.Operations):  # type: ignore[misc]
    """Reports, measurements and the boot event log, and everything above them."""

    use_ns = True

    def __init__(self, td: SoftwareTd, ready: Callable[[], None]) -> None:
        self._td = td
        self._ready = ready
        self._reports: dict[str, _Report] = {}
        self._open: dict[int, _OpenFile] = {}
        self._next_handle = 1
        self._registers = {"mrtd:sha384": 0o444} | {
            f"rtmr{i}:sha384": 0o644 if i in _EXTENDABLE else 0o444 for i in range(4)
        }
        log = td.boot_log
        self._boot_log = {f"{_TABLES}/CCEL": log.table, f"{_TABLES}/data/CCEL": log.area}

    def init(self, path: str) -> None:
        del path
        self._ready()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        del fh
        owner = {"st_uid": os.geteuid(), "st_gid": os.getegid()}
        mode = self._file_mode(path)
        if mode is not None:
            # sysfs states a page as the size of whatever it has, but knows that of ACPI's tables.
            size = len(self._boot_log[path]) if path in self._boot_log else 4096
            return {"st_mode": stat.S_IFREG | mode, "st_nlink": 1, "st_size": size, **owner}
        if self._entries(path) is not None:
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, **owner}
        raise mfusepy.FuseOSError(errno.ENOENT)

    def readdir(self, path: str, fh: int) -> list[str]:
        del fh
        entries = self._entries(path)
        if entries is None:
            raise mfusepy.FuseOSError(errno.ENOTDIR)
        return [".", "..", *entries]

    def mkdir(self, path: str, mode: int) -> int:
        del mode
        parent, _, name = path.rpartition("/")
        if parent != _REPORTS:
            raise mfusepy.FuseOSError(errno.EPERM)
        if name in self._reports:
            raise mfusepy.FuseOSError(errno.EEXIST)
        self._reports[name] = _Report()
        return 0

    def rmdir(self, path: str) -> int:
        parent, _, name = path.rpartition("/")
        if parent != _REPORTS or name not in self._reports:
            raise mfusepy.FuseOSError(errno.EPERM)
        del self._reports[name]
        return 0

    def open(self, path: str, flags: int) -> int:
        mode = self._file_mode(path)
        if mode is None:
            raise mfusepy.FuseOSError(errno.ENOENT)
        wants_write = flags & os.O_ACCMODE != os.O_RDONLY
        wants_read = flags & os.O_ACCMODE != os.O_WRONLY
        # Root passes every permission check of the kernel; configfs and sysfs
        # still have no such operation.
        if (wants_write and not mode & 0o200) or (wants_read and not mode & 0o400):
            raise mfusepy.FuseOSError(errno.EACCES)
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._open[handle] = _OpenFile(path)
        return handle

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        del path
        return self._content(self._open[fh].path)[offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        del path
        file = self._open[fh]
        register = self._register(file.path)
        if register is not None:
            if offset != 0 or len(data) != _REGISTER_BYTES:
                raise mfusepy.FuseOSError(errno.EINVAL)
            self._td.extend(register, data)
            return len(data)
        if offset != len(file.written):
            raise mfusepy.FuseOSError(errno.EINVAL)
        if len(file.written) + len(data) > _WRITE_LIMIT:
            raise mfusepy.FuseOSError(errno.EFBIG)
        file.written += data
        file.dirty = True
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        # O_TRUNC, as a shell's `>` uses it; an attribute has no length to cut.
        del path, length, fh
        return 0

    def flush(self, path: str, fh: int) -> int:
        """close(): here the kernel commits, and loses any error."""
        del path
        file = self._open[fh]
        report = self._reports.get(file.path.split("/")[-2])
        if file.dirty and report is not None:
            report.commit(bytes(file.written))
        file.dirty = False
        return 0

    def release(self, path: str, fh: int) -> int:
        del path
        del self._open[fh]
        return 0

    def _content(self, path: str) -> bytes:
        if path in self._boot_log:
            return self._boot_log[path]
        directory, _, name = path.rpartition("/")
        if directory == _MEASUREMENTS:
            value: bytes = getattr(self._td.report, name.partition(":")[0])
            return value
        report = self._reports.get(directory.rpartition("/")[2])
        if report is None:
            raise mfusepy.FuseOSError(errno.ENOENT)
        return report.read(name, self._td.quote)

    def _register(self, path: str) -> int | None:
        found = re.fullmatch(rf"{_MEASUREMENTS}/rtmr([0-3]):sha384", path)
        return int(found[1]) if found else None

    def _file_mode(self, path: str) -> int | None:
        if path in self._boot_log:
            return 0o400
        directory, _, name = path.rpartition("/")
        if directory == _MEASUREMENTS:
            return self._registers.get(name)
        parent, _, report = directory.rpartition("/")
        if parent == _REPORTS and report in self._reports:
            return _ATTRIBUTES.get(name)
        return None

    def _entries(self, path: str) -> list[str] | None:
        """The names in a directory; ``None`` if there is no such directory."""
        if path == _REPORTS:
            return list(self._reports)
        if path == _MEASUREMENTS:
            return list(self._registers)
        parent, _, name = path.rpartition("/")
        if parent == _REPORTS:
            return list(_ATTRIBUTES) if name in self._reports else None
        above = path.rstrip("/") + "/"
        leaves = (_REPORTS, _MEASUREMENTS, *self._boot_log)
        branches = [p for p in leaves if p.startswith(above)]
        return sorted({p[len(above) :].split("/")[0] for p in branches}) or None


def mount(td: SoftwareTd, directory: Path, ready: Callable[[], None]) -> None:
    """Show a TD under a directory until SIGTERM, SIGINT or unmounting.

    Args:
        td: the TD.
        directory: an empty directory, made if need be; its ``kernel``,
            ``class`` and ``firmware`` are sysfs's.
        ready: called once, when the tree can be used.

    Raises:
        Unavailable: ``simulator.mount_failed``.
    """
    # Without caches, as in sysfs: every read asks, every size is a page.
    options: Mapping[str, Any] = {
        "direct_io": True,
        "attr_timeout": 0,
        "entry_timeout": 0,
        "negative_timeout": 0,
    }
    # libfuse ends its loop on these signals, but leaves alone any handler that is
    # there already - and a handler of Python's never runs while libfuse loops.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        mfusepy.FUSE(
            _Tree(td, ready),
            str(directory),
            foreground=True,
            nothreads=True,
            fsname="sealserve-SIMULATION",
            **options,
        )
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"libfuse status {error}"
        raise Unavailable(
            "simulator.mount_failed",
            f"the simulated TD could not be mounted: {reason}",
            where=str(directory),
            hint="the directory must be empty, and /dev/fuse must be there; after a "
            f"crash `fusermount3 -u {directory}` frees it",
        ) from None
