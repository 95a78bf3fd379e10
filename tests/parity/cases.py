"""Requests to ``/inpaint``, each drawn from its number alone."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
from PIL import Image

from parity import content, files, png
from parity.files import NO_TAGS, WRITERS, File
from stock.forms import stock_form

SEED = 20231122

WHEEL: tuple[tuple[str, str], ...] = (
    *(
        ("PNG", mode)
        for mode in ("RGB", "RGBA", "L", "P", "LA", "RGB", "RGBA", "1", "I;16", "P", "L", "RGB", "RGBA")
    ),
    ("APNG", "RGBA"),
    *(("JPEG", mode) for mode in ("RGB", "L", "RGB", "CMYK", "RGB", "RGB")),
    ("MPO", "RGB"),
    *(("BMP", mode) for mode in ("RGB", "RGBA", "L", "P", "1", "RGB")),
    *(("TIFF", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK", "RGB")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA", "RGB", "RGBA")),
    *(("GIF", mode) for mode in ("P", "L", "P", "1")),
    ("OTHER", ""),
)
"""Format and mode of the cases in turn."""

OTHERS = ("PPM", "TGA", "PCX", "JPEG2000", "SGI")
RARE_TIFFS = ("F", "I", "LAB", "YCbCr")

FAULTS = (
    *(
        "image cut",
        "image cut",
        "image flipped",
        "image flipped",
        "image tail cut",
        "image empty",
        "image is text",
    ),
    *(
        "mask cut",
        "mask flipped",
        "mask of another size",
        "mask of another size",
        "mask is empty",
        "huge header",
    ),
    *("bomb", "field missing", "file missing", "bad number", "bad flag", "no files"),
)
FAULT_SHARE = 0.12
LARGEST_CLAIM = 16_000_000  # pixels that a damaged header may claim, so that stock stays within memory


STRATEGY_FIELDS = (
    "hdStrategy",
    "hdStrategyCropMargin",
    "hdStrategyCropTrigerSize",
    "hdStrategyResizeLimit",
)


class Case:
    """One request.

    Attributes:
        number: The number that it was drawn from.
        form: The fields.
        image: The picture's file; None leaves the part out.
        mask: The mask's file; None leaves the part out.
        kind: Format and mode that the picture was written in.
        fault: Its fault; empty for a sound request.
        odd_tags: Whether the picture has an EXIF block that breaks some rule.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        dice = random.Random(f"{SEED}:{number}")
        rng = np.random.default_rng([SEED, number])
        form, mode = WHEEL[number % len(WHEEL)]
        if form == "OTHER":
            mode = OTHERS[number // len(WHEEL) % len(OTHERS)]
        elif form == "TIFF" and mode == "CMYK" and dice.random() < 0.4:
            mode = dice.choice(RARE_TIFFS)
        self.kind = f"{form} {mode}"
        tags = NO_TAGS if form in ("BMP", "GIF", "OTHER") else files.draw_tags(dice)
        height, width = content.size(dice)
        stored = (width, height) if tags.swaps else (height, width)
        pixels, shown = content.picture(dice, rng, *stored)
        image = WRITERS[form](dice, pixels, mode, tags)
        if form == "GIF" and dice.random() < 0.15:
            margin = dice.randint(0, 9), dice.randint(0, 9)
            image = File(files.wide_screen(dice, image.data, margin), f"{image.note} on a wider screen")
            height, width = height + margin[1], width + margin[0]
        # Where the tag is not said or not taken as it was meant, Pillow knows which way the picture lies.
        if tags.block is not None:
            height, width = _upright(image.data)
        hole, form_of_hole = content.mask(dice, rng, height, width)
        mask = files.mask_file(dice, hole)
        self.image: bytes | None = image.data
        self.mask: bytes | None = mask.data
        self.form = _form(dice, height, width)
        self.odd_tags = bool(tags.note)
        self.fault = ""
        if dice.random() < FAULT_SHARE:
            self.fault = dice.choice(FAULTS)
            if image.note.startswith("group") and self.fault.startswith("image"):
                # libtiff leaves the rows behind a damage of these to what was in memory.
                self.fault = "image empty"
            self._break(dice, hole)
        said = "" if tags is NO_TAGS else f", EXIF {tags.note or tags.orientation}"
        self._text = (
            f"{self.kind} {width}x{height} {shown} ({image.note}{said}), mask {form_of_hole} as {mask.note}, "
            + ", ".join(f"{name[2:]} {self.form.get(name)!r}" for name in STRATEGY_FIELDS)
            + (f", FAULT {self.fault}" if self.fault else "")
        )

    def __repr__(self) -> str:
        return f"case {self.number}: {self._text}"

    @property
    def params(self) -> dict[str, Any]:
        """The fields that reach lama, by the names of upstream's ``Config``."""
        return {
            "hd_strategy": self.form["hdStrategy"],
            "hd_strategy_crop_margin": int(self.form["hdStrategyCropMargin"]),
            "hd_strategy_crop_trigger_size": int(self.form["hdStrategyCropTrigerSize"]),
            "hd_strategy_resize_limit": int(self.form["hdStrategyResizeLimit"]),
        }

    def _break(self, dice: random.Random, hole: content.Pixels) -> None:
        """Do what `fault` says."""
        assert self.image is not None
        assert self.mask is not None
        fault = self.fault
        if fault == "image cut":
            self.image = self.image[: dice.randrange(1, len(self.image))]
        elif fault == "image tail cut":
            self.image = self.image[: -dice.randint(1, 16)]
        elif fault == "image flipped":
            self.image = files.flipped(dice, self.image, LARGEST_CLAIM)
        elif fault == "image empty":
            self.image = b""
        elif fault == "image is text":
            self.image = b"this is no picture, whatever its name says"
        elif fault == "huge header":
            self.image = _huge(dice, self.image)
        elif fault == "bomb":
            self.image = _bomb(dice)
        elif fault == "mask cut":
            self.mask = self.mask[: dice.randrange(1, len(self.mask))]
        elif fault == "mask flipped":
            self.mask = files.flipped(dice, self.mask, LARGEST_CLAIM)
        elif fault == "mask is empty":
            self.mask = b""
        elif fault == "mask of another size":
            height, width = hole.shape
            other = np.zeros((height + dice.choice([0, 1, 7]), width + dice.choice([1, 8])), np.uint8)
            self.mask = files.saved(Image.fromarray(other), "PNG")
        elif fault == "field missing":
            del self.form[dice.choice(sorted(self.form))]
        elif fault == "file missing":
            if dice.random() < 0.5:
                self.image = None
            else:
                self.mask = None
        elif fault == "no files":
            self.image = self.mask = None
        elif fault == "bad number":
            self.form[dice.choice(["croperX", "sdSteps", "hdStrategyCropMargin", "sdSeed"])] = dice.choice(
                ["1.5", "", "many", "12x", "9" * 5000]
            )
        else:
            self.form[dice.choice(["useCroper", "zitsWireframe"])] = dice.choice(["perhaps", "", "2"])


def _form(dice: random.Random, height: int, width: int) -> dict[str, str]:
    """Fields with a strategy and odd numbers for it."""
    longest, shortest = max(height, width), min(height, width)
    limit = dice.choice([longest, longest - 1, longest // 2, longest // 3, longest * 2, 2, 3, 2048])
    # Mostly not so far that the short side vanishes, which OpenCV refuses.
    if dice.random() < 0.97:
        limit = max(limit, longest // (2 * shortest) + 1)
    margins = [1, 2, 3, 7, 15, 32, 33, 64, 196, longest, 5000, dice.choice([0, 20])]
    triggers = [0, 1, 2, 3, longest // 4, longest // 2, longest - 1, longest, 800]
    strategies = ["Original", "Resize", "Resize", "Crop", "Crop", "Crop"]
    unknown = ["crop", "original", "RESIZE", "", "Crop ", "Tile"]
    return stock_form(
        "lama",
        hdStrategy=dice.choice(unknown) if dice.random() < 0.08 else dice.choice(strategies),
        hdStrategyCropMargin=dice.choice(margins),
        hdStrategyCropTrigerSize=dice.choice(triggers),
        hdStrategyResizeLimit=limit,
        sdSeed=dice.choice([-1, 1, 42, 999999999]),
        prompt=dice.choice(["", "", "a cat", "Größe 猫"]),
    )


def _upright(data: bytes) -> tuple[int, int]:
    """Height and width of a file's picture as upstream sees it."""
    from lama_cleaner.helper import load_img

    try:
        pixels = load_img(data)[0]
    except Exception:  # whatever Pillow raises: upstream answers such a file with an error, whatever the mask
        return 1, 1
    height, width = pixels.shape[:2]
    return height, width


def _bomb(dice: random.Random) -> bytes:
    """A file of some kilobytes with 5 megapixels, all of which are there."""
    form, options = dice.choice([("PNG", {}), ("GIF", {}), ("WEBP", {"lossless": True}), ("JPEG", {})])
    return files.saved(Image.new("L", (2500, 2000), dice.randrange(256)), form, **options)


def _huge(dice: random.Random, data: bytes) -> bytes:
    """A small file whose header claims 9 megapixels."""
    if data.startswith(png.SIGNATURE):
        header = struct.pack(">II", 3000, 3000) + data[24:29]
        return png.SIGNATURE + png.chunk(b"IHDR", header) + data[33:]
    out = bytearray(data)
    if data.startswith(b"BM"):
        struct.pack_into("<ii", out, 18, 3000, 3000)
    elif data.startswith(b"GIF8"):
        struct.pack_into("<HH", out, 6, 3000, 3000)
    else:
        at = max(data.find(b"\xff\xc0\0"), data.find(b"\xff\xc2\0"))
        if at > 0:
            struct.pack_into(">HH", out, at + 5, 3000, 3000)
    return bytes(out)
