"""Taking down from outside: by mount point alone, by a keeper, by the doctor; and growing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sealserve.errors import InputError, Refused, Unavailable
from sealserve.volume import state as states
from sealserve.volume import takedown
from sealserve.volume.grow import grow
from sealserve.volume.keeper import Keeper
from sealserve.volume.mount import mount_sealed
from sealserve.volume.process import is_mounted
from sealserve.volume.state import MountState
from sealserve.volume.takedown import leftovers, take_down
from tests.children import Child
from tests.volume.conftest import Sealed
from tests.volume.test_mount import children
from tests.volume.test_writable import SIZE, Writable, empty, mounted, state

__all__ = ["empty", "state"]

NothingLeft = Callable[[], None]


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /run of this test's own."""
    place = tmp_path.parent / f"{tmp_path.name}-run" / "mounts"
    monkeypatch.setattr(states, "state_directory", lambda: place)
    return place


def announced(tmp_path: Path, **changes: Any) -> MountState:
    fields = {
        "mountpoint": str(tmp_path / "mnt"), "made": True, "volume": "/v", "name": "v",
        "version": 1, "uuid": "u", "kind": "sealed", "driver": "kernel", "token": "t",
    }  # fmt: skip
    made = MountState.of_this_process(**{**fields, **changes})
    assert made.announce()
    return made


def test_a_mount_is_announced_while_it_lasts(sealed: Sealed, tmp_path: Path) -> None:
    with mount_sealed(sealed.path, sealed.record, sealed.key, tmp_path / "mnt", driver="fuse"):
        (found,) = states.known()
        assert (found.mountpoint, found.pid) == (str(tmp_path / "mnt"), os.getpid())
        assert (found.name, found.version, found.kind, found.driver) == (
            "models", 3, "sealed", "fuse",
        )  # fmt: skip
        assert found.is_held
        assert sealed.key.hex() not in states._path_of(found.mountpoint).read_text()
    assert states.known() == []


def test_mounting_goes_on_without_run(
    sealed: Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: NothingLeft
) -> None:
    monkeypatch.setattr(states, "state_directory", lambda: Path("/proc/none/mounts"))
    mountpoint = tmp_path / "mnt"
    mount = mount_sealed(sealed.path, sealed.record, sealed.key, mountpoint, driver="fuse")
    assert mount.is_up
    assert take_down(mountpoint)  # by the kernel's tables alone
    mount.close()
    nothing_left()


def test_unmount_by_mount_point_alone(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    mountpoint = tmp_path / "mnt"
    mount = mount_sealed(sealed.path, sealed.record, sealed.key, mountpoint, driver="fuse")
    assert mount.is_up
    assert take_down(mountpoint)
    assert not mount.is_up
    assert not take_down(mountpoint)
    mount.close()
    assert not mountpoint.exists()
    assert states.known() == []
    nothing_left()


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        take_down(Path("/proc"))
    assert caught.value.code == "volume.not_ours"
    assert is_mounted(Path("/proc"))
    assert not take_down(tmp_path / "nothing")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'{"pid": 1}', b"[" * 20_000, b"x" * 99_999]
)
def test_a_spoilt_state_file_is_passed_over(run_directory: Path, content: bytes) -> None:
    run_directory.mkdir(parents=True)
    (run_directory / "x.json").write_bytes(content)
    assert states.known() == []


def test_a_state_with_a_wrong_type_is_passed_over(tmp_path: Path) -> None:
    made = announced(tmp_path)
    path = states._path_of(made.mountpoint)
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": "1"}))
    assert states.known() == []


def test_a_process_id_that_is_used_again_holds_nothing(tmp_path: Path) -> None:
    """pid 1 lives, but it is not the process that made this mount."""
    held = announced(tmp_path)
    assert held.is_held
    path = states._path_of(held.mountpoint)
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": 1}))
    (found,) = states.known()
    assert not found.is_held


def test_the_doctor_removes_what_a_crash_left(tmp_path: Path) -> None:
    dead = announced(tmp_path)
    (tmp_path / "mnt").mkdir()
    path = states._path_of(dead.mountpoint)
    path.write_text(json.dumps({**json.loads(path.read_text()), "started": 1}))
    found = [item for item in leftovers() if item.what == "mount"]
    assert [item.name for item in found] == [dead.mountpoint]
    found[0].remove()
    assert states.known() == []
    assert not (tmp_path / "mnt").exists()
    assert [item for item in leftovers() if item.what == "mount"] == []


