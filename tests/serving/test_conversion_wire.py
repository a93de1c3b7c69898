"""What the process that converts sends is what would be had here; and none of it is trusted."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.errors import InputError, SealserveError
from sealserve.logs import make_log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.gentle import gentle
from sealserve.serving.runtimes import conversion_wire as wire
from sealserve.serving.runtimes.base import Model
from sealserve.serving.runtimes.conversion import Conversion, Converted, NotConverted, Reading
from sealserve.serving.runtimes.converting import Converters
from sealserve.serving.runtimes.graphs import Graph
from sealserve.serving.runtimes.openvino import CORE, OpenVinoRuntime
from tests.onnx_files import GIVEN, onnx_bytes
from tests.serving.conftest import questions
from tests.soak import SOAK, times

READING = Reading()
# One that is refused in part, one behind a parser, one for any rank, one with guards.
FEW = ("mixed", "examples", "affine", "embedding")[: times(4, 2)]
# A graph as it is told, before what it computes follows in a file.
GRAPH = (
    '{"key": "k", "keeps_state": false, "where": "", "cut": null, "inputs": {}, "outputs": {}, '
    '"finite": [], "signature": {"name": "k", "inputs": {}, "outputs": {}, "method_name": "", '
    '"elementwise": false}, "computes": {"name": "k", "inputs": {}, "outputs": {}, '
    '"method_name": "", "elementwise": false}}'
)


def runtime() -> OpenVinoRuntime:
    return OpenVinoRuntime(RuntimeConfig(), make_log(io.StringIO()))


def versions_of(models: Path) -> list[Path]:
    """Those of the models that the tests' server has; `make soak` takes all that there are."""
    below = "**/" if SOAK else "*/1/"
    names = ("saved_model.pb", "model.tflite")
    return sorted(file.parent for name in names for file in models.glob(below + name))


def told(model: Model) -> dict[str, Any]:
    """All that is known of a model but its numbers."""
    return {
        "signatures": model.signatures,
        "definitions": dict(model.definitions),
        "refused": {key: (type(e), e.to_dict()) for key, e in model.refused.items()},
        "tuning": model.tuning,
        "stateful": set(model.stateful),
    }


def answers(model: Model, version: Path) -> list[Any]:
    """To all that the tests ask TensorFlow, and to rows that are made up."""
    name, place = version.parent.name, version.parent.parent
    asked = [(each.signature, each.inputs) for each in questions(place) if each.model == name]
    for key in model.signatures:
        made = model.made_up(key, 0)
        asked += [(key, dict(made))] if made is not None else []
    found: list[Any] = []
    for key, inputs in asked:
        if key not in model.signatures:
            continue
        try:
            found.append(model.run(key, inputs, list(model.signatures[key].outputs)))
        except SealserveError as error:
            found.append(error.to_dict())
    return found


def same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            np.testing.assert_array_equal(value, second[key])


class ThroughTheWire(OpenVinoRuntime):
    """In this process, but by way of what is sent from the other one."""

    def _converted(self, path: Path) -> contextlib.AbstractContextManager[Conversion]:
        with super()._converted(path) as conversion:
            return contextlib.nullcontext(
                dataclasses.replace(
                    conversion,
                    definitions=wire.definitions_of(
                        again(wire.of_definitions(conversion.definitions))
                    ),
                    signatures=(self._sent(each) for each in conversion.signatures),
                )
            )

    def _sent(self, each: Converted | NotConverted) -> Converted | NotConverted:
        with wire.memory_files(2) as files:
            return wire.read_outcome(CORE, again(wire.write_outcome(each, files)), files)


def again(header: Any) -> Any:
    return json.loads(json.dumps(header))


def test_no_model_can_tell_which_way_it_came(models: Path) -> None:
    """The same signatures, reasons and settings, and the same numbers to the last bit."""
    here, sent = runtime(), ThroughTheWire(RuntimeConfig(), make_log(io.StringIO()))
    served = refused = asked = 0
    for path in versions_of(models):
        plain = loaded_or_refused(here, path)
        other = loaded_or_refused(sent, path)
        if isinstance(plain, SealserveError) or isinstance(other, SealserveError):
            assert isinstance(plain, SealserveError)
            assert isinstance(other, type(plain))
            assert other.to_dict() == plain.to_dict()
            refused += 1
            continue
        assert told(other) == told(plain), path
        found = answers(plain, path)
        same(found, answers(other, path))
        served += len(plain.signatures)
        refused += len(plain.refused)
        asked += len(found)
    assert min(served, refused, asked) > 10, (served, refused, asked)


