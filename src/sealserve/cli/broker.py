"""``sealserve broker``: the service that decides who gets a key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli import principal
from sealserve.cli.admin_options import (
    AdminOption,
    BrokerIdentityOption,
    IdentityOption,
    administration,
)
from sealserve.cli.console import JsonFlag, emit

app = typer.Typer(
    help="Run the key broker: it releases keys to attested guests only.", no_args_is_help=True
)
app.add_typer(principal.app, name="principal")

_Directory = Annotated[Path, typer.Argument(help="The broker's directory.", metavar="DIR")]


_Kek = Annotated[
    str,
    typer.Option(
        help="Who holds the key that wraps all others: 'file', 'pkcs11' (an HSM), 'vault' (the"
        " transit engine of HashiCorp Vault or OpenBao).",
        metavar="PROVIDER",
    ),
]
_KekSet = Annotated[
    list[str] | None,
    typer.Option(
        help="A field of the section kek in broker.yaml, such as vault_key=sealserve; repeat.",
        metavar="NAME=VALUE",
    ),
]


@app.callback()
def group() -> None:
    """Run the key broker: it releases keys to attested guests only."""


@app.command()
def init(
    directory: _Directory,
    name: Annotated[str, typer.Option(help="The broker's name, for people and certificates.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="A DNS name or IP address for its certificate; repeat for more."),
    ] = None,
    store: Annotated[
        str,
        typer.Option(
            help="The database: sqlite:///FILE in DIR, or postgresql://USER@HOST/DATABASE"
            "?sslmode=verify-full for several replicas; never a password.",
            metavar="URL",
        ),
    ] = "sqlite:///broker.db",
    kek: _Kek = "file",
    kek_set: _KekSet = None,
    json: JsonFlag = False,
) -> None:
    """Make a new broker: its keys, its empty database, its public identity.

    Give DIR/broker.json to owners and guests: it is how they know this broker.
    Back up DIR/kek apart from the database: without it no secret ever opens; or let
    an HSM (--kek pkcs11) or Vault (--kek vault) hold that key.
    DIR/broker.yaml holds what you may choose, each field with its default.

    Example: sealserve broker init /var/lib/sealserve/broker --name acme --host broker.example.com
    """
    from sealserve.broker.config_file import with_kek, with_store
    from sealserve.broker.directory import create

    chosen = with_store(store, where="--store")
    if kek != "file" or kek_set:
        chosen = with_kek(chosen, kek, kek_set or [], where="--kek")
    identity = create(directory, name=name, hosts=host or [], chosen=chosen)
    held = "secret: keep it apart from the database" if kek == "file" else ""
    key = directory / chosen.kek.file if kek == "file" else f"the key that {kek} holds"
    emit(
        {
            "directory": str(directory),
            "identity": str(directory / "broker.json"),
            "name": identity.name,
            "spki_sha256": identity.spki_sha256.hex(),
        },
        as_json=json,
        text=f"made broker {identity.name!r} in {directory}\n"
        f"  identity     {directory / 'broker.json'} (public: for owners and guests)\n"
        f"  fingerprint  {identity.spki_sha256.hex()}\n"
        f"  back up      {key}" + (f" ({held})" if held else ""),
    )


@app.command()
def rekey(
    directory: _Directory,
    kek: _Kek = "file",
    kek_set: _KekSet = None,
    json: JsonFlag = False,
) -> None:
    """Wrap everything that the broker keeps under another key, all of it or nothing.

    A broker that serves goes on meanwhile. The old key stays where it is: backups
    made until now need it. Brokers on other machines get broker.yaml (and the new
    key file) from you.

    Example: sealserve broker rekey /var/lib/sealserve/broker --kek vault
    --kek-set vault_url=https://vault.example.com:8200 --kek-set vault_key=sealserve
    --kek-set vault_token_file=/run/vault/token
    """
    from sealserve.broker.rekey import rekey as run

    done = run(directory, kek, kek_set or [])
    place = directory / done.kek.file if done.kek.provider == "file" else done.kek.provider
    anew = f"\n  broker.yaml was written anew; yours is kept in {done.old_config}"
    emit(
        {
            "kek_before": done.before,
            "kek_after": done.after,
            "values": done.values,
            "provider": done.kek.provider,
            "file": done.kek.file if done.kek.provider == "file" else None,
            "old_config": str(done.old_config) if done.old_config else None,
        },
        as_json=json,
        text=f"{done.values} values are wrapped under {done.after} now ({place})\n"
        f"  keep the old key, {done.before}, as long as you keep backups made under it"
        + (anew if done.old_config else ""),
    )


@app.command()
def backup(
    directory: _Directory,
    file: Annotated[Path, typer.Argument(help="The backup to write.", metavar="FILE")],
    json: JsonFlag = False,
) -> None:
    """Write all that a broker keeps into one file, while it serves.

    Secrets in it are wrapped, and the key that opens them is not in it: keep that
    key elsewhere. Note the head, which `restore --expect-head` takes.

    Example: sealserve broker backup /var/lib/sealserve/broker broker-2026-11-26.backup
    """
    from sealserve.broker.backup import backup as run

    made = run(directory, file)
    emit(
        {"file": str(file), "head": str(made.head), **made.model_dump(mode="json")},
        as_json=json,
        text=f"wrote {file}: broker {made.name!r}, wrapped under {made.kek_id}\n"
        f"  audit head  {made.head}",
    )


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file of `broker backup`.", metavar="FILE")],
    directory: Annotated[
        Path, typer.Argument(help="The directory to make, or an empty one.", metavar="DIR")
    ],
    store: Annotated[
        str | None,
        typer.Option(help="Another database than the backup's, an empty one.", metavar="URL"),
    ] = None,
    expect_head: Annotated[
        str | None,
        typer.Option(
            help="A head that the audit log once had: an older backup is refused.",
            metavar="COUNT:SHA256",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Make a broker out of a backup, in an empty place.

    Then put the key-encryption key back to where broker.yaml says it is.

    Example: sealserve broker restore broker-2026-11-26.backup /var/lib/sealserve/broker
    """
    from sealserve.broker.audit_chain import ChainHead
    from sealserve.broker.backup import restore as run

    head = ChainHead.parse(expect_head, where="--expect-head") if expect_head else None
    made, chosen = run(file, directory, store_url=store, expect=head)
    kek = chosen.kek
    place = (
        str(directory / kek.file)
        if kek.provider == "file"
        else f"the one that {kek.provider} holds"
    )
    emit(
        {"directory": str(directory), "head": str(made.head), "kek_id": made.kek_id, "kek": place},
        as_json=json,
        text=f"made {directory} from the backup of {made.created}\n"
        f"  key to put back  {place} ({made.kek_id})",
    )


