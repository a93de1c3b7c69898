"""REST over TLS: both forms, every kind of error, and JSON of any sort."""

from __future__ import annotations

import io
import json
import math
import socket
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.errors import InputError
from sealserve.serving.rest_json import parse_request, response_body
from sealserve.serving.runtimes.base import Signature, TensorSpec
from sealserve.wire.tensorflow import tensor_pb2 as pb
from tests.serving.conftest import Running, https_connection

AFFINE = "/v1/models/affine/versions/1:predict"


def predict(running: Running, body: Any, path: str = AFFINE) -> tuple[int, Any]:
    return running.rest("POST", path, body)


def test_row_and_column_form(running: Running) -> None:
    assert predict(running, {"instances": [1, 2.5]}) == (200, {"predictions": [5.0, 9.5]})
    assert predict(running, {"instances": [{"x": 1}, {"x": 2}]}) == (200, {"predictions": [5, 8]})
    assert predict(running, {"inputs": [1.0]}) == (200, {"outputs": [5.0]})
    assert predict(running, {"inputs": {"x": [1.0]}}) == (200, {"outputs": [5.0]})
    pairs = {"signature_name": "pairs"}
    assert predict(running, {**pairs, "instances": [[1, 2], [3, 4]]}) == (
        200,
        {"predictions": [{"same": [1, 2], "total": 6}, {"same": [3, 4], "total": 14}]},
    )
    assert predict(running, {**pairs, "inputs": {"u": [[1, 2], [3, 4]]}}) == (
        200,
        {"outputs": {"same": [[1, 2], [3, 4]], "total": [6, 14]}},
    )


def test_inputs_of_another_rank_are_computed_as_tensorflow_computes_them(running: Running) -> None:
    """The original's first example sends ``[1.0, 2.0]`` to an input of shape ``[-1, 1]``."""
    assert predict(running, {"instances": [[1], [2]]}) == (200, {"predictions": [[5.0], [8.0]]})
    assert predict(running, {"inputs": 1}) == (200, {"outputs": 5.0})
    path = "/v1/models/examples:predict"
    assert predict(running, {"instances": [1.0, 2.0]}, path) == (200, {"predictions": [2, 3]})


def test_paths_know_versions_labels_and_no_case(running: Running) -> None:
    body = {"instances": [1]}
    for path, answer in (
        ("/v1/models/affine:predict", 5.0),
        ("/v1/models/affine/versions/2:predict", 5.0),
        ("/v1/models/affine/labels/stable:predict", 5.0),
        ("/V1/Models/affine/Versions/1:Predict", 5.0),
    ):
        assert predict(running, body, path) == (200, {"predictions": [answer]}), path
    assert predict(running, {"instances": [2]}, "/v1/models/affine:predict")[1] == {
        "predictions": [9.0]
    }


def test_nan_and_infinity_travel_both_ways(running: Running) -> None:
    body = b'{"inputs": [NaN, Infinity, -Infinity, 0.1]}'
    status, answer = running.rest("POST", AFFINE, body)
    assert status == 200
    outputs = answer["outputs"]
    assert math.isnan(outputs[0])
    assert outputs[1:3] == [math.inf, -math.inf]
    assert outputs[3] == pytest.approx(2.3)


def test_numbers_are_written_short_and_whole_ones_with_a_point(running: Running) -> None:
    connection = https_connection(running.rest_port, running.owner)
    body = json.dumps({"signature_name": "pairs", "inputs": [[0.1, 3.0]]})
    connection.request("POST", AFFINE, body)
    answer = connection.getresponse().read()
    connection.close()
    assert b"[[0.1,3.0]]" in answer
    assert response_body({"y": np.array([0.1, np.nan], "f4")}, row=False) == (
        b'{"outputs":[0.1,NaN]}'
    )


def test_no_answer_waits_for_the_client_to_acknowledge_its_head(running: Running) -> None:
    """Head and body are two writes: without TCP_NODELAY each answer took 44 ms."""
    connection = https_connection(running.rest_port, running.owner)
    connection.request("GET", "/v1/models/affine")
    connection.getresponse().read()
    front = running.server._rest
    assert front is not None
    mine = connection.sock.getsockname()
    (there,) = [
        each.transport.get_extra_info("socket")
        for each in front._server._server.server_state.connections
        if each.transport.get_extra_info("peername") == mine
    ]
    assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    connection.close()


