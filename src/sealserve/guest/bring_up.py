"""``sealserve guest up``: from a bare TD to a serving one, and back down.

Rules this module keeps:

* The order is fixed: attest, open, measure, *then* quote for TLS, then serve.
  A client that sees the attested certificate therefore knows what runs.
* The volume key lives from the release to the mount, in one bytearray that is
  wiped on every path.
* Whatever ends the guest (SIGTERM, a dead server, an error half-way up, the end
  of its lease) closes everything in the opposite order.
"""

from __future__ import annotations

import datetime as dt
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sealserve import logs
from sealserve.address import Address
from sealserve.attestation import ratls
from sealserve.broker.client import Released, request_release, request_renewal
from sealserve.broker.identity import BrokerIdentity
from sealserve.errors import Unavailable
from sealserve.guest import lease
from sealserve.guest.evidence import quotes_of
from sealserve.guest.lease import LeaseKeeper
from sealserve.guest.measure import guest_events, measure, require_unmeasured
from sealserve.guest.server_process import ServerProcess
from sealserve.provenance import require_library
from sealserve.stopping import StopSignals
from sealserve.tdx.detect import Choice, find
from sealserve.tdx.eventlog import encode_log
from sealserve.tdx.guest import TdxGuest, read_boot_id
from sealserve.volume.engine import verify_file
from sealserve.volume.mapper import open_volume_file
from sealserve.volume.mount import mount_sealed
from sealserve.volume.record import VolumeRecord, open_record

__all__ = ["GuestConfig", "up"]

_POLL_SECONDS = 0.5
_SIMULATION = "SIMULATION: this is not a real TD"

_Quote = Callable[[bytes], bytes]


@dataclass(frozen=True)
class GuestConfig:
    """What a guest has to be told; nothing of it is secret.

    Attributes:
        volume: the sealed file on the host's disk.
        resource: the name under which the broker holds its key.
        broker: where the broker listens.
        identity: the broker's public document: whom to believe.
        owner_public_key: who must have signed the volume's record.
        driver: ``"kernel"`` or ``"fuse"``; never chosen silently.
        full_check: verify every block of the volume before anything of it is
            used. Each block is verified again whenever it is read; this finds
            damage in what will be read later, at the price of reading it all.
        provider: the way to evidence; ``AUTO`` takes what this machine has.
        sysfs: the root of the kernel's TDX interfaces.
        allow_simulation: accept a simulated TD below ``sysfs``.
        serve_flags: passed to the model server (``--port=8500``).
        secret_version: of the resource; 0 for the current one. Another one is live
            only while the owner rotates, and its record is of another volume.
        certificate_lifetime: of the attested TLS identity; renewed at half of it.
        state_dir: where the mount point and the event log live.
    """

    volume: Path
    resource: str
    broker: Address
    identity: BrokerIdentity
    owner_public_key: Ed25519PublicKey
    driver: str
    full_check: bool = True
    provider: Choice = Choice.AUTO
    sysfs: Path = Path("/sys")
    allow_simulation: bool = False
    serve_flags: tuple[str, ...] = ()
    secret_version: int = 0
    certificate_lifetime: dt.timedelta = dt.timedelta(hours=24)
    state_dir: Path = field(default=Path("/run/sealserve"))


