"""The broker as a process: from its options to a listening server, until SIGTERM.

Rules this module keeps: one anchor, chosen here and nowhere else; under a
simulation anchor every log line says SIMULATION; on SIGTERM or SIGINT calls in
flight finish, the audit chain gets its checkpoint, and the database is closed last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sealserve.address import Address
from sealserve.attestation.verifier import Anchor, Verifier
from sealserve.broker.challenges import ChallengeTable
from sealserve.broker.checkpointer import Checkpointer
from sealserve.broker.collateral_source import open_collateral
from sealserve.broker.directory import Broker, open_broker
from sealserve.broker.judge import Judge
from sealserve.broker.operation.chain_watch import ChainWatch
from sealserve.broker.operation.serving import operation
from sealserve.broker.release import KeyRelease
from sealserve.broker.renewal import LeaseRenewal
from sealserve.broker.service import BrokerServer
from sealserve.broker.shared_challenges import SharedChallenges
from sealserve.errors import Unavailable
from sealserve.logs import Log, make_log
from sealserve.stopping import StopSignals

__all__ = ["ServeOptions", "serve"]

_STDERR = 2


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What a broker process has to be told.

    Attributes:
        root: the broker's directory.
        listen: where guests reach it; port 0 takes any free port.
        collateral: a collateral file, or a directory of them; re-read when they change.
        simulation_anchor: root of a SIMULATED platform (DER), instead of Intel's.
        require_both: release only what both verifiers accept and agree on.
        ready_fd: gets one JSON line with the addresses once the broker answers.
    """

    root: Path
    listen: Address
    collateral: Path
    simulation_anchor: Path | None = None
    require_both: bool = False
    ready_fd: int | None = None


def serve(options: ServeOptions) -> None:
    """Run a broker until SIGTERM or SIGINT.

    Raises:
        Unavailable: ``file.unreadable``, ``broker.*``, ``collateral.*``, ``store.*``, ``page.*``.
        Refused: ``kek.*``, ``page.socket_in_use``, ``chain.anchor_not_simulation``, ``store.*``.
        InputError: ``chain.anchor_malformed``, ``collateral.*``, ``identity.malformed``.
    """
    anchor = Anchor.load(options.simulation_anchor)
    log = make_log(program="sealserve broker", anchor=anchor.name)
    with (
        StopSignals() as stopping,
        open_broker(options.root) as broker,
        Checkpointer(broker.audit, broker.audit_signer(), broker.config.audit, log),
    ):
        collateral = open_collateral(options.collateral, log)
        challenges = _challenges_of(broker)
        chain = ChainWatch(broker.audit)
        beside = operation(
            broker,
            chain,
            collateral.in_force,
            log,
            simulated=anchor.simulated,
            nonces=lambda: len(challenges),
        )
        with beside as running, _administration(broker, chain, log) as admin:
            judge = Judge(
                broker,
                Verifier(anchor, require_both=options.require_both),
                collateral,
                challenges,
                log,
                observer=running.observer,
            )
            server = BrokerServer(KeyRelease(judge), LeaseRenewal(judge), options.listen, log)
            server.start()
            try:
                where = {"address": str(server.address), **admin, **running.to_dict()}
                log.info("listening", broker=broker.identity.name, **where)
                if options.ready_fd is not None:
                    _tell_ready(options.ready_fd, where)
                stopping.wait()
                log.info("stopping")
            finally:
                server.stop()
    log.info("stopped")


@contextmanager
def _administration(broker: Broker, chain: ChainWatch, log: Log) -> Iterator[dict[str, str]]:
    """The administration port, if ``broker.yaml`` names one; where it is."""
    listen = broker.config.admin.listen
    if not listen:
        yield {}
        return
    from sealserve.broker.admin_service import AdminServer

    server = AdminServer(broker, Address.parse(listen, where="admin.listen"), log, chain)
    server.start()
    try:
        yield {"admin": str(server.address)}
    finally:
        server.stop()


def _challenges_of(broker: Broker) -> ChallengeTable | SharedChallenges:
    capacity = broker.config.limits.challenges
    if broker.store.shared:
        return SharedChallenges(broker.store, capacity=capacity)
    return ChallengeTable(capacity=capacity)


def _tell_ready(descriptor: int, where: dict[str, str]) -> None:
    line = json.dumps(where) + "\n"
    try:
        os.write(descriptor, line.encode())
        if descriptor > _STDERR:
            os.close(descriptor)  # else a later socket or file would become stdout
    except OSError as error:
        raise Unavailable(
            "broker.ready_fd_closed",
            f"nobody reads on the descriptor of --ready-fd: {error.strerror}",
            where=f"descriptor {descriptor}",
        ) from None
