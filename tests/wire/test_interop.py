"""Our messages against TensorFlow's and TensorFlow Serving's own, both ways."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import message_factory

import sealserve
from sealserve.wire.serving import api_pb2, config_pb2
from sealserve.wire.tensorflow import example_pb2, graph_pb2, tensor_pb2
from tests.children import Child
from tests.wire import random_messages

# Their package ships no definitions of these; the sources state the field numbers.
ONLY_OURS = {
    "tensorflow.serving.BatchingParameters",
    "tensorflow.serving.MonitoringConfig",
    "tensorflow.serving.PrometheusConfig",
    "tensorflow.serving.SSLConfig",
}


def kinds() -> dict[str, Any]:
    """Every message of ours that TensorFlow has too."""

    def below(descriptors: Any) -> Iterator[Any]:
        for each in descriptors:
            if not each.GetOptions().map_entry:
                yield each
                yield from below(each.nested_types)

    modules: tuple[Any, ...] = (api_pb2, config_pb2, example_pb2, graph_pb2, tensor_pb2)
    files = [module.DESCRIPTOR.message_types_by_name.values() for module in modules]
    return {
        each.full_name: message_factory.GetMessageClass(each)
        for file in files
        for each in below(file)
    }


def test_every_field_is_theirs_and_random_messages_survive_both_ways(oracle: Path) -> None:
    ours = kinds()
    told = {
        name: {field.number: random_messages.shape(field) for field in kind.DESCRIPTOR.fields}
        for name, kind in ours.items()
    }
    with Child(
        [oracle, Path(random_messages.__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def say(what: Any) -> Any:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(what) + "\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())

        first = say(told)
        assert set(first["unknown"]) == ONLY_OURS
        assert first["differing"] == []
        shared = [name for name in ours if name not in ONLY_OURS]
        assert set(first["made"]) == set(shared)
        assert len(shared) > 50
        back = {
            name: random_messages.packed(random_messages.unpacked(ours[name], lines))
            for name, lines in first["made"].items()
        }
        rng = random.Random(12)
        numbers = {name: list(fields) for name, fields in told.items()}
        numbers |= {"google.protobuf.Int64Value": [1]}
        for name, number in first["messages"]:
            # What is a message to them and bytes to us holds no random bytes.
            if ours[name].DESCRIPTOR.fields_by_number[number].message_type is None:
                numbers[name].remove(number)
        made = {
            name: [
                random_messages.fill(rng, ours[name](), numbers)
                for _ in range(random_messages.EACH)
            ]
            for name in shared
        }
        lines = {name: random_messages.packed(each) for name, each in made.items()}
        second = say({"back": back, "ours": lines})
    assert second["broken"] == []
    for name, each in made.items():
        assert random_messages.unpacked(ours[name], second["again"][name]) == each, name


OURS = """
from sealserve.wire.serving import api_pb2, config_pb2, v2_pb2
from sealserve.wire.tensors import to_array, to_proto
"""
THEIRS = """
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
"""
BOTH_WORK = """
import numpy as np
array = np.array([[1.5, -2.0]], "f4")
ours, theirs = api_pb2.PredictRequest(), predict_pb2.PredictRequest()
ours.inputs["x"].CopyFrom(to_proto(array))
theirs.ParseFromString(ours.SerializeToString())
assert type(ours) is not type(theirs)
assert (tf.make_ndarray(theirs.inputs["x"]) == array).all()
theirs.inputs["x"].CopyFrom(tf.make_tensor_proto(array * 2))
ours.ParseFromString(theirs.SerializeToString())
assert (to_array(ours.inputs["x"], 1000) == array * 2).all()
assert tf.constant([1.0]).numpy() == 1
"""


def test_we_and_tensorflow_live_in_one_process_whoever_comes_first(oracle: Path) -> None:
    """Messages of one name in one pool end the import of whoever comes second."""
    environment = {**os.environ, "PYTHONPATH": str(Path(sealserve.__file__).parents[1])}
    running = [
        subprocess.Popen(
            [oracle, "-c", first + second + BOTH_WORK],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for first, second in ((OURS, THEIRS), (THEIRS, OURS))
    ]
    for process in running:
        _, complaints = process.communicate(timeout=100)
        assert process.returncode == 0, complaints[-2000:]
