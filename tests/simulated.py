"""Simulated evidence for tests, made once: a platform, its collateral, a policy that fits."""

from __future__ import annotations

import functools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sealserve.attestation import policy_file
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.policy import Policy
from sealserve.attestation.verifier import Anchor, VerifiedTd, Verifier
from sealserve.simulator.platform import CollateralOptions, SimulatedPlatform
from sealserve.simulator.td import report_of
from sealserve.tdx.eventlog import RuntimeEvent, replay
from sealserve.tdx.quote import TdReport

__all__ = [
    "EVENTS",
    "NOW",
    "collateral",
    "fitting_policy",
    "platform",
    "report",
    "verified",
    "verifier",
]

NOW = datetime.now(UTC).replace(microsecond=0)
ISSUED = NOW - timedelta(hours=1)
EVENTS = (
    RuntimeEvent("broker", bytes(32)),
    RuntimeEvent("model", b"lite0\x001\x00" + bytes(48)),
    RuntimeEvent("sealed"),
)


@functools.cache
def platform() -> SimulatedPlatform:
    return SimulatedPlatform.new(NOW)


@functools.cache
def verifier() -> Verifier:
    return Verifier(Anchor.simulation(platform().pki.root_der))


def collateral(options: CollateralOptions | None = None) -> Collateral:
    return Collateral.from_json(platform().collateral(ISSUED, options))


def report(**changes: bytes) -> TdReport:
    """A TD that has had :data:`EVENTS`."""
    return replace(report_of(), **{"rtmr3": replay(EVENTS), **changes})


def verified(**changes: object) -> VerifiedTd:
    """Verified facts of a good TD, with changes for appraisal to judge."""
    return replace(_good(), **changes)  # type: ignore[arg-type]


@functools.cache
def _good() -> VerifiedTd:
    return verifier().verify(platform().quote(report()), collateral(), NOW)


def fitting_policy(**changes: object) -> Policy:
    """The policy that :func:`verified` keeps."""
    policy = policy_file.from_report(
        report(), label="good", events=("sealed",), server_platform=True, simulation=True
    )
    return replace(policy, **changes)  # type: ignore[arg-type]
