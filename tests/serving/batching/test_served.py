"""Batching behind gRPC and REST: clients that really ask at the same time.

The timeouts of batches are an hour, so that only what the test does can start one.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from sealserve.serving.catalog import ModelSpec
from sealserve.wire.serving import api_pb2
from sealserve.wire.tensors import to_array, to_proto
from tests.serving.batching.test_queue import HOUR, until
from tests.serving.conftest import Running, https_connection, question_of, start_server

Start = Callable[..., Running]
PATH = "/v1/models/{}:predict"


@pytest.fixture
def start(models: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts servers of `affine` (versions in its own directory) and `small` that batch."""
    base = tmp_path / "affine"
    shutil.copytree(models / "affine" / "1", base / "1")
    (tmp_path / "models.config").write_text(
        "model_config_list {"
        f'config {{ name: "affine" base_path: "{base}" }}'
        f'config {{ name: "small" base_path: "{models / "small"}" }} }}'
    )
    (tmp_path / "monitoring").write_text('prometheus_config { enable: true path: "/metrics" }')
    started: list[Running] = []

    def start(parameters: str, *flags: str) -> Running:
        file = tmp_path / "batching"
        file.write_text(f"batch_timeout_micros {{ value: {HOUR} }} {parameters}")
        running = start_server(
            models,
            tmp_path,
            f"--model_config_file={tmp_path / 'models.config'}",
            f"--monitoring_config_file={tmp_path / 'monitoring'}",
            "--enable_batching",
            f"--batching_parameters_file={file}",
            *flags,
        )
        started.append(running)
        return running

    yield start
    for running in started:
        running.server.stop(0)


