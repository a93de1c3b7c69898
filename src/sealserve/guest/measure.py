"""What a guest tells the world about itself, in RTMR3.

The events and their order are listed in ``docs/architecture.md``. They are
extended only once the volume is open, so that a guest that was refused may try
again in the same TD; after ``sealed`` nothing may follow in this boot.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sealserve.attestation.policy import Policy, RequiredEvent
from sealserve.broker.guest_events import guest_events
from sealserve.broker.identity import BrokerIdentity
from sealserve.errors import Refused
from sealserve.files import read_limited
from sealserve.tdx.eventlog import RuntimeEvent, replay
from sealserve.tdx.guest import TdxGuest
from sealserve.volume.owner import load_owner_public
from sealserve.volume.record import open_record
from sealserve.wire.limits import MAX_RECORD_BYTES

__all__ = ["client_policy", "events_ahead", "guest_events", "measure", "require_unmeasured"]

_RTMR3 = 3


def events_ahead(
    broker_identity: Path, record: Path, owner_public: Path
) -> tuple[RuntimeEvent, ...]:
    """The events that a guest will have, told before there is one: no TDX is needed.

    Args:
        broker_identity: the broker's public document.
        record: the volume's signed record.
        owner_public: the key of who signed it.

    Raises:
        InputError, Refused, Unavailable: as the three files' readers.
    """
    signed = read_limited(record, MAX_RECORD_BYTES)
    opened = open_record(signed, load_owner_public(owner_public))
    return guest_events(BrokerIdentity.load(broker_identity).spki_sha256, signed, opened)


def client_policy(release_policy: Policy, events: tuple[RuntimeEvent, ...]) -> Policy:
    """What a client may demand: the same guest image, and exactly these events in RTMR3.

    The events by themselves would let others stand between them, and RTMR3 by
    itself would not be explained; so both are demanded. What the release policy
    says about RTMR3 is about a guest that has measured nothing yet.
    """
    rtmr3 = replay(events).hex()
    required = tuple(
        RequiredEvent(name=event.name, payload=event.payload.hex()) for event in events
    )
    releases = tuple(replace(release, rtmr3=rtmr3) for release in release_policy.releases)
    return replace(release_policy, releases=releases, required_events=required)


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
