"""What is tried in the guest. Each scenario returns what it saw; the tests judge it outside.

In ``/data``: the sealed volume with its record and its owner's public key, and
``plan.json``: which bits to flip and which headers to swap in.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import itertools
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sealserve.errors import SealserveError, Unavailable
from sealserve.volume.engine import verify_file
from sealserve.volume.kernel_driver import KernelDriver, loop_device
from sealserve.volume.mapper import open_volume_file
from sealserve.volume.mount import mount_sealed
from sealserve.volume.owner import load_owner_public
from sealserve.volume.process import Runner, run, secret_pipe
from sealserve.volume.record import BLOCK_SIZE, VolumeRecord, open_record
from tests.kernel.interop import every_layout, kernel_made
from tests.kernel.life import (
    adopted,
    crashed_half_way,
    erofs,
    killed_holder,
    unmounted_from_outside,
    writable,
)
from tests.kernel.originals import originals

DATA = Path("/data")
VOLUME = DATA / "models.seal"
COPY = DATA / "copy.seal"
MOUNTPOINT = Path("/mnt")

# Each program that a mount calls and an unmount, with a word that tells the calls apart.
_STEPS = (
    ("losetup", "--find"), ("veritysetup", "open"), ("cryptsetup", "open"), ("mount", "-t"),
    ("losetup", "--detach"), ("umount", "--"), ("cryptsetup", "close"), ("veritysetup", "close"),
)  # fmt: skip

_FIBMAP = 1  # <linux/fs.h>: a file's block number on its device


def by_command(key: bytes) -> dict[str, Any]:
    """``sealserve volume mount --driver kernel``, ended by SIGTERM."""
    with _mount_command(key) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        answer = process.stdout.readline().decode()
        if not answer:
            raise RuntimeError(process.stderr.read().decode())
        source, options = _mount_entry()
        found = {
            "answer": answer,
            "files": _sums(MOUNTPOINT),
            "link": str((MOUNTPOINT / "tls" / "link to key").readlink()),
            "options": options,
            "stack": list(_stack(source)),
            "key_seen": _processes_that_show(key),
        }
        process.terminate()
        return {**found, "status": process.wait(60)}


def wrong_key(key: bytes) -> dict[str, Any]:
    """Another key of the right size: our check, then the driver, which has no key id to compare."""
    other = bytes(reversed(key))
    return {
        "refused": _attempt(lambda: _mount_and_close(VOLUME, other)),
        "past_our_check": _attempt(lambda: _open_and_close(VOLUME, other)),
    }


def every_block(key: bytes) -> dict[str, Any]:
    """The undamaged volume, block by block, as the kernel decrypts it."""
    return {"sha256": hashlib.sha256(b"".join(_good_blocks(key).values())).hexdigest()}


def flipped_data(key: bytes) -> dict[str, Any]:
    """Bits of the segment: our full check, then the kernel's reads of every block."""
    with _flipped("data"):
        with open_volume_file(COPY) as descriptor:
            refused = _attempt(lambda: verify_file(descriptor, _record()))
        with _device(COPY, key) as device:
            return {"refused": refused, **_compared(_good_blocks(key), _blocks(device))}


def flipped_leaf(key: bytes) -> dict[str, Any]:
    """A bit of the tree's last leaf block: our check, then the kernel's reads."""
    with _flipped("leaf"):
        refused = _attempt(lambda: _mount_and_close(COPY, key))
        with _device(COPY, key) as device:
            return {"refused": refused, **_compared(_good_blocks(key), _blocks(device))}


def flipped_header(key: bytes) -> dict[str, Any]:
    """A bit of the LUKS2 metadata: our check, then the driver without it."""
    with _flipped("header"):
        return {
            "refused": _attempt(lambda: _mount_and_close(COPY, key)),
            "past_our_check": _attempt(lambda: _open_and_close(COPY, key)),
        }


