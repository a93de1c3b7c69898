"""``sealserve secret``: what the broker keeps, and for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sealserve.cli.admin_options import At, on_broker
from sealserve.cli.secret_input import (
    SealedKeyOption,
    SecretFdOption,
    deposit_of,
    signed_record,
)

app = typer.Typer(help="Give the broker secrets, and say who may have them.", no_args_is_help=True)

_Secret = Annotated[str, typer.Argument(help="The secret's name: models/demo.")]
_Record = Annotated[Path | None, typer.Option(help="The volume's signed record.")]
_OwnerPub = Annotated[
    Path | None, typer.Option(help="The owner's public key: who signed the record.")
]
_Expires = Annotated[
    str,
    typer.Option(
        help="From when on it is given to nobody: 2027-01-31, or ISO 8601 with a time zone.",
        metavar="TIME",
    ),
]
_Lease = Annotated[
    int,
    typer.Option(help="Seconds a guest may keep it before it asks again.", min=1, max=2**31 - 1),
]
_Version = Annotated[int, typer.Option("--version", help="Which version.", min=1, max=2**31 - 1)]


@app.callback()
def group() -> None:
    """Give the broker secrets, and say who may have them."""


@app.command()
@on_broker
def put(
    at: At,
    resource: Annotated[str, typer.Argument(help="The name guests ask for: models/demo.")],
    policy: Annotated[Path, typer.Option(help="The policy (YAML): which guests may have it.")],
    sealed_key: SealedKeyOption = None,
    secret_fd: SecretFdOption = None,
    record: _Record = None,
    owner_pub: _OwnerPub = None,
    kind: Annotated[
        str,
        typer.Option(
            help="volume-key, passphrase, tls-key or opaque; by default by the record.",
            metavar="KIND",
        ),
    ] = "",
    expires: _Expires = "",
    lease: _Lease = 24 * 3600,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="NAME is there already: retire its live versions at once, and take this policy.",
        ),
    ] = False,
) -> None:
    """Deposit a secret with its policy; a volume's key with its record.

    The record's signature, the key's fit to the record and the policy are
    checked first. A name that is there is refused: `secret rotate` gives it its
    next version and keeps the one before it live, --replace retires that at once
    (after a leak). A policy that is looser than the one there may need a second person.

    Example: sealserve secret put models/demo --broker DIR --sealed-key models.key
    --record models.record --owner-pub owner.pub --policy policy.yaml
    """
    from sealserve.attestation.policy_file import MAX_POLICY_BYTES
    from sealserve.files import read_limited
    from sealserve.wire.broker.admin import v1_pb2

    signed, owner, volume = signed_record(record, owner_pub)
    request = v1_pb2.SecretPutRequest(
        resource=resource,
        sealed_key=deposit_of(at, sealed_key, secret_fd),
        record=signed,
        owner_public_key=owner,
        policy=read_limited(policy, MAX_POLICY_BYTES),
        lease_seconds=lease,
        kind=kind,
        expires=expires,
        replace=replace,
    )
    result = at.perform(request)
    at.finish(
        {**result, "volume": volume},
        lambda: (
            f"{result['resource']}: version {result['secret_version']},"
            f" {f'opens volume {volume!r}' if volume else result['kind']},"
            f" policy {result['policy_sha256'][:16]}"
        ),
    )


@app.command()
@on_broker
def rotate(
    at: At,
    secret: _Secret,
    sealed_key: SealedKeyOption = None,
    secret_fd: SecretFdOption = None,
    record: _Record = None,
    owner_pub: _OwnerPub = None,
    retire_after: Annotated[
        int,
        typer.Option(
            help="Seconds that the version before stays live; 0: until `secret retire`.",
            metavar="SECONDS",
            min=0,
            max=2**31 - 1,
        ),
    ] = 0,
    expires: _Expires = "",
) -> None:
    """Give a secret its next version, and keep the one before it live meanwhile.

    Guests get the new version unless they ask for the old one, which opens the
    old volume. The policy stays as it is.

    Example: sealserve secret rotate models/demo --sealed-key new.key --record new.record
    --owner-pub owner.pub --retire-after 604800 --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    signed, owner, volume = signed_record(record, owner_pub)
    request = v1_pb2.SecretRotateRequest(
        secret=secret,
        sealed_key=deposit_of(at, sealed_key, secret_fd),
        record=signed,
        owner_public_key=owner,
        retire_after_seconds=retire_after,
        expires=expires,
    )
    result = at.perform(request)
    ends = f"for {retire_after} s more" if retire_after else "until it is retired"
    at.finish(
        {**result, "volume": volume},
        lambda: (
            f"{result['resource']}: version {result['secret_version']} from now on;"
            f" version {result['version_before']} stays live {ends}"
        ),
    )


