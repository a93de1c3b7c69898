"""A Linux kernel to boot: Debian's (or Ubuntu's) own package, kept in a cache."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Kernels for virtual machines: small, and they have all that the tests load.
_META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")
_PARTS = re.compile(r"^\s*Depends: (linux-(?:image|modules)-\d\S+)$", re.MULTILINE)


class NoKernelError(Exception):
    """No kernel package can be had here; the text says why."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    image: Path
    modules: Path

    def modules_with_needs(self, *names: str) -> Iterator[bytes]:
        """The named modules, each after those that it depends on.

        A name that is no module here is built into the kernel, or the kernel has
        none: then it is passed over, and the test that needs it fails.
        """
        files = {_name(path): path for path in self.modules.rglob("*.ko*")}
        done: set[str] = set()

        def load(name: str) -> Iterator[bytes]:
            if name in done or name not in files:
                return
            done.add(name)
            content = _unpacked(files[name])
            needs = re.search(rb"\0depends=([^\0]*)\0", content)
            for need in needs[1].decode().split(",") if needs else ():
                yield from load(need.replace("-", "_"))
            yield content

        for name in names:
            yield from load(name.replace("-", "_"))


def cached_kernel() -> Kernel:
    """The kernel from the cache, or else by ``apt-get download``; needs no root.

    The cache is a directory ``kernel`` in the one that SEALSERVE_TEST_CACHE
    names, else in the user's own cache.

    Raises:
        NoKernelError: with the reason.
    """
    cache = Path(
        os.environ.get("SEALSERVE_TEST_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sealserve-tests")
    )
    root = cache / "kernel"
    if not root.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            unpacked = _download(Path(temporary))
            try:
                unpacked.rename(root)
            except OSError:
                if not root.exists():  # else another test run was quicker
                    raise
    images, modules = sorted(root.glob("boot/vmlinuz-*")), sorted(root.rglob("modules.builtin"))
    if not images or not modules:
        raise NoKernelError(f"{root} holds no kernel: remove that directory")
    return Kernel(images[0], modules[0].parent)


def _download(directory: Path) -> Path:
    for program in ("apt-get", "apt-cache", "dpkg-deb"):
        if not shutil.which(program):
            raise NoKernelError(f"no {program}, and kernels come as Debian packages")
    for meta in _META_PACKAGES:
        packages = _PARTS.findall(_output(["apt-cache", "depends", meta], directory))
        if packages:
            break
    else:
        raise NoKernelError(f"apt knows neither {' nor '.join(_META_PACKAGES)}: apt-get update")
    # An image package of Ubuntu names its modules package in turn.
    for package in list(packages):
        packages += _PARTS.findall(_output(["apt-cache", "depends", package], directory))
    _output(["apt-get", "download", "-q", *sorted(set(packages))], directory)
    unpacked = directory / "unpacked"
    for archive in directory.glob("*.deb"):
        _output(["dpkg-deb", "--extract", str(archive), str(unpacked)], directory)
    if not unpacked.exists():
        raise NoKernelError(f"apt-get brought nothing for {packages}")
    return unpacked


def _output(command: list[str], directory: Path) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode and command[0] != "apt-cache":
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"status {done.returncode}"
        raise NoKernelError(f"{command[0]} failed (is `apt-get update` due?): {reason}")
    return done.stdout


def _name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _unpacked(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
    return path.read_bytes()