def flipped_file(key: bytes) -> dict[str, Any]:
    """A bit under one mounted file: that file gives EIO, the others are whole."""
    victim = Path(_plan()["victim"])
    with mount_sealed(VOLUME, _record(), key, MOUNTPOINT, driver="kernel"):
        block = _block_of(MOUNTPOINT / victim)
    shutil.copyfile(VOLUME, COPY)
    _flip(COPY, (_record().segment_offset + block * BLOCK_SIZE) * 8 + 77)
    with mount_sealed(COPY, _record(), key, MOUNTPOINT, driver="kernel"):
        try:
            (MOUNTPOINT / victim).read_bytes()
            number = 0
        except OSError as error:
            number = error.errno or -1
        return {"errno": number, "files": _sums(MOUNTPOINT, leave_out=victim)}


def swapped_header(key: bytes) -> dict[str, Any]:
    """The host swaps its own header in, between our check and a program's start."""
    shutil.copyfile(VOLUME, COPY)
    with COPY.open("rb") as file:
        original = file.read(_record().header.size)
    outcomes = []
    attacks = itertools.cycle(itertools.product(_headers().items(), ("veritysetup", "cryptsetup")))
    for (name, header), program in itertools.islice(attacks, _plan()["swaps"]):
        runner = _swapping(program, header)
        outcome = _attempt(functools.partial(_open_and_close, COPY, key, runner))
        outcomes.append([name, program, outcome])
        _overwrite(COPY, original)
    return {"outcomes": outcomes}


def swapped_header_without_verity(key: bytes) -> dict[str, Any]:
    """The control: what cryptsetup makes of these headers when nobody checks them."""
    shutil.copyfile(VOLUME, COPY)
    wrong = bytes(reversed(key))
    opened: dict[str, list[str]] = {"right": [], "wrong": []}
    for name, header in _headers().items():
        _overwrite(COPY, header)
        with loop_device(COPY, run) as loop:
            for which, secret in (("right", key), ("wrong", wrong)):
                if _opens(loop, secret):
                    opened[which].append(name)
    return opened


def _opens(loop: str, key: bytes) -> bool:
    with secret_pipe(key) as reader:
        options = ["--readonly", f"--key-file=/proc/self/fd/{reader}"]
        try:
            run(["cryptsetup", "open", *options, loop, "hostile"], pass_fds=[reader], timeout=20)
        except SealserveError:
            return False
    run(["cryptsetup", "close", "hostile"])
    return True


def failing_steps(key: bytes) -> dict[str, Any]:
    """Mounted and unmounted again and again, a program failing once in each round."""
    steps = itertools.cycle(itertools.product(_STEPS, (False, True)))
    outcomes = []
    for step, after in itertools.islice(steps, _plan()["cycles"]):
        runner = _failing_once(step, after=after)
        outcome = _attempt(functools.partial(_mount_and_close, VOLUME, key, runner))
        outcomes.append([*step, after, outcome])
    return {"outcomes": outcomes}


def _failing_once(step: tuple[str, str], *, after: bool) -> Runner:
    program, word = step
    failed = False

    def fail_or_run(
        command: Sequence[str], *, pass_fds: Sequence[int] = (), timeout: float = 60
    ) -> str:
        nonlocal failed
        if failed or command[0] != program or word not in command:
            return run(command, pass_fds=pass_fds, timeout=timeout)
        failed = True
        if after:
            run(command, pass_fds=pass_fds, timeout=timeout)
        raise Unavailable("volume.tool_failed", "injected")

    return fail_or_run


SCENARIOS: dict[str, Callable[[bytes], dict[str, Any]]] = {
    scenario.__name__: scenario
    for scenario in (
        by_command,
        wrong_key,
        every_block,
        flipped_data,
        flipped_leaf,
        flipped_header,
        flipped_file,
        swapped_header,
        swapped_header_without_verity,
        failing_steps,
        every_layout,
        kernel_made,
        killed_holder,
        unmounted_from_outside,
        crashed_half_way,
        writable,
        erofs,
        adopted,
        originals,
    )
}


@contextmanager
def _mount_command(key: bytes) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable, "-P", "-m", "sealserve", "volume", "mount", str(VOLUME), str(MOUNTPOINT),
        "--record", str(DATA / "models.record"), "--owner-pub", str(DATA / "owner.pub"),
        "--driver", "kernel", "--key-fd", "0",
    ]  # fmt: skip
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        process.stdin.write(key)
        process.stdin.close()
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def _device(path: Path, key: bytes) -> Iterator[Path]:
    """The decrypted device of the driver alone: nothing of ours has looked at the data."""
    mapping = KernelDriver().open(path, _record(), key, MOUNTPOINT)
    try:
        yield mapping.device
    finally:
        mapping.close()