def up(config: GuestConfig, *, on_ready: Callable[[dict[str, int]], None]) -> None:
    """Bring the guest up, serve until SIGTERM or SIGINT, and take it down again.

    Args:
        config: what to open, and whom to ask for its key.
        on_ready: called once with the server's ports.

    Raises:
        Refused: by the broker (its code), the volume's checks,
            ``guest.already_measured`` or ``guest.evidence_unsupported``; later
            ``guest.lease_revoked`` or ``guest.lease_ended``.
        Unavailable: a device, peer or program is missing, ``provenance.extra_missing``
            where the volume's record demands signatures, or ``guest.server_died``.
    """
    found = find(config.provider, config.sysfs, allow_simulation=config.allow_simulation)
    td = TdxGuest(config.sysfs, config.allow_simulation, provider=quotes_of(found.provider))
    note = {"note": _SIMULATION} if td.simulated else {}
    log = logs.configure(program="sealserve guest", **note)
    log.info("evidence", provider=found.provider.name, reason=found.reason)
    require_unmeasured(td)
    quote_of = _in_turn(td.quote)
    with StopSignals() as stopping, ExitStack() as down:
        mountpoint = _mountpoint(config.state_dir, down)
        asked = lease.now()
        released, record = _open_volume(config, quote_of, mountpoint, down, log)

        events = guest_events(config.identity.spki_sha256, released.record, record)
        measure(td, events)
        (config.state_dir / "runtime-log.json").write_bytes(encode_log(events))
        log.info("measured", events=[event.name for event in events])

        keeper = down.enter_context(_lease(released, asked, config, quote_of, log))

        def new_identity() -> ratls.TlsIdentity:
            return ratls.make_identity(
                quote_of, events, lifetime=config.certificate_lifetime, simulated=td.simulated
            )

        loud = (f"--log_note={_SIMULATION}",) if td.simulated else ()
        flags = (*config.serve_flags, *loud)
        signers = record.provenance.trust.pem if record.provenance else None
        server = down.enter_context(
            ServerProcess(mountpoint, new_identity(), flags, signers=signers)
        )
        log.info("serving", **server.ports)
        on_ready(server.ports)
        _supervise(server, keeper, stopping, new_identity, config, log)
        log.info("stopping")


def _open_volume(
    config: GuestConfig,
    quote_of: _Quote,
    mountpoint: Path,
    down: ExitStack,
    log: logs.Log,
) -> tuple[Released, VolumeRecord]:
    """Get the key from the broker and mount the volume by its record alone."""
    released = request_release(
        str(config.broker),
        config.identity,
        config.resource,
        quote_of,
        read_boot_id(),
        secret_version=config.secret_version,
    )
    try:
        log.info("released", resource=config.resource, secret_version=released.secret_version)
        record = open_record(released.record, config.owner_public_key)
        if record.provenance is not None:
            require_library()  # the server needs it: better now than when all is open
        if config.full_check:
            with open_volume_file(config.volume) as file:
                verify_file(file, record)
        down.enter_context(
            mount_sealed(config.volume, record, released.secret, mountpoint, driver=config.driver)
        )
    finally:
        released.wipe()
    log.info("opened", volume=record.name, version=record.version, driver=config.driver)
    return released, record


def _in_turn(quote_of: _Quote) -> _Quote:
    """One quote at a time: the lease and the TLS identity are renewed by different threads."""
    turn = threading.Lock()

    def quote(report_data: bytes) -> bytes:
        with turn:
            return quote_of(report_data)

    return quote


def _lease(
    released: Released, asked: float, config: GuestConfig, quote_of: _Quote, log: logs.Log
) -> LeaseKeeper:
    def renew() -> int:
        return request_renewal(
            str(config.broker),
            config.identity,
            released.lease_id,
            config.resource,
            quote_of,
            read_boot_id(),
        )

    return LeaseKeeper(released.lease_seconds, asked, renew, log)


def _supervise(
    server: ServerProcess,
    keeper: LeaseKeeper,
    stopping: StopSignals,
    new_identity: Callable[[], ratls.TlsIdentity],
    config: GuestConfig,
    log: logs.Log,
) -> None:
    """Watch server and lease, and renew the identity, until it is time to stop."""
    renew_every = config.certificate_lifetime / 2
    renew_at = dt.datetime.now(dt.UTC) + renew_every
    while not stopping.wait(_POLL_SECONDS):
        keeper.require()
        status = server.exit_status()
        if status is not None:
            raise Unavailable(
                "guest.server_died",
                f"the model server ended with status {status}",
                hint="its own log says why; the volume is closed",
            )
        if dt.datetime.now(dt.UTC) >= renew_at:
            server.renew(new_identity())
            renew_at += renew_every
            log.info("renewed", certificate="attested TLS identity")


def _mountpoint(state_dir: Path, down: ExitStack) -> Path:
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        holder = down.enter_context(tempfile.TemporaryDirectory(dir=state_dir, prefix="volume-"))
    except OSError as error:
        raise Unavailable(
            "guest.state_dir_unusable",
            f"cannot use the state directory: {error.strerror}",
            where=str(state_dir),
            hint="give a directory on a tmpfs with --state-dir",
        ) from None
    return Path(holder)
