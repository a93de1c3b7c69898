"""The dataplane by itself: what is put to a model when a request leaves something out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sealserve.errors import InputError
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.table import Table
from sealserve.wire.tensors import Array, to_proto
from tests.serving.fakes import FakeModel


def plane_with_default(default: Array) -> Dataplane:
    model = FakeModel(Path("m/1"))
    model.definitions["serving_default"].defaults["x"].CopyFrom(to_proto(default))
    return Dataplane(Table.of("m", 1, model))


def test_an_input_with_a_default_may_be_left_out_as_in_the_original() -> None:
    """TensorFlow writes what a function has as defaults into the signature."""
    plane = plane_with_default(np.array([5.0, 6.0], "f4"))
    left_out = plane.predict(ModelSpec("m"), "", lambda _: {})
    assert left_out.outputs["y"].tolist() == [6.0, 7.0]
    given = plane.predict(ModelSpec("m"), "", lambda _: {"x": np.array([1.0], "f4")})
    assert given.outputs["y"].tolist() == [2.0]


def test_a_default_is_checked_like_any_input() -> None:
    plane = plane_with_default(np.array([[5.0]], "f4"))
    with pytest.raises(InputError) as caught:
        plane.predict(ModelSpec("m"), "", lambda _: {})
    assert caught.value.code == "request.shape_mismatch"


def test_another_input_in_the_place_of_one_with_a_default_is_refused() -> None:
    plane = plane_with_default(np.array([5.0], "f4"))
    with pytest.raises(InputError, match="Sent extra"):
        plane.predict(ModelSpec("m"), "", lambda _: {"z": np.array([1.0], "f4")})
