"""Our messages against TensorFlow's and TensorFlow Serving's own, both ways."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import message_factory

from sealserve.wire.serving import api_pb2, config_pb2
from sealserve.wire.tensorflow import example_pb2, graph_pb2, tensor_pb2
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
    with subprocess.Popen(
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
