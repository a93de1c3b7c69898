"""Boot the guest, let it run its scenarios, bring back what it found.

The key goes to the guest through QEMU's fw_cfg device from a memfd: it stands on
no command line and in no file. What the guest finds comes back over a second
serial line, so that the kernel's own words can not get between.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import sealserve
import tests
from tests.background import PROCESSES
from tests.kernel.initramfs import MODULES, SITE, TOOL_PATH, Initramfs
from tests.kernel.package import Kernel
from tests.soak import times

KERNEL_MODULES = (
    "virtio_pci", "virtio_blk", "virtio_console", "qemu_fw_cfg", "loop", "xts", "aesni_intel",
    "dm_mod", "dm_verity", "dm_crypt", "algif_skcipher", "crypto_null", "erofs",
)  # fmt: skip
TOOLS = (
    "losetup", "veritysetup", "cryptsetup", "mkfs.ext4", "mount", "umount", "e2fsck", "resize2fs",
)  # fmt: skip
DISTRIBUTIONS = ("cryptography", "pydantic", "structlog", "typer", "rich")

DISK = "data.img"
"""The guest's disk, an ext4 image, in the directory that `running_guest` works in."""

_CONSOLE = "console.log"
_RESULTS = "results.jsonl"
_IN_THE_GUEST = (
    "__init__", "kernel/__init__", "kernel/crash", "kernel/inside", "kernel/interop",
    "kernel/life", "kernel/originals", "kernel/scenarios", "volume/__init__", "volume/writer",
)  # fmt: skip
_KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on"
_INIT_ARGUMENTS = "-- -P -m tests.kernel.inside"

# The hard limit in seconds; an idle machine needs about an eighth of it.
_TIMEOUT = times(7200, 360)


def why_not() -> str | None:
    """Why no guest can be booted here, as far as this is known before trying."""
    if platform.machine() != "x86_64":
        return "this is not an x86-64 machine, and the guest runs this machine's programs"
    if not shutil.which("qemu-system-x86_64"):
        return "install qemu-system-x86"
    return None


@contextmanager
def running_guest(
    kernel: Kernel, key: bytes, files: Mapping[str, Path | bytes], work: Path
) -> Iterator[Callable[[], dict[str, Any]]]:
    """A booted guest that runs `tests.kernel.scenarios` beside whatever else is done.

    Args:
        kernel: what to boot.
        key: the volume key.
        files: what stands in the guest's ``/data``, by name.
        work: a directory for disk and console log.

    Yields:
        What waits for the guest's end, and gives what each scenario found, by name.
    """
    with _booted(kernel, key, files, work) as machine:

        def findings() -> dict[str, Any]:
            try:
                ended = machine.communicate(timeout=_TIMEOUT)[1]
            except subprocess.TimeoutExpired:
                ended = f"the guest was given up after {_TIMEOUT} s"
            found = dict(_results(work))
            if not found.pop("complete", False):
                raise AssertionError(f"the guest came not to its end: {ended}\n{_console(work)}")
            return found

        yield findings


def power_off_guest(
    kernel: Kernel, key: bytes, files: Mapping[str, Path | bytes], work: Path, lines: int
) -> list[tuple[str, Any]]:
    """Boot a guest and take its power away once it has written so many lines of results.

    Args:
        kernel, key, files, work: as for `running_guest`.
        lines: how many.

    Returns:
        All lines that came out before it was off.
    """
    deadline = time.monotonic() + _TIMEOUT
    with _booted(kernel, key, files, work) as machine:
        while len(_results(work)) < lines:
            if machine.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the guest wrote too little:\n{_console(work)}")
            time.sleep(0.02)
    return _results(work)


@contextmanager
def _booted(
    kernel: Kernel, key: bytes, files: Mapping[str, Path | bytes], work: Path
) -> Iterator[subprocess.Popen[str]]:
    """The machine; it is gone, without a word to it, when the block ends."""
    disk = _disk(files, work)
    with tempfile.TemporaryFile(dir=work) as initrd, os.fdopen(
        os.memfd_create("key"), "w+b", buffering=0
    ) as key_file:  # fmt: skip
        python = _write_initrd(kernel, initrd)
        initrd.flush()
        key_file.write(key)
        command = [
            "qemu-system-x86_64", "-M", "q35,accel=tcg", "-cpu", "max", "-m", "768",
            "-nodefaults", "-display", "none", "-no-reboot",
            "-serial", f"file:{work / _CONSOLE}",
            "-device", "virtio-serial", "-device", "virtserialport,chardev=results",
            "-chardev", f"file,id=results,path={work / _RESULTS}",
            "-kernel", str(kernel.image), "-initrd", f"/proc/self/fd/{initrd.fileno()}",
            "-append", f"{_KERNEL_OPTIONS} PYTHONPATH={SITE} rdinit={python} {_INIT_ARGUMENTS}",
            "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe",
            "-fw_cfg", f"name=opt/sealserve.test/key,file=/proc/self/fd/{key_file.fileno()}",
        ]  # fmt: skip
        with subprocess.Popen(
            command,
            pass_fds=(initrd.fileno(), key_file.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as machine:
            PROCESSES.add(machine.pid)
            try:
                yield machine
            finally:
                machine.kill()


def _results(work: Path) -> list[tuple[str, Any]]:
    """The whole lines among what the guest has written."""
    path = work / _RESULTS
    text = path.read_text() if path.exists() else ""
    return [tuple(json.loads(line)) for line in text.splitlines(keepends=True) if line[-1] == "\n"]


def _console(work: Path) -> str:
    return (work / _CONSOLE).read_text(errors="replace")[-5000:]


def _disk(files: Mapping[str, Path | bytes], work: Path) -> Path:
    """A disk image with these files; needs no root."""
    content = work / "data"
    content.mkdir()
    for name, source in files.items():
        target = content / name
        if isinstance(source, bytes):
            target.write_bytes(source)
        else:
            subprocess.run(["cp", "--sparse=always", source, target], check=True)
    disk = work / DISK
    mkfs = shutil.which("mkfs.ext4", path=TOOL_PATH)
    # Sparse: the guest makes copies in it.
    subprocess.run(
        [mkfs or "mkfs.ext4", "-q", "-d", content, disk, "512M"], check=True, capture_output=True
    )
    return disk


def _write_initrd(kernel: Kernel, file: IO[bytes]) -> Path:
    root = Initramfs()
    python = root.add_python()
    for tool in TOOLS:
        root.add_tool(tool)
    root.add_distributions(*DISTRIBUTIONS)
    root.add_tree(Path(sealserve.__file__).parent, SITE / "sealserve")
    here = Path(str(tests.__file__)).parent
    for name in (f"{module}.py" for module in _IN_THE_GUEST):
        root.add_content(SITE / "tests" / name, (here / name).read_bytes())
    for number, module in enumerate(kernel.modules_with_needs(*KERNEL_MODULES)):
        root.add_content(MODULES / f"{number:02}.ko", module)
    root.write(file)
    return python