def _swapping(program: str, header: bytes) -> Runner:
    """A runner that writes a header into the file just before a program opens it."""

    def swap_and_run(
        command: Sequence[str], *, pass_fds: Sequence[int] = (), timeout: float = 60
    ) -> str:
        if list(command[:2]) == [program, "open"]:
            _overwrite(COPY, header)
        return run(command, pass_fds=pass_fds, timeout=timeout)

    return swap_and_run


def _open_and_close(path: Path, key: bytes, runner: Runner = run) -> None:
    KernelDriver(runner).open(path, _record(), key, MOUNTPOINT).close()


def _mount_and_close(path: Path, key: bytes, runner: Runner = run) -> None:
    mount_sealed(path, _record(), key, MOUNTPOINT, driver="kernel", runner=runner).close()


def _attempt(action: Callable[[], None]) -> str:
    """The refusal, which ends with its code; or ``opened``."""
    try:
        action()
    except SealserveError as error:
        return str(error)
    return "opened"


def _record() -> VolumeRecord:
    raw = (DATA / "models.record").read_bytes()
    return open_record(raw, load_owner_public(DATA / "owner.pub"))


def _plan() -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((DATA / "plan.json").read_bytes())
    return plan


def _headers() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(DATA.glob("*.header"))}


def _blocks(device: Path) -> dict[int, bytes]:
    """Every block that can be read, straight from the device, by number."""
    blocks = {}
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, BLOCK_SIZE) as buffer:
            for number in range(os.lseek(descriptor, 0, os.SEEK_END) // BLOCK_SIZE):
                try:
                    assert os.preadv(descriptor, [buffer], number * BLOCK_SIZE) == BLOCK_SIZE
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    continue
                blocks[number] = buffer[:]
    finally:
        os.close(descriptor)
    return blocks


@functools.cache
def _good_blocks(key: bytes) -> dict[int, bytes]:
    with _device(VOLUME, key) as device:
        return _blocks(device)


def _compared(good: dict[int, bytes], found: dict[int, bytes]) -> dict[str, list[int]]:
    return {
        "wrong": [number for number, block in found.items() if block != good[number]],
        "eio": [number for number in good if number not in found],
    }


@contextmanager
def _flipped(where: str) -> Iterator[None]:
    shutil.copyfile(VOLUME, COPY)
    for bit in _plan()[where]:
        _flip(COPY, bit)
    yield


def _flip(path: Path, bit: int) -> None:
    with path.open("rb") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
    _overwrite(path, bytes([byte ^ 1 << bit % 8]), bit // 8)


def _overwrite(path: Path, content: bytes, offset: int = 0) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(content)
        os.fsync(file.fileno())


def _sums(root: Path, leave_out: Path | None = None) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root) != leave_out
    }


def _block_of(path: Path) -> int:
    """Where a file's second block stands on its device."""
    with path.open("rb") as file:
        return int(struct.unpack("i", fcntl.ioctl(file, _FIBMAP, struct.pack("i", 1)))[0])


def _mount_entry() -> tuple[str, list[str]]:
    """Device and options of what is mounted at the mount point (proc(5), mountinfo)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(MOUNTPOINT):
            return fields[fields.index("-") + 2], fields[5].split(",")
    raise AssertionError("nothing is mounted")


def _stack(device: str) -> Iterator[list[str]]:
    """From the mounted device down: what each layer is, and whether it is read-only."""
    number = Path(device).stat().st_rdev
    block = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    while True:
        uuid, backing = block / "dm" / "uuid", block / "loop" / "backing_file"
        what = uuid.read_text() if uuid.exists() else backing.read_text()
        yield [what.strip(), (block / "ro").read_text().strip()]
        below = list(block.glob("slaves/*"))
        if not below:
            return
        (block,) = (Path("/sys/block", slave.name) for slave in below)


def _processes_that_show(key: bytes) -> list[str]:
    return [
        str(path)
        for name in ("cmdline", "environ")
        for path in Path("/proc").glob(f"[0-9]*/{name}")
        if key in path.read_bytes() or key.hex().encode() in path.read_bytes()
    ]
