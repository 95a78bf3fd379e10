"""Trials of reading and writing picture files: Pillow through upstream's own functions, against the grid."""

from __future__ import annotations

import io
import random
import struct
from typing import Any

import numpy as np
from lama_cleaner.helper import load_img, pil_to_bytes
from numpy.typing import NDArray
from PIL import Image

from parity import content, files
from parity.cases import WHEEL
from parity.compare import LARGEST_DIFFERENCE, MEAN_DIFFERENCE, decoded, difference, exif
from pure.arithmetic import Trial
from pure.door import DONE, Fields, blob, optional, pixels

Pixels = NDArray[np.uint8]

PROMISED = frozenset(f"{form} {mode}" for form in ("PNG", "JPEG", "BMP") for mode in ("RGB", "RGBA", "L"))
MAX_PIXELS = 4_000_000
FORMATS = tuple((form, mode) for form, mode in WHEEL if form != "OTHER")


def _file(dice: random.Random, rng: np.random.Generator) -> tuple[bytes, str, bool]:
    """A small file of any kind, now and then a damaged one; a few words on it, and whether it is sound."""
    form, mode = dice.choice(FORMATS)
    tags = files.NO_TAGS if form in ("BMP", "GIF") else files.draw_tags(dice)
    sides = [
        dice.choice([1, 2, 7, 8, 9, 16, 17, 33]) if dice.random() < 0.5 else dice.randint(1, 90) for _ in "hw"
    ]
    rgba, shown = content.picture(dice, rng, *sides)
    made = files.WRITERS[form](dice, rgba, mode, tags)
    description = (
        f"{form} {mode} {sides[1]}x{sides[0]} {shown} ({made.note}, EXIF {tags.note or tags.orientation})"
    )
    data = made.data
    draw = dice.random()
    if draw < 0.05:
        return data[: dice.randrange(len(data))], f"{description}, cut", False
    if draw < 0.10:
        return files.flipped(dice, data, MAX_PIXELS), f"{description}, flipped", False
    return data, description, not tags.note and "with mark" not in made.note


