"""Import: a frozen graph, SavedModel, Keras 3 or ONNX model becomes a servable version directory.

``OUT/<name>/<version>/`` is what TensorFlow Serving loads: ``saved_model.pb``,
``variables/`` (empty for a frozen graph, whose weights are constants) and, for
a copied SavedModel, its assets. An ONNX model stays one: ``model.onnx``, its external
data beside it under their own names.

Rules this module keeps:

* A version appears whole or not at all, and is never overwritten: it is made
  in a hidden directory beside its place, flushed, and renamed.
* The graph is cut to what the outputs need, so that what training left behind
  is neither served nor trusted.
* No TensorFlow is needed but for Keras files; the tests compare the result with TensorFlow's own.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sealserve.errors import InputError, Unavailable
from sealserve.files import make_directory, require_absent, sync_path, write_atomically
from sealserve.model import graphdef
from sealserve.model.conversion import check_onnx, infer_outputs
from sealserve.model.describe import describe
from sealserve.model.keras_export import export_keras, is_keras
from sealserve.model.onnx_model import FILE_NAME, copy_onnx
from sealserve.model.signature import (
    PREDICT_METHOD,
    SERVING_TAG,
    Signature,
    TensorSpec,
    parse_saved_model,
    placeholder_specs,
)
from sealserve.provenance import SIGNATURE_NAME
from sealserve.wire.graphs import (
    MAX_GRAPH_BYTES,
    TOO_LARGE_HINT,
    read_graph_file,
    spell_out_scalars,
)
from sealserve.wire.tensorflow import graph_pb2 as pb

__all__ = ["ImportedModel", "import_model"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_VERSION = 2**63 - 1
_MAX_COPY_FILES = 10_000
_MAX_COPY_BYTES = 64 << 30


@dataclass(frozen=True)
class ImportedModel:
    """A model in its place.

    Attributes:
        name: the servable's name.
        version: its version.
        path: the version directory.
        signatures: how to call it.
        rewritten: constants respelled so that every runtime reads them alike
            (`sealserve.wire.graphs`).
        notes: what whoever serves it should know.
    """

    name: str
    version: int
    path: Path
    signatures: tuple[Signature, ...]
    rewritten: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name,
            "version": self.version,
            "path": str(self.path),
            "signatures": [signature.to_dict() for signature in self.signatures],
            "rewritten_constants": self.rewritten,
            "notes": list(self.notes),
        }


def import_model(
    source: Path,
    out: Path,
    *,
    name: str,
    version: int = 1,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    tensorflow: Path | None = None,
    check: Callable[[Path], None] | None = None,
) -> ImportedModel:
    """Make ``out/name/version`` from a model of any kind that is known.

    Args:
        source: a SavedModel directory (copied), an ONNX file (by its suffix ``.onnx``), a
            Keras file (by how it begins), or a binary frozen GraphDef.
        out: the model base; made if it is not there.
        name: letters, digits, ``.``, ``_`` and ``-``; at most 128.
        version: 0 to 2^63 - 1.
        inputs: placeholders of a frozen graph, as ``node``, ``node:0`` or
            ``key=node``; by default those that the outputs depend on.
        outputs: results, written alike; by default the ends of the graph.
        tensorflow: a Python that has TensorFlow, for Keras files.
        check: is shown the finished directory before it appears; what it raises undoes all.

    Raises:
        InputError: ``file.*``, ``model.*``, ``graph.*``, ``savedmodel.*``, ``tensor.*``,
            ``onnx.*``, ``keras.*``.
        Unavailable: ``file.unreadable``, ``file.unwritable``, ``keras.*``.
        ModuleNotFoundError: OpenVINO is not installed (frozen graphs and ONNX only).
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            "model.name_invalid",
            f"{name!r} cannot be a model's name",
            hint="use letters, digits, '.', '_' and '-', at most 128, the first a letter or digit",
        )
    if not 0 <= version <= _MAX_VERSION:
        raise InputError("model.version_invalid", f"{version} cannot be a model's version")
    with _staging(out / name, version) as staging:
        rewritten = 0
        notes: tuple[str, ...] = ()
        if not (source.is_dir() or source.suffix == ".onnx" or is_keras(source)):
            rewritten = _convert_graph(source, staging, inputs, outputs)
        elif inputs or outputs:
            raise InputError(
                "model.signature_fixed",
                "the model brings its own signatures",
                where=str(source),
                hint="give inputs and outputs for frozen graphs only",
            )
        elif source.is_dir():
            rewritten = _copy_saved_model(source, staging)
        elif source.suffix == ".onnx":
            notes = copy_onnx(source, staging).notes()
            check_onnx(staging / FILE_NAME, str(source))
        else:
            rewritten, notes = _convert_keras(source, staging, tensorflow)
        signatures = describe(staging)
        if check is not None:
            check(staging)
    return ImportedModel(name, version, out / name / str(version), signatures, rewritten, notes)


