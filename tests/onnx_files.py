"""ONNX files of one layer, written from the field numbers of onnx.proto: no library is needed."""

from __future__ import annotations

import numpy as np

__all__ = ["GIVEN", "WANTED", "WEIGHTS", "field", "onnx_bytes"]

WEIGHTS = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], "f4")
GIVEN = np.array([[1, -1, 0.5, 2], [-9, 0, 0, 0]], "f4")
WANTED = np.maximum(GIVEN @ WEIGHTS, 0)


def field(number: int, value: bytes | int) -> bytes:
    """One protobuf field."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _value(name: bytes, *sizes: int | bytes) -> bytes:
    dims = b"".join(field(1, field(2 if isinstance(size, bytes) else 1, size)) for size in sizes)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def onnx_bytes(
    external: str | None = None, *, rows: int | bytes = b"n", activation: bytes = b"Relu",
    domain: bytes = b"", input_name: bytes = b"x", nested: bool = False,
) -> bytes:  # fmt: skip
    """ModelProto: y = Relu(x @ WEIGHTS).

    Args:
        external: the file that holds the weights, as the model states it; None: the model itself.
        rows: the first dimension of x, a number or a name.
        activation: the last operator.
        domain: whose it is; empty for ONNX's own.
        input_name: what x is called.
        nested: the external weights are an attribute within a graph within an attribute.
    """
    weights = field(1, 4) + field(1, 2) + field(2, 1) + field(8, b"w")
    if external is None:
        weights += field(9, WEIGHTS.tobytes())
    else:
        weights += field(13, field(1, b"location") + field(2, external.encode())) + field(14, 1)
    product = field(1, input_name) + field(1, b"w") + field(2, b"h") + field(4, b"MatMul")
    last = field(1, b"h") + field(2, b"y") + field(4, activation) + field(7, domain)
    graph = field(1, product) + field(1, last) + field(2, b"g")
    if nested:
        constant = field(2, b"c") + field(4, b"Constant")
        constant += field(5, field(1, b"value") + field(5, weights) + field(20, 4))
        inner = field(1, constant) + field(2, b"inner")
        graph += field(1, field(4, b"If") + field(5, field(6, inner) + field(20, 5)))
    else:
        graph += field(5, weights)
    graph += field(11, _value(input_name, rows, 4)) + field(12, _value(b"y", rows, 2))
    model = field(1, 8) + field(7, graph) + field(8, field(2, 17))
    return model + (field(8, field(1, domain) + field(2, 1)) if domain else b"")