@app.command()
def serve(
    directory: _Directory,
    listen: Annotated[
        str, typer.Option(help="Where guests reach it; port 0 takes any.", metavar="HOST:PORT")
    ],
    collateral: Annotated[
        Path,
        typer.Option(
            help="Intel's collateral: a file (JSON), or a directory of `sealserve collateral` for"
            " several platform models; re-read when it changes."
        ),
    ],
    simulation_anchor: Annotated[
        Path | None,
        typer.Option(
            help="SIMULATION ONLY: believe this root (DER) instead of Intel's, and no real guest."
        ),
    ] = None,
    require_both: Annotated[
        bool,
        typer.Option(
            "--require-both",
            help="Release only what dcap-qvl and the reference verifier both accept.",
        ),
    ] = False,
    ready_fd: Annotated[
        int | None,
        typer.Option(help="Write one JSON line with the address here once it answers.", min=1),
    ] = None,
) -> None:
    """Answer guests until SIGTERM. The log goes to stderr, one JSON object a line.

    Example: sealserve broker serve /var/lib/sealserve/broker --listen 0.0.0.0:7000
    --collateral collateral.json
    """
    # gRPC's core reads these when it is loaded, and offers no other way. Its own lines
    # would stand between the JSON lines of the log, one for each failed handshake. And
    # TLS 1.2 is only spoken with a cipher for RSA keys, which no broker has: what is
    # left is TLS 1.3.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
    from sealserve.address import Address
    from sealserve.broker.process import ServeOptions
    from sealserve.broker.process import serve as run

    address = Address.parse(listen, where="--listen")
    run(
        ServeOptions(
            directory,
            address,
            collateral,
            simulation_anchor=simulation_anchor,
            require_both=require_both,
            ready_fd=ready_fd,
        )
    )


