"""JPEG files of all kinds, sound and broken: Lama Cleaner's own functions on Pillow, against the grid."""

from __future__ import annotations

import io
import random
import re
import struct
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from lama_cleaner.helper import load_img, pil_to_bytes
from numpy.typing import NDArray
from PIL import Image

from parity import content, files
from parity.compare import decoded
from pure.arithmetic import Trial
from pure.door import DONE, Fields, blob, optional, pixels

MAX_PIXELS = 4_000_000

LEFT_TO_PILLOW = re.compile(
    r"jpeg pictures of this kind \((mode|coding process|more than \d+ scans|EXIF)|its EXIF block is no TIFF"
)
"""Refusals of what the grid does not promise, although Pillow may read it."""

Damage = Callable[[random.Random, bytearray], str]


def file(dice: random.Random, rng: np.random.Generator) -> tuple[bytes, str]:
    """A file, and a few words on it."""
    draw = dice.random()
    if draw < 0.4:
        sides = [dice.choice([1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65]) for _ in "hw"]
    elif draw < 0.92:
        sides = [dice.randint(1, 120) for _ in "hw"]
    else:  # files that Pillow hands to libjpeg in several blocks
        sides = [dice.randint(150, 500) for _ in "hw"]
    rgba, shown = content.picture(dice, rng, *sides)
    mode = dice.choice(["RGB", "RGB", "RGB", "L", "CMYK"])
    made = files.jpeg_file(dice, rgba, mode, files.draw_tags(dice, odd=False))
    data, notes = bytearray(made.data), [made.note]
    for chance, change in ((0.1, _between_segments), (0.1, _colours), (0.08, _sampling)):
        if dice.random() < chance:
            notes.append(change(dice, data))
    if dice.random() < 0.4:
        for _ in range(dice.choice([1, 1, 2, 5])):
            notes.append(dice.choice(DAMAGES)(dice, data))
    return _of_bounded_size(
        bytes(data), made.data
    ), f"{mode} {sides[1]}x{sides[0]} {shown} ({', '.join(notes)})"


def _of_bounded_size(data: bytes, sound: bytes) -> bytes:
    """Huge headers have a test of their own; here they would only take time."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return data if picture.width * picture.height <= MAX_PIXELS else sound
    except Exception:  # damaged files make Pillow raise anything
        return data


def _scan_data(data: bytearray) -> int:
    """Where the first scan's data begins."""
    at = data.find(b"\xff\xda")
    return min(len(data), at + 2 + data[at + 3]) if 0 <= at < len(data) - 4 else len(data)


def _frame_header(data: bytearray) -> int:
    """Where the frame header's marker is, or -1."""
    found = re.search(rb"\xff[\xc0-\xc2]\x00[\x0b\x11\x14]\x08", data)
    return found.start() if found else -1


def _between_segments(dice: random.Random, data: bytearray) -> str:
    data[2:2] = dice.choice(
        [
            b"\xff\xff",
            b"junk",
            b"\xff\x00",
            b"\xff\xfe\x00\x02",
            b"\xff\xe0\x00\x08JFIF\0",
            b"\xff\xe2\x00\x11ICC_PROFILE\0\1\1a",
            b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([dice.randrange(3)]),
            b"\xff\xed\x00\x20Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x02abcd",
            b"\xff\xdb\x00\x43\1" + b"\1" * 64,
        ]
    )
    return "a segment more"


def _colours(dice: random.Random, data: bytearray) -> str:
    """Other component ids, by which libjpeg guesses colours, or another transform in Adobe's segment."""
    adobe = data.find(b"Adobe")
    if adobe >= 0:
        data[adobe + 11] = dice.randrange(4)
        return "another transform"
    at = _frame_header(data)
    if at >= 0 and data[at + 9] == 3 and (ids := dice.choice([b"RGB", b"\0\1\2", b"abc"])):
        scan = data.find(b"\xff\xda")
        data[at + 10 : at + 19 : 3] = ids
        if data[scan + 4] == 3:
            data[scan + 5 : scan + 11 : 2] = ids
        if dice.random() < 0.5 and data[2:4] == b"\xff\xe0":
            del data[2:20]
    return "other component ids"


def _sampling(dice: random.Random, data: bytearray) -> str:
    at = _frame_header(data)
    if at < 0:
        return "no frame header"
    component = dice.randrange(data[at + 9])
    data[at + 11 + 3 * component] = dice.randint(1, 4) << 4 | dice.randint(1, 4)
    return f"sampling {data[at + 11 : at + 10 + 3 * data[at + 9] : 3].hex(' ')}"


def _cut(dice: random.Random, data: bytearray) -> str:
    del data[dice.randrange(len(data)) if dice.random() < 0.5 else -dice.randint(1, 20) :]
    return "cut"


def _cut_with_end(dice: random.Random, data: bytearray) -> str:
    del data[dice.randint(min(len(data), _scan_data(data)), len(data)) :]
    data.extend(b"\xff\xd9")
    return "cut, with an EOI"


def _flip_header(dice: random.Random, data: bytearray) -> str:
    data[dice.randrange(max(1, min(len(data), _scan_data(data))))] ^= 1 << dice.randrange(8)
    return "a bit of the header"


def _flip_scan(dice: random.Random, data: bytearray) -> str:
    at = _scan_data(data)
    if at < len(data):
        data[dice.randrange(at, len(data))] ^= 1 << dice.randrange(8)
    return "a bit of a scan"