def test_status_and_metadata(running: Running) -> None:
    def entry(version: str) -> dict[str, Any]:
        good = {"error_code": "OK", "error_message": ""}
        return {"version": version, "state": "AVAILABLE", "status": good}

    assert running.rest("GET", "/v1/models/affine") == (
        200,
        {"model_version_status": [entry("2"), entry("1")]},
    )
    assert running.rest("GET", "/v1/models/affine/versions/1") == (
        200,
        {"model_version_status": [entry("1")]},
    )
    status, metadata = running.rest("GET", "/v1/models/v1/metadata")
    assert status == 200
    assert metadata == {
        "model_spec": {"name": "v1", "signature_name": "", "version": "1"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": {"x": tensor_info("x:0", "-1", "4")},
                        "outputs": {"y": tensor_info("y:0", "-1", "2")},
                        "method_name": "tensorflow/serving/predict",
                        "defaults": {},
                    }
                }
            }
        },
    }


def tensor_info(name: str, *sizes: str) -> dict[str, Any]:
    dimensions = [{"size": size, "name": ""} for size in sizes]
    shape = {"dim": dimensions, "unknown_rank": False}
    return {"name": name, "dtype": "DT_FLOAT", "tensor_shape": shape}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "JSON Parse error: The document is empty"),
        (b"{", 400, "JSON Parse error: "),
        (b"\xff\xfe", 400, "JSON Parse error: "),
        (b"[" * 100_000, 400, "JSON Parse error: "),
        (b"[1]", 400, "Is not object"),
        (b"{}", 400, "Missing 'inputs' or 'instances' key"),
        (b'{"inputs": 1, "instances": [1]}', 400, "expecting only one of"),
        (b'{"instances": 1}', 400, "to be an list/array"),
        (b'{"instances": []}', 400, "No values in 'instances' array"),
        (b'{"instances": [1], "signature_name": 1}', 400, "must be a string"),
        (
            b'{"instances": [1], "signature_name": "no"}',
            400,
            'Serving signature name: "no" not found in',
        ),
        (b'{"instances": [{"y": 1}]}', 400, "keys must be equal to: x"),
        (b'{"instances": [1, {"x": 1}]}', 400, "Expecting value/list but got object"),
        (b'{"instances": [{"x": 1}, 1]}', 400, "Expecting object but got list at item 1"),
        (b'{"instances": [[1], [1, 2]]}', 400, "not a list of lists of one size"),
        (b'{"instances": ["a"]}', 400, "not of expected type: float"),
        (b'{"instances": [%s]}' % (b"9" * 400), 400, "a number that is too large"),
        (b'{"instances": [true]}', 400, "not of expected type: float"),
        (b'{"instances": [null]}', 400, "not of expected type: float"),
        (
            b'{"signature_name": "pairs", "instances": [[1, 2, 3]]}',
            400,
            "expects shape [-1, 2] but [1, 3] is provided",
        ),
        (
            b'{"signature_name": "pairs", "inputs": 1}',
            400,
            'input "u" expects shape [-1, 2] but [] is provided',
        ),
        (b'{"inputs": {"y": [1]}}', 400, "Missing named input: x"),
    ],
)
def test_bad_bodies(running: Running, body: bytes, status: int, words: str) -> None:
    found, answer = running.rest("POST", AFFINE, body)
    assert found == status
    assert list(answer) == ["error"]
    assert words in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/", 404, "Not Found: GET /"),
        ("PUT", "/nothing", 404, "Not Found: PUT /nothing"),
        ("GET", "/V1/nothing", 400, "Malformed request: GET /V1/nothing"),
        ("GET", "/v1/nothing", 400, "Malformed request: GET /v1/nothing"),
        ("POST", "/v1/models/affine", 400, "Malformed request: POST /v1/models/affine"),
        ("GET", "/v1/models/no", 404, "Could not find any versions of model no"),
        ("GET", "/v1/models/affine/versions/9", 404, "Could not find version 9 of model affine"),
        ("GET", "/v1/models/no/metadata", 404, "Servable not found for request: Latest(no)"),
        (
            "GET",
            f"/v1/models/affine/versions/{2**63}",
            400,
            f"Failed to convert version: {2**63} to numeric.",
        ),
        (
            "GET",
            "/v1/models/affine/labels/no",
            400,
            "Unrecognized servable version label: no",
        ),
        (
            "GET",
            f"/v1/models/affine/versions/{'9' * 5000}",
            400,
            f"Failed to convert version: {'9' * 5000} to numeric.",
        ),
        ("PUT", "/v1/models/affine", 400, "Malformed request: PUT /v1/models/affine"),
    ],
)
def test_bad_paths(running: Running, method: str, path: str, status: int, error: str) -> None:
    assert running.rest(method, path) == (status, {"error": error})


