"""``sealserve volume``: mount volumes, see what is mounted, take it down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealserve.cli.console import JsonFlag, emit
from sealserve.cli.volume_common import (
    DriverOption,
    FileArgument,
    KeyFd,
    OwnerPub,
    RecordOption,
    opened_record,
)

if TYPE_CHECKING:
    from sealserve.stopping import StopSignals
    from sealserve.volume.mount import Mount
    from sealserve.volume.state import MountState

__all__ = ["doctor", "grow", "list_mounts", "mount", "status", "unmount"]

_Mountpoint = Annotated[Path, typer.Argument(metavar="MOUNTPOINT", help="Where it is mounted.")]


def mount(
    file: FileArgument,
    mountpoint: Annotated[Path, typer.Argument(help="An empty directory; made if missing.")],
    record: RecordOption,
    owner_pub: OwnerPub,
    driver: DriverOption,
    key_fd: KeyFd,
    development: Annotated[
        bool, typer.Option(help="Let the fuse driver write a writable volume. NOT for production.")
    ] = False,
    while_fd: Annotated[
        int | None,
        typer.Option(help="Unmount when this descriptor ends: a lease, held by a process.", min=0),
    ] = None,
    background: Annotated[
        bool, typer.Option(help="Go on in the background; `volume unmount` ends it.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Mount a volume until SIGTERM, Ctrl-C or `volume unmount`: a sealed one read-only.

    The key comes through a descriptor, so that it stands neither on the command
    line nor in the environment. If this process is killed, the volume closes too.

    Example: my-key-tool | sealserve volume mount models.seal /mnt --record models.record
    --owner-pub owner.pub --driver fuse --key-fd 0
    """

    from sealserve import logs
    from sealserve.stopping import StopSignals
    from sealserve.volume.cipher import XTS_KEY_SIZE, wipe
    from sealserve.volume.mount import mount_sealed, mount_writable
    from sealserve.volume.process import read_key

    if background:
        _in_background(json, [fd for fd in (key_fd, while_fd) if fd is not None])
        return
    logs.configure(program="sealserve volume")
    # From here on a signal only ends the wait below, so nothing is left half way.
    with StopSignals() as ending:
        _, opened = opened_record(record, owner_pub)
        key = read_key(key_fd, XTS_KEY_SIZE)
        try:
            if opened.kind == "writable":
                mounted = mount_writable(
                    file, opened, key, mountpoint, driver=driver, development=development
                )
            else:
                mounted = mount_sealed(file, opened, key, mountpoint, driver=driver)
        finally:
            wipe(key)
        with mounted:
            emit(
                {
                    "mountpoint": str(mounted.mountpoint),
                    "kind": opened.kind,
                    "driver": mounted.driver,
                    "filesystem_by": mounted.filesystem_by,
                },
                as_json=json,
                text=f"{opened.name!r} is mounted on {mounted.mountpoint}; Ctrl-C unmounts it",
            )
            _wait(mounted, ending, while_fd)


def unmount(mountpoint: _Mountpoint, json: JsonFlag = False) -> None:
    """Unmount a volume and close all below it. Harmless when nothing is mounted.

    Needs nothing but the mount point, also when whoever mounted it was killed.

    Example: sealserve volume unmount /mnt
    """
    from sealserve.volume.takedown import take_down

    done = take_down(mountpoint)
    text = f"{mountpoint} is unmounted" if done else f"no volume is mounted on {mountpoint}"
    emit({"mountpoint": str(mountpoint), "was_mounted": done}, as_json=json, text=text)


def list_mounts(json: JsonFlag = False) -> None:
    """List what is mounted on this machine, and what a crash left.

    Example: sealserve volume list
    """
    from sealserve.volume import state as states

    found = [_describe(state) for state in states.known()]
    lines = [
        f"{m['mountpoint']}  {m['name']} version {m['version']}  {m['kind']}  {m['driver']}  "
        f"{m['status']}"
        for m in found
    ]
    emit({"mounts": found}, as_json=json, text="\n".join(lines) or "no volume is mounted")


