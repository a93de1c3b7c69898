"""What fuzzing begins with: a simulated platform and its papers, the same in every process."""

from __future__ import annotations

import functools
import json
import os
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealserve.attestation import policy_file, ratls
from sealserve.attestation.anchor import Anchor
from sealserve.attestation.collateral import Collateral
from sealserve.attestation.policy import Policy
from sealserve.attestation.reference import ReferenceVerifier
from sealserve.attestation.verifier import Verifier
from sealserve.simulator.pki import TestPki
from sealserve.simulator.platform import SimulatedPlatform
from sealserve.simulator.td import SoftwareTd, report_of
from sealserve.tdx.eventlog import RuntimeEvent

__all__ = ["WORLD_VARIABLE", "World", "patched", "world"]

WORLD_VARIABLE = "FUZZ_WORLD"

_EVENTS = (RuntimeEvent("broker", bytes(32)), RuntimeEvent("sealed"))


@dataclass(frozen=True)
class World:
    """Good evidence, and who judges it.

    Attributes:
        platform: who makes it.
        now: when it was made.
        quotes: one of each form.
        certificate: an attested TLS certificate in DER.
        collateral: of the platform.
        policy: what the certificate's guest keeps.
        primary, second: the two verifiers.
    """

    platform: SimulatedPlatform
    now: datetime
    quotes: tuple[bytes, ...]
    certificate: bytes
    collateral: Collateral
    policy: Policy
    primary: Verifier
    second: ReferenceVerifier

    @property
    def anchor(self) -> Anchor:
        """The platform's root."""
        return self.primary.anchor


@functools.cache
def world() -> World:
    """The one in the file that ``FUZZ_WORLD`` names, where a run and its repetition meet."""
    document = json.loads(_world_file() or _new_world())
    platform = SimulatedPlatform(TestPki.from_json(document["pki"].encode()))
    anchor = Anchor.simulation(platform.pki.root_der)
    return World(
        platform=platform,
        now=datetime.fromisoformat(document["now"]),
        quotes=tuple(bytes.fromhex(quote) for quote in document["quotes"]),
        certificate=bytes.fromhex(document["certificate"]),
        collateral=Collateral.from_json(document["collateral"].encode()),
        policy=policy_file.from_report(
            report_of(), label="x", events=("sealed",), server_platform=True, simulation=True
        ),
        primary=Verifier(anchor),
        second=ReferenceVerifier(anchor),
    )


def _world_file() -> str | None:
    path = os.environ.get(WORLD_VARIABLE)
    if path is None:
        return None
    file = Path(path)
    if not file.exists() or "certificate" not in json.loads(file.read_text()):  # of an older run
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_new_world())
    return file.read_text()


def _new_world() -> str:
    now = datetime.now(UTC).replace(microsecond=0)
    platform = SimulatedPlatform.new(now)
    td = SoftwareTd(platform)
    for event in _EVENTS:
        td.extend(3, event.digest)
    pem = ratls.make_identity(td.quote, _EVENTS, simulated=True).certificate_pem
    certificate = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    quotes = [platform.quote(report_of(), body_type=kind).hex() for kind in (None, 2, 3, 4)]
    return json.dumps(
        {
            "pki": platform.pki.to_json().decode(),
            "now": now.isoformat(),
            "quotes": quotes,
            "certificate": certificate.hex(),
            "collateral": platform.collateral(now - timedelta(hours=1)).decode(),
        }
    )


def patched(original: bytes, patches: bytes) -> bytes:
    """The original with bytes replaced: each patch is a place (u16) and a value.

    So an input of three bytes reaches behind every check of length and framing.
    """
    changed = bytearray(original)
    for at in range(0, len(patches) - 2, 3):
        place, value = struct.unpack_from("<HB", patches, at)
        changed[place % len(changed)] = value
    return bytes(changed)
