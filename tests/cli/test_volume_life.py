"""``sealserve volume mount|unmount|list|status|grow|doctor``, as a person types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sealserve.volume.process import is_mounted
from tests.children import Child
from tests.cli.test_owner import sealserve
from tests.cli.test_volume import Made, made

__all__ = ["made"]


def command(made: Made, mountpoint: Path, *more: object) -> list[object]:
    return [
        sys.executable, "-m", "sealserve", "volume", "mount", made.volume, mountpoint,
        "--record", made.record, "--owner-pub", made.public, "--driver", "fuse",
        "--key-fd", "0", "--json", *more,
    ]  # fmt: skip


def test_a_life_in_the_background(made: Made, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    done = subprocess.run(
        command(made, mountpoint, "--background"), input=made.key, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (mountpoint / "models/net/7/weights").read_bytes() == b"the weights"

    listed = json.loads(sealserve("volume", "list", "--json").stdout)["mounts"]
    (mine,) = [mount for mount in listed if mount["mountpoint"] == str(mountpoint)]
    assert (mine["status"], mine["pid"], mine["name"]) == ("mounted", answer["pid"], "models")
    shown = json.loads(sealserve("volume", "status", mountpoint, "--json").stdout)
    assert shown == mine
    assert str(mountpoint) in sealserve("volume", "list").stdout

    for was_mounted in (True, False):
        done = sealserve("volume", "unmount", mountpoint, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["was_mounted"] is was_mounted
    deadline = time.monotonic() + 10
    while Path(f"/proc/{answer['pid']}").exists():  # the holder notices, and ends
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not mountpoint.exists()
    done = sealserve("volume", "status", mountpoint, "--json")
    assert done.returncode == 4
    assert json.loads(done.stderr)["error"]["code"] == "volume.not_mounted"


def test_a_failure_in_the_background_is_told(made: Made, tmp_path: Path) -> None:
    done = subprocess.run(
        command(made, tmp_path / "mnt", "--background"),
        input=b"wrong key", capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert json.loads(done.stderr.splitlines()[-1])["error"]["code"] == "volume.key_size"


def test_a_mount_ends_with_its_lease(made: Made, tmp_path: Path) -> None:
    """Whoever holds the lease holds the writing end; when it lets go, all closes in order."""
    mountpoint = tmp_path / "mnt"
    reader, writer = os.pipe()
    with Child(
        command(made, mountpoint, "--while-fd", str(reader)),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[reader],
    ) as holder:  # fmt: skip
        os.close(reader)
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(made.key)
        holder.stdin.close()
        while holder.stdout.readline() not in (b"}\n", b""):
            pass
        assert is_mounted(mountpoint)
        os.write(writer, b"renewed")
        time.sleep(0.5)
        assert is_mounted(mountpoint)
        os.close(writer)
        assert holder.wait(20) == 0
    assert not mountpoint.exists()


def test_unmount_refuses_what_is_not_ours() -> None:
    done = sealserve("volume", "unmount", "/proc", "--json")
    assert done.returncode == 3
    assert json.loads(done.stderr)["error"]["code"] == "volume.not_ours"


def test_the_doctor_says_what_can_be_done_here() -> None:
    found = json.loads(sealserve("volume", "doctor", "--json").stdout)
    assert set(found["drivers"]) == {"kernel", "fuse"}
    assert found["drivers"]["fuse"] == "ready"
    assert "driver kernel:" in sealserve("volume", "doctor").stdout


def test_a_sealed_volume_does_not_grow(made: Made) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "sealserve", "volume", "grow", made.volume, "--to", "64",
            "--record", made.record, "--owner-pub", made.public, "--driver", "fuse",
            "--key-fd", "0", "--json",
        ],
        input=made.key, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert json.loads(done.stderr)["error"]["code"] == "volume.not_writable"


@pytest.mark.parametrize("name", ["unmount", "list", "status", "grow", "doctor"])
def test_help_teaches(name: str) -> None:
    shown = sealserve("volume", name, "--help")
    assert shown.returncode == 0
    assert "Example:" in shown.stdout
