"""Pictures as the ImageNet models want them.

The steps are those of EfficientNet-Lite's published evaluation: the central
square of 87.5 % of the shorter side (224 of 256), resized to 224 x 224 by
bicubic interpolation. Normalisation is part of the models.

Pillow is imported only when a picture is read, so that a client without the
``demo`` extra can send tensors of its own.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sealserve.errors import InputError, Unavailable

__all__ = ["IMAGE_SIZE", "load_image"]

IMAGE_SIZE = 224
_CROP_PADDING = 32  # 224 / (224 + 32) = 87.5 % of the shorter side
_MAX_FILE_BYTES = 64 << 20
# A compressed picture of a few kilobytes may unfold into gigabytes; the header
# states how many pixels there will be before any is decoded.
_MAX_PIXELS = 64_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def load_image(path: Path) -> npt.NDArray[np.float32]:
    """Read one picture as the input of an ImageNet model.

    Args:
        path: a JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF file, at most
            64 MiB and 64 million pixels; turned upright by its EXIF tag.

    Returns:
        float32 of shape [224, 224, 3], RGB, 0..255.

    Raises:
        InputError: ``image.unreadable`` or ``image.too_large``.
        Unavailable: ``image.not_found``.
        ModuleNotFoundError: Pillow is not installed.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        file_bytes = path.stat().st_size
    except OSError as error:
        raise Unavailable(
            "image.not_found", f"cannot read the picture: {error.strerror}", where=str(path)
        ) from error
    if file_bytes > _MAX_FILE_BYTES:
        raise _too_large(path, f"{file_bytes} bytes; at most {_MAX_FILE_BYTES} are read")
    try:
        # Pillow warns about a picture of over 89 million pixels and refuses twice that.
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            opened = Image.open(path, formats=_FORMATS)
        with opened as picture:
            width, height = picture.size
            if width * height > _MAX_PIXELS:
                raise _too_large(path, f"{width} x {height} pixels; at most {_MAX_PIXELS} in all")
            upright: Any = ImageOps.exif_transpose(picture).convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large(path, "more pixels than Pillow decodes") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise InputError(
            "image.unreadable",
            f"not a picture that can be decoded ({type(error).__name__})",
            where=str(path),
            hint="give a JPEG, PNG, WebP, BMP, GIF or TIFF file",
        ) from error
    crop = _central_square(*upright.size)
    resized = upright.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, box=crop)
    return np.asarray(resized, dtype=np.float32)


def _central_square(width: int, height: int) -> tuple[int, int, int, int]:
    side = max(1, int(min(width, height) * IMAGE_SIZE / (IMAGE_SIZE + _CROP_PADDING)))
    left, top = (width - side + 1) // 2, (height - side + 1) // 2
    return left, top, left + side, top + side


def _too_large(path: Path, what: str) -> InputError:
    return InputError("image.too_large", f"the picture has {what}", where=str(path))
