"""Indices beyond the end, and empty inputs: answered as TensorFlow does, or refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from sealserve.errors import InputError, SealserveError
from sealserve.logs import make_log
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.runtimes.base import Model
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.serving.table import Table
from tests.onnx_files import field
from tests.serving.conftest import check_answer, questions


def load(version: Path) -> Model:
    config = RuntimeConfig(tensorflow="off")
    return ChoosingRuntime(config, make_log(io.StringIO())).load(version)


@pytest.mark.parametrize(("name", "signatures"), [("indexed", 6), ("element", 4)])
def test_trap_index_beyond_the_end_is_refused_as_tensorflow_refuses_it(
    models: Path, name: str, signatures: int
) -> None:
    """Unguarded, GatherND reads foreign memory, and an element that is not there is an old one."""
    model = load(models / "more" / name / "1")
    assert len(model.signatures) == signatures
    plane = Dataplane(Table.of(name, 1, model))
    found = [
        each
        for place in sorted((models / "more").glob("index*"))
        if place.name != "indexed"
        for each in questions(place)
        if each.model == name
    ]
    refused = 0
    for each in found:
        if each.outputs:
            check_answer(plane, each)
            continue
        refused += 1
        with pytest.raises(InputError) as caught:
            plane.predict(ModelSpec(name), each.signature, lambda _, each=each: each.inputs)
        assert caught.value.code == "request.index_range"
    assert signatures <= refused < len(found)


def test_what_cannot_be_guarded_is_refused_at_load(models: Path) -> None:
    with pytest.raises(SealserveError) as caught:
        load(models / "more" / "trap_index" / "1")
    for words in ("scatter: ", "update: ", "unique: ", "segments: "):
        assert words in caught.value.message
    assert caught.value.message.count("at places that depend on the inputs") == 3


def test_an_empty_input_is_not_answered_with_an_earlier_one(models: Path) -> None:
    model = load(models / "small" / "1")
    model.run("serving_default", {"image": np.ones((2, 16, 16, 3), "f4")}, ["logits"])
    with pytest.raises(InputError) as caught:
        model.run("serving_default", {"image": np.ones((0, 16, 16, 3), "f4")}, ["logits"])
    assert caught.value.code == "request.empty_input"


def test_trap_a_request_writes_into_the_input_of_an_earlier_one(models: Path) -> None:
    """OpenVINO does, where nothing is left of the graph and inputs are shared with it."""
    model = load(models / "more" / "exact" / "passed_on" / "1")
    given = [np.full(5, number, "i4") for number in range(20)]
    for array in given:
        assert model.run("x", {"x": array}, ["y"])["y"].tolist() == array.tolist()
    assert [array.tolist() for array in given] == [[number] * 5 for number in range(20)]


def test_an_elementwise_signature_takes_an_empty_input(models: Path) -> None:
    model = load(models / "affine" / "1")
    outputs = model.run("serving_default", {"x": np.zeros((0,), "f4")}, ["y"])
    assert outputs["y"].shape == (0,)


def test_in_onnx_a_negative_index_counts_from_the_end(tmp_path: Path) -> None:
    table = field(1, 3) + field(2, 1) + field(8, b"t") + field(9, np.float32([1, 2, 3]).tobytes())
    node = field(1, b"t") + field(1, b"i") + field(2, b"y") + field(4, b"Gather")
    size = field(2, field(1, field(2, b"n")))

    def value(name: bytes, kind: int) -> bytes:
        return field(1, name) + field(2, field(1, field(1, kind) + size))

    graph = field(1, node) + field(2, b"g") + field(5, table)
    graph += field(11, value(b"i", 6)) + field(12, value(b"y", 1))
    model = field(1, 8) + field(7, graph) + field(8, field(2, 17))
    (tmp_path / "model.onnx").write_bytes(model)
    loaded = load(tmp_path)
    answer = loaded.run("serving_default", {"i": np.array([-1, 0, -3], "i4")}, ["y"])
    assert answer["y"].tolist() == [3, 1, 1]
    for beyond in (-4, 3):
        with pytest.raises(InputError, match="beyond the end"):
            loaded.run("serving_default", {"i": np.array([beyond], "i4")}, ["y"])
