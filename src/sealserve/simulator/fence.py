"""Keeps the simulator off machines that have the real thing.

A simulation beside real evidence could be taken for it; so wherever there is
evidence to be had, or the processor says that this is a TD, there is no
simulation. Nothing of that depends on a driver being loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sealserve.errors import Refused, SealserveError
from sealserve.tdx import azure, qgs, tpm
from sealserve.tdx.attributes import read_attribute
from sealserve.tdx.configfs import REPORTS
from sealserve.tdx.detect import is_azure
from sealserve.tdx.evidence import PassingTrouble

__all__ = ["Machine", "require_no_tdx"]

_FLAG = "tdx_guest"
_MAX_CPUINFO_BYTES = 64 * 1024  # the first processor's lines are among them


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a machine's signs of TDX are.

    Attributes:
        device: the TDX guest driver's device.
        sysfs: where sysfs is mounted.
        cpuinfo: what the kernel says about the processors.
        tpm: a vTPM.
    """

    device: Path = qgs.DEVICE
    sysfs: Path = Path("/sys")
    cpuinfo: Path = Path("/proc/cpuinfo")
    tpm: Path = tpm.DEVICE


def require_no_tdx(machine: Machine | None = None) -> None:
    """Raise if this machine is a TDX guest or can make real evidence.

    Raises:
        Refused: ``simulator.real_tdx``.
    """
    machine = machine or Machine()
    configfs = machine.sysfs / REPORTS
    for path in (machine.device, configfs):
        if path.exists():
            raise _refused("it has a real evidence provider", path)
    if _FLAG in _processor_flags(machine.cpuinfo):
        raise _refused(f"its processor has the flag {_FLAG}", machine.cpuinfo)
    if is_azure(machine.sysfs) and machine.tpm.exists():
        _require_ordinary_vtpm(machine.tpm)


def _processor_flags(cpuinfo: Path) -> set[str]:
    try:
        text = read_attribute(cpuinfo, _MAX_CPUINFO_BYTES).decode("ascii", "replace")
    except OSError:
        return set()
    return {
        flag
        for line in text.splitlines()
        if line.startswith("flags")
        for flag in line.partition(":")[2].split()
    }


def _require_ordinary_vtpm(device: Path) -> None:
    """Azure's confidential guests show no TDX to their kernel; their vTPM has a report."""
    try:
        confidential = azure.has_report(tpm.device_transmit(device))
    except (SealserveError, PassingTrouble):
        raise _refused("whether its vTPM has a paravisor's report cannot be seen", device) from None
    if confidential:
        raise _refused("its vTPM has a paravisor's report", device)


def _refused(reason: str, where: Path) -> Refused:
    return Refused(
        "simulator.real_tdx",
        f"the simulator does not start on this machine: {reason}",
        where=str(where),
        hint="use this machine's own TDX; simulate on one that has none (as root, if its vTPM is "
        "to be looked at)",
    )
