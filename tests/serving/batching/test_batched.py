"""Joined requests: each requester gets what it would get alone, whoever else asks."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError, SealserveError
from sealserve.logs import make_log
from sealserve.serving.batching.batched import Batching
from sealserve.serving.batching.joining import join, joinable, take_apart
from sealserve.serving.batching.parameters import BatchingConfig, BatchingParameters
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.metrics import Metrics
from sealserve.serving.runtimes.base import Model, Signature, TensorSpec
from sealserve.serving.runtimes.choice import ChoosingRuntime
from sealserve.wire.tensorflow import tensor_pb2 as pb
from sealserve.wire.tensors import Array
from tests.serving.batching.test_queue import until
from tests.serving.conftest import questions
from tests.soak import times

KERNEL = np.random.default_rng(0).standard_normal((1, 3)).astype("f4")
POISON = 666.0


class Rowwise(Model):
    """Two inputs whose length varies, two outputs; refuses a batch that holds `POISON`."""

    def __init__(self) -> None:
        self.definitions, self.refused = {}, {}
        inputs = {"a": TensorSpec(pb.DT_FLOAT, (-1, -1)), "b": TensorSpec(pb.DT_INT32, (-1,))}
        outputs = {
            "sum": TensorSpec(pb.DT_FLOAT, (-1, 3)),
            "same": TensorSpec(pb.DT_FLOAT, (-1, -1)),
        }
        self.signatures = {"s": Signature("s", inputs, outputs, "")}
        self.may_run = threading.Event()
        self.may_run.set()
        self.sizes: list[tuple[int, ...]] = []
        self.lock = threading.Lock()
        self.closed = False

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        a, b = inputs["a"], inputs["b"]
        with self.lock:
            self.sizes.append(a.shape)
        assert self.may_run.wait(60)
        assert not self.closed
        if (a == POISON).any():
            raise InputError("request.inference_failed", f"poison in row {np.argwhere(a == 666)}")
        both = {
            "sum": np.tanh(a.sum(1, keepdims=True) @ KERNEL + b[:, None]).astype("f4"),
            "same": a * 2,
        }
        return {key: both[key] for key in outputs}

    def close(self) -> None:
        self.closed = True


class Gathered:
    """A batched model whose lane can be held, so that requests gather behind it."""

    def __init__(self, **parameters: Any) -> None:
        self.inner = Rowwise()
        self.metrics = Metrics()
        self.log = io.StringIO()
        config = BatchingConfig(BatchingParameters(num_batch_threads=2, **parameters))
        self.batching = Batching(config, self.metrics, make_log(self.log))
        self.model = self.batching("m", 1, Path(), self.inner)
        self.pool = ThreadPoolExecutor(32)
        self.inner.sizes.clear()

    def waiting(self) -> int:
        turns = self.batching._turns
        with turns.lock:
            return sum(len(batch.pieces) for queue in turns._queues for batch in queue._batches)

    def together(
        self, requests: Sequence[dict[str, Array]], outputs: Sequence[Sequence[str]] = ()
    ) -> list[Future[dict[str, Array]]]:
        """Ask all of them while the lane is held by a first request; give the futures."""
        self.inner.may_run.clear()
        first = self.pool.submit(self.model.run, "s", request(1, 2), ["sum"])
        until(lambda: len(self.inner.sizes) == 1)
        futures = []
        for position, inputs in enumerate(requests):
            before = self.waiting(), len(self.inner.sizes)
            wanted = outputs[position] if outputs else ["same", "sum"]
            future = self.pool.submit(self.model.run, "s", inputs, wanted)
            futures.append(future)
            until(
                lambda before=before, future=future: (  # type: ignore[misc]
                    (self.waiting(), len(self.inner.sizes)) != before or future.done()
                )
            )
        self.inner.may_run.set()
        assert set(first.result(60)) == {"sum"}
        return futures

    def close(self) -> None:
        self.pool.shutdown()
        self.model.close()
        assert self.inner.closed


def request(rows: int, length: int, seed: int = 0) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {
        "a": generator.standard_normal((rows, length)).astype("f4"),
        "b": generator.integers(9, size=rows).astype("i4"),
    }


@pytest.fixture
def make() -> Iterator[Callable[..., Gathered]]:
    made: list[Gathered] = []

    def make(**parameters: Any) -> Gathered:
        made.append(Gathered(**parameters))
        return made[-1]

    yield make
    for each in made:
        each.close()


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 6),  # rows
        st.integers(1, 3),  # length
        st.sampled_from([("sum",), ("same",), ("same", "sum")]),
        st.booleans(),  # poisoned
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=times(2000, 60), deadline=None)
@given(
    REQUESTS,
    st.sampled_from([(), (1, 2, 4, 8), (5, 8), (8,)]),
    st.booleans(),
    st.sampled_from([2, 5, 8]),
)
def test_any_mix_of_requests_gets_the_answers_it_would_get_alone(
    asked: list[tuple[int, int, tuple[str, ...], bool]],
    allowed: tuple[int, ...],
    splitting: bool,
    execution: int,
) -> None:
    gathered = Gathered(
        max_batch_size=8,
        allowed_batch_sizes=allowed,
        enable_large_batch_splitting=splitting,
        max_execution_batch_size=execution,
        max_enqueued_batches=100,
    )
    inputs = []
    for number, (rows, length, _, poisoned) in enumerate(asked):
        made = request(rows, length, number)
        if poisoned and rows:
            made["a"][rows // 2] = POISON
        inputs.append(made)
    futures = gathered.together(inputs, [outputs for _, _, outputs, _ in asked])
    alone = Rowwise()
    for (rows, _, outputs, poisoned), made, future in zip(asked, inputs, futures, strict=True):
        if poisoned and rows:
            with pytest.raises(InputError) as caught:
                future.result(60)
            assert caught.value.message.startswith("poison")
            continue
        answer, wanted = future.result(60), alone.run("s", made, outputs)
        assert set(answer) == set(outputs)
        for key in outputs:
            assert answer[key].shape == wanted[key].shape
            np.testing.assert_allclose(answer[key], wanted[key], rtol=1e-5, atol=1e-5)
    if allowed and not any(poisoned for *_, poisoned in asked):
        # The first request ran alone, at once; it was filled up as well.
        largest = max(allowed)
        assert all(rows in allowed or rows in (0, largest) for rows, _ in gathered.inner.sizes)
    gathered.close()


def test_requests_are_joined_filled_up_and_taken_apart(make: Callable[..., Gathered]) -> None:
    gathered = make(max_batch_size=8, allowed_batch_sizes=(4, 8))
    futures = gathered.together([request(2, 3, 1), request(1, 3, 2), request(2, 3, 3)])
    assert [len(future.result(60)["sum"]) for future in futures] == [2, 1, 2]
    assert gathered.inner.sizes == [(4, 2), (8, 3)]
    text = gathered.metrics.text()
    labels = 'model_name="m",model_version="1"'
    session = ":tensorflow:serving:batching_session"
    assert f"{session}:wrapped_run_count{{{labels}}} 2\n" in text
    assert f'{session}:padding_size_sum{{{labels},execution_batch_size="8"}} 3\n' in text
    assert f'{session}:padding_size_count{{{labels},execution_batch_size="4"}} 1\n' in text
    assert f"{session}:processed_batch_size_sum{{{labels}}} 12\n" in text
    assert f"{session}:input_batch_size_count{{{labels}}} 8\n" in text  # two inputs each
    pool = 'thread_pool_name="batch_threads"'
    assert f"{session}:queuing_latency_count{{{labels},{pool}}} 4\n" in text


def test_the_last_requests_first_row_fills_a_batch_up() -> None:
    parts = [{"x": np.array([[1.0], [2.0]])}, {"x": np.array([[3.0], [4.0]])}]
    assert join(parts, 6)["x"].tolist() == [[1], [2], [3], [4], [3], [3]]
    words = np.array([b"a", b"bc"], object)
    assert join([{"w": words}], 3)["w"].tolist() == [b"a", b"bc", b"a"]


def test_inputs_of_other_lengths_are_filled_up_with_their_first_element() -> None:
    parts = [{"x": np.array([[1, 2]])}, {"x": np.array([[3, 4, 5], [6, 7, 8]])}]
    assert join(parts, 3)["x"].tolist() == [[1, 2, 1], [3, 4, 5], [6, 7, 8]]


def test_lengths_join_only_when_told(make: Callable[..., Gathered]) -> None:
    asked = [request(1, 2, 1), request(1, 3, 2), request(1, 2, 3)]
    apart = make(max_batch_size=8)
    assert all(future.result(60) for future in apart.together(asked))
    assert sorted(apart.inner.sizes[1:]) == [(1, 3), (2, 2)]
    padding = make(max_batch_size=8, pad_variable_length_inputs=True)
    futures = padding.together(asked)
    # As in the original, the answer is that to the inputs with what they were filled up with.
    wide = {"a": np.array([[*asked[0]["a"][0], asked[0]["a"][0, 0]]]), "b": asked[0]["b"]}
    wanted = Rowwise().run("s", wide, ["same", "sum"])
    for key, array in futures[0].result(60).items():
        np.testing.assert_allclose(array, wanted[key], rtol=1e-5)
    assert padding.inner.sizes[1:] == [(3, 3)]


def test_what_does_not_fit_runs_alone() -> None:
    signature = Rowwise().signatures["s"]
    fits = request(2, 3)
    assert joinable(signature, fits, padding=False) == ((3,), ())
    assert joinable(signature, fits, padding=True) == ()
    for odd in (
        {**fits, "a": fits["a"][0]},  # another rank
        {**fits, "b": fits["b"][:1]},  # another number of rows
        request(0, 3),  # none
        request(2, 0),  # nothing to fill up with
        {**fits, "b": np.int32(1)},
    ):
        assert joinable(signature, odd, padding=False) is None


def test_an_answer_of_another_number_of_rows_is_never_given_away() -> None:
    for shape in ((3, 1), (5, 1), ()):
        with pytest.raises(SealserveError) as caught:
            take_apart({"y": np.zeros(shape)}, 4, [1, 3])
        assert caught.value.code == "servable.batch_mixed"


def test_a_signature_that_turns_out_to_mix_rows_is_not_batched_again(
    make: Callable[..., Gathered],
) -> None:
    gathered = make(max_batch_size=8)
    inner = gathered.inner
    honest = inner.run

    def sums_up(
        signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        answer = honest(signature, inputs, outputs)
        wrong = len(inputs["b"]) > 2
        return {key: array[:1] if wrong else array for key, array in answer.items()}

    inner.run = sums_up  # type: ignore[method-assign]
    asked = [request(1, 2, seed) for seed in range(3)]
    for turn in range(2):
        for inputs, future in zip(asked, gathered.together(asked), strict=True):
            wanted = Rowwise().run("s", inputs, ["sum"])["sum"]
            np.testing.assert_allclose(future.result(60)["sum"], wanted, rtol=1e-5)
        # Joined once, then one by one; at the second time not joined at all.
        rows = [shape[0] for shape in inner.sizes]
        assert rows == ([1, 3, 1, 1, 1] if turn == 0 else [1, 1, 1, 1])
        inner.sizes.clear()
    assert gathered.log.getvalue().count("batching_stopped") == 1


def test_a_version_takes_its_own_parameters_or_is_not_batched(tmp_path: Path) -> None:
    config = BatchingConfig(BatchingParameters(thread_pool_name="ours"), per_model=True)
    log = io.StringIO()
    batching = Batching(config, Metrics(), make_log(log))
    plain = Rowwise()
    assert batching("m", 1, tmp_path, plain) is plain
    assert "not_batched" in log.getvalue()
    file = tmp_path / "batching_params.pbtxt"
    file.write_text("max_batch_size { value: 2 }")
    model = batching("m", 1, tmp_path, Rowwise())
    with pytest.raises(InputError) as caught:
        model.run("s", request(3, 2), ["sum"])
    assert caught.value.code == "request.batch_too_large"
    file.write_text("max_batch_size: 2")
    with pytest.raises(InputError) as caught:
        batching("m", 1, tmp_path, Rowwise())
    assert caught.value.code == "serve_config.batching"


@pytest.fixture(scope="module")
def runtime(oracle: Path) -> ChoosingRuntime:
    config = RuntimeConfig(tensorflow=str(oracle), throughput=True)
    return ChoosingRuntime(config, make_log(io.StringIO()))


@pytest.mark.parametrize("name", ["small", "embedding", "examples", "v1"])
def test_openvino_answers_joined_requests_as_tensorflow_answers_each(
    models: Path, runtime: ChoosingRuntime, name: str
) -> None:
    parameters = BatchingParameters(
        max_batch_size=16, allowed_batch_sizes=(4, 16), batch_timeout_micros=2000
    )
    plain, _ = runtime.choose(models / name / "1")
    batching = Batching(BatchingConfig(parameters), Metrics(), make_log(io.StringIO()))
    model = batching(name, 1, models / name / "1", plain)
    try:
        for asked in (each for each in questions(models) if each.model == name):
            rows = len(next(iter(asked.inputs.values())))
            parts = [slice(begin, begin + 1 + begin % 2) for begin in range(rows)] * 4
            with ThreadPoolExecutor(len(parts)) as pool:
                answers = list(
                    pool.map(
                        lambda part, asked=asked: model.run(  # type: ignore[misc]
                            asked.signature,
                            {key: array[part] for key, array in asked.inputs.items()},
                            list(asked.outputs),
                        ),
                        parts,
                    )
                )
            for part, answer in zip(parts, answers, strict=True):
                mine = {key: array[part] for key, array in asked.inputs.items()}
                alone = plain.run(asked.signature, mine, list(asked.outputs))
                for key, array in answer.items():
                    np.testing.assert_allclose(array, alone[key], rtol=1e-5, atol=1e-5)
                    np.testing.assert_allclose(
                        array, asked.outputs[key][part], rtol=1e-4, atol=1e-5
                    )
    finally:
        model.close()