def test_the_doctor_finds_a_killed_child(
    sealed: Sealed, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    """SIGKILL leaves a dead mount; its holder could close it, the doctor can too."""
    mount = mount_sealed(sealed.path, sealed.record, sealed.key, tmp_path / "mnt", driver="fuse")
    (pid,) = children()
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while not (found := [item for item in leftovers() if item.what == "directory"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for item in found:
        item.remove()
    mount.close()
    nothing_left()


def mapped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *names: str) -> Path:
    """Device-mapper devices with these names, as sysfs and /dev/mapper show them."""
    block, mapper = tmp_path / "block", tmp_path / "mapper"
    mapper.mkdir()
    for number, name in enumerate(names):
        (block / f"dm-{number}" / "dm").mkdir(parents=True)
        (block / f"dm-{number}" / "dm" / "name").write_text(f"{name}\n")
        (mapper / name).touch()
    monkeypatch.setattr(takedown, "_BLOCK", block)
    monkeypatch.setattr(takedown, "_MAPPER", mapper)
    return mapper


def test_orphaned_mappings_are_found_and_closed_from_the_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = announced(tmp_path)
    mapped(
        monkeypatch, tmp_path, "sealserve-a-1-verity", "sealserve-a-1", "vg-root",
        held.mapping, f"{held.mapping}-verity",
    )  # fmt: skip
    commands: list[list[str]] = []

    def runner(command: Sequence[str], **_: Any) -> str:
        commands.append(list(command))
        return ""

    found = [item for item in leftovers() if item.what == "mapping"]
    for item in found:
        item.remove(runner)
    assert commands == [
        ["cryptsetup", "close", "sealserve-a-1"],
        ["veritysetup", "close", "sealserve-a-1-verity"],
    ]


def test_a_mapping_that_is_still_used_goes_with_its_last_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = announced(tmp_path)
    mapped(monkeypatch, tmp_path, made.mapping)
    commands: list[list[str]] = []

    def busy(command: Sequence[str], **_: Any) -> str:
        commands.append(list(command))
        if "--deferred" not in command:
            raise Unavailable("volume.tool_failed", "device is busy")
        return ""

    assert take_down(tmp_path / "mnt", busy)
    assert commands == [
        ["cryptsetup", "close", made.mapping],
        ["cryptsetup", "close", "--deferred", made.mapping],
    ]


def test_two_may_close_the_same_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other is at it during our first attempt, and done before our second."""
    mapper = mapped(monkeypatch, tmp_path, "sealserve-a-1")

    def slower(command: Sequence[str], **_: Any) -> str:
        if "--deferred" in command:
            (mapper / "sealserve-a-1").unlink()
        raise Unavailable("volume.tool_failed", "not active")

    takedown.close_mapping("cryptsetup", "sealserve-a-1", slower)
    (mapper / "sealserve-a-1").touch()
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(Unavailable):
        takedown.close_mapping("cryptsetup", "sealserve-a-1", slower)


_HOLDER = """
import sys, time
from pathlib import Path
from sealserve.volume import state as states
states.state_directory = lambda: Path(sys.argv[1])
from sealserve.volume.keeper import Keeper
from sealserve.volume.state import MountState
MountState.of_this_process(mountpoint=sys.argv[2], made=True, volume="/v", name="v", version=1,
                           uuid="u", kind="sealed", driver="kernel", token="t").announce()
Path(sys.argv[2]).mkdir()
keeper = Keeper(Path(sys.argv[2]))
print("up", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("state_of_holder", ["killed", "alive"])
def test_the_keeper_acts_only_for_a_holder_that_is_gone(
    tmp_path: Path, run_directory: Path, monkeypatch: pytest.MonkeyPatch, state_of_holder: str
) -> None:
    """In its own process it looks below the real /run; here its main is called."""
    from sealserve.volume import keeper

    monkeypatch.setattr(states.abandoned, "__defaults__", (0.2,))
    reader, writer = os.pipe()
    mountpoint = tmp_path / "mnt"
    made = announced(tmp_path)
    mountpoint.mkdir()
    if state_of_holder == "killed":
        path = states._path_of(made.mountpoint)
        path.write_text(json.dumps({**json.loads(path.read_text()), "started": 1}))
    os.close(writer)
    before = {number: signal.getsignal(number) for number in (15, 2, 1)}
    try:
        assert keeper.main([str(reader), str(mountpoint)]) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
    assert mountpoint.exists() == (state_of_holder == "alive")
    assert (states.known() == []) == (state_of_holder == "killed")


def test_a_holder_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    """Its files close before it is gone: a keeper once found it alive, and left its mount."""
    made = announced(tmp_path)
    with Child(["sleep", "0.3"]) as ending:
        path = states._path_of(made.mountpoint)
        started = states._start_of(ending.pid)
        fields = {**json.loads(path.read_text()), "pid": ending.pid, "started": started}
        path.write_text(json.dumps(fields))
        found = states.abandoned(tmp_path / "mnt")
    assert found is not None
    assert found.pid == ending.pid


def test_the_keeper_ends_with_an_orderly_close(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "mnt")
    started = time.monotonic()
    keeper.close()
    assert time.monotonic() - started < 30
    assert keeper._process.returncode == 0


def test_the_keeper_notices_a_killed_holder(tmp_path: Path) -> None:
    """The writing end of the pipe is in no other process: not in the keeper's own either."""
    with Child(
        [sys.executable, "-c", _HOLDER, tmp_path / "run", tmp_path / "mnt"], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        children_file = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
        (keeper,) = children_file.read_text().split()
        holder.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{keeper}/cmdline").exists() and b"keeper" in _cmdline(keeper):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _cmdline(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_grown_volume_has_the_room_and_the_content(
    state: Writable, tmp_path: Path, nothing_left: NothingLeft
) -> None:
    mountpoint = tmp_path / "mnt"
    with mounted(state, mountpoint):
        (mountpoint / "kept").write_bytes(b"kept" * 5000)
    assert grow(state.path, state.record, state.key, 3 * SIZE, driver="fuse") == SIZE
    with mounted(state, mountpoint):
        assert (mountpoint / "kept").read_bytes() == b"kept" * 5000
        (mountpoint / "big").write_bytes(bytes(2 * SIZE))
    with pytest.raises(InputError) as caught:
        grow(state.path, state.record, state.key, 2 * SIZE, driver="fuse")
    assert caught.value.code == "volume.size"
    nothing_left()


def test_a_mounted_or_sealed_volume_does_not_grow(
    state: Writable, sealed: Sealed, tmp_path: Path
) -> None:
    with mounted(state, tmp_path / "mnt"):
        with pytest.raises(InputError) as caught:
            grow(state.path, state.record, state.key, 3 * SIZE, driver="fuse")
        assert caught.value.code == "volume.in_use"
    with pytest.raises(Refused) as refused:
        grow(sealed.path, sealed.record, sealed.key, 1 << 30, driver="fuse")
    assert refused.value.code in ("volume.not_writable", "volume.in_use")
