"""``sealserve secret``: what the broker keeps, and for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sealserve.cli.admin_options import (
    AdminOption,
    BrokerIdentityOption,
    BrokerOption,
    IdentityOption,
    administration,
    finish,
)
from sealserve.cli.console import JsonFlag, emit

app = typer.Typer(help="Give the broker secrets, and say who may have them.", no_args_is_help=True)

_Secret = Annotated[str, typer.Argument(help="The secret's name: models/demo.")]
_Version = Annotated[int, typer.Option("--version", help="Which version.", min=1, max=2**31 - 1)]


@app.callback()
def group() -> None:
    """Give the broker secrets, and say who may have them."""


@app.command()
def put(
    resource: Annotated[str, typer.Argument(help="The name guests ask for: models/demo.")],
    sealed_key: Annotated[
        Path, typer.Option(help="The volume's key, sealed to this broker by its owner.")
    ],
    record: Annotated[Path, typer.Option(help="The volume's signed record.")],
    owner_pub: Annotated[Path, typer.Option(help="The owner's public key: who signed the record.")],
    policy: Annotated[Path, typer.Option(help="The policy (YAML): which guests may have the key.")],
    lease: Annotated[
        int,
        typer.Option(
            help="Seconds a guest may keep the key before it asks again.", min=1, max=2**31 - 1
        ),
    ] = 24 * 3600,
    broker: BrokerOption = None,
    admin: AdminOption = None,
    identity: IdentityOption = None,
    broker_identity: BrokerIdentityOption = None,
    json: JsonFlag = False,
) -> None:
    """Deposit a volume's key with its record and its policy.

    The record's signature, the key's fit to the record and the policy are
    checked first. A second put under one name is the secret's next version; a
    policy that is looser than the one there may need a second person.

    Example: sealserve secret put models/demo --broker DIR --sealed-key models.key
    --record models.record --owner-pub owner.pub --policy policy.yaml
    """
    from sealserve.attestation.policy_file import MAX_POLICY_BYTES
    from sealserve.broker.deposit import MAX_DEPOSIT_BYTES
    from sealserve.files import read_limited
    from sealserve.volume.owner import load_owner_public
    from sealserve.volume.record import open_record
    from sealserve.wire.broker.admin import v1_pb2
    from sealserve.wire.limits import MAX_RECORD_BYTES

    signed = read_limited(record, MAX_RECORD_BYTES)
    owner = load_owner_public(owner_pub)
    volume = open_record(signed, owner)
    request = v1_pb2.SecretPutRequest(
        resource=resource,
        sealed_key=read_limited(sealed_key, MAX_DEPOSIT_BYTES),
        record=signed,
        owner_public_key=owner.public_bytes_raw(),
        policy=read_limited(policy, MAX_POLICY_BYTES),
        lease_seconds=lease,
    )
    with administration(broker, admin, identity, broker_identity) as perform:
        result = perform(request)
    finish(
        {**result, "volume": volume.name},
        as_json=json,
        text=lambda: (
            f"{result['resource']}: version {result['secret_version']}, opens volume"
            f" {volume.name!r}, policy {result['policy_sha256'][:16]}"
        ),
    )


@app.command("list")
def list_secrets(
    broker: BrokerOption = None,
    admin: AdminOption = None,
    identity: IdentityOption = None,
    broker_identity: BrokerIdentityOption = None,
    json: JsonFlag = False,
) -> None:
    """List every version of every secret, never its bytes.

    Example: sealserve secret list --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    with administration(broker, admin, identity, broker_identity) as perform:
        result = perform(v1_pb2.SecretListRequest())
    rows = [f"{row['id']}  {_version_told(row)}" for row in result["secrets"]]
    emit(result, as_json=json, text="\n".join(rows) or "no secrets yet")


@app.command()
def show(
    secret: _Secret,
    broker: BrokerOption = None,
    admin: AdminOption = None,
    identity: IdentityOption = None,
    broker_identity: BrokerIdentityOption = None,
    json: JsonFlag = False,
) -> None:
    """Show a secret's versions and who stands for it, never its bytes.

    Example: sealserve secret show models/demo --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    with administration(broker, admin, identity, broker_identity) as perform:
        result = perform(v1_pb2.SecretShowRequest(secret=secret))
    lines = [secret, *(f"  {_version_told(row)}" for row in result["versions"])]
    lines += [
        f"  given to guests as {each['name']}, version {each['secret_version']}"
        for each in result["resources"]
    ]
    emit(result, as_json=json, text="\n".join(lines))


@app.command()
def disable(
    secret: _Secret,
    version: _Version,
    broker: BrokerOption = None,
    admin: AdminOption = None,
    identity: IdentityOption = None,
    broker_identity: BrokerIdentityOption = None,
    json: JsonFlag = False,
) -> None:
    """Give a live version to nobody until it is enabled again.

    Example: sealserve secret disable models/demo --version 2 --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    request = v1_pb2.SecretDisableRequest(secret=secret, version=version)
    with administration(broker, admin, identity, broker_identity) as perform:
        _finish(perform(request), json)


@app.command()
def enable(
    secret: _Secret,
    version: _Version,
    broker: BrokerOption = None,
    admin: AdminOption = None,
    identity: IdentityOption = None,
    broker_identity: BrokerIdentityOption = None,
    json: JsonFlag = False,
) -> None:
    """Give a disabled version to guests again.

    Example: sealserve secret enable models/demo --version 2 --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    request = v1_pb2.SecretEnableRequest(secret=secret, version=version)
    with administration(broker, admin, identity, broker_identity) as perform:
        _finish(perform(request), json)


@app.command()
def retire(
    secret: _Secret,
    version: _Version,
    broker: BrokerOption = None,
    admin: AdminOption = None,
    identity: IdentityOption = None,
    broker_identity: BrokerIdentityOption = None,
    json: JsonFlag = False,
) -> None:
    """Give a version to nobody any more; its bytes stay until it is destroyed.

    Example: sealserve secret retire models/demo --version 1 --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    request = v1_pb2.SecretRetireRequest(secret=secret, version=version)
    with administration(broker, admin, identity, broker_identity) as perform:
        _finish(perform(request), json)


@app.command()
def destroy(
    secret: _Secret,
    version: _Version,
    broker: BrokerOption = None,
    admin: AdminOption = None,
    identity: IdentityOption = None,
    broker_identity: BrokerIdentityOption = None,
    json: JsonFlag = False,
) -> None:
    """Delete a version's bytes for good; may need a second person (exit status 1).

    Backups made before still hold them, wrapped.

    Example: sealserve secret destroy models/demo --version 1 --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    request = v1_pb2.SecretDestroyRequest(secret=secret, version=version)
    with administration(broker, admin, identity, broker_identity) as perform:
        _finish(perform(request), json)


def _finish(result: dict[str, Any], as_json: bool) -> None:
    def text() -> str:
        told = f"{result['secret']}: version {result['version']} is {result['state']}"
        if result["state"] != "live" and result["current_of"]:
            told += f"; guests that ask for {', '.join(result['current_of'])} get nothing now"
        return told

    finish(result, as_json=as_json, text=text)


def _version_told(row: dict[str, Any]) -> str:
    ends = f"  expires {row['expires']}" if row["expires"] else ""
    return f"version {row['version']}  {row['state']}  since {row['created']}{ends}"
