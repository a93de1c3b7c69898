"""What OpenVINO would answer otherwise than TensorFlow is refused; all else is answered alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov
import pytest

from sealserve.errors import InputError, SealserveError
from sealserve.serving.catalog import ModelSpec
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.runtimes.conversion import Converted, Reading, convert
from sealserve.serving.runtimes.guards import GUARD
from sealserve.serving.table import Table
from tests.serving.conftest import Question, check_answer, questions
from tests.serving.test_guards import load

# Numbers of questions: 0 is plain, 1 holds a NaN, 2 an Infinity, 3 and 4 numbers below zero.
_NOT_FINITE: Final = {1, 2}


def refused(models: Path, name: str, allowed: str) -> dict[str, set[int]]:
    """The questions to each signature that are refused; the others' answers are checked."""
    place = models / "more" / "exact"
    model = load(place / name / "1")
    plane = Dataplane(Table.of(name, 1, model))
    codes: dict[tuple[str, int], str] = {}
    for directory in place.glob("asked*"):
        for each in questions(directory):
            if each.model != name:
                continue
            number = int(directory.name.removeprefix("asked"))
            codes[each.signature, number] = code_of(plane, each)
    assert set(codes.values()) <= {"", *allowed.split()}
    return {
        key: {number for (one, number), code in codes.items() if one == key and code}
        for key in model.signatures
    }


def code_of(plane: Dataplane, asked: Question) -> str:
    """The code with which a question is refused; empty if the answer is TensorFlow's."""
    try:
        if asked.outputs:
            check_answer(plane, asked)
        else:
            plane.predict(ModelSpec(asked.model), asked.signature, lambda _: asked.inputs)
            pytest.fail(f"{asked.signature} answers what TensorFlow refuses: {asked.inputs}")
    except InputError as error:
        return error.code
    return ""


def guards(version: Path) -> dict[str, list[str]]:
    """The guards that each signature gets."""
    found = {}
    for each in convert(ov.Core(), version, Reading()).signatures:
        assert isinstance(each, Converted)
        names = (name for port in each.graph.graph.outputs for name in port.get_names())
        found[each.key] = [name for name in names if name.startswith(GUARD)]
    return found


def test_a_nan_is_answered_where_it_is_kept(models: Path) -> None:
    assert refused(models, "keeping", "request.not_finite") == {"all": set()}


def test_trap_a_nan_in_the_inputs_is_lost(models: Path) -> None:
    found = refused(models, "losing", "request.not_finite")
    assert len(found) == 11
    assert set(map(frozenset, found.values())) == {frozenset(_NOT_FINITE)}


def test_trap_a_nan_that_arises_within_is_lost(models: Path) -> None:
    found = refused(models, "born", "request.not_finite")
    assert len(found) == 8
    # Of PLAIN, only where |x| - x is zero a NaN arises by "divide".
    wanted = {key: {*_NOT_FINITE, 3, 4} for key in found} | {"divide": {0, *_NOT_FINITE, 3}}
    wanted["extreme"] = {*_NOT_FINITE, 4}  # all that is looked at is infinite
    assert found == wanted


def test_trap_a_nan_is_made_and_lost_in_a_loop(models: Path) -> None:
    with pytest.raises(SealserveError, match="in which a NaN may arise") as caught:
        load(models / "more" / "exact" / "trap_looped" / "1")
    assert caught.value.code == "servable.inexact"


def test_trap_an_index_in_a_body_is_beyond_the_end(models: Path) -> None:
    """OpenVINO answers with zeros, with memory of others, or ends the process."""
    with pytest.raises(SealserveError) as caught:
        load(models / "more" / "exact" / "trap_within" / "1")
    for key in ("followed", "fixed", "branch", "mapped", "nd", "placed"):
        assert f"{key}: OpenVINO would not compute this signature exactly" in caught.value.message
    assert caught.value.message.count("within Loop") == 5
    assert caught.value.message.count("within If") == 1


def test_trap_a_counter_goes_beyond_what_it_indexes(models: Path) -> None:
    found = refused(models, "counted", "request.index_range request.empty_input")
    assert found == {
        "counted": {1},
        "read": {1, 2},
        "twice": set(),
        "shorter": {3},  # of nothing
        "longer": {0, 1, 2, 3, 4},
        "constant": {1, 3, 4},
    }


def test_what_is_right_of_nothing_is_answered(models: Path) -> None:
    assert refused(models, "right", "request.empty_input") == {"all": set()}


def test_trap_a_tensor_becomes_empty_within(models: Path) -> None:
    """OpenVINO gives the least float, zero, or what lies in memory."""
    found = refused(models, "emptied", "request.empty_input request.index_range")
    assert len(found) == 11
    assert set(map(frozenset, found.values())) == {frozenset((1, 2))}