def loaded_or_refused(loader: OpenVinoRuntime, path: Path) -> Model | SealserveError:
    try:
        return loader.load(path)
    except SealserveError as error:
        return error


@pytest.mark.parametrize("name", FEW)
def test_from_the_other_process_comes_the_same(models: Path, name: str) -> None:
    loader = runtime()
    plain = loader.load(models / name / "1")
    with gentle():
        aside = loader.load(models / name / "1")
    assert told(aside) == told(plain)
    same(answers(aside, models / name / "1"), answers(plain, models / name / "1"))


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "a,b",
        "a\\,b",
        "<\"&'>",
        "a\nb\t",
        "\x01",
        "\u00e9\U0001f600",
        " a",
        "\ufffe",
        "a:0",
        "\0",
    ],
)
def test_names_come_as_they_are(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(input_name=name.encode()))
    sent = ThroughTheWire(RuntimeConfig(), make_log(io.StringIO()))
    plain, other = loaded_or_refused(runtime(), tmp_path), loaded_or_refused(sent, tmp_path)
    if name == "\0":
        assert isinstance(plain, InputError)
        assert isinstance(other, InputError)
        assert other.to_dict() == plain.to_dict()
        return
    assert isinstance(plain, Model)
    assert isinstance(other, Model)
    assert told(other) == told(plain)
    key = name.removesuffix(":0")
    answer = other.run("serving_default", {key: GIVEN}, ["y"])
    same([answer], [plain.run("serving_default", {key: GIVEN}, ["y"])])


def test_weights_of_half_precision_stay_so(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes())
    graph = ov.Core().read_model(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").unlink()
    ov.save_model(graph, tmp_path / "model.xml", compress_to_fp16=True)
    sent = ThroughTheWire(RuntimeConfig(), make_log(io.StringIO()))
    plain, other = runtime().load(tmp_path), sent.load(tmp_path)
    assert told(other) == told(plain)
    asked = ("serving_default", {"x": GIVEN / 3}, ["y"])
    same([other.run(*asked)], [plain.run(*asked)])


def test_all_that_is_known_of_a_graph_is_sent(models: Path) -> None:
    """Whoever adds to these sends it too."""
    with Converters(ov.Core()).convert(models / "embedding" / "1", READING) as conversion:
        each = next(conversion.signatures)
    assert isinstance(each, Converted)
    assert {field.name for field in dataclasses.fields(Converted)} == {
        "signature", "graph", "cut", "where", "keeps_state",
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(Graph)} == {
        "signature", "graph", "inputs", "outputs", "finite", "by_values",
    }  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / "saved_model.pb").write_bytes(b"\xff" * 100),
        lambda place: (place / "variables" / "variables.index").write_bytes(b"\xff" * 100),
        lambda place: (place / "saved_model.pb").unlink(),
    ],
)
def test_errors_are_the_same_both_ways(models: Path, tmp_path: Path, damage: Any) -> None:
    place = tmp_path / "1"
    shutil.copytree(models / "small" / "1", place)
    damage(place)
    loader = runtime()
    with pytest.raises(SealserveError) as here:
        loader.load(place)
    with gentle(), pytest.raises(SealserveError) as aside:
        loader.load(place)
    assert type(aside.value) is type(here.value)
    assert aside.value.to_dict() == here.value.to_dict()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*json.loads(GRAPH), "error"]), JSON))
def test_no_header_is_trusted(header: dict[str, Any]) -> None:
    for read in (
        lambda: wire.read_outcome(CORE, json.loads(GRAPH) | header, (0, 0)),
        lambda: wire.definitions_of(header),
        lambda: wire.error_of(header),
    ):
        with contextlib.suppress(wire.Malformed):
            read()


@given(st.binary(max_size=60))
def test_no_bytes_are_trusted(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(raw)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(wire.Malformed, EOFError):
            wire.receive(ours, 5)