class Clients:
    """Clients that ask in threads of their own."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.pool = ThreadPoolExecutor(40)
        self.stack = ExitStack()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()
        self.pool.shutdown()

    def send(self, timeout: float = 60, model: str = "affine", **inputs: Any) -> Any:
        """Send a Predict on a channel of its own; gives the call."""
        channel = self.stack.enter_context(self.running.channel())
        request = api_pb2.PredictRequest()
        request.model_spec.name = model
        for key, array in inputs.items():
            request.inputs[key].CopyFrom(to_proto(np.asarray(array)))
        stub = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        return stub.future(request.SerializeToString(), timeout=timeout)

    def rest(self, model: str, rows: Any) -> Future[tuple[int, Any]]:
        return self.pool.submit(self.running.rest, "POST", PATH.format(model), {"instances": rows})

    def waiting(self) -> int:
        """Rows in the queues."""
        batching = self.running.server._batching
        assert batching is not None
        with batching._turns.lock:
            return sum(batch.size for queue in batching._turns._queues for batch in queue._batches)

    def wait_for(self, rows: int) -> None:
        until(lambda: self.waiting() == rows)


def outputs(call: Any) -> dict[str, Any]:
    response = api_pb2.PredictResponse.FromString(call.result(60))
    return {key: to_array(proto, 2**20) for key, proto in response.outputs.items()}


def floats(*values: float) -> Any:
    return np.array(values, "f4")


def code_of(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call.result(60)
    return caught.value.code().name, caught.value.details()


def metric(running: Running, name: str, model: str) -> float:
    text = running.server._calls.metrics.text()  # type: ignore[union-attr]
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    found = [line for line in lines if f'model_name="{model}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def test_concurrent_clients_get_tensorflows_answers(start: Start, models: Path) -> None:
    asked = question_of(models, "small")
    images, wanted = asked.inputs["image"], asked.outputs["probabilities"]
    running = start("max_batch_size { value: 8 } allowed_batch_sizes: [2, 8]")
    with Clients(running) as clients:
        # Three of one row by gRPC and five by REST fill a batch; bad ones among them do not.
        calls = [clients.send(model="small", image=images[[row]]) for row in range(3)]
        bad = [
            clients.send(model="small", image=images[0]),
            clients.send(model="small", picture=images[[0]]),
        ]
        answers = [clients.rest("small", images[[row]].tolist()) for row in range(5)]
        wrong = clients.rest("small", [[1.0]])
        for row, call in enumerate(calls):
            answer = outputs(call)
            np.testing.assert_allclose(answer["probabilities"], wanted[[row]], rtol=1e-4, atol=1e-5)
        for row, future in enumerate(answers):
            status, body = future.result(60)
            assert status == 200
            (prediction,) = body["predictions"]
            np.testing.assert_allclose(
                prediction["probabilities"], wanted[row], rtol=1e-4, atol=1e-5
            )
        assert [code_of(call)[0] for call in bad] == ["INVALID_ARGUMENT"] * 2
        assert wrong.result(60)[0] == 400
    session = ":tensorflow:serving:batching_session"
    assert metric(running, f"{session}:wrapped_run_count", "small") == 1
    assert metric(running, f"{session}:processed_batch_size_sum", "small") == 8
    assert metric(running, f"{session}:queuing_latency_count", "small") == 8
    assert metric(running, f"{session}:padding_size_sum", "small") == 0


def test_limits_have_the_originals_statuses_and_words(start: Start) -> None:
    running = start("max_batch_size { value: 2 } max_enqueued_batches { value: 1 }")
    with Clients(running) as clients:
        too_large = "Task size 3 is larger than maximum input batch size 2"
        assert code_of(clients.send(x=floats(1, 2, 3))) == ("INVALID_ARGUMENT", too_large)
        assert clients.rest("affine", [1, 2, 3]).result(60) == (400, {"error": too_large})
        waits = clients.send(x=floats(1))
        clients.wait_for(1)
        full = (
            "The batch scheduling queue to which this task was submitted is full; currently 1 "
            "batches enqueued and max_enqueued_batches is 1"
        )
        assert code_of(clients.send(x=floats(1, 2))) == ("UNAVAILABLE", full)
        assert clients.rest("affine", [1, 2]).result(60) == (503, {"error": full})
        fills = clients.send(x=floats(2))
        assert outputs(waits)["y"].tolist() == [5]
        assert outputs(fills)["y"].tolist() == [8]


def test_who_cancels_or_is_late_leaves_the_queue(start: Start) -> None:
    running = start("max_batch_size { value: 2 }", "--rest_api_timeout_in_ms=500")
    with Clients(running) as clients:
        cancelled = clients.send(x=floats(1))
        clients.wait_for(1)
        cancelled.cancel()
        clients.wait_for(0)
        late = clients.send(timeout=0.3, x=floats(1))
        assert code_of(late)[0] == "DEADLINE_EXCEEDED"
        clients.wait_for(0)
        status, body = clients.rest("affine", [1]).result(60)
        assert status == 504
        assert "longer than 0.5 s" in body["error"] or "timeout exceeded" in body["error"]
        clients.wait_for(0)
        pair = [clients.send(x=floats(each)) for each in (1, 2)]
        assert [outputs(call)["y"].tolist() for call in pair] == [[5], [8]]


def test_a_rest_client_that_hangs_up_leaves_the_queue(start: Start) -> None:
    """It stayed until the REST timeout, and was computed with the next batch."""
    running = start("max_batch_size { value: 2 }")
    with Clients(running) as clients:
        connection = https_connection(running.rest_port, running.owner)
        connection.request("POST", PATH.format("affine"), json.dumps({"instances": [9]}))
        clients.wait_for(1)
        connection.close()
        clients.wait_for(0)
        pair = [clients.send(x=floats(each)) for each in (1, 2)]
        assert [outputs(call)["y"].tolist() for call in pair] == [[5], [8]]
    session = ":tensorflow:serving:batching_session"
    assert metric(running, f"{session}:processed_batch_size_sum", "affine") == 2
    (line,) = [each for each in running.log.getvalue().splitlines() if '"request"' in each]
    noted = json.loads(line)
    assert (noted["status"], noted["code"]) == ("CANCELLED", "request.cancelled")
    assert (noted["model"], noted["front"]) == ("affine", "REST")


def test_large_requests_are_split_and_put_together(start: Start) -> None:
    running = start(
        "max_batch_size { value: 20 } enable_large_batch_splitting { value: true } "
        "max_execution_batch_size { value: 4 } num_batch_threads { value: 2 }"
    )
    with Clients(running) as clients:
        values = np.arange(10, dtype="f4")
        calls = [clients.send(x=values), clients.send(x=values + 10)]
        for call, shift in zip(calls, (0, 10), strict=True):
            np.testing.assert_allclose(outputs(call)["y"], (values + shift) * 3 + 2)
    session = ":tensorflow:serving:batching_session"
    assert metric(running, f"{session}:wrapped_run_count", "affine") == 5
    assert metric(running, f"{session}:processed_batch_size_sum", "affine") == 20


def test_what_waits_is_answered_by_its_own_version_when_that_goes(
    start: Start, models: Path, tmp_path: Path
) -> None:
    running = start("max_batch_size { value: 2 }")
    catalog = running.server._catalog
    assert catalog is not None
    with Clients(running) as clients:
        old = clients.send(x=floats(1))
        clients.wait_for(1)
        shutil.copytree(models / "affine" / "2", tmp_path / "affine" / "2")
        assert outputs(old)["y"].tolist() == [5]  # 3 x + 2, not the new version's 4 x + 1
        until(lambda: [s.state.name for s in catalog.statuses(ModelSpec("affine"))][-1] == "END")
        new = [clients.send(x=floats(1)) for _ in range(2)]
        assert [outputs(call)["y"].tolist() for call in new] == [[5], [5]]
        assert api_pb2.PredictResponse.FromString(new[0].result()).model_spec.version.value == 2


def test_draining_answers_what_waits(start: Start) -> None:
    running = start("max_batch_size { value: 5 }")
    with Clients(running) as clients:
        calls = [clients.send(x=floats(each)) for each in (1, 2)]
        rest = clients.rest("affine", [3])
        clients.wait_for(3)
        stopping = threading.Thread(target=running.server.stop, args=(30,))
        stopping.start()
        assert [outputs(call)["y"].tolist() for call in calls] == [[5], [8]]
        assert rest.result(60) == (200, {"predictions": [11.0]})
        stopping.join(60)
        assert not stopping.is_alive()


def test_versions_bring_their_own_parameters(start: Start, tmp_path: Path) -> None:
    own = tmp_path / "affine" / "1" / "batching_params.pbtxt"
    own.write_text("max_batch_size { value: 3 }")
    running = start("max_batch_size { value: 1 }", "--enable_per_model_batching_parameters")
    with Clients(running) as clients:
        assert outputs(clients.send(x=floats(1, 2, 3)))["y"].tolist() == [5, 8, 11]
        assert code_of(clients.send(x=floats(1, 2, 3, 4)))[0] == "INVALID_ARGUMENT"
        image = np.zeros((5, 16, 16, 3), "f4")  # small has none: it is not batched
        assert outputs(clients.send(model="small", image=image))["logits"].shape == (5, 10)
    assert '"event": "not_batched"' in running.log.getvalue()
