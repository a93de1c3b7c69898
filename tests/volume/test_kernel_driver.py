"""The kernel driver's commands, their order and their undoing.

Device-mapper is replaced: a runner that keeps books, and a "verity device" that
is a plain file. That the real kernel takes these commands is not tested here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sealserve.errors import InputError, Unavailable
from sealserve.volume.drivers import driver_named
from sealserve.volume.kernel_driver import KernelDriver
from sealserve.volume.mount import mount_sealed
from tests.volume.conftest import Sealed

# The loop device is detached as soon as dm-verity stands on it, and goes with it.
OPENING = ["losetup", "veritysetup open", "losetup", "cryptsetup open"]
CLOSING = ["cryptsetup close", "veritysetup close"]
STEPS = list(dict.fromkeys(OPENING))


class Kernel:
    """Plays losetup, veritysetup and cryptsetup; knows what is up."""

    def __init__(self, directory: Path, content: Path, fail_at: str = "") -> None:
        self.directory = directory
        self.content = content
        self.fail_at = fail_at
        self.commands: list[list[str]] = []
        self.up: list[str] = []
        self.keys: list[bytes] = []

    def __call__(
        self, command: Sequence[str], *, pass_fds: Sequence[int] = (), timeout: float = 60
    ) -> str:
        self.commands.append(list(command))
        step = " ".join(command[:2]) if command[0] != "losetup" else "losetup"
        if step == self.fail_at and not {"close", "--detach", "--associated"} & set(command):
            raise Unavailable("volume.tool_failed", "injected")
        if "--associated" in command:
            return ""
        match command[0], command[1]:
            case "losetup", "--detach":
                assert command[2] == "/dev/loop77"
                self.up[self.up.index("loop")] = "loop, detached"
                self._clear()
            case "losetup", _:
                self.up.append("loop")
                return "/dev/loop77\n"
            case "veritysetup", "open":
                assert self.up == ["loop"]
                (self.directory / command[-3]).symlink_to(self.content)
                self.up.append(command[-3])
            case "cryptsetup", "open":
                assert self.up == ["loop, detached", Path(command[-2]).name]
                (key_file,) = [a for a in command if a.startswith("--key-file=")]
                with Path(key_file.partition("=")[2]).open("rb") as file:
                    self.keys.append(file.read())
                self.up.append(command[-1])
            case _, "close":
                assert self.up[-1] == command[2]
                self.up.pop()
                (self.directory / command[2]).unlink(missing_ok=True)
                self._clear()
        return ""

    def _clear(self) -> None:
        if self.up == ["loop, detached"]:
            self.up.clear()


@pytest.fixture
def mapper(tmp_path: Path) -> Path:
    directory = tmp_path / "mapper"
    directory.mkdir()
    return directory


def steps(commands: list[list[str]]) -> list[str]:
    return [c[0] if c[0] == "losetup" else " ".join(c[:2]) for c in commands]


def test_order_of_opening_and_closing(sealed: Sealed, mapper: Path, tmp_path: Path) -> None:
    kernel = Kernel(mapper, sealed.path)
    driver = KernelDriver(kernel, mapper_directory=mapper)
    mapping = driver.open(sealed.path, sealed.record, sealed.key, tmp_path)
    assert steps(kernel.commands) == OPENING
    assert kernel.up == ["loop, detached", f"{mapping.device.name}-verity", mapping.device.name]
    assert kernel.keys == [sealed.key]
    mapping.close()
    mapping.close()
    assert steps(kernel.commands) == OPENING + CLOSING
    assert kernel.up == []


def test_commands_say_what_the_record_says(sealed: Sealed, mapper: Path, tmp_path: Path) -> None:
    kernel = Kernel(mapper, sealed.path)
    KernelDriver(kernel, mapper_directory=mapper).open(
        sealed.path, sealed.record, sealed.key, tmp_path
    )
    loop, verity, _detach, crypt = kernel.commands
    expected = sealed.record.verity
    assert loop[1:3] == ["--read-only", "--direct-io=on"]
    assert loop[-1] == str(sealed.path)
    assert verity[-4] == verity[-2] == "/dev/loop77"
    assert verity[-1] == expected.root_hash
    for option in (
        "--no-superblock", "--format=1", "--hash=sha256", f"--salt={expected.salt}",
        f"--data-blocks={expected.data_blocks}", f"--hash-offset={expected.hash_offset}",
        "--data-block-size=4096", "--hash-block-size=4096",
    ):  # fmt: skip
        assert option in verity
    assert {"--type=luks2", "--readonly", "--key-slot=0", "--tries=1"} <= set(crypt)
    assert crypt[-2] == str(mapper / verity[-3])
    for word in [word for command in kernel.commands for word in command]:
        assert sealed.key not in word.encode()
        assert sealed.key.hex() not in word


def test_options_exist(sealed: Sealed) -> None:
    """cryptsetup's own argument parser knows every option that we use."""
    from sealserve.volume.kernel_driver import _crypt_command, _verity_command
    from tests.volume.conftest import tool

    for command in (
        _verity_command(sealed.record, "/dev/loop77", "name"),
        _crypt_command("/dev/mapper/x", "name", 9, 32, ["--readonly"]),
        _crypt_command("/dev/loop77", "name", 9, 64, ["--header=/proc/self/fd/8"]),
    ):
        known = tool(command[0], "--help")
        for option in (word.partition("=")[0] for word in command if word.startswith("--")):
            assert option in known


