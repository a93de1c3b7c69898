"""What every command on a broker takes: its directory here, or its administration port there."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealserve.cli.console import JsonFlag, emit

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from sealserve.broker.identity import BrokerIdentity
    from sealserve.errors import InputError

__all__ = [
    "AdminOption",
    "At",
    "BrokerIdentityOption",
    "BrokerOption",
    "IdentityOption",
    "Perform",
    "administration",
    "on_broker",
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


@dataclass(frozen=True, slots=True)
class At:
    """Which broker a command is about, and how its answer is printed."""

    broker: Path | None
    admin: str | None
    identity: Path | None
    broker_identity: Path | None
    as_json: bool

    @contextmanager
    def asked(self) -> Iterator[Perform]:
        """The broker, ready to be asked more than once."""
        named = (self.broker, self.admin, self.identity, self.broker_identity)
        with administration(*named) as perform:
            yield perform

    def perform(self, request: Message) -> dict[str, Any]:
        """Ask it once."""
        with self.asked() as perform:
            return perform(request)

    def public(self) -> BrokerIdentity:
        """The broker's public document, to seal something to it or to check what it signed.

        Raises:
            InputError: ``admin.which_broker``, ``identity.malformed``.
            Unavailable: ``file.unreadable``.
        """
        from sealserve.broker.admin_client import identity_beside
        from sealserve.broker.identity import BrokerIdentity

        if self.broker is not None:
            return BrokerIdentity.load(self.broker / "broker.json")
        if self.identity is None:
            raise _which_broker()
        return BrokerIdentity.load(self.broker_identity or identity_beside(self.identity))

    def show(self, result: dict[str, Any], text: str) -> None:
        """Print the result of a look."""
        emit(result, as_json=self.as_json, text=text)

    def finish(self, result: dict[str, Any], text: str | Callable[[], str]) -> None:
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
            emit(result, as_json=self.as_json, text="\n".join(lines))
            sys.stdout.flush()
            raise typer.Exit(1)
        emit(result, as_json=self.as_json, text=text() if callable(text) else text)


def on_broker(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a broker, and hand them to it as its first argument."""

    def run(
        broker: BrokerOption = None,
        admin: AdminOption = None,
        identity: IdentityOption = None,
        broker_identity: BrokerIdentityOption = None,
        json: JsonFlag = False,
        **named: Any,
    ) -> None:
        command(At(broker, admin, identity, broker_identity, json), **named)

    # What typer reads: the command's own parameters, then those of `run`.
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    added = inspect.signature(run, eval_str=True).parameters.values()
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (*own, *added)
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    functools.update_wrapper(run, command)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


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


def _which_broker() -> InputError:
    from sealserve.errors import InputError

    return InputError(
        "admin.which_broker",
        "name a broker's directory with --broker, or its port with --admin and your key"
        " with --identity",
        where="--broker, --admin, --identity",
    )
