"""What a guest tells the world about itself, in RTMR3.

The events and their order are listed in ``docs/architecture.md``. They are
extended only once the volume is open, so that a guest that was refused may try
again in the same TD; after ``sealed`` nothing may follow in this boot.
"""

from __future__ import annotations

from dataclasses import replace

from sealserve.attestation.policy import Policy, RequiredEvent
from sealserve.errors import Refused
from sealserve.tdx.eventlog import RuntimeEvent
from sealserve.tdx.guest import TdxGuest
from sealserve.volume.record import VolumeRecord, record_digest

__all__ = ["client_policy", "guest_events", "measure", "require_unmeasured"]

_RTMR3 = 3


def guest_events(
    broker_spki_sha256: bytes, signed_record: bytes, record: VolumeRecord
) -> tuple[RuntimeEvent, ...]:
    """The events of a guest that opened ``record``'s volume with that broker's key."""
    models = (
        RuntimeEvent("model", f"{m.name}\0{m.version}\0{m.digest}".encode()) for m in record.models
    )
    return (
        RuntimeEvent("broker", broker_spki_sha256),
        RuntimeEvent("volume", record_digest(signed_record)),
        *models,
        RuntimeEvent("sealed", b""),
    )


def client_policy(release_policy: Policy, events: tuple[RuntimeEvent, ...]) -> Policy:
    """What a client may demand: the same guest image, and exactly these events in RTMR3."""
    required = tuple(
        RequiredEvent(name=event.name, payload=event.payload.hex()) for event in events
    )
    return replace(release_policy, required_events=required)


def require_unmeasured(td: TdxGuest) -> None:
    """Refuse to start over in a TD whose RTMR3 already tells another story.

    Raises:
        Refused: ``guest.already_measured``.
    """
    value = td.read_rtmr(_RTMR3)
    if any(value):
        raise Refused(
            "guest.already_measured",
            f"RTMR3 is already extended ({value.hex()[:16]}...)",
            hint="RTMRs cannot be undone: reboot the TD, then start the guest again",
        )


def measure(td: TdxGuest, events: tuple[RuntimeEvent, ...]) -> None:
    """Extend RTMR3 by each event, in order."""
    for event in events:
        td.extend_rtmr3(event.digest)
