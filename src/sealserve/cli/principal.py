"""``sealserve broker principal``: who may administer a broker, and who may look."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli.admin_options import At, on_broker

app = typer.Typer(help="Who may administer the broker, and who may look.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(help="The person: alice.")]


@app.callback()
def group() -> None:
    """Who may administer the broker, and who may look."""


@app.command()
@on_broker
def add(
    at: At,
    name: _Name,
    certificate: Annotated[
        Path, typer.Option(help="The certificate from `broker admin-identity`: alice.crt.")
    ],
    role: Annotated[
        str, typer.Option(help="admin (acts) or auditor (only looks).", metavar="ROLE")
    ] = "auditor",
    replace: Annotated[
        bool, typer.Option("--replace", help="NAME is there already, and gets this key and role.")
    ] = False,
) -> None:
    """Register a person's certificate. The first administrator is added with --broker.

    Compare the fingerprint that is printed with the person, by a way you trust.

    Example: sealserve broker principal add alice --certificate alice.crt --role admin --broker DIR
    """
    from sealserve.broker.principals import (
        MAX_CERTIFICATE_BYTES,
        principal_name,
        read_certificate,
        read_role,
    )
    from sealserve.files import read_limited
    from sealserve.wire.broker.admin import v1_pb2

    pem = read_limited(certificate, MAX_CERTIFICATE_BYTES)
    principal_name(name)
    read_role(role)
    read_certificate(pem)
    request = v1_pb2.PrincipalAddRequest(
        name=name, role=role, certificate=pem.decode(), replace=replace
    )
    result = at.perform(request)
    at.finish(
        result,
        lambda: f"{name}: {role}, fingerprint {result['spki_sha256']}",
    )


@app.command("list")
@on_broker
def list_principals(
    at: At,
) -> None:
    """List who may call the administration port.

    Example: sealserve broker principal list --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    result = at.perform(v1_pb2.PrincipalListRequest())
    rows = [
        f"{each['name']}  {each['role']}  since {each['added']}  fingerprint {each['spki_sha256']}"
        for each in result["principals"]
    ]
    at.show(result, "\n".join(rows) or "nobody yet")


@app.command()
@on_broker
def remove(
    at: At,
    name: _Name,
) -> None:
    """Shut a person out, from the next call on.

    Example: sealserve broker principal remove alice --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    result = at.perform(v1_pb2.PrincipalRemoveRequest(name=name))
    at.finish(result, f"{name}: removed")
