"""What is mounted on this machine, and by whom: one small file for each mount, under /run.

Rules this module keeps:

* A file is written before the first device is set up and removed after the last is
  gone, so whatever a crash leaves behind stands in one.
* It holds nothing secret and nothing that is believed: what it says is looked for in
  the kernel's own tables before anything is taken down.
* Where it cannot be written (a container without /run), mounting goes on without.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from sealserve.errors import InputError, Unavailable
from sealserve.files import make_directory, read_limited, write_atomically

__all__ = ["MountState", "abandoned", "find", "forget", "known", "state_directory"]

_MAX_BYTES: Final = 16384
_LOOK_EVERY: Final = 0.02


@dataclass(frozen=True)
class MountState:
    """One mount, as whoever made it announced it.

    Attributes:
        mountpoint: absolute path.
        made: whether the mount point was made for it, and goes with it.
        volume: path of the volume file.
        name: of the volume.
        version: of the volume.
        uuid: of its LUKS2 header.
        kind: ``sealed`` or ``writable``.
        driver: ``kernel`` or ``fuse``.
        token: the last part of its device-mapper names.
        pid: process that holds it.
        started: when that process started, in clock ticks since boot: ids are used again.
    """

    mountpoint: str
    made: bool
    volume: str
    name: str
    version: int
    uuid: str
    kind: str
    driver: str
    token: str
    pid: int
    started: int

    @classmethod
    def of_this_process(cls, **fields: Any) -> Self:
        """The state of a mount that this process holds."""
        return cls(**fields, pid=os.getpid(), started=_start_of(os.getpid()) or 0)

    @property
    def is_held(self) -> bool:
        """Whether its holder still lives."""
        return _start_of(self.pid) == self.started

    @property
    def mapping(self) -> str:
        """The name of its dm-crypt device; that of dm-verity is this with ``-verity``."""
        return f"sealserve-{self.uuid}-{self.token}"

    def announce(self) -> bool:
        """Write the file; whether it could be written."""
        path = _path_of(self.mountpoint)
        try:
            make_directory(path.parent, mode=0o700)
            write_atomically(path, json.dumps(asdict(self)).encode(), mode=0o600)
        except Unavailable:
            return False
        return True


def state_directory() -> Path:
    """Where the files are: of the machine for root, else of this user's session."""
    if os.geteuid() == 0:
        return Path("/run/sealserve/mounts")
    session = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return Path(session, "sealserve", "mounts")


def find(mountpoint: Path) -> MountState | None:
    """What was announced for a mount point."""
    return _read(_path_of(str(mountpoint)))


def abandoned(mountpoint: Path, patience: float = 30.0) -> MountState | None:
    """What a holder that has just ended has left announced.

    A process that ends closes its files first: whoever learns of its end by a pipe
    still sees it for a moment.

    Args:
        mountpoint: of the mount.
        patience: seconds to wait for the holder to be gone.

    Returns:
        None if it closed in order, or lives after all.
    """
    deadline = time.monotonic() + patience
    while (state := find(mountpoint)) and state.is_held:
        if time.monotonic() > deadline:
            return None
        time.sleep(_LOOK_EVERY)
    return state


def forget(mountpoint: Path) -> None:
    """Remove the file; harmless when there is none."""
    with contextlib.suppress(OSError):
        _path_of(str(mountpoint)).unlink()


def known() -> list[MountState]:
    """All that is announced, by mount point."""
    found = map(_read, sorted(state_directory().glob("*.json")))
    return sorted(filter(None, found), key=lambda state: state.mountpoint)


def _path_of(mountpoint: str) -> Path:
    name = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:32]
    return state_directory() / f"{name}.json"


def _read(path: Path) -> MountState | None:
    try:
        fields = json.loads(read_limited(path, _MAX_BYTES))
        state = MountState(**fields)
        kinds = {name: type(value) for name, value in asdict(state).items()}
        wanted = {name: type(value) for name, value in asdict(_EXAMPLE).items()}
        return state if kinds == wanted else None
    except (InputError, Unavailable, ValueError, TypeError, RecursionError):
        return None


_EXAMPLE: Final = MountState("", False, "", "", 0, "", "", "", "", 0, 0)


def _start_of(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; none for a process that is gone, or dead but not yet reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