def _convert_keras(
    source: Path, staging: Path, tensorflow: Path | None
) -> tuple[int, tuple[str, ...]]:
    with tempfile.TemporaryDirectory(prefix=".keras.", dir=staging.parent) as workshop:
        exported = Path(workshop).resolve() / "exported"
        by = export_keras(source, exported, tensorflow)
        return _copy_saved_model(exported, staging), (f"exported by {by}",)


def _convert_graph(
    source: Path, staging: Path, inputs: Sequence[str], outputs: Sequence[str]
) -> int:
    where = str(source)
    graph = graphdef.parse_graph(read_graph_file(source), where)
    fetched = [_reference(text, graph, where) for text in outputs or graphdef.sinks(graph)]
    if not fetched:
        raise InputError("graph.no_outputs", "the graph has no result", where=where)
    _check_distinct(fetched, where)
    graph = graphdef.needed_for(graph, [tensor for _, tensor in fetched])
    fed = _fed(graph, [_reference(text, graph, where) for text in inputs], where)
    graphdef.check_frozen(graph, where)
    rewritten = spell_out_scalars(graph)
    frozen = staging / "frozen.pb"
    write_atomically(frozen, graph.SerializeToString(deterministic=True))
    kinds = infer_outputs(
        frozen, [spec.tensor for spec in fed], [tensor for _, tensor in fetched], where
    )
    frozen.unlink()
    results = [
        TensorSpec(key, tensor, data_type, shape)
        for (key, tensor), (data_type, shape) in zip(fetched, kinds, strict=True)
    ]
    signature = Signature("serving_default", PREDICT_METHOD, tuple(fed), tuple(results))
    model = pb.SavedModel(saved_model_schema_version=1)
    meta = model.meta_graphs.add()
    meta.meta_info_def.tags.append(SERVING_TAG)
    meta.graph_def.CopyFrom(graph)
    meta.signature_def[signature.name].CopyFrom(signature.to_proto())
    _write_saved_model(model, staging, where)
    (staging / "variables").mkdir()
    return rewritten


def _reference(text: str, graph: pb.GraphDef, where: str) -> tuple[str, str]:
    """Read ``key=node:port``: the key (by default the node's name) and the tensor."""
    key, _, tensor = text.rpartition("=")
    node, _, port = tensor.partition(":")
    if not node or (port and not (port.isascii() and port.isdecimal() and len(port) < 4)):
        raise InputError(
            "graph.tensor_invalid",
            f"{text!r} does not name a tensor",
            where=where,
            hint="write node, node:port or key=node:port",
        )
    if all(other.name != node for other in graph.node):
        raise InputError(
            "graph.no_such_node",
            f"the results need no node named {node!r}, or the graph has none",
            where=where,
            hint="`sealserve model show` lists the graph's inputs and ends",
        )
    tensor = f"{node}:{int(port or 0)}"
    return key or (tensor if int(port or 0) else node), tensor


def _check_distinct(references: Sequence[tuple[str, str]], where: str) -> None:
    keys = [key for key, _ in references]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(
            "graph.tensor_invalid",
            f"two tensors would be called {twice[0]!r}",
            where=where,
            hint="write key=node:port to give each its own name",
        )


