"""The tensor codec against TensorFlow's own, and against hostile protos."""

from __future__ import annotations

import json
import subprocess
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.serving_codecs import TARGETS
from fuzz.target import feed
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sealserve.errors import InputError
from sealserve.wire import tensors
from sealserve.wire.tensorflow import tensor_pb2 as pb
from tests.soak import times

LIMIT = 1 << 20

NUMERIC = [
    np.dtype(code)
    for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16")
]
numeric_arrays = st.sampled_from(NUMERIC).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    )
)
string_arrays = hnp.arrays(
    np.dtype(object),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    elements=st.binary(max_size=200),
)


def same(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    """Equal to the last bit: NaN payloads and the sign of zero included."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return (
        bool((left == right).all()) if left.dtype == object else left.tobytes() == right.tobytes()
    )


@given(array=numeric_arrays | string_arrays, typed=st.booleans())
@settings(deadline=None)
def test_arrays_survive_the_round_trip(array: np.ndarray[Any, Any], typed: bool) -> None:
    proto = pb.TensorProto.FromString(
        tensors.to_proto(array, typed_fields=typed).SerializeToString()
    )
    back = tensors.to_array(proto, LIMIT)
    if array.dtype.kind in "fc" and typed:
        # A float16 or float32 NaN passes through a Python float, which may quieten it.
        np.testing.assert_array_equal(back, array)
        assert back.dtype == array.dtype
    else:
        assert same(back, array)


protos = st.builds(
    pb.TensorProto,
    dtype=st.sampled_from(list(pb.DataType.values())),
    tensor_shape=st.builds(
        pb.TensorShapeProto,
        dim=st.lists(
            st.builds(
                pb.TensorShapeProto.Dim,
                size=st.integers(-2, 4) | st.integers(-(2**63), 2**63 - 1),
            ),
            max_size=5,
        ),
        unknown_rank=st.booleans(),
    ),
    tensor_content=st.binary(max_size=40),
    float_val=st.lists(st.floats(width=32), max_size=3),
    int_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    half_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    string_val=st.lists(st.binary(max_size=3), max_size=3),
    scomplex_val=st.lists(st.floats(width=32), max_size=3),
)


@given(protos)
@settings(deadline=None, max_examples=400)
def test_no_proto_gives_anything_but_an_array_or_an_input_error(proto: pb.TensorProto) -> None:
    try:
        array = tensors.to_array(proto, LIMIT)
    except InputError:
        return
    assert list(array.shape) == [dim.size for dim in proto.tensor_shape.dim]
    assert array.nbytes <= LIMIT


@given(protos)
@settings(deadline=None, max_examples=times(20_000, 200))
def test_a_reading_of_the_lists_one_by_one_says_the_same(proto: pb.TensorProto) -> None:
    """The fuzz target's promise: google.protobuf's lists, read without numpy, and back."""
    feed(TARGETS["tensor"], proto.SerializeToString())


@given(st.binary(max_size=60), st.integers(0, 6))
@settings(deadline=None, max_examples=400)
def test_packed_strings_never_run_past_their_end(content: bytes, count: int) -> None:
    proto = pb.TensorProto(dtype=pb.DT_STRING, tensor_content=content)
    proto.tensor_shape.dim.add(size=count)
    try:
        array = tensors.to_array(proto, LIMIT)
    except InputError:
        return
    assert sum(map(len, array)) <= len(content)


@given(hnp.arrays(np.dtype("f4"), 8))
@settings(deadline=None)
def test_bfloat16_rounds_to_nearest_even(array: np.ndarray[Any, Any]) -> None:
    back = tensors.to_array(tensors.to_proto(array, data_type=pb.DT_BFLOAT16), LIMIT)
    for value, rounded in zip(array, back, strict=True):
        if np.isnan(value):
            assert np.isnan(rounded)
            continue
        bits = int(value.view(np.uint32))
        below = np.uint32(bits & 0xFFFF0000).view(np.float32)
        above = np.uint32(((bits & 0xFFFF0000) + 0x10000) & 0xFFFFFFFF).view(np.float32)
        remainder, odd = bits & 0xFFFF, bits >> 16 & 1
        up = remainder > 0x8000 or (remainder == 0x8000 and odd == 1)
        assert rounded.tobytes() == (above if up else below).tobytes()


def shaped(dtype: int, *sizes: int, **fields: Any) -> pb.TensorProto:
    proto = pb.TensorProto(dtype=dtype, **fields)  # type: ignore[arg-type]
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize(
    ("proto", "code"),
    [
        (shaped(pb.DT_INVALID, 1), "tensor.dtype_unsupported"),
        (shaped(pb.DT_QINT8, 1, tensor_content=b"1"), "tensor.dtype_unsupported"),
        (shaped(pb.DT_RESOURCE), "tensor.dtype_unsupported"),
        (shaped(pb.DT_FLOAT, -1), "tensor.shape_invalid"),
        (shaped(pb.DT_FLOAT, *[1] * 33), "tensor.shape_invalid"),
        (shaped(pb.DT_FLOAT, 0, 2**62), "tensor.shape_invalid"),
        (
            pb.TensorProto(dtype=pb.DT_FLOAT, tensor_shape=pb.TensorShapeProto(unknown_rank=True)),
            "tensor.shape_invalid",
        ),
        (shaped(pb.DT_FLOAT, 2**20, float_val=[1.0]), "tensor.too_large"),
        (shaped(pb.DT_STRING, 2**20), "tensor.too_large"),
        (shaped(pb.DT_STRING, 2**11, string_val=[b"x" * 1024]), "tensor.too_large"),
        (shaped(pb.DT_FLOAT, 2, tensor_content=b"1234567"), "tensor.values_invalid"),
        (shaped(pb.DT_FLOAT, 1, float_val=[1.0, 2.0]), "tensor.values_invalid"),
        (shaped(pb.DT_FLOAT, 1, int_val=[1]), "tensor.values_invalid"),
        (
            shaped(pb.DT_FLOAT, 1, float_val=[1.0], tensor_content=b"1234"),
            "tensor.values_invalid",
        ),
        (shaped(pb.DT_UINT8, 1, int_val=[256]), "tensor.values_invalid"),
        (shaped(pb.DT_HALF, 1, half_val=[-1]), "tensor.values_invalid"),
        (shaped(pb.DT_BOOL, 2, tensor_content=b"\x00\x02"), "tensor.values_invalid"),
        (shaped(pb.DT_COMPLEX64, 2, scomplex_val=[1.0]), "tensor.values_invalid"),
        (shaped(pb.DT_STRING, 1, string_val=[b"a", b"b"]), "tensor.values_invalid"),
        (shaped(pb.DT_STRING, 1, tensor_content=b"\xff" * 6), "tensor.values_invalid"),
    ],
)
def test_malformed_protos_are_refused(proto: pb.TensorProto, code: str) -> None:
    with pytest.raises(InputError) as caught:
        tensors.to_array(proto, LIMIT, where="x")
    assert caught.value.code == code
    assert caught.value.where == "x"


@pytest.mark.parametrize(
    ("array", "data_type"),
    [
        (np.zeros(1, "M8[s]"), None),
        (np.zeros(1, "f8"), pb.DT_FLOAT),
        (np.zeros(1, "f8"), pb.DT_BFLOAT16),
        (np.zeros(1, np.longdouble), None),
    ],
)
def test_arrays_without_a_data_type_are_refused(
    array: np.ndarray[Any, Any], data_type: int | None
) -> None:
    with pytest.raises(InputError, match=r"tensor\.dtype_unsupported"):
        tensors.to_proto(array, data_type=data_type)


def test_object_arrays_hold_strings_only() -> None:
    with pytest.raises(InputError, match=r"tensor\.values_invalid"):
        tensors.to_proto(np.array([b"a", 1], object))


def test_text_travels_as_utf_8() -> None:
    assert tensors.to_proto(["caf\u00e9"]).string_val[:] == ["caf\u00e9".encode()]


def test_big_endian_arrays_arrive_with_their_values() -> None:
    array = np.array([1, 2, 3], ">i4")
    for typed in (True, False):
        proto = tensors.to_proto(array, typed_fields=typed)
        assert tensors.to_array(proto, LIMIT).tolist() == [1, 2, 3]


def test_a_data_type_has_a_name_even_when_it_is_unknown() -> None:
    assert tensors.dtype_name(pb.DT_HALF) == "DT_HALF"
    assert tensors.dtype_name(99) == "DataType 99"
    assert tensors.numpy_dtype(pb.DT_INT64) == np.int64


# --- TensorFlow as the oracle -------------------------------------------------

ORACLE = r"""
import base64, json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, tensorflow as tf
from tensorflow.core.framework import tensor_pb2

def bits(array):
    array = np.asarray(array)
    if array.dtype == object:
        return [base64.b64encode(item).decode() for item in array.ravel()]
    if array.dtype == tf.bfloat16.as_numpy_dtype:
        array = array.astype(np.float32)
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()

def constant(proto):
    with tf.Graph().as_default() as graph:
        node = graph.as_graph_def().node.add(name="c", op="Const")
        node.attr["dtype"].type = proto.dtype
        node.attr["value"].tensor.CopyFrom(proto)
        definition = tf.compat.v1.GraphDef(node=[node])
        out, = tf.import_graph_def(definition, return_elements=["c:0"], name="")
        with tf.compat.v1.Session(graph=graph) as session:
            return session.run(out)

task = json.load(open(sys.argv[1]))
answer = {"kernel": [], "python": [], "made": []}
for item in task["protos"]:
    proto = tensor_pb2.TensorProto.FromString(base64.b64decode(item))
    value = constant(proto)
    answer["kernel"].append({"shape": list(np.shape(value)), "bits": bits(value)})
    try:
        array = tf.make_ndarray(proto)
        answer["python"].append({"shape": list(array.shape), "bits": bits(array)})
    except Exception:
        answer["python"].append(None)
for spec in task["arrays"]:
    if spec["dtype"] == "string":
        array = np.array([base64.b64decode(x) for x in spec["strings"]], object)
        dtype = tf.string
    else:
        raw = np.frombuffer(base64.b64decode(spec["raw"]), spec["numpy"])
        dtype = tf.as_dtype(spec["dtype"])
        array = raw.astype(dtype.as_numpy_dtype)
    array = array.reshape(spec["shape"])
    made = [
        tf.make_tensor_proto(array, dtype),
        tf.make_tensor_proto(array.tolist(), dtype, shape=spec["shape"]),
    ]
    answer["made"].append([base64.b64encode(p.SerializeToString()).decode() for p in made])
json.dump(answer, open(sys.argv[2], "w"))
"""


def expect(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    if array.dtype == object:
        bits: Any = [b64encode(item).decode() for item in array.ravel()]
    else:
        bits = b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"shape": list(array.shape), "bits": bits}


def samples() -> list[tuple[int | None, np.ndarray[Any, Any]]]:
    rng = np.random.Generator(np.random.PCG64(7))
    arrays: list[tuple[int | None, np.ndarray[Any, Any]]] = []
    for dtype in NUMERIC:
        for shape in ((), (3,), (2, 0), (2, 3)):
            values = rng.integers(0, 2 if dtype.kind == "b" else 100, size=shape).astype(dtype)
            arrays.append((None, values))
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 1.00390625, 3.4e38], "f4")
    strings = np.empty(4, object)
    strings[:] = [b"", b"a\x00", b"x" * 300, "\u00fc".encode()]
    return [
        *arrays,
        (None, special),
        (pb.DT_BFLOAT16, special),
        (None, strings),
        (None, strings.reshape(2, 2)),
    ]


def test_tensorflow_reads_what_we_write_and_we_read_what_it_writes(
    oracle: Path, tmp_path: Path
) -> None:
    cases = samples()
    ours = [
        tensors.to_proto(array, data_type=number, typed_fields=typed)
        for number, array in cases
        for typed in (True, False)
    ]
    # Lists shorter than the tensor, as constants in graphs are often written.
    short = [
        shaped(pb.DT_FLOAT, 2, 3, float_val=[1.5, 2.5]),
        shaped(pb.DT_FLOAT, 2, 3),
        shaped(pb.DT_INT8, 4, int_val=[-3]),
        shaped(pb.DT_BOOL, 3, bool_val=[True]),
        shaped(pb.DT_HALF, 3, half_val=[0x3C00, 0x4000]),
        shaped(pb.DT_BFLOAT16, 3, half_val=[0x3F80]),
        shaped(pb.DT_COMPLEX64, 3, scomplex_val=[1.0, 2.0]),
        shaped(pb.DT_UINT64, 3, uint64_val=[2**63]),
        shaped(pb.DT_STRING, 3, string_val=[b"ab"]),
        shaped(pb.DT_STRING, 2),
    ]
    protos = ours + short
    specs = []
    for number, array in cases:
        spec: dict[str, Any] = {"shape": list(array.shape)}
        if array.dtype == object:
            spec |= {"dtype": "string", "strings": [b64encode(x).decode() for x in array.ravel()]}
        else:
            name = "bfloat16" if number == pb.DT_BFLOAT16 else array.dtype.name
            raw = b64encode(array.tobytes()).decode()
            spec |= {"dtype": name, "numpy": array.dtype.str, "raw": raw}
        specs.append(spec)
    task = {
        "protos": [b64encode(p.SerializeToString()).decode() for p in protos],
        "arrays": specs,
    }
    (tmp_path / "task.json").write_text(json.dumps(task))
    (tmp_path / "oracle.py").write_text(ORACLE)
    subprocess.run(
        [oracle, tmp_path / "oracle.py", tmp_path / "task.json", tmp_path / "answer.json"],
        check=True,
        capture_output=True,
    )
    answer = json.loads((tmp_path / "answer.json").read_text())

    by_python = 0
    for proto, kernel, python in zip(protos, answer["kernel"], answer["python"], strict=True):
        mine = expect(tensors.to_array(proto, LIMIT))
        assert mine == kernel, proto
        if python is not None:
            by_python += 1
            assert mine == python, proto
    assert by_python > len(protos) // 2

    for (number, array), made in zip(cases, answer["made"], strict=True):
        wanted = array
        if number == pb.DT_BFLOAT16:
            wanted = tensors.to_array(tensors.to_proto(array, data_type=number), LIMIT)
        for raw in made:
            assert expect(tensors.to_array(pb.TensorProto.FromString(b64decode(raw)), LIMIT)) == (
                expect(wanted)
            )
