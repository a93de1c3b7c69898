"""The options by which `trust`, `predict` and `bench` say which server, and why to believe it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealserve.errors import InputError

if TYPE_CHECKING:
    from sealserve.client import Connection, Trust

__all__ = [
    "AnchorOption",
    "CollateralOption",
    "ConnectToOption",
    "CrtOption",
    "PolicyOption",
    "UrlOption",
    "connect",
    "read_trust",
]

_MAX_PEM_BYTES = 1 << 20  # room for the roots of a whole system


UrlOption = Annotated[
    str, typer.Option("--url", metavar="HOST:PORT", help="The server's gRPC port.")
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        help="Verify the server's quote and hold it to this policy (YAML).",
        exists=True,
        dir_okay=False,
    ),
]
CollateralOption = Annotated[
    Path | None,
    typer.Option(
        "--collateral",
        help="Intel's collateral for the server's platform (JSON).",
        exists=True,
        dir_okay=False,
    ),
]
AnchorOption = Annotated[
    Path | None,
    typer.Option(
        "--simulation-anchor",
        help="SIMULATION ONLY: believe this root certificate (DER) instead of Intel's.",
        exists=True,
        dir_okay=False,
    ),
]
CrtOption = Annotated[
    Path | None,
    typer.Option(
        "--crt",
        help="Trust this certificate (PEM) and check no quote, as TensorFlow Serving's clients do.",
        exists=True,
        dir_okay=False,
    ),
]
ConnectToOption = Annotated[
    str | None,
    typer.Option(
        "--connect-to",
        metavar="HOST:PORT",
        help="With --crt: dial this address; the certificate must still name the --url.",
    ),
]


def read_trust(policy: Path | None, collateral: Path | None, anchor: Path | None) -> Trust:
    """Read the documents that say whom to believe.

    Raises:
        InputError: ``trust.incomplete``, or what is wrong with one of them.
    """
    from sealserve.attestation import policy_file
    from sealserve.client import Anchor, Collateral, Trust, Verifier

    if policy is None or collateral is None:
        raise InputError(
            "trust.incomplete",
            "nothing says which servers to trust",
            hint="give --policy and --collateral to verify its quote, or --crt for a certificate",
        )
    return Trust(
        Verifier(Anchor.load(anchor)),
        Collateral.load(collateral),
        policy_file.load(policy),
    )


def connect(
    url: str,
    *,
    crt: Path | None,
    connect_to: str | None,
    policy: Path | None,
    collateral: Path | None,
    anchor: Path | None,
) -> Connection:
    """Connect as the options say: by a certificate, or by a verified quote."""
    from sealserve.client import connect_attested, connect_classic
    from sealserve.files import read_limited

    if crt is not None:
        if policy or collateral or anchor:
            raise InputError(
                "trust.contradiction",
                "--crt checks no quote, so the options about quotes mean nothing",
                hint="leave out --crt to verify the server's quote",
            )
        return connect_classic(url, read_limited(crt, _MAX_PEM_BYTES), connect_to=connect_to)
    return connect_attested(url, read_trust(policy, collateral, anchor))