def _fed(graph: pb.GraphDef, wanted: Sequence[tuple[str, str]], where: str) -> list[TensorSpec]:
    found = {spec.tensor: spec for spec in placeholder_specs(graph)}
    if not wanted:
        if not found:
            raise InputError("graph.no_inputs", "the results depend on no input", where=where)
        return list(found.values())
    _check_distinct(wanted, where)
    for _, tensor in wanted:
        if tensor not in found:
            raise InputError(
                "graph.not_a_placeholder", f"{tensor!r} is not a placeholder", where=where
            )
    tensors = [tensor for _, tensor in wanted]
    if missing := [tensor for tensor in found if tensor not in tensors]:
        raise InputError(
            "graph.input_missing",
            f"the results also depend on the placeholder {missing[0]!r}",
            where=where,
            hint="add it to --inputs",
        )
    return [replace(found[tensor], key=key) for key, tensor in wanted]


def _copy_saved_model(source: Path, staging: Path) -> int:
    file = source / "saved_model.pb"
    model = parse_saved_model(read_graph_file(file), str(file))
    rewritten = sum(spell_out_scalars(meta.graph_def) for meta in model.meta_graphs)
    for relative in _regular_files(source):
        target = staging / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / relative, target, follow_symlinks=False)
        except OSError as error:
            raise Unavailable(
                "file.unreadable",
                f"cannot copy the file: {error.strerror}",
                where=str(source / relative),
            ) from error
    if rewritten:
        (staging / "saved_model.pb").unlink()
        # It would not be about this graph.
        (staging / SIGNATURE_NAME).unlink(missing_ok=True)
        _write_saved_model(model, staging, str(file))
    (staging / "variables").mkdir(exist_ok=True)
    return rewritten


def _regular_files(source: Path) -> Iterator[Path]:
    """The files of a SavedModel, each checked before it is followed or read."""
    count = size = 0
    for directory, names, files in os.walk(source):
        for entry in sorted(names + files):
            path = Path(directory, entry)
            status = path.lstat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise InputError(
                    "savedmodel.not_plain",
                    "a SavedModel to import holds plain files and directories only",
                    where=str(path),
                    hint="replace links by what they point to",
                )
            if stat.S_ISDIR(status.st_mode):
                continue
            count, size = count + 1, size + status.st_size
            if count > _MAX_COPY_FILES or size > _MAX_COPY_BYTES:
                raise InputError(
                    "savedmodel.too_large",
                    f"it has more than {_MAX_COPY_FILES} files or {_MAX_COPY_BYTES >> 30} GiB",
                    where=str(source),
                )
            yield path.relative_to(source)


def _write_saved_model(model: pb.SavedModel, staging: Path, where: str) -> None:
    if model.ByteSize() > MAX_GRAPH_BYTES:
        raise InputError(
            "file.too_large",
            "with its signature the graph is too large to write",
            where=where,
            hint=TOO_LARGE_HINT,
        )
    write_atomically(staging / "saved_model.pb", model.SerializeToString(deterministic=True))


@contextmanager
def _staging(base: Path, version: int) -> Iterator[Path]:
    """A hidden directory that becomes ``base/version`` when the body succeeds."""
    final = base / str(version)
    made = [path for path in (base, *base.parents) if not path.exists()]
    staging: Path | None = None
    try:
        make_directory(base)
        # Any directory whose name is that number is this version to a server.
        taken = [path for path in base.iterdir() if _is_version(path.name, version)]
        for path in taken:
            require_absent(path, hint="give another --version; a served version never changes")
        staging = Path(tempfile.mkdtemp(prefix=f".{version}.", dir=base))
        yield staging
        _make_durable(staging)
        staging.rename(final)
    except OSError as error:
        raise Unavailable(
            "file.unwritable", f"cannot write the model: {error.strerror}", where=str(final)
        ) from error
    finally:
        if staging is not None and staging.exists():
            shutil.rmtree(staging)
        for path in made:  # deepest first; what now holds the model stays
            if path.exists() and not any(path.iterdir()):
                path.rmdir()
    sync_path(base)


def _is_version(name: str, version: int) -> bool:
    return name.isascii() and name.isdecimal() and int(name) == version


def _make_durable(root: Path) -> None:
    for directory, _, files in os.walk(root):
        for name in files:
            path = Path(directory, name)
            path.chmod(0o644)
            sync_path(path)
        Path(directory).chmod(0o755)
        sync_path(Path(directory))
