"""What a guest that opened a volume must have measured: the runtime events of RTMR3.

The guest extends them, a client's policy names them, and the broker holds a guest
that renews its lease to them. The table stands in ``docs/architecture.md``.
"""

from __future__ import annotations

from sealserve.tdx.eventlog import RuntimeEvent
from sealserve.volume.record import VolumeRecord, record_digest

__all__ = ["guest_events"]


def guest_events(
    broker_spki_sha256: bytes, signed_record: bytes, record: VolumeRecord
) -> tuple[RuntimeEvent, ...]:
    """The events of a guest that opened ``record``'s volume with that broker's key."""
    models = (
        RuntimeEvent("model", f"{m.name}\0{m.version}\0".encode() + bytes.fromhex(m.digest))
        for m in record.models
    )
    return (
        RuntimeEvent("broker", broker_spki_sha256),
        RuntimeEvent("volume", record_digest(signed_record)),
        *models,
        RuntimeEvent("sealed", b""),
    )
