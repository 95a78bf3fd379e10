"""EXIF of files that go to a node and come back: R8.1."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from .conftest import Grid

ORIENTATION, MAKE = 274, 271
PIXELS = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)


def file_of(kind: str, exif: bytes) -> bytes:
    """A file with an EXIF block, whatever that is."""
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, kind, exif=exif)
    return out.getvalue()


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def test_a_file_that_comes_back_says_that_it_is_upright(grid: Grid) -> None:
    """No viewer turns it once more, whatever the format of either."""
    kinds = ("PNG", "JPEG", "WEBP", "TIFF")
    cases = [(kind, kind, orientation) for kind in kinds for orientation in (1, 3, 6)]
    cases += [(kind, other, 8) for kind in kinds for other in kinds if other != kind]
    for kind, other, orientation in cases:
        exif = Image.Exif()
        exif[ORIENTATION], exif[MAKE] = orientation, "Camera"
        photo = file_of(kind, exif.tobytes())
        upright = ImageOps.exif_transpose(opened(photo))
        assert upright is not None
        mask = np.zeros((upright.height, upright.width), np.uint8)
        output = other.lower()
        answer = opened(grid.client.inpaint_bytes(photo, mask, output=output, timeout=60))  # type: ignore[arg-type]
        tags = answer.getexif()
        assert (tags[ORIENTATION], tags[MAKE]) == (1, "Camera"), (kind, other, orientation)
        assert answer.size == upright.size
        if other in ("PNG", "TIFF"):
            assert np.array_equal(np.asarray(answer), np.asarray(upright.convert("RGB")))
        if kind != "TIFF" and kind == other:  # of a TIFF file upstream leaves the tag out
            kept = grid.client.inpaint_bytes(photo, mask, output="png", keep_orientation=True, timeout=60)
            assert opened(kept).getexif()[ORIENTATION] == orientation


def test_exif_that_cannot_be_read_is_left_out(grid: Grid) -> None:
    mask = np.zeros(PIXELS.shape[:2], np.uint8)
    for kind in ("PNG", "JPEG", "WEBP"):
        for garbage in (b"garbage", b"MM\0*", b"II*\0\xff\xff\xff\xff", b"\xff" * 40):
            photo = file_of(kind, b"Exif\0\0" + garbage)
            answer = opened(grid.client.inpaint_bytes(photo, mask, timeout=60))
            assert (answer.size, len(answer.getexif())) == ((30, 20), 0), (kind, garbage)