@app.command("import")
@on_broker
def import_secrets(
    at: At,
    file: Annotated[Path, typer.Argument(help="secret.json: an object of names and passwords.")],
    policy: Annotated[Path, typer.Option(help="The policy (YAML): which guests may have them.")],
    prefix: Annotated[
        str, typer.Option(help="Put before each name, such as 'legacy/'.", metavar="TEXT")
    ] = "",
    lease: _Lease = 24 * 3600,
) -> None:
    """Take over the passwords of the original's get_secret server, one resource each.

    Guests read them by `sealserve get-secret NAME`. What the broker has already is
    left as it is. The file holds the passwords for all to read: delete it afterwards.

    Example: sealserve secret import secret.json --policy policy.yaml --broker DIR
    """
    from sealserve.attestation.policy_file import MAX_POLICY_BYTES
    from sealserve.broker.deposit import seal_for
    from sealserve.broker.legacy import read_secrets
    from sealserve.files import read_limited
    from sealserve.wire.broker.admin import v1_pb2

    entries = read_secrets(file, prefix)
    policy_text = read_limited(policy, MAX_POLICY_BYTES)
    seal_to = at.public()
    with at.asked() as perform:
        there = {each["name"] for each in perform(v1_pb2.ResourceListRequest())["resources"]}
        for name in sorted(entries.keys() - there):
            perform(
                v1_pb2.SecretPutRequest(
                    resource=name,
                    sealed_key=seal_for(seal_to, entries[name]),
                    policy=policy_text,
                    lease_seconds=lease,
                    kind="passphrase",
                )
            )
    taken, left = sorted(entries.keys() - there), sorted(entries.keys() & there)
    lines = [f"{name}: version 1" for name in taken]
    lines += [f"{name}: left as it is, the broker has it already" for name in left]
    at.show({"imported": taken, "left": left}, "\n".join([*lines, f"now delete {file}"]))


@app.command("list")
@on_broker
def list_secrets(
    at: At,
) -> None:
    """List every version of every secret, never its bytes.

    Example: sealserve secret list --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    result = at.perform(v1_pb2.SecretListRequest())
    rows = [f"{row['id']}  {_version_told(row)}" for row in result["secrets"]]
    at.show(result, "\n".join(rows) or "no secrets yet")


@app.command()
@on_broker
def show(
    at: At,
    secret: _Secret,
) -> None:
    """Show a secret's versions and who stands for it, never its bytes.

    Example: sealserve secret show models/demo --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    result = at.perform(v1_pb2.SecretShowRequest(secret=secret))
    lines = [secret, *(f"  {_version_told(row)}" for row in result["versions"])]
    lines += [
        f"  given to guests as {each['name']}, version {each['secret_version']}"
        for each in result["resources"]
    ]
    at.show(result, "\n".join(lines))


@app.command()
@on_broker
def disable(
    at: At,
    secret: _Secret,
    version: _Version,
) -> None:
    """Give a live version to nobody until it is enabled again.

    Example: sealserve secret disable models/demo --version 2 --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    request = v1_pb2.SecretDisableRequest(secret=secret, version=version)
    _finish(at, at.perform(request))


@app.command()
@on_broker
def enable(
    at: At,
    secret: _Secret,
    version: _Version,
) -> None:
    """Give a disabled version to guests again.

    Example: sealserve secret enable models/demo --version 2 --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    request = v1_pb2.SecretEnableRequest(secret=secret, version=version)
    _finish(at, at.perform(request))


@app.command()
@on_broker
def retire(
    at: At,
    secret: _Secret,
    version: _Version,
) -> None:
    """Give a version to nobody any more; its bytes stay until it is destroyed.

    Example: sealserve secret retire models/demo --version 1 --broker DIR
    """
    from sealserve.wire.broker.admin import v1_pb2

    request = v1_pb2.SecretRetireRequest(secret=secret, version=version)
    _finish(at, at.perform(request))


@app.command()
@on_broker
def destroy(
    at: At,
    secret: _Secret,
    version: _Version,
    yes: Annotated[bool, typer.Option("--yes", help="It cannot be undone, and shall be.")] = False,
) -> None:
    """Delete a version's bytes for good; may need a second person (exit status 1).

    Backups made before still hold them, wrapped.

    Example: sealserve secret destroy models/demo --version 1 --yes --broker DIR
    """
    from sealserve.errors import InputError
    from sealserve.wire.broker.admin import v1_pb2

    if not yes:
        raise InputError(
            "secret.destroy_unconfirmed",
            f"destroying version {version} of {secret!r} cannot be undone",
            where="--yes",
            hint="run it with --yes; `secret disable` and `secret retire` keep the bytes",
        )
    request = v1_pb2.SecretDestroyRequest(secret=secret, version=version)
    _finish(at, at.perform(request))


def _finish(at: At, result: dict[str, Any]) -> None:
    def text() -> str:
        told = f"{result['secret']}: version {result['version']} is {result['state']}"
        if result["state"] != "live" and result["current_of"]:
            told += f"; guests that ask for {', '.join(result['current_of'])} get nothing now"
        return told

    at.finish(result, text)


def _version_told(row: dict[str, Any]) -> str:
    ends = f"  expires {row['expires']}" if row["expires"] else ""
    return f"version {row['version']}  {row['state']}  since {row['created']}{ends}"
