"""From the files of a version to graphs that may be compiled: everything but compiling them.

Rules this module keeps:

* A signature comes out converted, with every proof made and every guard added, or refused
  with the reason; one that is refused leaves the others.
* Nothing here knows of a device, of flags of the server, or of models that are loaded, so
  that it may run in any process.
* One signature is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import openvino as ov

from sealserve.errors import SealserveError, Unavailable
from sealserve.serving.runtimes.base import Signature
from sealserve.serving.runtimes.checkpoint import check_variables
from sealserve.serving.runtimes.exactness import inexact_operations
from sealserve.serving.runtimes.examples import ExampleCut, cut_examples
from sealserve.serving.runtimes.finite import needing_finite
from sealserve.serving.runtimes.graphs import Graph, of_signature
from sealserve.serving.runtimes.guards import add_guards, unguarded
from sealserve.serving.runtimes.model_files import definition_of, find_file, read_file
from sealserve.serving.runtimes.rewrites import misread_branches, rewrite
from sealserve.serving.runtimes.saved_model import operations_behind, read_meta_graph, stateful
from sealserve.serving.runtimes.sizes import by_values
from sealserve.wire.graphs import spell_out_scalars
from sealserve.wire.tensorflow import graph_pb2

__all__ = ["Conversion", "Converted", "NotConverted", "Reading", "convert", "convert_ranks"]

# Signatures that are a SavedModel's own plumbing, not for clients.
_INTERNAL_PREFIX = "__saved_model_"


@dataclass(frozen=True)
class Reading:
    """How a version directory is read.

    Attributes:
        tags: of the SavedModel's meta graph.
        prefer_lite: read a TensorFlow Lite file before a SavedModel.
    """

    tags: tuple[str, ...] = ("serve",)
    prefer_lite: bool = False


@dataclass(frozen=True)
class Converted:
    """A signature that may be compiled.

    Attributes:
        signature: what clients call; ``elementwise`` if it may be converted for other ranks.
        graph: what computes it, or what is behind ``cut``.
        cut: how serialized examples become the graph's inputs, where clients send those.
        where: the place to name in errors.
        keeps_state: something that the signature computes keeps state.
    """

    signature: Signature
    graph: Graph
    cut: ExampleCut | None
    where: str
    keeps_state: bool = False

    @property
    def key(self) -> str:
        """The signature's."""
        return self.signature.name


@dataclass(frozen=True)
class NotConverted:
    """A signature that OpenVINO will not serve.

    Attributes:
        key: the signature's.
        error: why.
        keeps_state: something that the signature computes keeps state.
    """

    key: str
    error: SealserveError
    keeps_state: bool


@dataclass(frozen=True)
class Conversion:
    """A version directory under way.

    Attributes:
        definitions: every SignatureDef of the model.
        is_file: the model is a file with one signature, whose refusal is the model's.
        signatures: what became of each; converted when it is asked for.
    """

    definitions: Mapping[str, graph_pb2.SignatureDef]
    is_file: bool
    signatures: Iterator[Converted | NotConverted]


def convert(core: ov.Core, path: Path, reading: Reading) -> Conversion:
    """Begin to convert a version directory.

    Raises:
        InputError, Unavailable: there is no model to look at.
    """
    file = find_file(path, prefer_lite=reading.prefer_lite)
    if file is not None:
        graph = read_file(core, file)
        definitions = {graph.signature.name: definition_of(graph)}
        return Conversion(definitions, True, _of_file(graph, file))
    meta = read_meta_graph(path, reading.tags)
    check_variables(path)
    spell_out_scalars(meta.graph_def)
    # Copies: a message inside another keeps all of it in memory, weights included.
    definitions = {
        key: graph_pb2.SignatureDef.FromString(wire.SerializeToString())
        for key, wire in meta.signature_def.items()
    }
    return Conversion(definitions, False, _of_saved_model(path, meta))


def convert_ranks(
    core: ov.Core, path: Path, reading: Reading, key: str, ranks: Mapping[str, int]
) -> Converted:
    """Convert an elementwise signature anew for inputs of these ranks, with every proof.

    Raises:
        InputError, Unavailable: it cannot be converted for them.
    """
    file = find_file(path, prefer_lite=reading.prefer_lite)
    if file is not None:
        graph = read_file(core, file, ranks=ranks)
        where = f"{file}, ranks {dict(ranks)}"
        return _proved(graph.signature, graph, where, from_the_end=True)
    meta = read_meta_graph(path, reading.tags)
    spell_out_scalars(meta.graph_def)
    graph = of_signature(path, meta, key, ranks=ranks)
    return _proved(graph.signature, graph, f"{path}, signature {key!r}, ranks {dict(ranks)}")


def _of_file(graph: Graph, file: Path) -> Iterator[Converted | NotConverted]:
    each: Converted | NotConverted
    try:
        each = _proved(graph.signature, graph, str(file), from_the_end=True)
    except SealserveError as error:
        each = NotConverted(graph.signature.name, error, keeps_state=False)
    yield each


def _of_saved_model(path: Path, meta: graph_pb2.MetaGraphDef) -> Iterator[Converted | NotConverted]:
    for key in sorted(meta.signature_def):
        if key.startswith(_INTERNAL_PREFIX):
            continue
        kept = bool(stateful(operations_behind(meta.graph_def, meta.signature_def[key])))
        each: Converted | NotConverted
        try:
            each = replace(_of_signature(path, meta, key), keeps_state=kept)
        except SealserveError as error:
            each = NotConverted(key, error, kept)
        yield each
        del each  # not while the next one is made


def _of_signature(path: Path, meta: graph_pb2.MetaGraphDef, key: str) -> Converted:
    where = f"{path}, signature {key!r}"
    stated = Signature.from_wire(key, meta.signature_def[key])
    cut = cut_examples(meta, meta.signature_def[key])
    if cut is not None:
        return _proved(stated, of_signature(path, meta, key, cut.wire), where, cut)
    graph = of_signature(path, meta, key)
    return _proved(replace(stated, elementwise=graph.signature.elementwise), graph, where)


def _proved(
    signature: Signature,
    graph: Graph,
    where: str,
    cut: ExampleCut | None = None,
    *,
    from_the_end: bool = False,
) -> Converted:
    # Only a file counts from the end, and only a SavedModel says how TensorFlow rounds.
    inexact = rewrite(graph.graph) + misread_branches(graph.graph)
    inexact += inexact_operations(graph.graph, as_tensorflow=not from_the_end)
    inexact += unguarded(graph.graph)
    if inexact:
        raise Unavailable(
            "servable.inexact",
            f"OpenVINO would not compute this signature exactly: {', '.join(inexact)}",
            where=where,
            hint="compute in float32 or int32, and pass 64-bit integers on as they are",
        )
    finite = needing_finite(graph.graph)
    keys = (key for key, name in graph.inputs.items() if finite & graph.graph.input(name).names)
    graph = replace(graph, finite=tuple(keys), by_values=by_values(graph.graph))
    add_guards(graph.graph, from_the_end=from_the_end)
    return Converted(signature, graph, cut, where)