@pytest.mark.parametrize("fail_at", STEPS)
def test_a_failure_half_way_is_undone(
    sealed: Sealed, mapper: Path, tmp_path: Path, fail_at: str
) -> None:
    kernel = Kernel(mapper, sealed.path, fail_at)
    with pytest.raises(Unavailable, match="injected"):
        KernelDriver(kernel, mapper_directory=mapper).open(
            sealed.path, sealed.record, sealed.key, tmp_path
        )
    assert kernel.up == []
    reached = OPENING[: OPENING.index(fail_at) + 1]
    assert steps(kernel.commands)[: len(reached)] == reached


def test_where_device_mapper_is_missing_it_says_so(sealed: Sealed, tmp_path: Path) -> None:
    table = tmp_path / "misc"
    table.write_text(" 10 fuse\n")
    driver = KernelDriver(misc_devices=table)
    with pytest.raises(Unavailable, match="no device-mapper" if os.geteuid() == 0 else "root"):
        driver.require()
    with pytest.raises(Unavailable) as caught:
        mount_sealed(sealed.path, sealed.record, sealed.key, tmp_path / "mnt", driver=driver)
    assert caught.value.code == "volume.kernel_driver"
    assert not (tmp_path / "mnt").exists()


def test_with_device_mapper_it_is_content(tmp_path: Path) -> None:
    table = tmp_path / "misc"
    table.write_text("236 device-mapper\n")
    driver = KernelDriver(misc_devices=table)
    if os.geteuid() == 0:
        driver.require()
    else:
        with pytest.raises(Unavailable, match="root"):
            driver.require()


def test_drivers_by_name() -> None:
    assert driver_named("kernel").name == "kernel"
    assert driver_named("fuse").name == "fuse"
    for name in ("", "auto", "Kernel"):
        with pytest.raises(InputError) as caught:
            driver_named(name)
        assert caught.value.code == "volume.driver_unknown"


def test_the_mount_over_the_kernel_driver(
    sealed: Sealed, mapper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dm-crypt device is mounted as it is: no second loop device."""
    table = tmp_path / "misc"
    table.write_text("236 device-mapper\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    kernel = Kernel(mapper, sealed.path)
    driver: Any = KernelDriver(kernel, mapper_directory=mapper, misc_devices=table)
    mount = mount_sealed(
        sealed.path, sealed.record, sealed.key, tmp_path / "mnt", driver=driver, runner=kernel
    )
    command = kernel.commands[-1]
    assert command[0] == "mount"
    assert "ro,nodev,nosuid,noexec,noload" in command
    assert Path(command[-2]).parent == mapper
    mount.close()
    assert kernel.up == []
    assert not (tmp_path / "mnt").exists()
