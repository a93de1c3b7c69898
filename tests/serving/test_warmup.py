"""Warm-up records: answered before a model is served; what cannot be answered fails the load."""

from __future__ import annotations

import io
import shutil
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError
from sealserve.logs import make_log
from sealserve.serving.catalog import Catalog, ModelSpec
from sealserve.serving.config import ModelConfig, RuntimeConfig, ServerConfig
from sealserve.serving.metrics import Metrics
from sealserve.serving.runtimes import openvino
from sealserve.serving.warmup import FILE, WarmUp, read_records
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensors import Array, to_proto
from tests.serving.conftest import question_of
from tests.serving.fakes import FakeRuntime, make_versions


def masked(part: bytes) -> bytes:
    crc = google_crc32c.value(part)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32)


def record(payload: bytes) -> bytes:
    size = struct.pack("<Q", len(payload))
    return size + masked(size) + payload + masked(payload)


def predict_log(key: str = "x") -> bytes:
    log = api_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = "as it was called when it was recorded"
    request.model_spec.version.value = 77
    request.inputs[key].CopyFrom(to_proto(np.array([1, 2], "f4")))
    return log.SerializeToString()


def no_tasks() -> bytes:
    """Fuzzing found that the model's name was looked for where such a request has none."""
    log = api_pb2.PredictionLog()
    log.multi_inference_log.request.SetInParent()
    return log.SerializeToString()


def loaded(tmp_path: Path, content: bytes, *, warm_up: bool = True) -> tuple[Catalog, FakeRuntime]:
    base = make_versions(tmp_path / "m", 1)
    file = base / "1" / FILE
    file.parent.mkdir()
    file.write_bytes(content)
    config = ServerConfig((), warm_up=warm_up, warm_up_iterations=2)
    runtime = FakeRuntime()
    catalog = Catalog(
        [ModelConfig("m", base)],
        runtime,
        make_log(io.StringIO()),
        prepare=WarmUp(config, Metrics()),
    )
    catalog.load()
    return catalog, runtime


def test_records_are_answered_before_the_model_serves(tmp_path: Path) -> None:
    catalog, runtime = loaded(tmp_path, record(predict_log()) * 3)
    assert catalog.available() == [("m", 1)]
    assert runtime.models["m/1"].begun.is_set()
    catalog.close()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (record(predict_log("nope")), "warm-up record 0 cannot be answered: input size does not"),
        (record(b"\xff"), "Failed to parse warmup record"),
        (record(b""), "records of kind None are not replayed"),
        (record(api_pb2.PredictionLog(session_run_log=b"").SerializeToString()), "session_run_log"),
        (record(no_tasks()), "Inference request has no tasks"),
        (record(predict_log())[:-1], "the file ends within a record"),
        (record(predict_log())[:5], "the file ends within a record"),
        (record(predict_log())[:-1] + b"?", "the checksum of a record is wrong"),
        (b"?" + record(predict_log())[1:], "the checksum of a record's length is wrong"),
        (record(predict_log()) * 1001, "exceeds the maximum (1000)"),
    ],
)
def test_a_bad_record_fails_the_load(tmp_path: Path, content: bytes, words: str) -> None:
    catalog, runtime = loaded(tmp_path, content)
    assert catalog.available() == []
    (status,) = catalog.statuses(ModelSpec("m"))
    assert words in status.message
    assert runtime.models["m/1"].closed
    catalog.close()


def test_each_inference_that_may_run_beside_others_is_warmed_up(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = question_of(models, "small")
    log = api_pb2.PredictionLog()
    for key, array in asked.inputs.items():
        log.predict_log.request.inputs[key].CopyFrom(to_proto(array))
    version = tmp_path / "small" / "1"
    shutil.copytree(models / "small" / "1", version)
    (version / FILE).parent.mkdir(exist_ok=True)
    (version / FILE).write_bytes(record(log.SerializeToString()))
    lanes: list[object] = []
    infer = openvino._Compiled._infer

    def watched(self: openvino._Compiled, lane: object, *rest: Any) -> dict[str, Array]:
        lanes.append(lane)
        return infer(self, lane, *rest)

    monkeypatch.setattr(openvino._Compiled, "_infer", watched)
    runtime = openvino.OpenVinoRuntime(RuntimeConfig(), make_log(io.StringIO()))
    model = runtime.load(version)
    WarmUp(ServerConfig(()), Metrics())("small", 1, version, model)
    tuning = model.tuning["serving_default"]
    assert len(lanes) == len(set(map(id, lanes))) == tuning.streams + tuning.beside
    model.run("serving_default", asked.inputs, ["logits"])
    assert len(lanes) == tuning.streams + tuning.beside + 1
    model.close()


def test_warm_up_can_be_switched_off(tmp_path: Path) -> None:
    catalog, _ = loaded(tmp_path, b"no records", warm_up=False)
    assert catalog.available() == [("m", 1)]
    catalog.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64))
def test_any_bytes_are_records_or_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "records"
    file.write_bytes(content)
    try:
        found = list(read_records(file, 1000))
    except InputError:
        return
    assert b"".join(map(record, found)) == content
