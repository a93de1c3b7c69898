"""Keeps the simulator off machines that have the real thing.

A simulation beside real evidence could be taken for it; so wherever the kernel
offers evidence, there is no simulation.
"""

from __future__ import annotations

from pathlib import Path

from sealserve.errors import Refused

__all__ = ["CONFIGFS", "DEVICE", "require_no_tdx"]

DEVICE = Path("/dev/tdx_guest")
CONFIGFS = Path("/sys/kernel/config/tsm/report")


def require_no_tdx(device: Path = DEVICE, configfs: Path = CONFIGFS) -> None:
    """Raise if this machine can make real evidence.

    Args:
        device: the TDX guest driver's device.
        configfs: the directory of the kernel's evidence providers.

    Raises:
        Refused: ``simulator.real_tdx``.
    """
    for path in (device, configfs):
        if path.exists():
            raise Refused(
                "simulator.real_tdx",
                "the simulator does not start on a machine with a real evidence provider",
                where=str(path),
                hint="use this machine's own TDX; simulate on one that has none",
            )