def test_a_target_with_scheme_and_host_is_taken_for_its_path(running: Running) -> None:
    """As the original and RFC 9112 have it; it was a path that nothing answers."""
    body = {"instances": [1.0]}
    assert predict(running, body, f"https://any.host:1{AFFINE}?x=1") == (200, {"predictions": [5]})
    assert running.rest("GET", "HTTP://any.host/v1/health/live") == (200, {"live": True})
    assert running.rest("GET", "http://any.host")[0] == 404


def test_in_columns_what_the_signature_does_not_know_is_passed_over(running: Running) -> None:
    """The original reads the inputs that it wants; it was an error here."""
    body = {"inputs": {"x": [1.0], "y": "anything"}}
    assert running.rest("POST", AFFINE, body) == (200, {"outputs": [5.0]})


def test_a_body_that_says_it_is_too_large_is_not_waited_for(running: Running) -> None:
    with closing(https_connection(running.rest_port, running.owner)) as connection:
        connection.putrequest("POST", AFFINE)
        connection.putheader("Content-Length", "4000001")
        connection.putheader("Expect", "100-continue")
        connection.endheaders()
        assert connection.getresponse().status == 413


def test_a_large_body_and_an_encoded_one_are_refused(running: Running) -> None:
    status, answer = running.rest("POST", AFFINE, b" " * 4_000_001)
    assert (status, answer) == (413, {"error": "the body is larger than 4000000 bytes"})
    status, answer = running.rest("POST", AFFINE, b"x", {"Content-Encoding": "gzip"})
    assert status == 400
    assert "uncompress" in answer["error"]


TYPES = Signature(
    "s",
    {
        "i": TensorSpec(pb.DT_INT8, (-1,)),
        "b": TensorSpec(pb.DT_BOOL, (-1,)),
        "s": TensorSpec(pb.DT_STRING, (-1,)),
        "f": TensorSpec(pb.DT_HALF, (-1,)),
    },
    {},
    "",
)


def test_values_take_the_types_of_the_signature() -> None:
    row = {"i": -5, "b": True, "s": {"b64": "/w=="}, "f": 0.5}
    arrays = parse_request(json.dumps({"instances": [row, row]}).encode()).decode(TYPES)
    assert {key: str(array.dtype) for key, array in arrays.items()} == {
        "i": "int8",
        "b": "bool",
        "s": "object",
        "f": "float16",
    }
    assert arrays["s"].tolist() == [b"\xff", b"\xff"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("QUI=", b"AB"), ("QUI", b"AB"), ("Q U\nI", b"AB"), ("", b""), ("QUJD", b"ABC")],
)
def test_base64_may_lack_its_padding_as_the_original_reads_it(text: str, value: bytes) -> None:
    row = {"i": 1, "b": True, "s": {"b64": text}, "f": 0.5}
    assert parse_request(json.dumps({"instances": [row]}).encode()).decode(TYPES)["s"] == [value]


