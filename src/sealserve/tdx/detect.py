"""Which way to evidence this machine has: chosen by name, or found out with its reason.

Rules this module keeps:

* What was chosen is what is used; another way is never tried in its place.
* Detection looks, in a fixed order, at what the machine can do and not at what
  it says it is: DMI texts are the host's and only make the reason readable.
* A provider that is there but is not TDX, or a simulation that was not allowed,
  ends the search with its refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sealserve.errors import InputError, Unavailable
from sealserve.tdx import qgs, tpm
from sealserve.tdx.attributes import read_attribute
from sealserve.tdx.azure import AzureProvider
from sealserve.tdx.configfs import ConfigfsProvider
from sealserve.tdx.evidence import EvidenceProvider
from sealserve.tdx.qgs import QgsProvider

__all__ = ["Choice", "Devices", "Found", "choice_of", "find", "is_azure"]

_DMI = Path("class/dmi/id")
_AZURE_CHASSIS = "7783-7084-3265-9085-8269-3286-77"
_GOOGLE = "Google Compute Engine"
_NOT_HERE = frozenset({"tdx.no_configfs", "tdx.no_provider"})


class Choice(StrEnum):
    """How evidence is asked for."""

    AUTO = "auto"
    CONFIGFS = "configfs"
    QGS = "qgs"
    AZURE = "azure"


@dataclass(frozen=True, slots=True)
class Devices:
    """Where the devices are that the ways beside configfs need."""

    tdx: Path = qgs.DEVICE
    tpm: Path = tpm.DEVICE


@dataclass(frozen=True, slots=True)
class Found:
    """A way to evidence, and why it is the one."""

    provider: EvidenceProvider
    reason: str


def choice_of(text: str) -> Choice:
    """The choice of this name.

    Raises:
        InputError: ``tdx.provider_unknown``.
    """
    try:
        return Choice(text)
    except ValueError:
        raise InputError(
            "tdx.provider_unknown",
            f"{text[:64]!r} is no way to evidence",
            where="--provider",
            hint=f"one of {', '.join(Choice)}",
        ) from None


def find(
    choice: Choice = Choice.AUTO,
    sysfs: Path = Path("/sys"),
    *,
    allow_simulation: bool = False,
    devices: Devices | None = None,
) -> Found:
    """The provider that was chosen, or the first that this machine has.

    Args:
        choice: a way by name, or ``AUTO``.
        sysfs: where sysfs is mounted.
        allow_simulation: accept a simulated TD.
        devices: where the other ways' devices are.

    Raises:
        Unavailable: ``tdx.no_evidence``, and as
            :attr:`ConfigfsProvider.simulated`.
        Refused: as :attr:`ConfigfsProvider.simulated`.
    """
    devices = devices or Devices()
    configfs = ConfigfsProvider(sysfs, allow_simulation=allow_simulation)
    ways: dict[Choice, Callable[[], EvidenceProvider]] = {
        Choice.CONFIGFS: lambda: configfs,
        Choice.QGS: lambda: QgsProvider(report=lambda data: qgs.read_tdreport(data, devices.tdx)),
        Choice.AZURE: lambda: AzureProvider(transmit=tpm.device_transmit(devices.tpm)),
    }
    if choice is not Choice.AUTO:
        return Found(ways[choice](), "it was chosen")
    tried = []
    try:
        _ = configfs.simulated
    except Unavailable as error:
        if error.code not in _NOT_HERE:
            raise
        tried.append(f"configfs: {error.message}")
    else:
        return Found(configfs, f"configfs-tsm has a TDX provider{_cloud(sysfs)}")
    if devices.tdx.exists():
        return Found(
            ways[Choice.QGS](), f"{devices.tdx} is here, and {'; '.join(tried)}{_cloud(sysfs)}"
        )
    tried.append(f"qgs: there is no {devices.tdx}")
    if is_azure(sysfs) and devices.tpm.exists():
        return Found(ways[Choice.AZURE](), f"this is an Azure machine with {devices.tpm}")
    tried.append(f"azure: not an Azure machine with {devices.tpm}")
    raise Unavailable(
        "tdx.no_evidence",
        f"this machine has no way to TDX evidence ({'; '.join(tried)})",
        hint="run inside a TDX guest: Linux 6.7 or newer with CONFIG_TDX_GUEST_DRIVER and configfs "
        "mounted on /sys/kernel/config, or name the way with --provider",
    )


def is_azure(sysfs: Path = Path("/sys")) -> bool:
    """Whether this machine says that it is one of Azure's."""
    return _dmi(sysfs, "chassis_asset_tag") == _AZURE_CHASSIS


def _cloud(sysfs: Path) -> str:
    if _dmi(sysfs, "product_name") == _GOOGLE:
        return " (on Google Cloud; its boot event log is the ACPI table CCEL)"
    return ""


def _dmi(sysfs: Path, name: str) -> str:
    try:
        return read_attribute(sysfs / _DMI / name).decode("ascii", "replace").strip()
    except OSError:
        return ""
