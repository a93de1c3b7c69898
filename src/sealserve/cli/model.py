"""``sealserve model``: known models, downloads, and import as servables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealserve.cli import console
from sealserve.cli.model_signature import keygen, sign, verify

app = typer.Typer(
    help="Get models and make them servable, before they are sealed.", no_args_is_help=True
)

_TensorsHelp = "separated by commas, each as node, node:port or key=node:port"
_TensorFlow = Annotated[
    str,
    typer.Option(
        "--tensorflow-runtime", help="auto, off, or the path of a Python that has TensorFlow."
    ),
]
_KnownAnswers = Annotated[
    Path | None,
    typer.Option(
        "--check-against",
        help="Known answers: .npz (inputs/KEY, outputs/KEY) or TFRecord of PredictionLog.",
        show_default="none",
    ),
]
_Tolerance = Annotated[
    float, typer.Option(min=0, help="What numbers may differ by, absolutely and relatively.")
]


@app.command("list")
def list_models(as_json: console.JsonFlag = False) -> None:
    """List the models that sealserve knows by name.

    Example: sealserve model list
    """
    from sealserve.model.catalogue import CATALOGUE, to_dict

    entries = [to_dict(entry) for entry in CATALOGUE]
    text = "\n\n".join(
        f"{entry['name']}\n  {entry['summary']}\n  from     {entry['source']}\n"
        f"  digest   {entry['digest']}\n  licence  {entry['licence']}\n"
        f"  get it   {entry['command']}"
        for entry in entries
    )
    console.emit({"models": entries}, as_json=as_json, text=text)


@app.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(help="A published model of `sealserve model list`.")],
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Where to put the file.", show_default="the data directory"),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="The digest the file must have; checked before it is kept.")
    ] = None,
    as_json: console.JsonFlag = False,
) -> None:
    """Download a published model; a broken download goes on where it stopped.

    Without --sha256 the digest of the first fetch is recorded in your data
    directory, and every later fetch must have the same.

    Example: sealserve model fetch resnet50-v15-fp32 --dir models
    """
    from sealserve.model.catalogue import published
    from sealserve.model.fetch import DigestRecord, data_directory, fetch

    entry = published(name)
    target = (directory or data_directory() / "models") / entry.url.rpartition("/")[2]
    with console.byte_progress() as bar:
        task = bar.add_task(entry.name, total=None)
        fetched = fetch(
            entry.url,
            target,
            record=DigestRecord(data_directory() / "fetched"),
            sha256=sha256 or entry.sha256,
            max_bytes=entry.max_bytes,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.emit(
        fetched.to_dict(),
        as_json=as_json,
        text=f"{fetched.path}: {fetched.size} bytes, "
        f"{'downloaded' if fetched.downloaded else 'was here already'}\n"
        f"sha256 {fetched.sha256}, checked against {fetched.checked_against}",
    )


@app.command("build")
def build_model(
    name: Annotated[str, typer.Argument(help="A model made here, of `sealserve model list`.")],
    out: Annotated[Path, typer.Option(help="The frozen graph to write (.pb); must not exist.")],
    as_json: console.JsonFlag = False,
) -> None:
    """Make a known model on this machine, as a frozen TensorFlow graph.

    Example: sealserve model build efficientnet-lite0 --out efficientnet-lite0.pb
    """
    from sealserve.files import write_atomically
    from sealserve.model.catalogue import built

    entry = built(name)
    with console.step_progress() as bar:
        bar.add_task(f"building {entry.name}")
        content = entry.build().SerializeToString(deterministic=True)
        write_atomically(out, content, replace=False)
    console.emit(
        {"name": entry.name, "path": str(out), "size": len(content), "summary": entry.summary},
        as_json=as_json,
        text=f"{out}: {len(content)} bytes\n{entry.summary}",
    )


@app.command("import")
def import_source(
    source: Annotated[
        Path,
        typer.Argument(help="A SavedModel directory, frozen graph (.pb), .onnx, .keras or .h5."),
    ],
    out: Annotated[Path, typer.Option(help="The directory that holds all models.")],
    name: Annotated[str, typer.Option(help="The name clients will use.")],
    inputs: Annotated[
        str, typer.Option(help=f"Placeholders to feed, {_TensorsHelp}.", show_default="found")
    ] = "",
    outputs: Annotated[
        str, typer.Option(help=f"Results, {_TensorsHelp}.", show_default="the graph's ends")
    ] = "",
    version: Annotated[int, typer.Option(help="The version; a served one never changes.")] = 1,
    known: _KnownAnswers = None,
    tolerance: _Tolerance = 1e-4,
    tensorflow: _TensorFlow = "auto",
    as_json: console.JsonFlag = False,
) -> None:
    """Turn a model into OUT/NAME/VERSION, which servers load.

    Needs no TensorFlow, but for Keras files. A frozen graph is cut to what its outputs
    need and tried in the runtime that will serve it; a SavedModel is checked and copied; an
    ONNX model is read by the runtime and copied with its external data; a Keras file is
    loaded in safe mode by the Python that has TensorFlow, and exported.

    Example: sealserve model import resnet50.pb --out models --name resnet50-v15-fp32
    --inputs input --outputs predict
    """
    from sealserve.model.importer import import_model
    from sealserve.serving.config import RuntimeConfig
    from sealserve.serving.runtimes.tensorflow import find_interpreter

    config = RuntimeConfig(tensorflow=tensorflow)
    compared = [0]

    def check(directory: Path) -> None:
        if known:
            from sealserve.serving.checking import check_answers

            compared[0] = check_answers(directory, config, known, tolerance)

    with console.step_progress() as bar:
        bar.add_task(f"importing {name}")
        imported = import_model(
            source,
            out,
            name=name,
            version=version,
            inputs=_split(inputs),
            outputs=_split(outputs),
            tensorflow=find_interpreter(config)[0],
            check=check,
        )
    lines = [str(imported.path), *map(str, imported.signatures), *imported.notes]
    if known:
        lines.append(_compared(compared[0], tolerance))
    console.emit(
        imported.to_dict() | {"answers_compared": compared[0]},
        as_json=as_json,
        text="\n".join(lines),
    )


def _compared(count: int, tolerance: float) -> str:
    return f"{count} known answer{'s' if count != 1 else ''} given, to {tolerance:g}"


@app.command("config")
def write_config(
    tree: Annotated[Path, typer.Argument(help="What will be sealed: holds models/NAME/VERSION.")],
    as_json: console.JsonFlag = False,
) -> None:
    """Write TREE/models.config, which lists every model below TREE/models.

    Example: sealserve model config tree
    """
    from sealserve.model.config_file import CONFIG_NAME, write_config

    names = write_config(tree)
    console.emit(
        {"path": str(tree / CONFIG_NAME), "models": list(names)},
        as_json=as_json,
        text=f"{tree / CONFIG_NAME}: {', '.join(names)}",
    )


@app.command("show")
def show_model(
    path: Annotated[
        Path,
        typer.Argument(
            help="A version directory, a base path (its newest version), a frozen graph (.pb) "
            "or an ONNX file."
        ),
    ],
    as_json: console.JsonFlag = False,
) -> None:
    """Print what a model takes and gives.

    Example: sealserve model show models/resnet50-v15-fp32
    """
    from sealserve.model.describe import describe
    from sealserve.serving.versions import newest_version

    path = newest_version(path) if path.is_dir() else path
    signatures = describe(path)
    console.emit(
        {"path": str(path), "signatures": [signature.to_dict() for signature in signatures]},
        as_json=as_json,
        text="\n".join(map(str, signatures)),
    )


def _split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


@app.command("check")
def check_model(
    directory: Annotated[
        Path, typer.Argument(help="A version directory, or a base path: its newest version.")
    ],
    tags: Annotated[
        str, typer.Option("--saved-model-tags", help="Tags of the meta graph.")
    ] = "serve",
    known: _KnownAnswers = None,
    tolerance: _Tolerance = 1e-4,
    tensorflow: _TensorFlow = "auto",
    batching: Annotated[
        bool, typer.Option("--enable-batching", help="As the server runs it with that flag.")
    ] = False,
    as_json: console.JsonFlag = False,
) -> None:
    """Say which runtime will serve each signature of a model, how, and why.

    The model is loaded as the server would load it, and its rows are compared to
    see whether requests may be batched. The exit status is 0 only if every
    signature is served, and gives the known answers of --check-against.

    Example: sealserve model check models/resnet50-v15-fp32
    """
    from sealserve.errors import Refused
    from sealserve.serving.checking import check, check_answers
    from sealserve.serving.config import RuntimeConfig
    from sealserve.serving.versions import newest_version

    config = RuntimeConfig(tags=tuple(tags.split(",")), tensorflow=tensorflow, throughput=batching)
    version = newest_version(directory)
    checked = check(version, config)
    lines = [str(each) for each in checked]
    compared = check_answers(version, config, known, tolerance) if known else 0
    if known:
        lines.append(_compared(compared, tolerance))
    console.emit(
        {
            "directory": str(version),
            "signatures": [each.to_dict() for each in checked],
            "answers_compared": compared,
        },
        as_json=as_json,
        text="\n".join(lines) or "the model has no signature",
    )
    left = [each.choice.signature for each in checked if each.choice.runtime is None]
    if left or not checked:
        raise Refused(
            "model.not_servable",
            f"not every signature can be served: {', '.join(left) or 'there is none'}",
            where=str(version),
            hint="docs/model-directories.md says what can be",
        )


app.command()(keygen)
app.command()(sign)
app.command()(verify)