def status(mountpoint: _Mountpoint, json: JsonFlag = False) -> None:
    """Tell what is mounted at a mount point. Exit status 4 when nothing is.

    Example: sealserve volume status /mnt
    """
    from sealserve.errors import Unavailable
    from sealserve.volume import state as states

    found = states.find(mountpoint.parent.resolve() / mountpoint.name)
    if found is None:
        raise Unavailable("volume.not_mounted", "no volume is mounted there", where=str(mountpoint))
    described = _describe(found)
    lines = [f"{label:12} {value}" for label, value in described.items()]
    emit(described, as_json=json, text="\n".join(lines))


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Take away what crashes have left.")] = False,
    json: JsonFlag = False,
) -> None:
    """Tell what this machine can do, and what crashes have left. Exit status 1 if something is.

    Example: sealserve volume doctor --fix
    """
    from sealserve.errors import SealserveError
    from sealserve.volume.drivers import driver_named
    from sealserve.volume.takedown import leftovers

    drivers = {}
    for name in ("kernel", "fuse"):
        try:
            driver_named(name).require()
            drivers[name] = "ready"
        except SealserveError as error:
            drivers[name] = str(error)
    found = []
    for leftover in leftovers():
        outcome = "left by a crash"
        if fix:
            try:
                leftover.remove()
                outcome = "removed"
            except SealserveError as error:
                outcome = str(error)
        found.append({"what": leftover.what, "name": leftover.name, "outcome": outcome})
    lines = [f"driver {name}: {state}" for name, state in drivers.items()]
    lines += [f"{item['what']} {item['name']}: {item['outcome']}" for item in found]
    if not found:
        lines.append("nothing was left by a crash")
    emit({"drivers": drivers, "leftovers": found}, as_json=json, text="\n".join(lines))
    if any(item["outcome"] != "removed" for item in found):
        raise typer.Exit(1)


def grow(
    file: FileArgument,
    to: Annotated[int, typer.Option("--to", help="MiB that the filesystem is to have.", min=1)],
    record: RecordOption,
    owner_pub: OwnerPub,
    driver: DriverOption,
    key_fd: KeyFd,
    json: JsonFlag = False,
) -> None:
    """Give a writable volume more room. It must not be mounted; its record stays valid.

    Example: my-key-tool | sealserve volume grow state.vol --to 512 --record state.record
    --owner-pub owner.pub --driver kernel --key-fd 0
    """
    from sealserve.volume.cipher import XTS_KEY_SIZE, wipe
    from sealserve.volume.grow import grow as grow_volume
    from sealserve.volume.process import read_key

    _, opened = opened_record(record, owner_pub)
    key = read_key(key_fd, XTS_KEY_SIZE)
    try:
        before = grow_volume(file, opened, key, to << 20, driver=driver)
    finally:
        wipe(key)
    emit(
        {"volume": str(file), "before": before, "now": to << 20},
        as_json=json,
        text=f"{file}: {before >> 20} MiB before, {to} MiB now",
    )


def _describe(state: MountState) -> dict[str, Any]:
    from sealserve.volume.process import is_mounted

    up, held = is_mounted(Path(state.mountpoint)), state.is_held
    return {
        "mountpoint": state.mountpoint,
        "volume": state.volume,
        "name": state.name,
        "version": state.version,
        "uuid": state.uuid,
        "kind": state.kind,
        "driver": state.driver,
        "pid": state.pid,
        "status": "mounted" if up and held else "opening or closing" if held else "left by a crash",
    }


def _wait(mounted: Mount, ending: StopSignals, while_fd: int | None) -> None:
    """Until a signal, an unmount by somebody else, or the end of the lease."""
    import os
    import select

    while mounted.is_up and not ending.wait(0.3):
        if while_fd is None:
            continue
        ready, _, _ = select.select([while_fd], [], [], 0)
        if ready and not os.read(while_fd, 4096):
            return


def _in_background(json: bool, descriptors: list[int]) -> None:
    """This same command once more, as a process of its own that outlives us."""
    import subprocess
    import sys
    import tempfile

    arguments = [word for word in sys.argv[1:] if word not in ("--background", "--json")]
    with tempfile.TemporaryFile() as log:
        holder = subprocess.Popen(
            [sys.executable, "-P", "-m", "sealserve", *arguments, "--json"],
            pass_fds=[number for number in descriptors if number > 2],
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        assert holder.stdout is not None  # noqa: S101  # for the type checker
        answer = b""
        for line in holder.stdout:
            answer += line
            if line == b"}\n":
                break
        else:
            status = holder.wait()
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise typer.Exit(status)
    import json as json_module

    found = {**json_module.loads(answer), "pid": holder.pid}
    where = found["mountpoint"]
    emit(found, as_json=json, text=f"mounted on {where}; `volume unmount` takes it down")
