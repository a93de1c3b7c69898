"""Snappy as TensorFlow packed its older checkpoints: unpacked, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealserve.serving.crc32c import masked
from sealserve.serving.runtimes.checkpoint import entries
from sealserve.serving.runtimes.snappy import unpack

LIMIT = 1 << 16


def size(number: int) -> bytes:
    low = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes(byte | 128 for byte in low[:-1]) + bytes(low[-1:])


def literal(data: bytes) -> bytes:
    last = len(data) - 1
    if last < 60:
        return bytes([last << 2]) + data
    wide = (last.bit_length() + 7) // 8
    return bytes([(59 + wide) << 2]) + last.to_bytes(wide, "little") + data


def copy(offset: int, length: int, kind: int) -> bytes:
    if kind == 1:
        return bytes([offset >> 8 << 5 | (length - 4) << 2 | 1, offset & 255])
    return bytes([(length - 1) << 2 | kind]) + offset.to_bytes(2 if kind == 2 else 4, "little")


@st.composite
def packings(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A text, and one of the many ways to pack it."""
    text, packed = bytearray(), bytearray()
    for _ in range(draw(st.integers(0, 8))):
        if text and draw(st.booleans()):
            kind = draw(st.integers(1, 3))
            offset = draw(st.integers(1, min(len(text), 2047)))
            length = draw(st.integers(4, 11) if kind == 1 else st.integers(1, 64))
            for _ in range(length):
                text.append(text[-offset])
            packed += copy(offset, length, kind)
        else:
            fresh = draw(st.binary(min_size=1, max_size=300))
            text += fresh
            packed += literal(fresh)
    return bytes(text), size(len(text)) + bytes(packed)


@given(packings())
def test_every_packing_of_a_text_gives_the_text(packing: tuple[bytes, bytes]) -> None:
    text, packed = packing
    assert unpack(packed, LIMIT) == text


@given(st.binary(max_size=60))
def test_any_bytes_are_unpacked_or_refused(packed: bytes) -> None:
    try:
        assert len(unpack(packed, LIMIT)) <= LIMIT
    except (ValueError, IndexError):
        return


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (size(LIMIT + 1) + literal(b"a"), "more than 65536 bytes"),
        (size(2) + literal(b"abc"), "more than it says"),
        (size(4) + literal(b"abc"), "less than it says"),
        (size(5) + literal(b"a") + copy(2, 4, 1), "before its beginning"),
        (size(5) + literal(b"a") + copy(0, 4, 1), "before its beginning"),
        (size(3) + bytes([2 << 2]) + b"ab", "less than it says"),
        (b"\xff" * 9, "size has no end"),
    ],
)
def test_what_is_damaged_is_refused(packed: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unpack(packed, LIMIT)


def test_an_index_of_an_older_checkpoint_is_read() -> None:
    """TensorFlow Serving's own test models have such; they were refused as damaged."""

    def sealed(body: bytes, kind: int) -> bytes:
        return body + bytes([kind]) + masked(body + bytes([kind])).to_bytes(4, "little")

    ending = bytes(4) + b"\1\0\0\0"  # one restart, at the beginning
    plain = b"\0\1\3avar" + ending
    packed = sealed(size(len(plain)) + literal(plain), 1)
    handle = size(0) + size(len(packed) - 5)
    index = sealed(b"\0\1" + size(len(handle)) + b"z" + handle + ending, 0)
    footer = size(0) * 2 + size(len(packed)) + size(len(index) - 5)
    magic = 0xDB4775248B80FB57.to_bytes(8, "little")
    assert list(entries(packed + index + footer.ljust(40, b"\0") + magic)) == [(b"a", b"var")]
    other = sealed(size(len(plain)) + literal(plain), 2)
    with pytest.raises(ValueError, match="in a way that TensorFlow has not"):
        list(entries(other + index + footer.ljust(40, b"\0") + magic))
