"""``sealserve collateral``: fetch, keep and carry what Intel signs about platforms."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sealserve.cli import console
from sealserve.cli.evidence import AnchorOption

if TYPE_CHECKING:
    from sealserve.attestation.collateral import Collateral
    from sealserve.attestation.collateral_store import CollateralStore

app = typer.Typer(
    help="Fetch, keep and carry collateral: what Intel signs so that quotes can be judged.",
    no_args_is_help=True,
)

StoreOption = Annotated[
    Path | None,
    typer.Option(
        help="Directory of the store; by default the user's data directory.", file_okay=False
    ),
]


@app.callback()
def group() -> None:
    """Fetch, keep and carry collateral: what Intel signs so that quotes can be judged."""


@app.command()
def fetch(
    quote: Annotated[
        Path | None,
        typer.Option(help="A quote of the platform: it names FMSPC and CA.", dir_okay=False),
    ] = None,
    fmspc: Annotated[
        str | None, typer.Option(metavar="HEX", help="The platform model: 12 hexadecimal digits.")
    ] = None,
    ca: Annotated[
        Literal["platform", "processor"],
        typer.Option(help="With --fmspc: who issued the platform's PCK certificate."),
    ] = "platform",
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A PCCS to ask instead of Intel's PCS, with or without /sgx/certification/v4.",
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(help="CA certificates (PEM) of a PCCS of your own.", dir_okay=False),
    ] = None,
    store: StoreOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write this file and leave the store alone.", dir_okay=False
        ),
    ] = None,
    update: Annotated[
        Literal["standard", "early"],
        typer.Option(help="'early' is what will be in force after Intel's next TCB change."),
    ] = "standard",
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="For everything together.", min=1, max=600)
    ] = 60,
    anchor: AnchorOption = None,
    as_json: console.JsonFlag = False,
) -> None:
    """Get a platform's collateral, check it, and keep it.

    Nobody but Intel (api.trustedservices.intel.com) is asked unless --url names
    him; a PCCS learns which platform models you use, and can hold back what is
    new, no more. Known ones: your own, https://HOST:8081; Azure's
    https://global.acccache.azure.net; Alibaba Cloud's
    https://sgx-dcap-server.cn-beijing.aliyuncs.com (or your region's).

    What is older than what is held is refused. `--update early -o FILE` is for
    `policy explain --early-collateral FILE`: will this platform be locked out?

    Example: sealserve collateral fetch --quote quote.bin
    """
    from sealserve.attestation.collateral_fetch import (
        INTEL_PCS_URL,
        Source,
        platform_of_quote,
    )
    from sealserve.attestation.collateral_fetch import fetch as ask
    from sealserve.attestation.collateral_store import platform_model
    from sealserve.errors import InputError
    from sealserve.tdx.quote import load_quote

    if (quote is None) == (fmspc is None):
        raise InputError(
            "collateral.which_platform",
            "give either a quote of the platform or its FMSPC",
            where="--quote, --fmspc",
        )
    if quote is not None:
        model, authority = platform_of_quote(load_quote(quote))
    else:
        model, authority = platform_model(fmspc or ""), str(ca)
    found = ask(
        Source.parse(url or INTEL_PCS_URL, ca_file=ca_file),
        model,
        authority,
        update=update,
        deadline_seconds=timeout,
    )
    now = datetime.now(UTC)
    path = _keep_file(found, output, anchor, now) if output else _keep(found, store, anchor, now)
    console.emit(
        {"file": str(path), **_facts(found, now)},
        as_json=as_json,
        text=f"{path}\n{_text(found, now)}",
    )


@app.command()
def show(
    store: StoreOption = None,
    file: Annotated[
        Path | None, typer.Option(help="Show this one file instead of a store.", dir_okay=False)
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit status 1 if anything here has ended or ends soon."),
    ] = False,
    as_json: console.JsonFlag = False,
) -> None:
    """List what is held, until when each part is good, and what ends soon.

    Warnings begin 14 days before an end, and again at 7 and 1.

    Example: sealserve collateral show --check
    """
    from sealserve.attestation.collateral import Collateral

    now = datetime.now(UTC)
    held = (Collateral.load(file),) if file else _store(store, None).entries()
    facts = [_facts(each, now) for each in held]
    text = "\n\n".join(_text(each, now) for each in held) or "nothing is held"
    console.emit({"collateral": facts}, as_json=as_json, text=text)
    if check and (not held or any(each["warnings"] for each in facts)):
        raise typer.Exit(1)


@app.command()
def export(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The bundle to write.", dir_okay=False)
    ],
    store: StoreOption = None,
    as_json: console.JsonFlag = False,
) -> None:
    """Write all that is held into one file, for a machine without network.

    The bundle holds statements that Intel signed: it needs no protection on its way.

    Example: sealserve collateral export -o bundle.json
    """
    from sealserve.attestation.collateral_store import encode_bundle
    from sealserve.errors import Unavailable
    from sealserve.files import write_atomically

    directory = _store_directory(store)
    held = _store(store, None).entries()
    if not held:
        raise Unavailable(
            "collateral.store_empty",
            "there is nothing to export",
            where=str(directory),
            hint="`sealserve collateral fetch` fills a store",
        )
    write_atomically(output, encode_bundle(held), replace=False)
    models = [each.fmspc for each in held]
    console.emit(
        {"bundle": str(output), "fmspc": models},
        as_json=as_json,
        text=f"{output}: {len(models)} platform model(s): {', '.join(models)}",
    )


@app.command(name="import")
def import_bundle(
    bundle: Annotated[
        Path, typer.Argument(help="A bundle, or one collateral file.", dir_okay=False)
    ],
    store: StoreOption = None,
    anchor: AnchorOption = None,
    as_json: console.JsonFlag = False,
) -> None:
    """Keep what a bundle holds, after the same checks as a fetch: all of it or nothing.

    Example: sealserve collateral import bundle.json
    """
    from sealserve.attestation.collateral_store import MAX_BUNDLE_BYTES, decode_bundle
    from sealserve.attestation.verifier import Anchor
    from sealserve.files import read_limited

    raw = read_limited(bundle, MAX_BUNDLE_BYTES)
    found = decode_bundle(raw)
    now = datetime.now(UTC)
    paths = _store(store, Anchor.load(anchor)).put(*found, now=now)
    console.emit(
        {"files": [str(path) for path in paths], "collateral": [_facts(f, now) for f in found]},
        as_json=as_json,
        text="\n\n".join(f"{p}\n{_text(f, now)}" for p, f in zip(paths, found, strict=True)),
    )


def _keep(found: Collateral, store: Path | None, anchor: Path | None, now: datetime) -> Path:
    from sealserve.attestation.verifier import Anchor

    return _store(store, Anchor.load(anchor)).put(found, now=now)[0]


def _keep_file(found: Collateral, output: Path, anchor: Path | None, now: datetime) -> Path:
    from sealserve.attestation.collateral import Collateral, require_current
    from sealserve.attestation.collateral_check import check_signatures
    from sealserve.attestation.collateral_store import require_not_older
    from sealserve.attestation.verifier import Anchor
    from sealserve.files import write_atomically

    require_current(found, now)
    check_signatures(found, Anchor.load(anchor))
    if output.exists():
        old = Collateral.load(output)
        if old.fmspc == found.fmspc:
            require_not_older(found, old, same_ca=found.ca == old.ca)
    write_atomically(output, found.to_json())
    return output


def _store_directory(store: Path | None) -> Path:
    from sealserve.model.fetch import data_directory

    return store or data_directory() / "collateral"


def _store(store: Path | None, anchor: Any) -> CollateralStore:
    """The store; without an anchor, for reading only."""
    from sealserve.attestation.collateral_store import CollateralStore
    from sealserve.attestation.verifier import INTEL

    return CollateralStore(_store_directory(store), anchor or INTEL)


def _warnings(collateral: Collateral, now: datetime) -> list[str]:
    from sealserve.attestation.collateral import ending_soon, require_current
    from sealserve.errors import Refused

    try:
        require_current(collateral, now)
    except Refused as error:
        return [error.message]
    parts = {each.part: each for each in sorted(collateral.deadlines, key=lambda d: d.ends)}
    found = (ending_soon(each.ends, now, of=each.part) for each in parts.values())
    return [warning for warning in found if warning]


def _facts(collateral: Collateral, now: datetime) -> dict[str, Any]:
    return {
        "fmspc": collateral.fmspc,
        "ca": collateral.ca,
        "simulation": collateral.simulated,
        "evaluation": collateral.evaluation_number,
        "qe_evaluation": collateral.qe_evaluation_number,
        "begins": collateral.begins.isoformat(),
        "ends": collateral.ends.isoformat(),
        "deadlines": [
            {"part": d.part, "begins": d.begins.isoformat(), "ends": d.ends.isoformat()}
            for d in collateral.deadlines
        ],
        "warnings": _warnings(collateral, now),
    }


def _text(collateral: Collateral, now: datetime) -> str:
    loud = "SIMULATION: " if collateral.simulated else ""
    head = (
        f"{loud}platform model {collateral.fmspc} ({collateral.ca} CA), TCB evaluation "
        f"{collateral.evaluation_number}, QE {collateral.qe_evaluation_number}"
    )
    rows = [
        head,
        *(
            f"  {d.part:26} {d.begins:%Y-%m-%d} to {d.ends:%Y-%m-%d}, {(d.ends - now).days} day(s)"
            for d in sorted(collateral.deadlines, key=lambda d: d.ends)
        ),
        *(f"warning: {warning}" for warning in _warnings(collateral, now)),
    ]
    return "\n".join(rows)
