"""People who administer a broker in tests, and a broker they can act on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sealserve.attestation import policy_file
from sealserve.attestation.policy import Policy, Release
from sealserve.broker.administration import Administration
from sealserve.broker.config import AdminConfig, TwoPerson
from sealserve.broker.deposit import seal_for
from sealserve.broker.directory import Broker
from sealserve.broker.principals import AdminIdentity, Caller, make_identity
from sealserve.wire.broker.admin import v1_pb2

SECRET = b"PLANTED-SECRET" + bytes(50)
NAME = "models/demo"
ALICE, BOB = Caller("alice", "admin"), Caller("bob", "admin")
EVE = Caller("eve", "auditor")
ROOT = Caller("local:root", "admin")


def policy(*labels: str, simulation: str = "denied") -> bytes:
    """A policy that accepts one release a label."""
    releases = tuple(
        Release(
            label=label,
            **dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2"), f"{number:02x}" * 48),
        )
        for number, label in enumerate(labels)
    )
    return policy_file.dump(Policy(releases=releases, simulation=simulation)).encode()  # type: ignore[arg-type]


def put_request(broker: Broker, name: str = NAME, **changes: Any) -> v1_pb2.SecretPutRequest:
    given: dict[str, Any] = {
        "resource": name,
        "sealed_key": seal_for(broker.identity, SECRET),
        "policy": policy("r0"),
        "lease_seconds": 600,
    }
    return v1_pb2.SecretPutRequest(**{**given, **changes})


def with_two_person(broker: Broker, *kinds: TwoPerson, hours: int = 72) -> Broker:
    """The same broker, under another configuration."""
    admin = AdminConfig(two_person=kinds, proposal_hours=hours)
    return replace(broker, config=broker.config.model_copy(update={"admin": admin}))


@dataclass(frozen=True)
class Person:
    """A principal with the file of his key."""

    name: str
    identity: AdminIdentity
    file: Path
    certificate: Path

    @classmethod
    def make(cls, name: str, directory: Path) -> Person:
        made = make_identity(name, days=1)
        file, certificate = directory / f"{name}.pem", directory / f"{name}.crt"
        file.write_bytes(made.key_pem + made.certificate_pem)
        file.chmod(0o600)
        certificate.write_bytes(made.certificate_pem)
        return cls(name, AdminIdentity.load(file), file, certificate)

    def add_to(self, broker: Broker, role: str) -> None:
        """Register, as the operator does on the broker's machine."""
        request = v1_pb2.PrincipalAddRequest(
            name=self.name, role=role, certificate=self.identity.certificate_pem.decode()
        )
        Administration(broker).perform(ROOT, request)
