"""The binary tensor extension of the Open Inference Protocol over REST.

A body is a JSON header, whose length the header field ``Inference-Header-Content-Length``
states, and behind it the raw tensors that the JSON announces by ``binary_data_size``, in
its order. Triton's and KServe's HTTP clients send and want tensors so.

Rules this module keeps:

* Every byte behind the JSON belongs to exactly one tensor; anything else is refused.
* A field without the extension (no length stated) leaves the body what it is: JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sealserve.errors import InputError

__all__ = ["EXTENSION", "LENGTH", "Packed", "RawTensors", "outputs_wanted_raw", "size_of", "split"]

LENGTH = "inference-header-content-length"
EXTENSION = "binary_tensor_data"

_SIZE = "binary_data_size"
_WANTED = "binary_data"
_WANTED_ALL = "binary_data_output"
_MAX_DIGITS = 12


@dataclass(frozen=True)
class Packed:
    """An answer of JSON and raw tensors.

    Attributes:
        body: all of it.
        json_size: how much of it is JSON.
    """

    body: bytes
    json_size: int

    @classmethod
    def of(cls, header: bytes, tensors: list[bytes]) -> Packed:
        """Put tensors behind their header."""
        return cls(b"".join([header, *tensors]), len(header))


class RawTensors:
    """What stands behind the JSON, taken piece by piece."""

    def __init__(self, raw: bytes) -> None:
        self._raw = memoryview(raw)
        self._at = 0

    def take(self, parameters: Any) -> bytes | None:
        """The bytes of the next tensor that has some; None for one in JSON.

        Raises:
            InputError: ``request.v2_binary``.
        """
        size = parameters.get(_SIZE) if isinstance(parameters, dict) else None
        if size is None:
            return None
        if type(size) is not int or size < 0:
            raise _bad(f"{_SIZE} is not a number of bytes")
        piece = self._raw[self._at : self._at + size]
        if len(piece) != size:
            raise _bad(f"{_SIZE} of {size} reaches beyond the body")
        self._at += size
        return bytes(piece)

    def end(self) -> None:
        """There is nothing left.

        Raises:
            InputError: ``request.v2_binary``.
        """
        if self._at != len(self._raw):
            raise _bad(f"{len(self._raw) - self._at} bytes belong to no input")


def split(body: bytes, length: str | None) -> tuple[bytes, RawTensors]:
    """The JSON of a body, and what stands behind it.

    Args:
        body: unpacked.
        length: the field ``Inference-Header-Content-Length``, if it was sent.

    Raises:
        InputError: ``request.v2_binary``.
    """
    if length is None:
        return body, RawTensors(b"")
    plain = length.isascii() and length.isdigit() and len(length) <= _MAX_DIGITS
    if not plain or int(length) > len(body):
        raise _bad(f"{LENGTH} is not the length of a part of the body")
    return body[: int(length)], RawTensors(body[int(length) :])


def outputs_wanted_raw(request: Mapping[str, Any], outputs: list[Any]) -> tuple[bool, set[str]]:
    """Whether outputs are wanted raw, and the names of those wanted otherwise.

    Args:
        request: the JSON of the request.
        outputs: its list of outputs.
    """
    default = _flag(request.get("parameters"), _WANTED_ALL)
    usual = default is True
    named = {
        str(each.get("name"))
        for each in outputs
        if isinstance(each, dict)
        and _flag(each.get("parameters"), _WANTED) is not None
        and _flag(each.get("parameters"), _WANTED) is not usual
    }
    return usual, named


def _flag(parameters: Any, name: str) -> bool | None:
    value = parameters.get(name) if isinstance(parameters, dict) else None
    if value is not None and not isinstance(value, bool):
        raise _bad(f"{name} is neither true nor false")
    return value


def size_of(raw: bytes) -> dict[str, int]:
    """The parameters of an output whose bytes stand behind the JSON."""
    return {_SIZE: len(raw)}


def _bad(message: str) -> InputError:
    return InputError("request.v2_binary", message)
