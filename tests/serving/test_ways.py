"""After an inference that failed, the next ones are computed as if it had not been."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from sealserve.errors import InputError, Unavailable
from sealserve.logs import make_log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes import openvino
from sealserve.serving.runtimes.conversion import Reading
from sealserve.serving.runtimes.converting import Converters
from sealserve.serving.runtimes.ways import Lane, Way

Shape = tuple[int, int]
FIRST, BAD = ((4, 3), (4, 3), (4, 3)), ((6, 3), (4, 3), (5, 3))


def graph() -> ov.Model:
    """One output of the first of three inputs, and one of the sum of the others."""
    one, two, three = (ops.parameter(ov.PartialShape([-1, 3]), ov.Type.f32) for _ in range(3))
    doubled = ops.multiply(ops.tanh(one), np.float32(2))
    return ov.Model(
        [ops.result(doubled), ops.result(ops.add(two, three))], [one, two, three], "graph"
    )


class Compiler:
    """Counts how often the graph is compiled."""

    def __init__(self) -> None:
        self.core = openvino.CORE
        self.graph = graph()
        self.compiled = 0
        self.broken = False

    def __call__(self) -> ov.CompiledModel:
        self.compiled += 1
        if self.broken:
            raise RuntimeError("no memory")
        properties = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 2, "CACHE_DIR": ""}
        return self.core.compile_model(self.graph, "CPU", properties)


def compute(lane: Lane, shapes: Any, value: float = 1.0) -> list[np.ndarray[Any, Any]]:
    feeds = {n: np.full(shape, value, "f4") for n, shape in enumerate(shapes)}
    with lane.infer(feeds) as output:
        return [np.array(output(n)) for n in range(2)]


def test_trap_sizes_of_a_failed_request_stay_behind() -> None:
    """OpenVINO answers the good one after it with six rows: two are the failed one's."""
    compiler = Compiler()
    way = Way(compiler, by_values=False)
    lanes = [Lane(way), Lane(way)]
    for lane in lanes:
        compute(lane, FIRST)
    with pytest.raises(InputError) as caught:
        compute(lanes[0], BAD)
    assert caught.value.code == "request.inference_failed"
    for lane in lanes:
        for value in (2.0, 3.0):
            doubled, total = compute(lane, FIRST, value)
            np.testing.assert_allclose(doubled, np.full((4, 3), 2 * np.tanh(value)), rtol=1e-5)
            np.testing.assert_array_equal(total, np.full((4, 3), 2 * value))
    assert compiler.compiled == 2


def test_what_failed_before_is_refused_without_trying() -> None:
    compiler = Compiler()
    lane = Lane(Way(compiler, by_values=False))
    messages = set()
    for _ in range(3):
        with pytest.raises(InputError) as caught:
            compute(lane, BAD)
        messages.add(caught.value.message)
    compute(lane, FIRST)
    assert compiler.compiled == 2
    assert len(messages) == 1


def test_where_values_say_how_large_the_same_shapes_may_do_later() -> None:
    compiler = Compiler()
    lane = Lane(Way(compiler, by_values=True))
    for _ in range(2):
        with pytest.raises(InputError):
            compute(lane, BAD)
    compute(lane, FIRST)
    assert compiler.compiled == 3


def test_nothing_is_computed_until_the_graph_is_compiled_again() -> None:
    compiler = Compiler()
    lane = Lane(Way(compiler, by_values=False))
    compute(lane, FIRST)
    with pytest.raises(InputError):
        compute(lane, BAD)
    compiler.broken = True
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            compute(lane, FIRST)
        assert caught.value.code == "servable.runtime_cannot"
    compiler.broken = False
    assert len(compute(lane, FIRST)[0]) == 4


def test_large_weights_are_not_kept_for_a_failure_that_may_never_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is converted again then, from the model's file."""
    converted: list[Path] = []
    convert = Converters.convert

    def counted(self: Converters, path: Path, reading: Reading) -> Any:
        converted.append(path)
        return convert(self, path, reading)

    monkeypatch.setattr(Converters, "convert", counted)
    monkeypatch.setattr(openvino, "_KEPT_BYTES", -1)
    model = graph()
    for number, port in enumerate(model.inputs):
        port.set_names({f"x{number}"})
    for number, port in enumerate(model.outputs):
        port.set_names({f"y{number}"})
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    loaded = openvino.OpenVinoRuntime(RuntimeConfig(), make_log(io.StringIO())).load(tmp_path)

    def run(shapes: Any) -> dict[str, Any]:
        feeds = {f"x{n}": np.ones(shape, "f4") for n, shape in enumerate(shapes)}
        return loaded.run("serving_default", feeds, ["y0", "y1"])

    for _ in range(2):
        assert run(FIRST)["y0"].shape == (4, 3)
    assert converted == []
    with pytest.raises(InputError):
        run(BAD)
    for _ in range(2):
        np.testing.assert_array_equal(run(FIRST)["y1"], np.full((4, 3), 2.0))
    assert converted == [tmp_path]
    loaded.close()


def test_new_shapes_are_tried_alone_and_known_ones_side_by_side() -> None:
    way = Way(Compiler(), by_values=False)
    compute(Lane(way), FIRST)
    entered = threading.Event()

    def try_another() -> None:
        with way.computing(((9, 3),)):
            entered.set()

    with way.computing(FIRST), way.computing(FIRST):  # beside itself
        thread = threading.Thread(target=try_another)
        thread.start()
        assert not entered.wait(0.05)
    thread.join(20)
    assert entered.is_set()
