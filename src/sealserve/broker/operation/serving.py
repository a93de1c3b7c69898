"""Everything of this package that runs beside a serving broker, from its configuration.

Rules this module keeps: what is not configured does not run, and nothing of it
is imported; what is configured and cannot run keeps the broker from starting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sealserve.address import Address
from sealserve.attestation.collateral import Collateral
from sealserve.broker.config import TelemetryConfig
from sealserve.broker.directory import Broker
from sealserve.broker.observer import NOBODY, Observer
from sealserve.broker.operation.chain_watch import ChainWatch
from sealserve.logs import Log

__all__ = ["Operation", "operation"]


@dataclass(frozen=True, slots=True)
class Operation:
    """What runs.

    Attributes:
        observer: to be told of the broker's decisions.
        page_socket: where the page listens on this machine.
        page_address: where it listens for principals.
    """

    observer: Observer
    page_socket: Path | None
    page_address: Address | None

    def to_dict(self) -> dict[str, str]:
        """Where the page is, for the log and the ready line."""
        found = {"page_socket": self.page_socket, "page": self.page_address}
        return {name: str(place) for name, place in found.items() if place is not None}


@contextmanager
def operation(
    broker: Broker,
    chain: ChainWatch,
    collateral: Callable[[], tuple[Collateral, ...]],
    log: Log,
    *,
    simulated: bool,
    nonces: Callable[[], int],
) -> Iterator[Operation]:
    """Run what ``broker.yaml`` asks for, until the block ends.

    Args:
        broker: open.
        chain: follows its audit chain.
        collateral: what it decides by, now.
        log: the broker's own log.
        simulated: whether its anchor is a SIMULATION.
        nonces: how many challenges are open.

    Raises:
        Unavailable: ``page.listen_failed``.
        Refused: ``page.socket_in_use``.
    """
    admin = broker.config.admin
    observers: list[Observer] = []
    socket = broker.root / admin.page_socket if admin.page_socket else None
    address = None
    with ExitStack() as stack:
        if admin.page_socket or admin.page_listen:
            from sealserve.broker.operation.access import PrincipalAccess
            from sealserve.broker.operation.metrics import BrokerMetrics
            from sealserve.broker.operation.page import Pages, anyone
            from sealserve.broker.operation.page_server import (
                PageServer,
                bind_address,
                bind_socket,
            )
            from sealserve.broker.operation.watch import Watch

            watch = Watch(broker, chain, collateral, simulated=simulated)
            metrics = BrokerMetrics(watch.look, nonces)
            observers.append(metrics)
            pages = Pages(watch, metrics, broker.identity, log)
            if socket is not None:
                server = PageServer(pages.app(anyone), bind_socket(socket))
                stack.callback(server.stop)
                server.start()
            if admin.page_listen:
                wanted = Address.parse(admin.page_listen, where="broker.yaml: admin.page_listen")
                identity = broker.tls_private_key() + broker.identity.certificate.encode()
                access = PrincipalAccess(broker.store, identity, log)
                server = PageServer(
                    pages.app(access.guard), bind_address(wanted), tls=access.context()
                )
                stack.callback(server.stop)
                server.start()
                address = Address(wanted.host, server.port)
        if broker.config.telemetry.otlp_endpoint:
            observers.append(_traces(broker.config.telemetry, log, stack))
        yield Operation(_together(observers), socket, address)


def _traces(config: TelemetryConfig, log: Log, stack: ExitStack) -> Observer:
    from sealserve.broker.operation.tracing import BrokerTraces, otlp_exporter, say_in

    stack.enter_context(say_in(log))
    exporter = otlp_exporter(config.otlp_endpoint)
    traces = BrokerTraces(exporter, ratio=config.trace_percent / 100)
    stack.callback(traces.close)
    return traces


def _together(observers: list[Observer]) -> Observer:
    from sealserve.broker.operation.telemetry import Together

    match observers:
        case []:
            return NOBODY
        case [one]:
            return one
        case _:
            return Together(*observers)
