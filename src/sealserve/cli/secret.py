"""``sealserve secret``: what the broker keeps, and for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli.console import JsonFlag, emit

app = typer.Typer(help="Give the broker secrets, and say who may have them.", no_args_is_help=True)

_Broker = Annotated[Path, typer.Option("--broker", help="The broker's directory.", metavar="DIR")]


@app.callback()
def group() -> None:
    """Give the broker secrets, and say who may have them."""


@app.command()
def put(
    resource: Annotated[str, typer.Argument(help="The name guests ask for: models/demo.")],
    broker: _Broker,
    sealed_key: Annotated[
        Path, typer.Option(help="The volume's key, sealed to this broker by its owner.")
    ],
    record: Annotated[Path, typer.Option(help="The volume's signed record.")],
    owner_pub: Annotated[Path, typer.Option(help="The owner's public key: who signed the record.")],
    policy: Annotated[Path, typer.Option(help="The policy (YAML): which guests may have the key.")],
    lease: Annotated[
        int, typer.Option(help="Seconds a guest may keep the key before it asks again.", min=1)
    ] = 24 * 3600,
    json: JsonFlag = False,
) -> None:
    """Deposit a volume's key with its record and its policy.

    The record's signature, the key's fit to the record and the policy are
    checked first. A second put under one name is the secret's next version.

    Example: sealserve secret put models/demo --broker DIR --sealed-key models.key
    --record models.record --owner-pub owner.pub --policy policy.yaml
    """
    from sealserve.attestation.policy_file import MAX_POLICY_BYTES
    from sealserve.broker.deposit import MAX_DEPOSIT_BYTES
    from sealserve.broker.directory import open_broker
    from sealserve.errors import Refused
    from sealserve.files import read_limited
    from sealserve.volume.owner import load_owner_public
    from sealserve.volume.record import key_id_of, open_record
    from sealserve.wire.limits import MAX_RECORD_BYTES

    signed = read_limited(record, MAX_RECORD_BYTES)
    owner = load_owner_public(owner_pub)
    volume = open_record(signed, owner)

    def opens_this_volume(key: bytes) -> None:
        if key_id_of(key) != volume.key_id:
            raise Refused(
                "secret.key_mismatch",
                f"the sealed key is not the key of the volume {volume.name!r}",
                where=str(sealed_key),
                hint="give the sealed key and the record that one `volume create` wrote",
            )

    with open_broker(broker) as opened:
        stored = opened.put_secret(
            resource,
            read_limited(sealed_key, MAX_DEPOSIT_BYTES),
            record=signed,
            owner_public_key=owner.public_bytes_raw(),
            policy=read_limited(policy, MAX_POLICY_BYTES),
            lease_seconds=lease,
            check=opens_this_volume,
        )
    emit(
        {
            "resource": stored.name,
            "secret_version": stored.secret_version,
            "policy_sha256": stored.policy_sha256,
            "volume": volume.name,
        },
        as_json=json,
        text=f"{stored.name}: version {stored.secret_version}, opens volume {volume.name!r}, "
        f"policy {stored.policy_sha256[:16]}",
    )


@app.command("list")
def list_secrets(broker: _Broker, json: JsonFlag = False) -> None:
    """List every version of every secret, never its bytes.

    Example: sealserve secret list --broker DIR
    """
    from dataclasses import asdict

    from sealserve.broker.directory import open_broker

    with open_broker(broker) as opened:
        secrets = opened.store.secrets()
    rows = [f"{s.id}  version {s.version}  {s.state}  since {s.created}" for s in secrets]
    emit(
        {"secrets": [asdict(secret) for secret in secrets]},
        as_json=json,
        text="\n".join(rows) or "no secrets yet",
    )
