"""The binary tensor extension: what Triton's and KServe's HTTP clients send, and its abuse."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealserve.errors import InputError
from sealserve.serving.v2_binary import RawTensors, split
from tests.serving.conftest import Running, https_connection
from tests.soak import times

INFER = "/v2/models/affine/infer"


def ask(
    running: Running, header: Any, raw: bytes, *, pack: str = "", length: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, header fields and body of a request whose JSON has tensors behind it."""
    head = json.dumps(header).encode()
    fields = {"Inference-Header-Content-Length": str(len(head)) if length is None else length}
    body = head + raw
    if pack:
        body = {"gzip": gzip.compress, "deflate": zlib.compress}[pack](body)
        fields["Content-Encoding"] = pack
    connection = https_connection(running.rest_port, running.owner)
    connection.request("POST", INFER, body, fields)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, {key.lower(): value for key, value in response.getheaders()}, answer


def raw_input(values: list[float], **more: Any) -> tuple[dict[str, Any], bytes]:
    raw = np.array(values, "<f4").tobytes()
    parameters = {"binary_data_size": len(raw)}
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values)], "parameters": parameters}
    return {"inputs": [tensor], **more}, raw


@pytest.mark.parametrize("pack", ["", "gzip", "deflate"])
def test_tensors_travel_behind_the_json_both_ways(running: Running, pack: str) -> None:
    header, raw = raw_input([1, 2], id="7", parameters={"binary_data_output": True})
    status, fields, body = ask(running, header, raw, pack=pack)
    size = int(fields["inference-header-content-length"])
    assert (status, fields["content-type"]) == (200, "application/octet-stream")
    assert json.loads(body[:size]) == {
        "model_name": "affine",
        "model_version": "2",
        "id": "7",
        "outputs": [
            {
                "name": "y",
                "datatype": "FP32",
                "shape": [2],
                "parameters": {"binary_data_size": 8},
            }
        ],
    }
    assert np.frombuffer(body[size:], "<f4").tolist() == [5.0, 9.0]


@pytest.mark.parametrize(
    ("every", "one", "raw"),
    [(None, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
def test_each_output_comes_in_the_form_it_was_asked_for(
    running: Running, every: bool | None, one: bool | None, raw: bool
) -> None:
    output = {"name": "y", **({} if one is None else {"parameters": {"binary_data": one}})}
    more = {} if every is None else {"parameters": {"binary_data_output": every}}
    header, behind = raw_input([1], outputs=[output], **more)
    status, fields, body = ask(running, header, behind)
    assert status == 200
    assert ("inference-header-content-length" in fields) is raw
    if raw:
        assert body[-4:] == np.float32(5).tobytes()
    else:
        assert fields["content-type"] == "application/json"
        assert json.loads(body)["outputs"][0]["data"] == [5.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameters": {"binary_data_size": 12}}, "reaches beyond the body"),
        ({"parameters": {"binary_data_size": 4}}, "4 raw bytes for 2 elements of FP32"),
        ({"parameters": {"binary_data_size": -8}}, "not a number of bytes"),
        ({"parameters": {"binary_data_size": True}}, "not a number of bytes"),
        ({"parameters": {"binary_data_size": "8"}}, "not a number of bytes"),
        ({"parameters": {}, "data": [1, 2]}, "8 bytes belong to no input"),
        ({"data": [1, 2]}, "both in the JSON and behind it"),
        ({"datatype": "BYTES"}, "reaches beyond the raw bytes"),
    ],
)
def test_a_tensor_is_exactly_what_it_says(
    running: Running, change: dict[str, Any], words: str
) -> None:
    header, raw = raw_input([1, 2])
    header["inputs"][0] |= change
    status, _, body = ask(running, header, raw)
    assert status == 400
    assert words in json.loads(body)["error"]


@pytest.mark.parametrize("length", ["", "-1", "1e3", "99999", "9" * 5000, "\u0664"])
def test_a_length_that_is_none_is_refused(length: str) -> None:
    with pytest.raises(InputError) as caught:
        split(b"{}", length)
    assert caught.value.code == "request.v2_binary"


def test_a_length_within_the_json_is_told_as_bad_json(running: Running) -> None:
    header, raw = raw_input([1, 2])
    status, _, body = ask(running, header, raw, length="9")
    assert status == 400
    assert b"JSON Parse error" in body
    header["outputs"] = [{"name": "y", "parameters": {"binary_data": 1}}]
    assert ask(running, header, raw)[0] == 400


@settings(
    max_examples=times(200, 8),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=6))
def test_raw_and_json_give_the_same(running: Running, values: list[float]) -> None:
    """To the last bit, NaN and the infinities among them."""
    header, raw = raw_input(values, parameters={"binary_data_output": True})
    status, fields, body = ask(running, header, raw)
    assert status == 200
    behind = np.frombuffer(body[int(fields["inference-header-content-length"]) :], "<f4")
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values)], "data": values}
    status, answer = running.rest("POST", INFER, {"inputs": [tensor]})
    assert status == 200
    np.testing.assert_array_equal(np.array(answer["outputs"][0]["data"], "f4"), behind)


@given(st.lists(st.integers(0, 9) | st.none(), max_size=5), st.binary(max_size=20))
def test_no_byte_is_taken_twice_or_left(sizes: list[int | None], raw: bytes) -> None:
    tensors = RawTensors(raw)
    taken = b""
    try:
        for size in sizes:
            piece = tensors.take(None if size is None else {"binary_data_size": size})
            taken += piece or b""
        tensors.end()
    except InputError:
        return
    assert taken == raw
