"""Writes BMP files of the kinds that Pillow reads and does not write."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

RAW, RLE8, RLE4, BITFIELDS = 0, 1, 2, 3

# Bits, masks of red, green, blue and alpha, as 4-byte files have them.
LAYOUTS = {
    "BGRX": (32, (0xFF0000, 0xFF00, 0xFF, 0)),
    "XBGR": (32, (0xFF000000, 0xFF0000, 0xFF00, 0)),
    "ABGR": (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
    "RGBA": (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
    "BGRA": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "565": (16, (0xF800, 0x7E0, 0x1F, 0)),
    "555": (16, (0x7C00, 0x3E0, 0x1F, 0)),
}


def bmp(
    rows: Sequence[bytes],
    width: int,
    bits: int,
    *,
    header: int = 40,
    compression: int = RAW,
    masks: tuple[int, int, int, int] | None = None,
    palette: bytes = b"",
    colours: int = 0,
    top_down: bool = False,
) -> bytes:
    """A file of rows that are packed already, the upper one first; ``header`` is that block's size in bytes.

    A compressed file has all its bytes in ``rows[0]``.
    """
    height = len(rows)
    if compression in (RLE8, RLE4):
        height, body = int.from_bytes(rows[1], "little"), rows[0]
    else:
        padded = [row.ljust(-(-len(row) // 4) * 4, b"\0") for row in rows]
        body = b"".join(padded if top_down else padded[::-1])
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack(
            "<IiiHHIIiiII",
            *(header, width, -height if top_down else height, 1, bits, compression, len(body)),
            *(2835, 2835, colours, 0),
        )
        fields = b"" if masks is None else struct.pack("<4I", *masks)
        # The old header has its three masks behind itself.
        info = info + fields[:12] if header == 40 else (info + fields).ljust(header, b"\0")
    offset = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + palette + body


def layout(pixels: Pixels, name: str, header: int, top_down: bool) -> bytes:
    """``(H, W, 4)`` RGBA as a file whose header names the bits of each colour."""
    bits, masks = LAYOUTS[name]
    words = np.zeros(pixels.shape[:2], np.uint32)
    for channel, mask in enumerate(masks):
        if mask:
            shift = (mask & -mask).bit_length() - 1
            width = bin(mask).count("1")
            words |= (pixels[:, :, channel].astype(np.uint32) >> (8 - width)) << shift
    packed = words.astype("<u2" if bits == 16 else "<u4")
    return bmp(
        [row.tobytes() for row in packed],
        pixels.shape[1],
        bits,
        header=header,
        compression=BITFIELDS,
        masks=masks,
        top_down=top_down,
    )


def indexed(indices: Pixels, bits: int, palette: bytes, header: int, top_down: bool) -> bytes:
    """``(H, W)`` indices of 1, 4 or 8 bits. A palette entry has 3 bytes under the header of 12, else 4."""
    if bits < 8:
        planes = (indices[:, :, np.newaxis] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(planes.reshape(indices.shape[0], -1).astype(np.uint8), axis=1)
    else:
        packed = indices
    colours = 0 if header == 12 else len(palette) // 4
    rows = [row.tobytes() for row in packed]
    return bmp(
        rows, indices.shape[1], bits, header=header, palette=palette, colours=colours, top_down=top_down
    )


def run_length(indices: Pixels, bits: int, palette: bytes, dice: random.Random) -> bytes:
    """``(H, W)`` indices of 4 or 8 bits as runs and literal stretches, drawn by chance."""
    height, width = indices.shape
    out = bytearray()
    for row in indices[::-1]:
        values = row.tolist()
        at = 0
        while at < width:
            same = 1
            while at + same < width and same < 255 and values[at + same] == values[at]:
                same += 1
            literal = min(width - at, 255, dice.randint(3, 40))
            if bits == 4:
                literal -= literal % 4  # Pillow takes no half bytes here
            if same < 3 and literal >= 3:
                stretch = bytes(values[at : at + literal])
                if bits == 4:
                    stretch = bytes(high << 4 | low for high, low in zip(stretch[::2], stretch[1::2]))
                out += bytes([0, literal]) + stretch + b"\0" * (len(stretch) % 2)
                at += literal
            else:
                index = values[at]
                out += bytes([same, index << 4 | index if bits == 4 else index])
                at += same
        out += b"\0\0"
    out += b"\0\1"
    return bmp(
        [bytes(out), height.to_bytes(4, "little")],
        width,
        bits,
        compression=RLE4 if bits == 4 else RLE8,
        palette=palette,
        colours=len(palette) // 4,
    )
