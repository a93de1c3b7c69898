"""Known answers: a model that gives them is taken, and any other is not."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError, SealserveError
from sealserve.logs import make_log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.known_answers import check_against, read_known_answers
from sealserve.serving.runtimes.base import Model
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensors import to_proto
from tests.serving.conftest import questions
from tests.serving.test_warmup import record

GIVEN = np.array([1, 2, 3], "f4")
KNOWN = np.array([5, 8, 11], "f4")  # 3 x + 2


@pytest.fixture(scope="module")
def affine(models: Path) -> Model:
    runtime = ChoosingRuntime(RuntimeConfig(tensorflow="off"), make_log(io.StringIO()))
    return runtime.load(models / "affine" / "1")


def arrays(path: Path, **named: Any) -> Path:
    np.savez(path, **{key.replace("_", "/", 1): value for key, value in named.items()})
    return path


def records(path: Path, *answers: Mapping[str, Any], signature: str = "") -> Path:
    logs = []
    for outputs in answers:
        log = api_pb2.PredictionLog()
        log.predict_log.request.model_spec.signature_name = signature
        log.predict_log.request.inputs["x"].CopyFrom(to_proto(GIVEN))
        for key, array in outputs.items():
            log.predict_log.response.outputs[key].CopyFrom(to_proto(array))
        logs.append(log.SerializeToString())
    path.write_bytes(b"".join(map(record, logs)))
    return path


def test_answers_of_arrays_and_of_records(affine: Model, tmp_path: Path) -> None:
    assert (
        check_against(affine, arrays(tmp_path / "a.npz", inputs_x=GIVEN, outputs_y=KNOWN), 0) == 1
    )
    assert check_against(affine, records(tmp_path / "r", {"y": KNOWN}, {"y": KNOWN}), 0) == 2


def test_the_oracles_answers_are_known_answers(models: Path, tmp_path: Path) -> None:
    runtime = ChoosingRuntime(RuntimeConfig(tensorflow="off"), make_log(io.StringIO()))
    for each in questions(models):
        if each.model in ("affine", "small", "embedding"):
            file = tmp_path / "known.npz"
            named = {f"inputs/{key}": array for key, array in each.inputs.items()}
            named |= {f"outputs/{key}": array for key, array in each.outputs.items()}
            np.savez(file, signature=each.signature, **named)
            assert check_against(runtime.load(models / each.model / "1"), file, 1e-4) == 1


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (KNOWN + np.array([0, 0.01, 0], "f4"), "1 of 3 values differ, by up to 0.01"),
        (np.array([5, 8, np.nan], "f4"), "1 of 3 values differ, by up to nan"),
        (KNOWN.astype("f8"), "of type float32, and float64 is expected"),
        (KNOWN[:2], "the shape [3], and [2] is expected"),
        (np.array([b"5", b"8", b"11"]), "of type float32, and object is expected"),
    ],
)
def test_another_answer_is_refused_without_a_tensor(
    affine: Model, tmp_path: Path, known: Any, words: str
) -> None:
    file = arrays(tmp_path / "a.npz", inputs_x=GIVEN, outputs_y=known)
    with pytest.raises(SealserveError) as caught:
        check_against(affine, file, 1e-4)
    assert caught.value.code == "known_answers.differs"
    assert words in caught.value.message


def test_the_tolerance_is_what_it_says(affine: Model, tmp_path: Path) -> None:
    file = arrays(tmp_path / "a.npz", inputs_x=GIVEN, outputs_y=KNOWN + np.float32(0.05))
    with pytest.raises(SealserveError):
        check_against(affine, file, 1e-4)
    assert check_against(affine, file, 0.01) == 1


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"inputs_x": GIVEN},
        {"inputs_x": GIVEN, "outputs_y": KNOWN, "more_z": KNOWN},
        {"inputs_x": GIVEN, "outputs_y": KNOWN, "signature": np.array(["a", "b"])},
        {"inputs_x": GIVEN, "outputs_y": KNOWN, "signature": np.array(3)},
        {"inputs_x": np.array([{}], dtype=object), "outputs_y": KNOWN},
    ],
)
def test_arrays_that_say_too_little_or_are_code(
    affine: Model, tmp_path: Path, named: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as caught:
        check_against(affine, arrays(tmp_path / "a.npz", **named), 1e-4)
    assert caught.value.code == "known_answers.malformed"


def test_files_that_are_none(affine: Model, tmp_path: Path) -> None:
    with pytest.raises(SealserveError) as caught:
        check_against(affine, tmp_path / "absent", 1e-4)
    assert caught.value.code == "file.unreadable"
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(InputError, match="it holds no answer"):
        check_against(affine, tmp_path / "empty", 1e-4)
    with pytest.raises(InputError, match="no Predict request with its response"):
        check_against(affine, records(tmp_path / "r", {}), 1e-4)
    (tmp_path / "nonsense").write_bytes(b"nonsense" * 9)
    with pytest.raises(InputError, match="checksum"):
        check_against(affine, tmp_path / "nonsense", 1e-4)


def test_a_bomb_is_not_unpacked(
    affine: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealserve.serving.known_answers._MAX_BYTES", 10_000)
    file = tmp_path / "bomb.npz"
    np.savez_compressed(file, **{"inputs/x": np.zeros(10_000, "f4"), "outputs/y": KNOWN})
    assert file.stat().st_size < 2000
    with pytest.raises(InputError, match="holds more than 10000 bytes"):
        check_against(affine, file, 1e-4)


def test_requests_that_the_model_does_not_take(affine: Model, tmp_path: Path) -> None:
    file = arrays(tmp_path / "a.npz", inputs_x=GIVEN, outputs_y=KNOWN, signature="absent")
    with pytest.raises(InputError, match="absent"):
        check_against(affine, file, 1e-4)
    file = arrays(tmp_path / "a.npz", inputs_x=GIVEN, outputs_z=KNOWN)
    with pytest.raises(InputError, match="output tensor alias not found"):
        check_against(affine, file, 1e-4)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_file_gives_typed_errors_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{"inputs/x": GIVEN, "outputs/y": KNOWN, "signature": "s"})
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "changed.npz"
    file.write_bytes(content)
    with contextlib.suppress(SealserveError):
        for each in read_known_answers(file):
            assert each.outputs
