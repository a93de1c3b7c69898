"""Which TCB level has this platform reached, and what does Intel think of it?

Source: Intel PCS API version 4, "Get TDX TCB Info" (how to determine the TCB
status of a platform); Intel TDX DCAP, TD-preserving update (relaunch rule).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from sealserve.attestation.reference.documents import Level, Module, PlatformLevel, TcbInfo
from sealserve.attestation.reference.pck import PckPlatform
from sealserve.errors import Refused
from sealserve.tdx.quote import TdReport

__all__ = [
    "first_reached",
    "masked_equal",
    "merge",
    "platform_level",
    "reached_level",
    "relaunch_status",
]

_HINT: Final = "the platform's firmware needs an update, or the collateral is of another platform"
_NEEDS_CONFIGURATION: Final = {
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDateConfigurationNeeded",
}
_OUT_OF_DATE: Final = {"OutOfDate", "OutOfDateConfigurationNeeded"}


def platform_level(
    tcb_info: TcbInfo, platform: PckPlatform, report: TdReport
) -> tuple[Level, Level | None]:
    """The levels of the TCB a TD was launched with and of the one it runs on now.

    Args:
        tcb_info: what Intel says about the platform model.
        platform: the platform, from its PCK certificate.
        report: of the TD.

    Returns:
        The launch level, TDX module included, and, for bodies that state it
        (TD 1.5 and later), the current level.

    Raises:
        Refused: ``tcb.platform_mismatch``, ``tcb.no_matching_level`` or
            ``tcb.module_mismatch``.
    """
    if (platform.fmspc, platform.pce_id) != (tcb_info.fmspc, tcb_info.pce_id):
        raise Refused(
            "tcb.platform_mismatch",
            f"the platform is {platform.fmspc.hex()} with PCE {platform.pce_id.hex()}, the TCB "
            f"info is about {tcb_info.fmspc.hex()} with PCE {tcb_info.pce_id.hex()}",
            hint=_HINT,
        )
    launched = reached_level(tcb_info, platform.components, platform.pce_svn, report.tee_tcb_svn)
    _check_module(_module(tcb_info, report.tee_tcb_svn) or tcb_info.module, report)
    if report.tee_tcb_svn2 is None:
        return launched, None
    now = reached_level(tcb_info, platform.components, platform.pce_svn, report.tee_tcb_svn2)
    return launched, now


def merge(level: Level, component: Level) -> Level:
    """A platform's level together with that of its TDX module or quoting enclave.

    A component matters if it is out of date or revoked. The date is the older one.
    """
    status = level.status
    if component.status == "Revoked":
        status = "Revoked"
    elif component.status == "OutOfDate" and status in _NEEDS_CONFIGURATION:
        status = "OutOfDateConfigurationNeeded"
    elif component.status == "OutOfDate" and status != "Revoked":
        status = "OutOfDate"
    return replace(
        level,
        status=status,
        date=min(level.date, component.date),
        advisory_ids=(*level.advisory_ids, *component.advisory_ids),
    )


def relaunch_status(launched: str, current: str) -> str:
    """The status of a TD whose module was updated while it ran."""
    if launched not in _OUT_OF_DATE or current in _OUT_OF_DATE:
        return launched
    if {launched, current} & _NEEDS_CONFIGURATION:
        return "TDRelaunchAdvisedConfigurationNeeded"
    return "TDRelaunchAdvised"


def first_reached(levels: Sequence[Level], svn: int) -> Level | None:
    """The first level in Intel's order whose security version is reached."""
    return next((level for level in levels if svn >= level.svn), None)


def masked_equal(value: bytes, expected: bytes, mask: bytes) -> bool:
    """Whether two values agree in the bits of a mask."""
    return all((v ^ e) & m == 0 for v, e, m in zip(value, expected, mask, strict=True))


def reached_level(
    tcb_info: TcbInfo, components: Sequence[int], pce_svn: int, tee_tcb_svn: bytes
) -> Level:
    """The highest level that these security versions reach, the TDX module's included.

    Args:
        tcb_info: what Intel says about the platform model.
        components: versions of the 16 SGX TCB components.
        pce_svn: version of the provisioning certification enclave.
        tee_tcb_svn: versions of the TDX components, 16 bytes.

    Raises:
        Refused: ``tcb.no_matching_level`` or ``tcb.module_mismatch``.
    """
    # The highest level comes first; the order in the document does not count.
    levels = sorted(
        tcb_info.levels, key=lambda each: (each.sgx, each.pce_svn, each.tdx), reverse=True
    )
    reached = next(
        (each for each in levels if _reaches(components, pce_svn, tee_tcb_svn, each)), None
    )
    if reached is None:
        raise Refused(
            "tcb.no_matching_level",
            f"no TCB level is as low as this platform: CPUSVN {bytes(components).hex()}, "
            f"PCESVN {pce_svn}, TEE TCB SVN {tee_tcb_svn.hex()}",
            hint=_HINT,
        )
    module = _module(tcb_info, tee_tcb_svn)
    if module is None:
        return reached.level
    module_level = first_reached(module.levels, tee_tcb_svn[0])
    if module_level is None:
        raise Refused(
            "tcb.no_matching_level",
            f"no level of TDX module {module.name} is as low as {tee_tcb_svn[0]}",
            hint=_HINT,
        )
    return merge(reached.level, module_level)


def _reaches(
    components: Sequence[int], pce_svn: int, tee_tcb_svn: bytes, wanted: PlatformLevel
) -> bool:
    # With a numbered TDX module its two versions are the module's own business.
    skip = 2 if tee_tcb_svn[1] else 0
    return (
        pce_svn >= wanted.pce_svn
        and all(a >= b for a, b in zip(components, wanted.sgx, strict=True))
        and all(a >= b for a, b in zip(tee_tcb_svn[skip:], wanted.tdx[skip:], strict=True))
    )


def _module(tcb_info: TcbInfo, tee_tcb_svn: bytes) -> Module | None:
    """The identity of a numbered TDX module; ``None`` for number 0, which has none."""
    number = tee_tcb_svn[1]
    if number == 0:
        return None
    name = f"TDX_{number:02X}"
    for module in tcb_info.modules:
        if module.name == name:
            return module
    raise Refused("tcb.module_mismatch", f"Intel's TCB info knows no TDX module {name}", hint=_HINT)


def _check_module(module: Module, report: TdReport) -> None:
    if report.mrsignerseam != module.mrsigner:
        raise Refused(
            "tcb.module_mismatch", f"the TDX module was signed by {report.mrsignerseam.hex()}"
        )
    outside = bytes(byte & ~mask for byte, mask in _zip(report, module))
    if any(outside) or not masked_equal(
        report.seam_attributes, module.attributes, module.attributes_mask
    ):
        raise Refused(
            "tcb.module_mismatch",
            f"the TDX module has the attributes {report.seam_attributes.hex()}, expected are "
            f"{module.attributes.hex()} under mask {module.attributes_mask.hex()}",
        )


def _zip(report: TdReport, module: Module) -> zip[tuple[int, int]]:
    return zip(report.seam_attributes, module.attributes_mask, strict=True)
