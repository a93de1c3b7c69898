"""What a policy can demand of an attested guest.

Rules this module keeps:

* Deny by default: a policy without releases accepts nothing, a platform flag is
  refused until it is opted into, simulation is refused until it is allowed.
* ``None`` (field absent) means "no rule about this"; an *empty* list means
  "nothing is accepted". The two are never mixed up.
* Each field stands once: :mod:`sealserve.attestation.policy_file` reads YAML
  straight into these classes. They are standard-library dataclasses because a
  client uses them without pydantic and YAML installed.
* Values are checked when a policy is made, not when it is used.

Register values are lower-case hexadecimal, in the byte order of the TD report.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

from sealserve.errors import InputError

__all__ = [
    "TCB_STATUSES",
    "AcceptedStatus",
    "HexBytes",
    "MaskedValue",
    "PlatformFlags",
    "Policy",
    "Release",
    "RequiredEvent",
    "TcbStatus",
]

TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
]
"""Intel's TCB statuses that a policy may accept; ``Revoked`` is never accepted.

``TDRelaunchAdvised``: the TDX module was updated under a running TD, which was
launched when the module was out of date.
"""

TCB_STATUSES: tuple[TcbStatus, ...] = get_args(TcbStatus)

# Unknown keys and look-alike types ("yes" for a bool, 1.0 for an int) are
# errors when pydantic fills these classes; without pydantic this is inert.
_STRICT = {"extra": "forbid", "strict": True}

_MAX_ENTRIES = 1024


@dataclass(frozen=True, slots=True)
class HexBytes:
    """Says of a string that it is ``size`` bytes in lower-case hexadecimal."""

    size: int

    @property
    def pattern(self) -> str:
        """The regular expression that the whole string matches."""
        return f"[0-9a-f]{{{2 * self.size}}}"

    def __get_pydantic_json_schema__(
        self, core_schema: Any, handler: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        # pydantic asks this of annotations; without pydantic nobody does.
        return {**handler(core_schema), "pattern": f"^{self.pattern}$"}

    def check(self, field: str, value: str) -> bytes:
        """The bytes; ``policy.malformed`` naming the field if it is anything else."""
        if not re.fullmatch(self.pattern, value):
            digits = f"{self.size} bytes as {2 * self.size} lower-case hexadecimal digits"
            raise _malformed(field, value, digits)
        return bytes.fromhex(value)


_REGISTER_HEX = HexBytes(48)
_WORD_HEX = HexBytes(8)
_PIID_HEX = HexBytes(16)
_Register = Annotated[str, _REGISTER_HEX]
_Word = Annotated[str, _WORD_HEX]
_Piid = Annotated[str, _PIID_HEX]

_UNTOUCHED = "00" * 48
"""A run-time register that nothing was measured into since boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One labelled release of the guest image: registers that belong together.

    Attributes:
        label: the release's name in reports, for example ``"2026.11"``.
        mrtd: initial memory of the TD (firmware).
        rtmr0: firmware configuration.
        rtmr1: boot loader and kernel.
        rtmr2: kernel command line, initrd, operating system.
        rtmr3: runtime events; absent when the event log is appraised instead.
    """

    __pydantic_config__ = _STRICT

    label: str
    mrtd: _Register
    rtmr0: _Register
    rtmr1: _Register
    rtmr2: _Register
    rtmr3: _Register | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.label) <= 128 or not self.label.isprintable():
            raise _malformed("releases.label", self.label, "1 to 128 printable characters")
        for register in ("mrtd", "rtmr0", "rtmr1", "rtmr2"):
            _REGISTER_HEX.check(f"releases.{register}", getattr(self, register))
        if self.rtmr3 is not None:
            _REGISTER_HEX.check("releases.rtmr3", self.rtmr3)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedValue:
    """A rule about an 8-byte word: ``word & mask == value``."""

    __pydantic_config__ = _STRICT

    mask: _Word
    value: _Word

    def __post_init__(self) -> None:
        mask = _WORD_HEX.check("mask", self.mask)
        value = _WORD_HEX.check("value", self.value)
        if any(v & ~m for m, v in zip(mask, value, strict=True)):
            raise _malformed("value", self.value, f"no bit outside the mask {self.mask}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFlags:
    """Platform properties that are refused unless they are set here.

    Server platforms usually have all three. Source: Intel PCK certificate
    profile, section 1.3.5 (configuration).

    Attributes:
        dynamic_platform: CPUs may be added later.
        cached_keys: platform keys are cached by Intel's registration service.
        smt: simultaneous multithreading (hyper-threading) is on.
    """

    __pydantic_config__ = _STRICT

    dynamic_platform: bool = False
    cached_keys: bool = False
    smt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedStatus:
    """A TCB status that is accepted.

    Attributes:
        status: Intel's name of the status.
        grace_days: accepted only this many days beyond the date of the TCB
            level the platform has reached; absent means without limit.
    """

    __pydantic_config__ = _STRICT

    status: TcbStatus
    grace_days: int | None = None

    def __post_init__(self) -> None:
        if self.status not in TCB_STATUSES:
            raise _malformed("tcb_statuses.status", self.status, ", ".join(TCB_STATUSES))
        if self.grace_days is not None and not 0 <= self.grace_days <= 3650:
            raise _malformed("tcb_statuses.grace_days", self.grace_days, "0 to 3650")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequiredEvent:
    """A runtime event that RTMR3 must contain.

    Attributes:
        name: the event's name.
        payload: its payload in hexadecimal. When given, no event of this name
            may have a payload that the policy does not list.
    """

    __pydantic_config__ = _STRICT

    name: str
    payload: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_.-]{0,63}", self.name):
            raise _malformed("required_events.name", self.name, "an event name")
        if self.payload is not None and not re.fullmatch(r"([0-9a-f]{2})*", self.payload):
            raise _malformed("required_events.payload", self.payload, "lower-case hexadecimal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who may have a secret, or whom a client trusts. Every rule must hold.

    Attributes:
        releases: accepted releases of the guest image; empty accepts nothing.
        mrseam: accepted TDX modules by measurement; absent leaves it to the
            TDX module identities in Intel's TCB info.
        td_attributes: rule about the TD attributes. Debug, migratable and
            profiled TDs are refused always, whatever stands here.
        xfam: rule about the extended features.
        mrconfigid: accepted launch configurations.
        mrowner: accepted owners.
        mrownerconfig: accepted owner configurations.
        platform_ids: accepted platforms by platform instance id (PIID): the
            answer to hardware that is genuine but not in your hands.
        platform_flags: platform properties opted into.
        tcb_statuses: accepted TCB statuses.
        rejected_advisories: Intel security advisories that must not apply.
        min_tcb_evaluation: least TCB evaluation data number of the collateral,
            against replay of older collateral.
        required_events: runtime events that must be in RTMR3. With any here,
            evidence without an event log is refused.
        simulation: ``"allowed"`` accepts SIMULATED guests. For tests and demos.
    """

    __pydantic_config__ = _STRICT

    releases: tuple[Release, ...] = ()
    mrseam: tuple[_Register, ...] | None = None
    td_attributes: MaskedValue | None = None
    xfam: MaskedValue | None = None
    mrconfigid: tuple[_Register, ...] | None = None
    mrowner: tuple[_Register, ...] | None = None
    mrownerconfig: tuple[_Register, ...] | None = None
    platform_ids: tuple[_Piid, ...] | None = None
    platform_flags: PlatformFlags = PlatformFlags()
    tcb_statuses: tuple[AcceptedStatus, ...] = (AcceptedStatus(status="UpToDate"),)
    rejected_advisories: tuple[str, ...] = ()
    min_tcb_evaluation: int = 0
    required_events: tuple[RequiredEvent, ...] = ()
    simulation: Literal["denied", "allowed"] = "denied"

    def __post_init__(self) -> None:
        for name in ("mrseam", "mrconfigid", "mrowner", "mrownerconfig"):
            for value in getattr(self, name) or ():
                _REGISTER_HEX.check(name, value)
        for value in self.platform_ids or ():
            _PIID_HEX.check("platform_ids", value)
        for value in self.rejected_advisories:
            if not re.fullmatch(r"INTEL-SA-[0-9]{5}", value):
                raise _malformed("rejected_advisories", value, "the form INTEL-SA-00000")
        if self.min_tcb_evaluation < 0:
            raise _malformed("min_tcb_evaluation", self.min_tcb_evaluation, "0 or more")
        if self.simulation not in ("denied", "allowed"):
            raise _malformed("simulation", self.simulation, "denied or allowed")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(value) > _MAX_ENTRIES:
                raise _malformed(field.name, len(value), f"at most {_MAX_ENTRIES} entries")
        for name in ("releases", "tcb_statuses"):
            keys = [getattr(e, "label", None) or e.status for e in getattr(self, name)]
            if len(set(keys)) != len(keys):
                raise _malformed(name, keys, "no name twice")

    def at_release(self) -> Policy:
        """The policy as it holds when a key is released: no RTMR3 means an untouched one.

        A guest asks before it measures. One that has measured already serves
        something, and if that took it over, it must not collect more keys.
        """
        releases = (
            release if release.rtmr3 is not None else replace(release, rtmr3=_UNTOUCHED)
            for release in self.releases
        )
        return replace(self, releases=tuple(releases))

    def at_renewal(self, rtmr3: bytes) -> Policy:
        """The policy as it holds when a lease is renewed: RTMR3 is exactly this value.

        Args:
            rtmr3: what the guest that got the key must have measured since, 48 bytes.
        """
        releases = (replace(release, rtmr3=rtmr3.hex()) for release in self.releases)
        return replace(self, releases=tuple(releases))


def _malformed(field: str, value: Any, expected: str) -> InputError:
    return InputError(
        "policy.malformed",
        f"{str(value)[:120]!r} is not allowed here",
        where=field,
        hint=f"expected {expected}",
    )
