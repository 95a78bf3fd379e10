"""The pictures and masks that requests carry: a photo of a wanted size, and what a browser's canvas sends.

Needs numpy and Pillow alone, so that it also runs where Lama Cleaner is not installed.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
# By SpaceX, in the public domain, from scikit-image's sample data.
PHOTO = ROOT / "bench" / "photo.jpg"
SHARED_PHOTOS = ROOT.parent / "shared" / "data" / "photos"

SMOOTHING = 4
"""Strokes are drawn this many times larger and reduced, which gives them a canvas's soft edges."""


def photo(width: int, height: int, noise: float = 0.0) -> Image.Image:
    """A photo, cut to the sides' ratio and resized; the same on each call.

    ``noise`` is the standard deviation of what is added, in levels of 255. Enlarged, the photo alone is
    smoother than a camera's, and its PNG a third as large.
    """
    with Image.open(PHOTO) as opened:
        picture = opened.convert("RGB")
    scale = min(picture.width / width, picture.height / height)
    cut_width, cut_height = width * scale, height * scale
    left, top = (picture.width - cut_width) / 2, (picture.height - cut_height) / 2
    box = (left, top, left + cut_width, top + cut_height)
    resized: Image.Image = picture.resize((width, height), Image.Resampling.LANCZOS, box)
    if noise == 0.0:
        return resized
    dice = np.random.default_rng(12)
    noisy = np.asarray(resized, np.float32) + dice.normal(0.5, noise, (height, width, 3)).astype(np.float32)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def encoded(picture: Image.Image, form: str) -> bytes:
    """A file as people have them: a PNG by Pillow's defaults, a JPEG of quality 95."""
    out = io.BytesIO()
    picture.save(out, form, **({"quality": 95} if form == "JPEG" else {}))
    return out.getvalue()


def brush_stroke(width: int, height: int) -> bytes:
    """A mask with one stroke in the upper middle, as the page's canvas gives it: RGBA PNG, white on nothing.

    The page shows a large picture smaller and leaves its brush as it is, so the stroke's width goes with the
    picture's: 40 pixels at 512, 160 at 4000. Its box is 20 % by 15 % of the picture.
    """
    thickness = max(40, width // 25)
    way = [(0.35, 0.40), (0.40, 0.36), (0.45, 0.37), (0.52, 0.47)]
    points = [(x * width, y * height) for x, y in way]
    reach = thickness // 2 + 2
    left, top = (int(min(side)) - reach for side in zip(*points))
    right, bottom = (int(max(side)) + reach for side in zip(*points))
    large = Image.new("L", ((right - left) * SMOOTHING, (bottom - top) * SMOOTHING))
    pen = ImageDraw.Draw(large)
    inside = [((x - left) * SMOOTHING, (y - top) * SMOOTHING) for x, y in points]
    pen.line(inside, fill=255, width=thickness * SMOOTHING, joint="curve")
    round_end = thickness * SMOOTHING / 2
    for x, y in (inside[0], inside[-1]):
        pen.ellipse((x - round_end, y - round_end, x + round_end, y + round_end), fill=255)
    cover = large.resize((right - left, bottom - top), Image.Resampling.BOX)
    canvas = Image.new("RGBA", (width, height))
    # A canvas keeps the colour where it is half transparent, and black where nothing was drawn.
    white = cover.point([0] + [255] * 255)
    canvas.paste(Image.merge("RGBA", (white, white, white, cover)), (left, top))
    return encoded(canvas, "PNG")


def full_mask(width: int, height: int) -> bytes:
    """A mask that covers everything."""
    return encoded(Image.new("RGBA", (width, height), (255, 255, 255, 255)), "PNG")


def decoded(data: bytes) -> NDArray[np.uint8]:
    """The pixels of a file."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture)


def photos_at_hand() -> dict[str, Image.Image]:
    """Photos by name: the packaged one, and those that lie beside the checkout."""
    found = {}
    masks = {"mask.png", "overture-creations-5sI6fQgYIuo_mask.png"}
    for path in [PHOTO, *sorted(SHARED_PHOTOS.glob("*.*"))]:
        if path.name not in masks:
            with Image.open(path) as opened:
                found[path.name] = opened.convert("RGB")
    return found
