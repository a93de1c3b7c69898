"""FlexBuffers as FlatBuffers' own Python writes them, and as nobody would."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.serving.runtimes.flexbuffers import read_string_map

WRITE = """
import json, sys
from flatbuffers import flexbuffers
for entries in json.load(sys.stdin):
    print(bytes(flexbuffers.Dumps(entries)).hex())
"""


def written(oracle: Path, values: list[object]) -> list[bytes]:
    done = subprocess.run(
        [oracle, "-c", WRITE], input=json.dumps(values), capture_output=True, text=True, check=True
    )
    return [bytes.fromhex(line) for line in done.stdout.split()]


def test_maps_of_strings_are_read_as_they_were_written(oracle: Path) -> None:
    maps = [{}, {"a": "b"}, {"serving_default": "x" * 300, "other": ""}, {"k": "y" * 70_000}]
    wanted = [{key: text.encode() for key, text in each.items()} for each in maps]
    assert [read_string_map(raw) for raw in written(oracle, list(maps))] == wanted
    for raw in written(oracle, [{"a": 1}, ["a"], "a", 7]):
        with pytest.raises(ValueError, match="no "):
            read_string_map(raw)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_map_or_refused(raw: bytes) -> None:
    try:
        assert isinstance(read_string_map(raw + b"\x24\x01"), dict)
    except ValueError:
        return
