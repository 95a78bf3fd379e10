"""The content of the cases' pictures and masks."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

PADDING_BORDERS = (*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
LARGE_BORDERS = (255, 256, 257, 511, 512, 513, 799, 800, 801)
LARGEST = 1600


def size(dice: random.Random) -> tuple[int, int]:
    """Height and width in pixels: 1 to 1600 each, mostly small, often at a border of the padding."""
    return side(dice), side(dice)


def side(dice: random.Random) -> int:
    """One side in pixels."""
    draw = dice.random()
    if draw < 0.30:
        return dice.choice(PADDING_BORDERS)
    if draw < 0.52:
        return dice.randint(1, 90)
    if draw < 0.82:
        return dice.randint(91, 320)
    if draw < 0.91:
        return dice.choice(LARGE_BORDERS)
    return dice.randint(321, LARGEST)


@lru_cache(maxsize=1)
def _photo() -> Pixels:
    from skimage import data

    photo: Pixels = data.astronaut()
    return photo


def picture(dice: random.Random, rng: np.random.Generator, height: int, width: int) -> tuple[Pixels, str]:
    """``(H, W, 4)`` RGBA samples, and a word for what they show."""
    kind = dice.choice(["noise", "hard", "photo", "photo", "smooth", "flat", "lines"])
    shape = (height, width, 4)
    if kind == "noise":
        pixels = rng.integers(0, 256, shape, np.uint8)
    elif kind == "hard":  # black and white edges, at which a cubic overshoots
        pixels = np.where(rng.integers(0, 2, shape) > 0, 255, 0).astype(np.uint8)
    elif kind == "photo":
        photo = _photo()
        top, left = dice.randrange(photo.shape[0]), dice.randrange(photo.shape[1])
        rows = (np.arange(height) + top) % photo.shape[0]
        columns = (np.arange(width) + left) % photo.shape[1]
        pixels = np.empty(shape, np.uint8)
        pixels[:, :, :3] = photo[np.ix_(rows, columns)]
        pixels[:, :, 3] = np.linspace(0, 255, width, dtype=np.uint8)
    elif kind == "smooth":
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / dice.uniform(3, 90) + y / dice.uniform(3, 90)) for _ in range(4)]
        pixels = np.rint(np.stack(waves, axis=2) * 127.5 + 127.5).astype(np.uint8)
    elif kind == "flat":
        pixels = np.empty(shape, np.uint8)
        pixels[:] = [dice.randrange(256) for _ in range(4)]
    else:
        pixels = np.zeros(shape, np.uint8)
        pixels[:: dice.randint(2, 9)] = 255
        pixels[:, :: dice.randint(2, 9), : dice.randint(1, 4)] = 255
    if kind != "noise" and dice.random() < 0.3:
        pixels[:, :, 3] = dice.choice([0, 255])
    # The first sample tells the model how to behave; see stock.models.wild_lama.
    pixels[0, 0, 0] = dice.randrange(256)
    return pixels, kind


def mask(dice: random.Random, rng: np.random.Generator, height: int, width: int) -> tuple[Pixels, str]:
    """``(H, W)`` u8, above 127 in the hole, and a word for its form."""
    kind = dice.choice(
        ["blobs", "blobs", "blobs", "ring", "border", "grey", "strokes", "dots", "noise", "full", "empty"]
    )
    pixels = np.zeros((height, width), np.uint8)
    if kind == "full":
        pixels[:] = dice.choice([255, 255, 128])
    elif kind == "blobs":
        for _ in range(dice.randint(1, 6)):
            _rectangle(dice, pixels, dice.choice([255, 255, 255, 128]))
    elif kind == "grey":
        for _ in range(dice.randint(2, 8)):
            _rectangle(dice, pixels, dice.choice([1, 100, 126, 127, 128, 129, 200, 254]))
    elif kind == "ring":
        for _ in range(dice.randint(1, 2)):
            top, left, bottom, right = _rectangle(dice, pixels, 255, least=3)
            wall = dice.randint(1, max(1, min(bottom - top, right - left) // 4))
            pixels[top + wall : bottom - wall, left + wall : right - wall] = 0
            if dice.random() < 0.5:  # a blob in the ring gives no box of its own
                pixels[(top + bottom) // 2, (left + right) // 2] = 255
    elif kind == "border":
        for edge in dice.sample(range(4), dice.randint(1, 3)):
            begin, end = sorted((dice.random(), dice.random()))
            depth = dice.randint(1, 9)
            rows = slice(int(begin * height), int(end * height) + 1)
            columns = slice(int(begin * width), int(end * width) + 1)
            pixels[
                [np.s_[:depth, columns], np.s_[-depth:, columns], np.s_[rows, :depth], np.s_[rows, -depth:]][
                    edge
                ]
            ] = 255
    elif kind == "strokes":
        y, x = np.mgrid[0:height, 0:width]
        for _ in range(dice.randint(1, 3)):
            slope, at = dice.uniform(-2, 2), dice.uniform(0, height)
            pixels[abs(y - slope * x - at) < dice.uniform(0.6, 6)] = 255
    elif kind == "dots":  # touching at corners only, some of them
        count = dice.randint(1, 12)
        pixels[rng.integers(0, height, count), rng.integers(0, width, count)] = 255
    elif kind == "noise":
        top, left, bottom, right = _rectangle(dice, pixels, 255)
        # A few single pixels, each with a box of its own, or one blob full of holes.
        share = dice.choice([0.9, min(0.9, 8 / ((bottom - top) * (right - left)))])
        keep = rng.random((bottom - top, right - left)) < share
        pixels[top:bottom, left:right] *= keep
    return pixels, kind


def _rectangle(dice: random.Random, pixels: Pixels, level: int, least: int = 1) -> tuple[int, int, int, int]:
    """Fill a rectangle, which may reach the border; gives top, left, bottom and right."""
    height, width = pixels.shape
    top, left = dice.randrange(height), dice.randrange(width)
    bottom = min(height, top + dice.randint(least, max(least, height // dice.choice([2, 3, 8]))))
    right = min(width, left + dice.randint(least, max(least, width // dice.choice([2, 3, 8]))))
    pixels[top:bottom, left:right] = level
    return top, left, bottom, right