@app.command()
def status(
    directory: Annotated[
        Path | None, typer.Argument(help="The broker's directory.", metavar="[DIR]")
    ] = None,
    admin: AdminOption = None,
    identity: IdentityOption = None,
    broker_identity: BrokerIdentityOption = None,
    json: JsonFlag = False,
) -> None:
    """Show what the broker holds, and whether its audit chain is whole.

    Example: sealserve broker status /var/lib/sealserve/broker
    """
    from sealserve.broker.status_text import text_of
    from sealserve.wire.broker.admin import v1_pb2

    with administration(directory, admin, identity, broker_identity) as perform:
        found = perform(v1_pb2.StatusRequest())
    emit(found, as_json=json, text=text_of(found))


@app.command("admin-identity")
def admin_identity(
    name: Annotated[str, typer.Argument(help="Your name among the broker's principals: alice.")],
    directory: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write.", metavar="DIR")
    ] = Path(),
    days: Annotated[
        int, typer.Option(help="How long the certificate is good.", min=1, max=3650)
    ] = 365,
    json: JsonFlag = False,
) -> None:
    """Make your key for a broker's administration port, on your own machine.

    NAME.pem (0600) stays here. Give NAME.crt to the broker's operator, and tell him
    the fingerprint by a way that you both trust.

    Example: sealserve broker admin-identity alice
    """
    from cryptography import x509

    from sealserve.broker.principals import make_identity, spki_sha256
    from sealserve.files import require_absent, write_atomically

    made = make_identity(name, days=days)
    key, certificate = directory / f"{name}.pem", directory / f"{name}.crt"
    for path in (key, certificate):
        require_absent(path)
    write_atomically(key, made.key_pem + made.certificate_pem, mode=0o600, replace=False)
    write_atomically(certificate, made.certificate_pem, replace=False)
    fingerprint = spki_sha256(x509.load_pem_x509_certificate(made.certificate_pem))
    emit(
        {"identity": str(key), "certificate": str(certificate), "spki_sha256": fingerprint},
        as_json=json,
        text=f"made {key} (secret: it stays here) and {certificate} (for the broker's operator)\n"
        f"  fingerprint  {fingerprint}",
    )


@app.command()
def doctor(
    directory: _Directory,
    collateral: Annotated[
        Path | None,
        typer.Option(help="What the broker serves with: a file or a directory."),
    ] = None,
    early_collateral: Annotated[
        Path | None,
        typer.Option(help="From `collateral fetch --update early`: what Intel puts in force next."),
    ] = None,
    within: Annotated[
        int | None,
        typer.Option(
            metavar="DAYS",
            min=0,
            help="What counts as due; by default each finding has its own notice.",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """List what will lock guests out, and when: the most urgent first.

    Exit status 1 says that something is due; notices never are.

    Example: sealserve broker doctor /var/lib/sealserve/broker --collateral collateral.json
    --within 30
    """
    from datetime import UTC, datetime

    from sealserve.attestation.collateral_store import collateral_at
    from sealserve.broker.operation.doctor import examine

    report = examine(
        directory,
        now=datetime.now(UTC),
        collateral=collateral_at(collateral) if collateral else (),
        early=collateral_at(early_collateral) if early_collateral else (),
    )
    emit(report.to_dict(within), as_json=json, text=report.to_text(within))
    if report.due(within):
        raise typer.Exit(1)
