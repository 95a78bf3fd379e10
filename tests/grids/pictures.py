"""Pictures and masks for requests, and what comes back."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def encoded(pixels: Pixels, form: str = "PNG", **options: object) -> bytes:
    """A file of these pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def decoded(data: bytes) -> Pixels:
    """The pixels of a file, however large."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.array(picture)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def plain(height: int, width: int, first_red: int = 0) -> Pixels:
    """A green picture, ``(height, width, 3)`` RGB; its first pixel tells `slow_lama` how long to work."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 1] = 200
    pixels[0, 0, 0] = first_red
    return pixels


def hole(height: int, width: int, top: int, left: int, size: int) -> Pixels:
    """A mask with one square hole."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[top : top + size, left : left + size] = 255
    return pixels