def _overwrite(dice: random.Random, data: bytearray) -> str:
    at = dice.randrange(len(data) + 1)
    count = dice.randint(1, 200)
    data[at : at + count] = dice.choice([bytes(count), b"\xff" * count, dice.randbytes(count), b""])
    return f"{count} bytes overwritten or gone"


def _insert(dice: random.Random, data: bytearray) -> str:
    at = dice.randint(min(len(data), _scan_data(data)), len(data))
    data[at:at] = dice.choice(
        [b"\xff\xd0", b"\xff\xd3", b"\xff\xff", b"\xff\xd9", b"\0", b"\xff\x00", b"\xff\xc4"]
    )
    return "a marker more"


def _drop_marker(dice: random.Random, data: bytearray) -> str:
    markers = [found.start() for found in re.finditer(rb"\xff[\x01-\xfe]", data)]
    if markers:
        at = dice.choice(markers)
        del data[at : at + 2]
    return "a marker less"


def _drop_segment(dice: random.Random, data: bytearray) -> str:
    """Tables, the restart interval, the frame header, or a scan's header with its data."""
    segments = [found.start() for found in re.finditer(rb"\xff[\xc0-\xcf\xda-\xfe]", data)]
    if segments:
        at = dice.choice(segments)
        end = next((other for other in segments if other > at), len(data) - 2)
        del data[at:end]
    return "a segment less"


def _swap_segments(dice: random.Random, data: bytearray) -> str:
    """Scans in another order, for one."""
    edges = [found.start() for found in re.finditer(rb"\xff[\xc4\xda\xdb]", data)]
    if len(edges) > 2:
        first = dice.randrange(len(edges) - 2)
        begin, middle, end = edges[first : first + 3]
        data[begin:end] = data[middle:end] + data[begin:middle]
    return "segments swapped"


def _resize(dice: random.Random, data: bytearray) -> str:
    at = _frame_header(data)
    if at >= 0:
        side = at + dice.choice([5, 7])
        data[side : side + 2] = struct.pack(
            ">H", dice.choice([0, 1, 7, 50, 200, 2000, dice.randrange(65536)])
        )
    return "another size"


def _repeat(dice: random.Random, data: bytearray) -> str:
    data.extend(bytes(data) if dice.random() < 0.5 else dice.randbytes(dice.randint(1, 9)))
    return "bytes behind the end"


DAMAGES: tuple[Damage, ...] = (
    _cut,
    _cut_with_end,
    _flip_header,
    _flip_header,
    _flip_scan,
    _flip_scan,
    _overwrite,
    _insert,
    _drop_marker,
    _drop_segment,
    _swap_segments,
    _resize,
    _repeat,
)


def read(data: bytes, description: str) -> tuple[Trial, tuple[NDArray[np.uint8], Any] | None]:
    """`helper.load_img`: the same pixels, or no answer from either; what upstream gives, if it gives any.

    Where Pillow fails at a damaged scan, upstream ignores that, and goes on with the rows that are there and
    black for the others. That is no picture here; the web server lets upstream answer.
    """
    fields = struct.pack("<Q", MAX_PIXELS) + blob(data)
    try:
        decoded(data)
        rgb, _, kept = load_img(data, return_exif=True)
    except Exception as error:  # damaged files make Pillow raise anything
        reason = str(error)

        def refuses(status: int, answer: bytes) -> str:
            return "" if status != DONE else f"pixels, where Pillow says: {reason}"

        return Trial(15, fields, refuses, description, True), None

    def judge(status: int, answer: bytes) -> str:
        if status != DONE:
            text = answer.decode()
            return "" if LEFT_TO_PILLOW.search(text) else f"refused: {text}"
        given = Fields(answer).pixels(3)
        if given.shape != rgb.shape:
            return f"{given.shape}, Pillow {rgb.shape}"
        wrong = int((given != rgb).sum())
        return f"{wrong} of {rgb.size} samples differ" if wrong else ""

    return Trial(15, fields, judge, description, True), (rgb, kept)


def read_mask(data: bytes, description: str) -> Trial:
    """`helper.load_img` in grey, and the server's threshold; for a file that upstream reads."""
    grey, _ = load_img(data, gray=True)
    wanted = cv2.threshold(grey, 127, 255, cv2.THRESH_BINARY)[1]

    def judge(status: int, answer: bytes) -> str:
        if status != DONE:
            return f"refused: {answer.decode()}"
        given = Fields(answer).pixels(1)
        return "" if np.array_equal(given, wanted) else "another mask"

    return Trial(16, struct.pack("<Q", MAX_PIXELS) + blob(data), judge, f"mask {description}")


def write(rgb: NDArray[np.uint8], block: bytes | None, kept: Any, quality: int, description: str) -> Trial:
    """`helper.pil_to_bytes`: the same bytes."""
    wanted = pil_to_bytes(Image.fromarray(rgb), "jpeg", quality=quality, exif_infos=kept)
    fields = blob("jpeg") + bytes([quality]) + pixels(rgb) + optional(None)
    fields += optional(None if block is None else blob(block)) + optional(None)

    def judge(status: int, answer: bytes) -> str:
        if status != DONE:
            return f"refused: {answer.decode()}"
        given = Fields(answer).blob()
        if given == wanted:
            return ""
        first = next(
            (at for at, pair in enumerate(zip(given, wanted, strict=False)) if pair[0] != pair[1]), -1
        )
        return f"{len(given)} bytes, Pillow {len(wanted)}, other from byte {first} on"

    return Trial(17, fields, judge, f"answer at quality {quality} to {description}")
