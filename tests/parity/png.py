"""Writes PNG files of every kind that the format has; Pillow writes some of them only."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
SIGNATURE = b"\x89PNG\r\n\x1a\n"

# First column, first row, step right, step down of the seven passes of Adam7.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

Samples = NDArray[np.uint16]


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    samples: Samples,
    colour: int,
    depth: int,
    *,
    interlaced: bool = False,
    filters: Sequence[int] = (0,),
    level: int = 1,
    pieces: int = 1,
    before: Iterable[bytes] = (),
    after: Iterable[bytes] = (),
) -> bytes:
    """A file of ``(H, W, C)`` samples of ``depth`` bits.

    Args:
        filters: Those of the rows, repeated as often as needed.
        pieces: Into how many IDAT chunks the pixels are cut.
        before: Chunks between header and pixels, the palette among them.
        after: Chunks between pixels and end.
    """
    height, width, _ = samples.shape
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    if interlaced:
        parts = [samples[top::down, left::right] for left, top, right, down in PASSES]
        raw = b"".join(_rows(part, depth, filters) for part in parts if part.size)
    else:
        raw = _rows(samples, depth, filters)
    packed = zlib.compress(raw, level)
    step = -(-len(packed) // pieces)
    data = [chunk(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step)]
    return b"".join([SIGNATURE, chunk(b"IHDR", header), *before, *data, *after, chunk(b"IEND", b"")])


def _rows(samples: Samples, depth: int, filters: Sequence[int]) -> bytes:
    """Filtered rows, each behind the number of its filter."""
    height, width, channels = samples.shape
    flat = samples.reshape(height, width * channels)
    if depth == 16:
        packed = np.ascontiguousarray(flat, ">u2").view(np.uint8)
    elif depth == 8:
        packed = flat.astype(np.uint8)
    else:
        bits = (flat[:, :, np.newaxis] >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.astype(np.uint8).reshape(height, -1), axis=1)
    if not any(filters):
        return np.hstack([np.zeros((height, 1), np.uint8), packed]).tobytes()
    step = max(1, channels * depth // 8)
    size = packed.shape[1]
    # A row and a column of zeros stand for what lies outside.
    wide = np.zeros((height + 1, size + step), np.int16)
    wide[1:, step:] = packed
    here, left = wide[1:, step:], wide[1:, :-step]
    above, corner = wide[:-1, step:], wide[:-1, :-step]
    guess = left + above - corner
    distances = np.stack([abs(guess - left), abs(guess - above), abs(guess - corner)])
    paeth = np.choose(distances.argmin(0), [left, above, corner])
    predictions = [np.zeros_like(here), left, above, (left + above) // 2, paeth]
    chosen = np.resize(np.array(filters, np.uint8), height)
    out = np.empty((height, size + 1), np.uint8)
    out[:, 0] = chosen
    for number, prediction in enumerate(predictions):
        rows = chosen == number
        out[rows, 1:] = ((here - prediction) & 255).astype(np.uint8)[rows]
    return out.tobytes()
