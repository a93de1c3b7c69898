"""What an operator wants to see of a broker at a glance."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sealserve.attestation import policy_file
from sealserve.broker.directory import Broker, open_broker
from sealserve.broker.operation.chain_watch import ChainView, ChainWatch
from sealserve.broker.operation.snapshot import take
from sealserve.broker.status_text import text_of
from sealserve.broker.store import Resource

__all__ = ["BrokerStatus", "status_of", "status_of_broker"]


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """One look at a broker's directory.

    Attributes:
        name: the broker's name.
        spki_sha256: fingerprint of its TLS key, hex.
        certificate_ends: when guests can no longer connect.
        resources: what guests may ask for.
        live_secrets: versions of secrets that can be released.
        retired_secrets: versions that were replaced.
        audit_lines: length of the audit chain.
        chain: what was checked of it, and what is wrong with it.
        leases: how many guests may keep a secret now, by resource.
        denials_last_hour: requests that got nothing in the last 60 minutes, malformed ones too.
    """

    name: str
    spki_sha256: str
    certificate_ends: datetime
    resources: tuple[Resource, ...]
    live_secrets: int
    retired_secrets: int
    audit_lines: int
    chain: ChainView
    leases: dict[str, int]
    denials_last_hour: int

    def to_dict(self) -> dict[str, Any]:
        """The status as a JSON object."""
        return {
            "name": self.name,
            "spki_sha256": self.spki_sha256,
            "certificate_ends": self.certificate_ends.isoformat(),
            "resources": [
                {
                    "name": resource.name,
                    "secret_version": resource.secret_version,
                    "policy_sha256": resource.policy_sha256,
                    "lease_seconds": resource.lease_seconds,
                    "simulation": _simulation(resource),
                }
                for resource in self.resources
            ],
            "secrets": {"live": self.live_secrets, "retired": self.retired_secrets},
            "audit": {"lines": self.audit_lines, **self.chain.to_dict()},
            "leases": {"active": sum(self.leases.values()), "by_resource": self.leases},
            "denials_last_hour": self.denials_last_hour,
        }

    def to_text(self) -> str:
        """The status for people."""
        return text_of(self.to_dict())


def _simulation(resource: Resource) -> str:
    return policy_file.parse(resource.policy).simulation


def status_of(root: Path) -> BrokerStatus:
    """Look at a broker's directory, whether a broker process runs on it or not.

    Raises:
        Unavailable, Refused, InputError: as `directory.open_broker`.
    """
    with open_broker(root) as broker:
        return status_of_broker(broker, ChainWatch(broker.audit).look(datetime.now(UTC)))


def status_of_broker(broker: Broker, chain: ChainView) -> BrokerStatus:
    """Look at a broker that is open.

    Args:
        broker: which one.
        chain: a look at its audit chain, just taken.
    """
    states = [secret.state for secret in broker.store.secrets()]
    snapshot = take(broker.store, chain.time)
    return BrokerStatus(
        name=broker.identity.name,
        spki_sha256=broker.identity.spki_sha256.hex(),
        certificate_ends=broker.identity.x509.not_valid_after_utc,
        resources=tuple(broker.store.resources()),
        live_secrets=states.count("live"),
        retired_secrets=states.count("retired"),
        audit_lines=snapshot.audit.lines,
        chain=chain,
        leases={each.name: each.leases for each in snapshot.resources},
        denials_last_hour=chain.seen.denials_since(chain.time - timedelta(hours=1)),
    )
