"""Take mounts down from outside: `volume unmount`, the keeper, `volume doctor`.

Rules this module keeps:

* From the top down: filesystem, dm-crypt, dm-verity (the loop device goes with it), FUSE.
* What is not ours is left alone: a mount is ours if it stands on one of our mappings or
  on the file of one of our FUSE processes.
* Everything can be repeated, and two may be at it at once.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealserve.errors import Refused, Unavailable
from sealserve.volume import state as states
from sealserve.volume.child import DIRECTORY_PREFIX, FILE_NAME, lazy_unmount
from sealserve.volume.process import Runner, is_mounted, mount_source, run
from sealserve.volume.state import MountState

__all__ = ["Leftover", "close_mapping", "leftovers", "remove", "take_down", "unmount"]

_MAPPER: Final = Path("/dev/mapper")
_BLOCK: Final = Path("/sys/block")
_PREFIX: Final = "sealserve-"
_UNMOUNT_ATTEMPTS: Final = 20
_UNMOUNT_PAUSE: Final = 0.1


def unmount(mountpoint: Path, runner: Runner) -> bool:
    """Unmount; after two seconds of "busy" from under whoever still holds a file open.

    Returns:
        False if it was taken away from somebody.
    """
    for _ in range(_UNMOUNT_ATTEMPTS):
        if not is_mounted(mountpoint):
            return True
        try:
            runner(["umount", "--", str(mountpoint)])
        except Unavailable:
            time.sleep(_UNMOUNT_PAUSE)
    if is_mounted(mountpoint):
        lazy_unmount(mountpoint)
        return False
    return True


def close_mapping(
    program: str, name: str, runner: Runner, *, mapper_directory: Path | None = None
) -> None:
    """Close a mapping, also one that is held (then it goes with its last user) or gone.

    Args:
        program: ``cryptsetup`` or ``veritysetup``.
        name: of the mapping.
        runner: runs the system's programs.
        mapper_directory: where device-mapper devices appear, if not in ``/dev/mapper``.
    """
    device = (mapper_directory or _MAPPER) / name
    for options in ([], ["--deferred"]):
        try:
            runner([program, "close", *options, name])
        except Unavailable:
            if not device.exists():  # or another was quicker
                return
            if options:
                raise
        else:
            return


def take_down(mountpoint: Path, runner: Runner = run) -> bool:
    """Take down a mount of ours, whoever holds it; its holder notices.

    Args:
        mountpoint: where it is.
        runner: runs the system's programs.

    Returns:
        Whether there was anything.

    Raises:
        Refused: ``volume.not_ours`` when something else is mounted there.
        Unavailable: ``volume.tool_failed``, ``volume.tool_missing``.
    """
    mountpoint = mountpoint.parent.resolve() / mountpoint.name
    state = states.find(mountpoint)
    source = mount_source(mountpoint)
    if source is None and state is None:
        return False
    mappings = _mappings_below(source) if source else []
    serving = _serving_directory(source) if source else None
    if source and not mappings and not serving:
        raise Refused(
            "volume.not_ours",
            f"what is mounted there is no volume of ours: {source}",
            where=str(mountpoint),
            hint="`umount` takes it away, if you are sure",
        )
    if source:
        if os.geteuid() == 0:
            unmount(mountpoint, runner)
        else:
            lazy_unmount(mountpoint)
    if state and not mappings:
        mappings = [state.mapping, f"{state.mapping}-verity"]
    for name in mappings:
        if (_MAPPER / name).exists():
            close_mapping("veritysetup" if name.endswith("-verity") else "cryptsetup", name, runner)
    if serving:
        remove(serving)
    if state and state.made:
        with contextlib.suppress(OSError):
            mountpoint.rmdir()
    states.forget(mountpoint)
    return True


def remove(directory: Path) -> None:
    """End the FUSE process that serves a directory, by unmounting it, and remove it."""
    lazy_unmount(directory)
    with contextlib.suppress(OSError):  # its process removes it too
        directory.rmdir()


@dataclass(frozen=True)
class Leftover:
    """Something of ours that nobody holds any more.

    Attributes:
        what: ``mount``, ``mapping`` or ``directory``.
        name: mount point, mapping's name, or path.
    """

    what: str
    name: str

    def remove(self, runner: Runner = run) -> None:
        """Take it away.

        Raises:
            SealserveError: when that cannot be done.
        """
        if self.what == "mount":
            take_down(Path(self.name), runner)
        elif self.what == "mapping":
            program = "veritysetup" if self.name.endswith("-verity") else "cryptsetup"
            close_mapping(program, self.name, runner)
        else:
            remove(Path(self.name))


def leftovers() -> list[Leftover]:
    """What crashes have left on this machine, top first, as far as this user may see it."""
    held, dead = _divided(states.known())
    kept = {state.mapping for state in held} | {state.mapping for state in dead}
    mappings = [name for name in _all_mappings() if name.removesuffix("-verity") not in kept]
    return [
        *(Leftover("mount", state.mountpoint) for state in dead),
        *(Leftover("mapping", name) for name in sorted(mappings, key=_crypt_first)),
        *(Leftover("directory", str(path)) for path in _dead_directories()),
    ]


def _divided(found: list[MountState]) -> tuple[list[MountState], list[MountState]]:
    held = [state for state in found if state.is_held]
    return held, [state for state in found if not state.is_held]


def _crypt_first(name: str) -> tuple[str, bool]:
    return name.removesuffix("-verity"), name.endswith("-verity")


def _all_mappings() -> list[str]:
    found = []
    for path in _BLOCK.glob("dm-*/dm/name"):
        with contextlib.suppress(OSError):
            found.append(path.read_text().strip())
    return [name for name in found if name.startswith(_PREFIX)]


def _mappings_below(source: str) -> list[str]:
    """Our mappings under a mounted device, top first."""
    found: list[str] = []
    try:
        number = Path(source).stat().st_rdev
        # By number: without udev, what is in /dev/mapper is no link to a name of the kernel's.
        block = (
            _BLOCK / Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
        )
    except OSError:
        return found
    while (name := block / "dm" / "name").exists():
        text = name.read_text().strip()
        if text.startswith(_PREFIX):
            found.append(text)
        below = list(block.glob("slaves/*"))
        if len(below) != 1:
            break
        block = _BLOCK / below[0].name
    return found


def _serving_directory(source: str) -> Path | None:
    """The mount directory of our FUSE process, if that file is what is mounted."""
    path = Path(source)
    ours = path.name == FILE_NAME and path.parent.name.startswith(DIRECTORY_PREFIX)
    return path.parent if ours else None


def _dead_directories() -> list[Path]:
    """Directories of killed FUSE processes: nothing answers there, or nothing is there."""
    found = []
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{DIRECTORY_PREFIX}*")):
        try:
            if path.stat().st_uid != os.geteuid() or is_mounted(path):
                continue
            # One of a process that is just starting is young.
            if time.time() - path.stat().st_mtime > 120 and not any(path.iterdir()):
                found.append(path)
        except OSError:  # ENOTCONN: a mount whose process is dead
            if is_mounted(path):
                found.append(path)
    return found