def test_trap_a_tensor_becomes_empty_in_a_branch(models: Path) -> None:
    with pytest.raises(SealserveError, match="ReduceMax of what may be empty within If"):
        load(models / "more" / "exact" / "trap_shorter" / "1")


def test_trap_a_number_is_beyond_the_small_integer_it_is_cast_to(models: Path) -> None:
    """TensorFlow itself does it one way or another, as the length of the vector has it."""
    found = refused(models, "narrow", "request.value_range")
    assert found == {
        "uint8": {3, 4},
        "int8": {2, 4},
        "uint16": {3, 4},
        "int16": {4},
    }


def test_trap_updates_meet_and_matrices_have_no_inverse(models: Path) -> None:
    """And the product of two vectors, made a scalar, ends OpenVINO's compiler."""
    with pytest.raises(SealserveError) as caught:
        load(models / "more" / "exact" / "trap_others" / "1")
    for words in ("ScatterNDUpdate at the same place twice", "Inverse", "MatMul made a scalar"):
        assert words in caught.value.message


def test_trap_a_half_is_not_rounded(models: Path) -> None:
    with pytest.raises(SealserveError) as caught:
        load(models / "more" / "exact" / "trap_unrounded" / "1")
    for key in ("back", "twice", "compared", "product"):
        assert f"{key}: OpenVINO would not compute this signature exactly" in caught.value.message
    assert caught.value.message.count("on f16") >= 4
    assert refused(models, "rounded", "") == {"once": set(), "largest": set()}


def test_trap_a_transpose_is_moved_past_log_softmax(models: Path) -> None:
    """OpenVINO's own translation goes along another axis then, behind each convolution too."""
    found = refused(models, "along", "")
    assert found == {key: set() for key in ("axis", "turned", "channels", "loop", "masked")}
    assert not any(guards(models / "more" / "exact" / "along" / "1").values())
    assert refused(models, "along_lite", "") == {"serving_default": set()}


def test_trap_the_tail_of_softplus_is_multiplied(models: Path) -> None:
    """OpenVINO's own is 4e-6 of -34, where 2e-15 is right."""
    assert refused(models, "tails", "") == {"softplus": set()}
    assert guards(models / "more" / "exact" / "tails" / "1") == {"softplus": []}


def test_trap_the_largest_in_an_order_of_their_own(models: Path) -> None:
    """Unsorted, OpenVINO gives them by their places, and TensorFlow as its search left them."""
    with pytest.raises(SealserveError, match="TopK that is not sorted"):
        load(models / "more" / "exact" / "trap_unsorted" / "1")


def test_trap_what_is_repeated_is_mixed_up(models: Path) -> None:
    """And an axis is added where another's one element is taken."""
    found = refused(models, "mixed", "")
    assert len(found) == 9


def test_trap_a_transpose_behind_if_reads_what_nobody_wrote(models: Path) -> None:
    """A pool or a convolution brings one; what it answered was zeros, or what lay in memory."""
    with pytest.raises(SealserveError) as caught:
        load(models / "more" / "exact" / "trap_behind_if" / "1")
    for key in ("pooled", "scaled", "convolved"):
        assert f"{key}: OpenVINO would not compute" in caught.value.message
    assert caught.value.message.count("Transpose behind If") == 3


def test_what_makes_no_nan_is_not_watched(models: Path) -> None:
    found = refused(models, "harmless", "request.not_finite")
    assert set(map(frozenset, found.values())) == {frozenset(_NOT_FINITE)}
    watched = guards(models / "more" / "exact" / "harmless" / "1")
    assert {key for key, each in watched.items() if each} == {"masked"}  # by an Infinity


@pytest.mark.parametrize(
    "name", ["small", "loop", "more/kinds/keras_cnn", "more/kinds/lstm", "more/kinds/fft"]
)
def test_ordinary_models_get_no_guards(models: Path, name: str) -> None:
    found = guards(models / name / "1")
    found.pop("words", None)
    indices = f"{GUARD}index."
    assert not [each for names in found.values() for each in names if not each.startswith(indices)]


def test_a_half_that_is_no_number_is_refused_too(models: Path) -> None:
    model = load(models / "types" / "1")
    (given,) = (each.inputs for each in questions(models) if each.model == "types")
    spoilt: dict[str, Any] = {**given, "f16": np.array([np.nan, 1, 2], "f2")}
    answer = model.run("serving_default", spoilt, ["f16"])["f16"]
    np.testing.assert_array_equal(answer, spoilt["f16"] * 2)