def _opened(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return f"{picture.format} {picture.mode}"
    except Exception:  # damaged files make Pillow raise anything
        return "unreadable"


def probe(dice: random.Random, rng: np.random.Generator) -> Trial:
    """`Image.open`: format, mode and size by the header."""
    data, description, sound = _file(dice, rng)
    kind = _opened(data)

    def judge(status: int, answer: bytes) -> str:
        if status != DONE:
            return "" if kind == "unreadable" or not sound else f"refused: {answer.decode()}"
        found = Fields(answer)
        form, mode = found.blob().decode(), found.blob().decode()
        height, width = found.numbers("II")
        decodes = found.has()
        if kind == "unreadable" or not decodes:
            return "" if kind not in PROMISED else "does not decode what is promised"
        with Image.open(io.BytesIO(data)) as picture:
            # Two JPEGs in one file; upstream treats them as a JPEG.
            called = "JPEG" if picture.format == "MPO" else picture.format
            # The crate has one name for 16 bits in either byte order.
            wanted = (called, picture.mode.replace("I;16B", "I;16"), *picture.size)
        given = (form.upper(), mode, width, height)
        return "" if given == wanted else f"{given}, Pillow {wanted}"

    return Trial(14, blob(data), judge, description)


def decode(dice: random.Random, rng: np.random.Generator) -> Trial:
    """`helper.load_img`: pixels, alpha, EXIF and `parameters`."""
    data, description, sound = _file(dice, rng)
    kind = _opened(data)
    may_refuse = not (sound and kind in PROMISED)
    try:
        rgb, alpha, kept = load_img(data, return_exif=True)
    except Exception:  # damaged files make Pillow raise anything
        return Trial(
            15, struct.pack("<Q", MAX_PIXELS) + blob(data), _no_answer, f"{description}: {kind}", True
        )

    def judge(status: int, answer: bytes) -> str:
        if status != DONE:
            return "" if may_refuse else f"refused: {answer.decode()}"
        found = Fields(answer)
        given = found.pixels(3)
        given_alpha = found.pixels(1) if found.has() else None
        block = found.blob() if found.has() else None
        parameters = found.blob().decode() if found.has() else None
        if given.shape != rgb.shape:
            return f"{given.shape}, upstream {rgb.shape}"
        if not np.array_equal(given, rgb):
            far = difference(given, rgb)
            return f"{far.samples} samples differ, by {far.largest} at most"
        if (alpha is None) != (given_alpha is None) or (
            alpha is not None and not np.array_equal(alpha, given_alpha)
        ):
            return "another alpha"
        if kind.startswith("PNG") and parameters != kept["parameters"]:
            return f"parameters {parameters!r}, upstream {kept['parameters']!r}"
        if not kind.startswith("TIFF"):
            return _other_tags(block, kept["exif"])
        return ""

    return Trial(15, struct.pack("<Q", MAX_PIXELS) + blob(data), judge, f"{description}: {kind}", may_refuse)


def _no_answer(status: int, answer: bytes) -> str:
    return "" if status != DONE else "pixels, where upstream raises"


def _loaded(block: bytes | None) -> Image.Exif:
    found = Image.Exif()
    if block is not None:
        found.load(block)
    return found


def _other_tags(block: bytes | None, kept: Image.Exif) -> str:
    """How a block differs from the one that upstream writes back."""
    try:
        wanted = _tags(_loaded(kept.tobytes()))
    except Exception:  # upstream fails when it writes such a block back, and answers with an error
        return "" if block is None else "a block, where upstream has none that it can write"
    given = _tags(_loaded(block))
    return "" if given == wanted else f"EXIF {given}, upstream {wanted}"


def _tags(found: Image.Exif) -> str:
    """The tags of a block, comparable."""
    parts = [dict(found), dict(found.get_ifd(0x8769)), dict(found.get_ifd(0x8825))]
    return repr([sorted((int(tag), value) for tag, value in part.items()) for part in parts])


def decode_mask(dice: random.Random, rng: np.random.Generator) -> Trial:
    """`helper.load_img` in grey, and the server's threshold."""
    import cv2

    if dice.random() < 0.5:
        hole, shown = content.mask(dice, rng, dice.randint(1, 90), dice.randint(1, 90))
        made, sound = files.mask_file(dice, hole), True
        data, description = made.data, f"mask {shown} {hole.shape} as {made.note}"
    else:
        data, description, sound = _file(dice, rng)
    kind = _opened(data)
    may_refuse = not (sound and kind in PROMISED)
    fields = struct.pack("<Q", MAX_PIXELS) + blob(data)
    try:
        grey, _ = load_img(data, gray=True)
    except Exception:  # damaged files make Pillow raise anything
        return Trial(16, fields, _no_answer, f"{description}: {kind}", True)
    wanted = cv2.threshold(grey, 127, 255, cv2.THRESH_BINARY)[1]

    def judge(status: int, answer: bytes) -> str:
        if status != DONE:
            return "" if may_refuse else f"refused: {answer.decode()}"
        given = Fields(answer).pixels(1)
        if given.shape != wanted.shape:
            return f"{given.shape}, upstream {wanted.shape}"
        return "" if np.array_equal(given, wanted) else f"{int((given != wanted).sum())} pixels differ"

    return Trial(16, fields, judge, f"{description}: {kind}", may_refuse)


def encode(dice: random.Random, rng: np.random.Generator) -> Trial:
    """`helper.pil_to_bytes`: what Pillow reads from either file; for JPEG see `pure.jpegs`."""
    form = dice.choice(["png", "png", "bmp", "webp", "tiff"])
    rgba, shown = content.picture(dice, rng, dice.randint(1, 70), dice.randint(1, 70))
    with_alpha = dice.random() < 0.5
    array = rgba if with_alpha else np.ascontiguousarray(rgba[:, :, :3])
    tags = files.draw_tags(dice, odd=False) if form in ("png", "webp") else files.NO_TAGS
    parameters = dice.choice([None, None, "a cat\nSeed: 1", "Größe", "猫", ""]) if form == "png" else None
    quality = dice.choice([95, 95, 95, 1, 30, 75, 100])
    kept: dict[str, Any] = {"exif": _loaded(tags.block), "parameters": parameters}
    stock = decoded(pil_to_bytes(Image.fromarray(array), form, quality=quality, exif_infos=kept))
    fields = blob(form) + bytes([quality]) + pixels(array[:, :, :3])
    fields += optional(pixels(array[:, :, 3]) if with_alpha else None)
    block = kept["exif"].tobytes().removeprefix(b"Exif\0\0")
    fields += optional(None if tags.block is None else blob(block))
    fields += optional(None if parameters is None else blob(parameters))
    kind = f"{form} {stock.mode}"
    description = f"{kind} {array.shape} {shown} quality {quality} {parameters!r} EXIF {tags.orientation}"
    may_refuse = form in ("webp", "tiff")

    def judge(status: int, answer: bytes) -> str:
        if status != DONE:
            return "" if may_refuse else f"refused: {answer.decode()}"
        given = decoded(Fields(answer).blob())
        if (given.format, given.mode, given.size) != (stock.format, stock.mode, stock.size):
            return (
                f"{given.format} {given.mode} {given.size}, Pillow {stock.format} {stock.mode} {stock.size}"
            )
        far = difference(np.array(given), np.array(stock))
        if form == "webp":
            if far.largest > LARGEST_DIFFERENCE or far.mean > MEAN_DIFFERENCE:
                return f"samples differ by {far.largest} at most, {far.mean:.2f} in the mean"
        elif far.samples:
            return f"{far.samples} samples differ, by {far.largest} at most"
        if given.info.get("parameters") != stock.info.get("parameters"):
            return f"parameters {given.info.get('parameters')!r}, Pillow {stock.info.get('parameters')!r}"
        return "" if exif(given) == exif(stock) else f"EXIF {exif(given)}, Pillow {exif(stock)}"

    return Trial(17, fields, judge, description, may_refuse)
