"""The two ways to open the same bytes, and the choice between them.

* ``kernel``: dm-verity and dm-crypt, for production; needs root and device-mapper.
* ``fuse``: the same bytes by `sealserve.volume.engine` in a process of its own,
  for machines and containers without device-mapper.

Which one opens a volume is decided by whoever calls, by name. There is no
fall-back from one to the other: it would change silently what the guest runs.
"""

from __future__ import annotations

from sealserve.errors import InputError
from sealserve.volume.fuse_driver import FuseDriver
from sealserve.volume.kernel_driver import KernelDriver
from sealserve.volume.mapper import Driver
from sealserve.volume.process import Runner, run

__all__ = ["driver_named"]


def driver_named(name: str, runner: Runner = run) -> Driver:
    """The driver of that name.

    Raises:
        InputError: ``volume.driver_unknown``.
    """
    if name == "kernel":
        return KernelDriver(runner)
    if name == "fuse":
        return FuseDriver()
    raise InputError(
        "volume.driver_unknown", f"no such driver: {name}", hint="choose kernel or fuse"
    )