def test_values_of_several_kinds_keep_their_value_or_are_refused() -> None:
    """numpy made floats of [0, 2**63], and a number of a true among numbers."""

    def decoded(kind: int, text: str) -> Any:
        signature = Signature("s", {"x": TensorSpec(kind, None)}, {}, "")
        return parse_request(b'{"inputs": %s}' % text.encode()).decode(signature)["x"].tolist()

    assert decoded(pb.DT_UINT64, f"[0, {2**63}, {2**64 - 1}]") == [0, 2**63, 2**64 - 1]
    assert decoded(pb.DT_INT64, f"[{-(2**63)}, {2**63 - 1}]") == [-(2**63), 2**63 - 1]
    assert decoded(pb.DT_DOUBLE, f"[1, {2**70}, 0.5]") == [1.0, 2.0**70, 0.5]
    assert decoded(pb.DT_DOUBLE, f"[1, {2**70}]") == [1.0, 2.0**70]
    assert decoded(pb.DT_BOOL, "[true, false]") == [True, False]
    for kind, text in (
        (pb.DT_FLOAT, "[true, 1.5]"),
        (pb.DT_INT32, "[true, 2]"),
        (pb.DT_BOOL, "[true, 2]"),
        (pb.DT_INT32, "[1, 2.0]"),
        (pb.DT_UINT64, f"[0, {2**64}]"),
        (pb.DT_UINT64, f"[-1, {2**63}]"),
        (pb.DT_DOUBLE, f"[1, {10**400}]"),
        (pb.DT_COMPLEX64, "[1]"),
    ):
        with pytest.raises(InputError) as caught:
            decoded(kind, text)
        assert caught.value.code == "request.json_values", text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("i", 128),
        ("i", 1.0),
        ("i", 10**30),
        ("b", 1),
        ("s", 1),
        ("s", {"b64": "?"}),
        ("s", {"b64": "Q"}),
        ("s", {"b64": "QQ="}),
        ("f", "1"),
    ],
)
def test_values_that_do_not_fit_their_type(key: str, value: Any) -> None:
    row = {"i": 1, "b": True, "s": "x", "f": 1.0, key: value}
    with pytest.raises(InputError) as caught:
        parse_request(json.dumps({"instances": [row]}).encode()).decode(TYPES)
    assert caught.value.code == "request.json_values"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (AFFINE, '{"signature_name": "HALF", "instances": [1]}'),
        (AFFINE, '{"instances": [{"HALF": 1}]}'),
        ("/v1/models/examples:classify", '{"examples": [{"x": "HALF"}]}'),
        ("/v1/models/examples:classify", '{"examples": [{"HALF": 1.0}]}'),
        ("/v2/models/affine/infer", '{"id": "HALF", "inputs": []}'),
        ("/v2/models/affine/infer", '{"inputs": [], "outputs": [{"name": "HALF"}]}'),
    ],
)
def test_half_a_surrogate_pair_is_a_bad_request(running: Running, path: str, body: str) -> None:
    """It is no text; wherever a name or a value was one, the answer was 500."""
    status, answer = running.rest("POST", path, body.replace("HALF", "\\ud800").encode())
    assert status == 400
    assert answer == {"error": "JSON Parse error: The surrogate pair in string is invalid."}


def test_pairs_and_escapes_are_read_by_the_slower_parser_too() -> None:
    body = b'{"inputs": {"s": ["\\ud83d\\ude00"], "i": [1], "b": [true], "f": [NaN]}}'
    assert parse_request(body).decode(TYPES)["s"] == ["\U0001f600".encode()]
    with pytest.raises(InputError, match="JSON Parse error: Invalid value"):
        parse_request(body.decode().encode("utf-16"))


def test_strings_and_bytes_in_answers() -> None:
    outputs = {
        "label": np.array([b"cat"], object),
        "raw_bytes": np.array([b"\xff"], object),
    }
    assert json.loads(response_body(outputs, row=True)) == {
        "predictions": [{"label": "cat", "raw_bytes": {"b64": "/w=="}}]
    }


def test_rows_need_a_common_first_dimension() -> None:
    for outputs in (
        {"a": np.float32(1)},
        {"a": np.zeros(2, "f4"), "b": np.zeros(3, "f4")},
    ):
        arrays = {key: np.asarray(array) for key, array in outputs.items()}
        with pytest.raises(InputError) as caught:
            response_body(arrays, row=True)
        assert caught.value.code == "request.json_rows"
        assert response_body(arrays, row=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["x", "u", "b64", "i", "s"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(
    key=st.sampled_from(["instances", "inputs", "signature_name"]),
    value=JSON,
    kind=st.sampled_from([pb.DT_FLOAT, pb.DT_INT64, pb.DT_BOOL, pb.DT_STRING, pb.DT_UINT8]),
)
def test_any_json_gives_arrays_or_a_typed_error(key: str, value: Any, kind: int) -> None:
    signature = Signature("s", {"x": TensorSpec(kind, (-1,))}, {}, "")
    try:
        arrays = parse_request(json.dumps({key: value}).encode()).decode(signature)
    except InputError:
        return
    assert set(arrays) == {"x"}


@given(st.binary(max_size=60))
def test_any_bytes_give_a_request_or_a_typed_error(body: bytes) -> None:
    try:
        parse_request(body)
    except InputError:
        return


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=20),
    st.sampled_from([pb.DT_FLOAT]),
)
def test_float32_survives_json(values: list[float], kind: int) -> None:
    array = np.array(values, "f4")
    body = response_body({"x": array}, row=True).replace(b"predictions", b"instances")
    signature = Signature("s", {"x": TensorSpec(kind, (-1,))}, {}, "")
    np.testing.assert_array_equal(parse_request(body).decode(signature)["x"], array)


def test_no_log_line_holds_a_tensor(running: Running) -> None:
    predict(running, {"instances": [123456.78]})
    running.rest("POST", AFFINE, b'{"instances": ["123456.78"]}')
    assert "123456.78" not in running.log.getvalue()
    assert isinstance(running.log, io.StringIO)
