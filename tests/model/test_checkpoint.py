"""The checkpoint reader: real files, and files that want to run something."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sealserve.errors import InputError, Unavailable
from sealserve.model import checkpoint
from sealserve.model.checkpoint import read_checkpoint
from sealserve.model.zoo import efficientnet_lite0

# A tiny assembler for pickles: what torch.save wrote, without torch.
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
PROTOCOL = pickle.dumps(1001, 2)
PLATFORM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
HEAD = MAGIC + PROTOCOL + PLATFORM
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    name = f"ctorch\n{kind}\n".encode()
    described = (text("storage"), name, text(key), text("cpu"), integer(count), b"N")
    return tuple_of(*described) + b"Q"


def tensor(stored: bytes, offset: int, shape: list[int], strides: list[int]) -> bytes:
    sizes = (tuple_of(*map(integer, shape)), tuple_of(*map(integer, strides)))
    arguments = tuple_of(stored, integer(offset), *sizes, b"\x89", ORDERED_DICT)
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def document(entries: dict[str, bytes], storages: dict[str, bytes], itemsize: int = 4) -> bytes:
    named = b"".join(text(name) + value for name, value in entries.items())
    body = b"\x80\x02" + ORDERED_DICT + b"(" + named + b"u."
    keys = pickle.dumps(list(storages), 2)
    raw = b"".join(struct.pack("<q", len(x) // itemsize) + x for x in storages.values())
    return HEAD + body + keys + raw


def simple(array: np.ndarray[Any, Any]) -> bytes:
    strides = [stride // array.itemsize for stride in array.strides]
    entry = tensor(storage("7", array.size), 0, list(array.shape), strides)
    return document({"w": entry}, {"7": array.tobytes()})


def read(content: bytes, directory: Path) -> dict[str, Any]:
    path = directory / "model.pth"
    path.write_bytes(content)
    return read_checkpoint(path)


def refuse(content: bytes, directory: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(content, directory)
    assert caught.value.where == str(directory / "model.pth")
    return caught.value.code


def test_the_published_checkpoint_has_the_networks_parameters() -> None:
    weights = read_checkpoint(efficientnet_lite0.checkpoint_path())
    trained = [
        array.size
        for name, array in weights.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    assert sum(trained) == 4_652_008  # the number its authors state: 4.652 million
    assert weights["_fc.weight"].shape == (1000, 1280)
    assert weights["_bn0.num_batches_tracked"].dtype == np.int64


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=4)))
@settings(deadline=None)
def test_tensors_come_back(tmp_path_factory: pytest.TempPathFactory, array: Any) -> None:
    back = read(simple(array), tmp_path_factory.mktemp("pth"))
    assert back["w"].tobytes() == array.tobytes()
    assert back["w"].shape == array.shape


def test_views_of_one_storage_are_cut_out(tmp_path: Path) -> None:
    elements = np.arange(12, dtype=np.float32)
    shared = storage("0", 12)
    content = document(
        {"transposed": tensor(shared, 0, [4, 3], [1, 4]), "tail": tensor(shared, 9, [3], [1])},
        {"0": elements.tobytes()},
    )
    back = read(content, tmp_path)
    np.testing.assert_array_equal(back["transposed"], elements.reshape(3, 4).T)
    np.testing.assert_array_equal(back["tail"], [9, 10, 11])
    assert back["transposed"].flags.c_contiguous


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._marker}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("position", [0, 1, 2, 3, 4])
def test_nothing_is_ever_run(tmp_path: Path, protocol: int, position: int) -> None:
    marker = tmp_path / "ran"
    evil = pickle.dumps(Evil(marker), protocol)
    parts = [MAGIC, PROTOCOL, PLATFORM, document({}, {})[len(HEAD) :]]
    parts.insert(position, evil)
    assert refuse(b"".join(parts), tmp_path) in {"checkpoint.forbidden", "checkpoint.malformed"}
    assert not marker.exists()


@pytest.mark.parametrize(
    "body",
    [
        b"cos\nsystem\n" + tuple_of(text("true")) + b"R.",
        b"cbuiltins\neval\n" + tuple_of(text("1")) + b"R.",
        b"ctorch\nload\n.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        text("os") + text("system") + b"\x93.",
        b"ccollections\nOrderedDict\n)\x81.",
        b"\x82\x01.",
        b"ctorch\nFloatStorage\n)R.",
        b"ccollections\nOrderedDict\n" + tuple_of(text("x")) + b"R.",
        b"]" + b"}b.",
        b"P1\n.",
    ],
)
def test_pickles_that_do_more_than_describe_tensors_are_forbidden(
    tmp_path: Path, body: bytes
) -> None:
    assert refuse(HEAD + b"\x80\x02" + body, tmp_path) == "checkpoint.forbidden"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        PROTOCOL + MAGIC + PLATFORM,
        MAGIC + PROTOCOL + pickle.dumps({"little_endian": False}, 2),
        HEAD + pickle.dumps([1], 2),
        HEAD + pickle.dumps({"w": 1}, 2),
        document({"w": tensor(storage("0", 1), 0, [1], [1])}, {}),
        document({"w": tensor(storage("0", 2), 0, [2], [1])}, {"0": b"1234"}),
        document({"w": tensor(storage("0", 1), 0, [2], [1])}, {"0": b"1234"}),
        document({"w": tensor(storage("0", 1), 1, [1], [1])}, {"0": b"1234"}),
        document({"w": tensor(storage("0", 1), 0, [1 << 30], [0])}, {"0": b"1234"}),
        document({"w": tensor(storage("0", 1), 0, [-1], [1])}, {"0": b"1234"}),
        document({"w": tensor(storage("0", 1), 0, [1, 1], [1])}, {"0": b"1234"}),
        document({"w": tensor(storage("0", 1, "ComplexStorage"), 0, [1], [1])}, {"0": b"1234"}),
        document({"w": tensor(storage("0", 1), 0, [1], [1])}, {"0": b"1234"}) + b"x",
        HEAD + b"\x80\x02}(" + b"(" * 1000 + b"t" * 1000 + b"Nu.",
        HEAD + b"\x80\x02h\x09.",
        HEAD + b"\x80\x02r\xff\xff\xff\xff.",
        HEAD + b"\x80\x02X\xff\xff\xff\xffx.",
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    assert refuse(content, tmp_path) in {"checkpoint.malformed", "checkpoint.forbidden"}


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = simple(np.arange(3, dtype=np.float32))
    for length in range(len(whole)):
        assert refuse(whole[:length], tmp_path) == "checkpoint.malformed"


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_a_changed_byte_gives_tensors_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(simple(np.arange(3, dtype=np.float32)))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] = data.draw(st.integers(0, 255))
    try:
        back = read(bytes(whole), tmp_path_factory.mktemp("pth"))
    except InputError:
        return
    assert all(isinstance(array, np.ndarray) for array in back.values())


def test_the_zip_format_is_named(tmp_path: Path) -> None:
    assert refuse(b"PK\x03\x04rest", tmp_path) == "checkpoint.format_unsupported"


def test_size_and_length_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_MAX_OPCODES", 100)
    assert refuse(HEAD + b"\x80\x02" + b"N" * 200 + b".", tmp_path) == "checkpoint.malformed"
    monkeypatch.setattr(checkpoint, "_MAX_BYTES", 4)
    assert refuse(b"12345", tmp_path) == "file.too_large"


def test_a_missing_file_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"file\.unreadable"):
        read_checkpoint(tmp_path / "none.pth")


def test_another_networks_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(simple(np.zeros(3, np.float32)))
    with pytest.raises(InputError, match=r"_conv_stem.*checkpoint\.wrong_model"):
        efficientnet_lite0.build(path)


def test_a_damaged_escape_in_a_string_is_a_malformed_checkpoint(tmp_path: Path) -> None:
    """The standard library's opcode reader only warns of it."""
    assert refuse(HEAD + b"\x80\x02S'\\o'\n.", tmp_path) == "checkpoint.malformed"
