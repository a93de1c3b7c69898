"""What every command on a broker takes: its directory here, or its administration port there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealserve.cli.console import emit

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from sealserve.broker.identity import BrokerIdentity
    from sealserve.errors import InputError

__all__ = [
    "AdminOption",
    "BrokerIdentityOption",
    "BrokerOption",
    "IdentityOption",
    "Perform",
    "administration",
    "finish",
    "identity_of",
]

BrokerOption = Annotated[
    Path | None,
    typer.Option("--broker", help="The broker's directory on this machine.", metavar="DIR"),
]
AdminOption = Annotated[
    str | None,
    typer.Option(
        "--admin", help="Or the administration port of a broker elsewhere.", metavar="HOST:PORT"
    ),
]
IdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--identity", help="With --admin: your key, from `broker admin-identity`.", metavar="PEM"
    ),
]
BrokerIdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--broker-identity",
        help="With --admin: the broker's broker.json; by default the one beside your key.",
        metavar="JSON",
    ),
]

Perform = Callable[["Message"], dict[str, Any]]


@contextmanager
def administration(
    broker: Path | None, admin: str | None, identity: Path | None, broker_identity: Path | None
) -> Iterator[Perform]:
    """What the four options above name, ready to be asked.

    Raises:
        InputError: ``admin.which_broker``.
    """
    if (broker is None) == (admin is None) or (admin is None) != (identity is None):
        raise _which_broker()
    if admin is not None and identity is not None:
        from sealserve.broker.admin_client import AdminClient

        with AdminClient.connect(admin, identity, broker_identity) as client:
            yield client.perform
    elif broker is not None:
        from sealserve.broker.administration import Administration
        from sealserve.broker.directory import open_broker
        from sealserve.broker.principals import local_caller

        caller = local_caller()
        with open_broker(broker) as opened:
            local = Administration(opened)
            yield lambda request: local.perform(caller, request)


def identity_of(
    broker: Path | None, identity: Path | None, broker_identity: Path | None
) -> BrokerIdentity:
    """The public document of the broker that the options name, to seal something to it.

    Raises:
        InputError: ``admin.which_broker``, ``identity.malformed``.
        Unavailable: ``file.unreadable``.
    """
    from sealserve.broker.admin_client import identity_beside
    from sealserve.broker.identity import BrokerIdentity

    if broker is not None:
        return BrokerIdentity.load(broker / "broker.json")
    if identity is None:
        raise _which_broker()
    return BrokerIdentity.load(broker_identity or identity_beside(identity))


def finish(result: dict[str, Any], *, as_json: bool, text: str | Callable[[], str]) -> None:
    """Print the result of an act; say so if it waits for a second person.

    Raises:
        typer.Exit: with status 1 if nothing has happened yet.
    """
    proposal = result.get("proposal")
    if isinstance(proposal, dict) and proposal.get("state") == "open":
        lines = [
            f"NOT DONE YET: needs a second person ({proposal['needs']})",
            *(f"  {line}" for line in proposal["summary"]),
            f"until {proposal['expires']}: sealserve proposal approve {proposal['id']}",
        ]
        emit(result, as_json=as_json, text="\n".join(lines))
        sys.stdout.flush()
        raise typer.Exit(1)
    emit(result, as_json=as_json, text=text() if callable(text) else text)


def _which_broker() -> InputError:
    from sealserve.errors import InputError

    return InputError(
        "admin.which_broker",
        "name a broker's directory with --broker, or its port with --admin and your key"
        " with --identity",
        where="--broker, --admin, --identity",
    )
