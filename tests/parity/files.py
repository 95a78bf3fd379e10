"""Picture files of every kind that the cases send: format, mode, and how the file is built."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from parity import bmp, png
from parity.exif import exif_block, odd_block

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Tags:
    """A file's facts about its picture.

    Attributes:
        orientation: EXIF's 1 to 8; None if the file should not name one.
        block: The EXIF block, from its byte order mark on; None for no block.
        note: Its oddity.
    """

    orientation: int | None = None
    block: bytes | None = None
    note: str = ""

    @property
    def swaps(self) -> bool:
        """Whether a sound reader exchanges width and height."""
        return self.orientation in (5, 6, 7, 8)


NO_TAGS = Tags()


@dataclass(frozen=True)
class File:
    """A file's bytes and what is special about it."""

    data: bytes
    note: str


def draw_tags(dice: random.Random, odd: bool = True) -> Tags:
    """No block, a sound one, or now and then a wrong one."""
    draw = dice.random()
    if draw < 0.40:
        return NO_TAGS
    if draw < 0.90 or not odd:
        orientation = dice.choice([None, 1, 2, 3, 4, 5, 6, 7, 8])
        return Tags(orientation, exif_block(dice, orientation))
    # With 2 to 4 the picture keeps its shape, whether Pillow takes the tag or not.
    orientation = dice.choice([2, 3, 4])
    block, note = odd_block(dice, orientation)
    return Tags(orientation, block, note)


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    """The formats that Pillow writes."""
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def in_mode(rgba: Pixels, mode: str) -> Image.Image:
    """A Pillow picture of one of its modes; 16-bit modes get values over their whole range."""
    if mode == "RGBA":
        return Image.fromarray(rgba)
    rgb = np.ascontiguousarray(rgba[:, :, :3])
    if mode in ("I;16", "I"):
        levels: NDArray[Any] = (
            rgb[:, :, 0].astype(np.uint16) * (257 if rgb[0, 0, 1] % 2 else 1) + rgb[:, :, 1] // 64
        )
        if mode == "I;16":
            return Image.fromarray(levels.astype(np.uint16))
        return Image.fromarray(levels.astype(np.int32) * (1 if rgb[0, 0, 2] % 2 else 70) - 300)
    if mode == "F":
        return Image.fromarray(rgb[:, :, 0].astype(np.float32) * 1.7 - 20.3)
    if mode == "LA":
        return Image.merge(
            "LA", [Image.fromarray(rgb[:, :, 1]), Image.fromarray(np.ascontiguousarray(rgba[:, :, 3]))]
        )
    if mode == "1":
        return Image.fromarray(rgb[:, :, 1] > 127)
    if mode == "P":
        return Image.fromarray(rgb).quantize(max(2, int(rgb[0, 0, 1])))
    return Image.fromarray(rgb).convert(mode)


# PNG


def png_file(dice: random.Random, rgba: Pixels, mode: str, tags: Tags) -> File:
    """A PNG that Pillow opens in ``mode``: ``RGB``, ``RGBA``, ``L``, ``LA``, ``P``, ``1`` or ``I;16``."""
    notes = []
    if mode in ("RGB", "RGBA", "L", "1", "P") and dice.random() < 0.25 and tags.block is None:
        data = saved(in_mode(rgba, mode), "PNG", compress_level=1)
        return File(data, "by Pillow")
    before: list[bytes] = []
    transparent = dice.random() < 0.3
    depth = 8
    if mode == "P":
        depth = dice.choice([1, 2, 4, 8, 8, 8])
        colours = dice.randint(1, 1 << depth)
        samples = (rgba[:, :, :1].astype(np.uint16) * colours) >> 8
        before.append(png.chunk(b"PLTE", dice.randbytes(3 * colours)))
        if transparent:
            alphas = dice.choice([b"\0", b"\xff" * colours, dice.randbytes(dice.randint(1, colours))])
            before.append(png.chunk(b"tRNS", alphas))
            notes.append(f"tRNS of {len(alphas)}")
        colour = png.PALETTE
    else:
        colour, channels = {
            "RGB": (png.RGB, [0, 1, 2]),
            "RGBA": (png.RGBA, [0, 1, 2, 3]),
            "L": (png.GREY, [1]),
            "1": (png.GREY, [1]),
            "I;16": (png.GREY, [1]),
            "LA": (png.GREY_ALPHA, [1, 3]),
        }[mode]
        wide = rgba[:, :, channels].astype(np.uint16)
        if mode == "I;16" or (mode in ("RGB", "RGBA", "LA") and dice.random() < 0.2):
            depth = 16
            # Low bytes of their own: which of them a reader drops, and how, shows.
            wide = (wide << 8 | wide[:, ::-1]).astype(np.uint16)
            if dice.random() < 0.2:
                wide >>= dice.randint(4, 8)
        elif mode == "1":
            depth, wide = 1, wide >> 7
        elif mode == "L":
            depth = dice.choice([2, 4, 8, 8])
            wide >>= 8 - depth
        samples = wide
        if transparent and colour in (png.GREY, png.RGB):
            key = samples[dice.randrange(samples.shape[0]), dice.randrange(samples.shape[1])]
            before.append(png.chunk(b"tRNS", struct.pack(f">{len(key)}H", *(int(level) for level in key))))
            notes.append("tRNS colour")
    if depth != 8:
        notes.append(f"{depth} bits")
    interlaced = dice.random() < 0.25
    if interlaced:
        notes.append("interlaced")
    first, last, notes_of_texts = _png_texts(dice, tags)
    notes += notes_of_texts
    if dice.random() < 0.3:
        first.insert(0, png.chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1)))
    if dice.random() < 0.2:
        first.insert(0, dice.choice(_PNG_COLOUR_CHUNKS))
    data = png.png(
        samples,
        colour,
        depth,
        interlaced=interlaced,
        filters=dice.choice([(0,), (1,), (2,), (3,), (4,), (0, 1, 2, 3, 4), (4, 2)]),
        level=dice.choice([0, 1, 1, 6]),
        pieces=dice.choice([1, 1, 2, 7]),
        before=[*first, *before] if dice.random() < 0.7 else [*before, *first],
        after=last,
    )
    return File(data, ", ".join(notes))


_PNG_COLOUR_CHUNKS = (
    png.chunk(b"gAMA", struct.pack(">I", 45455)),
    png.chunk(b"sRGB", b"\0"),
    png.chunk(b"iCCP", b"none\0\0" + zlib.compress(b"no profile")),
    png.chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    png.chunk(b"tIME", struct.pack(">HBBBBB", 2023, 11, 22, 10, 0, 0)),
    png.chunk(b"juNK", b"whatever"),
)


def _png_texts(dice: random.Random, tags: Tags) -> tuple[list[bytes], list[bytes], list[str]]:
    """EXIF, the ``parameters`` text and others: chunks before the pixels, behind them, and notes."""
    first: list[bytes] = []
    last: list[bytes] = []
    notes = []

    def put(body: bytes, note: str) -> None:
        behind = dice.random() < 0.25
        (last if behind else first).append(body)
        notes.append(f"{note} behind the pixels" if behind else note)

    if tags.block is not None:
        carrier = dice.choice([*["eXIf"] * 28, "eXIf with mark", *["raw profile"] * 6, *["XMP"] * 6])
        if carrier == "raw profile":
            raw = b"Exif\0\0" + tags.block
            lines = raw.hex() if dice.random() < 0.5 else "\n".join(_pieces(raw.hex(), 72))
            text = f"\nexif\n{len(raw):8d}\n{lines}\n".encode()
            put(_text("Raw profile type exif", text, zipped=dice.random() < 0.6), carrier)
        elif carrier == "XMP":
            body = f'<x:xmpmeta><rdf:Description tiff:Orientation="{tags.orientation or 1}"/></x:xmpmeta>'
            put(_international("XML:com.adobe.xmp", body), carrier)
        else:
            mark = b"Exif\0\0" if carrier == "eXIf with mark" else b""
            put(png.chunk(b"eXIf", mark + tags.block), carrier)
    if dice.random() < 0.25:
        value = dice.choice(["a cat, 20 steps\nSeed: 1", "", "Größe: 3", "猫 🐈", "x" * 3000])
        kind = dice.choice(["tEXt", "zTXt", "iTXt", "zipped iTXt"])
        if kind.endswith("iTXt"):
            put(_international("parameters", value, zipped=kind != "iTXt"), f"parameters in {kind}")
        else:
            latin = value.encode("latin-1", "replace")
            put(_text("parameters", latin, zipped=kind == "zTXt"), f"parameters in {kind}")
    if dice.random() < 0.15:
        put(_text("Comment", b"made by hand"), "a comment")
    return first, last, notes


def _pieces(text: str, length: int) -> list[str]:
    return [text[at : at + length] for at in range(0, len(text), length)]


def _text(key: str, value: bytes, zipped: bool = False) -> bytes:
    if zipped:
        return png.chunk(b"zTXt", key.encode() + b"\0\0" + zlib.compress(value))
    return png.chunk(b"tEXt", key.encode() + b"\0" + value)


def _international(key: str, value: str, zipped: bool = False) -> bytes:
    text = value.encode()
    head = key.encode() + b"\0" + bytes([zipped, 0]) + b"en\0" + b"\0"
    return png.chunk(b"iTXt", head + (zlib.compress(text) if zipped else text))


def apng_file(dice: random.Random, rgba: Pixels, mode: str, tags: Tags) -> File:
    """An animated PNG; its first frame may be other than its default picture."""
    frames = [in_mode(np.roll(rgba, shift, axis=1), mode) for shift in (0, 1, 2)]
    default = dice.random() < 0.5
    options = {} if tags.block is None else {"exif": tags.block}
    data = saved(
        frames[0],
        "PNG",
        save_all=True,
        append_images=frames[1:],
        default_image=default,
        compress_level=1,
        duration=50,
        **options,
    )
    return File(data, "animated" + (" with a default picture" if default else ""))


# BMP


def bmp_file(dice: random.Random, rgba: Pixels, mode: str, tags: Tags) -> File:
    """A BMP that Pillow opens in ``mode``: ``RGB``, ``RGBA``, ``L``, ``P`` or ``1``."""
    top_down = dice.random() < 0.3
    turned = "top down" if top_down else ""
    if mode == "RGBA":
        name = dice.choice(["ABGR", "RGBA", "BGRA"])
        header = dice.choice([56, 108, 124])
        return File(bmp.layout(rgba, name, header, top_down), f"{name}, header of {header} {turned}")
    if mode == "RGB":
        kind = dice.choice(["Pillow", "24", "core", "32", "555", "565", "BGRX", "XBGR"])
        if kind == "Pillow":
            return File(saved(in_mode(rgba, "RGB"), "BMP"), "by Pillow")
        if kind in bmp.LAYOUTS and not (kind == "555" and dice.random() < 0.5):
            header = dice.choice([40, 56, 108, 124])
            return File(bmp.layout(rgba, kind, header, top_down), f"{kind}, header of {header} {turned}")
        width = rgba.shape[1]
        if kind == "555":
            return File(
                bmp.layout(rgba, kind, 40, False).replace(b"\3\0\0\0", b"\0\0\0\0", 1), "555 as BI_RGB"
            )
        samples = 4 if kind == "32" else 3
        bgr = rgba[:, :, [2, 1, 0, 3][:samples]]
        header = 12 if kind == "core" else dice.choice([40, 64, 108, 124])
        rows = [row.tobytes() for row in bgr]
        data = bmp.bmp(rows, width, 8 * samples, header=header, top_down=top_down and header > 12)
        return File(data, f"{8 * samples} bits, header of {header} {turned}")
    if mode == "1":
        return File(saved(in_mode(rgba, "1"), "BMP"), "by Pillow")
    if mode == "L" and dice.random() < 0.5:
        return File(saved(in_mode(rgba, "L"), "BMP"), "by Pillow")
    if mode == "L":
        greys = b"".join(bytes([level, level, level, 0]) for level in range(256))
        return File(bmp.indexed(rgba[:, :, 1], 8, greys, 40, top_down), f"a grey palette {turned}")
    bits = dice.choice([1, 4, 8, 8])
    colours = dice.randint(2, 1 << bits)
    indices = ((rgba[:, :, 0].astype(np.uint16) * colours) >> 8).astype(np.uint8)
    if bits > 1 and dice.random() < 0.35:
        flat = (
            indices if dice.random() < 0.3 else np.repeat(indices[:, ::5], 5, axis=1)[:, : indices.shape[1]]
        )
        palette = b"".join(dice.randbytes(3) + b"\0" for _ in range(colours))
        return File(bmp.run_length(flat, bits, palette, dice), f"run lengths of {bits} bits")
    header = dice.choice([12, 40, 40, 124])
    entry = 3 if header == 12 else 4
    colours = 1 << bits if header == 12 else colours
    palette = b"".join(dice.randbytes(3).ljust(entry, b"\0") for _ in range(colours))
    down = top_down and header > 12
    return File(
        bmp.indexed(indices, bits, palette, header, down), f"{bits} bits, header of {header} {turned}"
    )


# TIFF


def tiff_file(dice: random.Random, rgba: Pixels, mode: str, tags: Tags) -> File:
    """A TIFF by Pillow, or where Pillow cannot, by tifffile."""
    if mode in ("RGB", "RGBA", "L", "I;16") and dice.random() < 0.4:
        return _tiff_by_tifffile(dice, rgba, mode, tags)
    compressions: list[str | None] = [None, None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]
    if mode in ("RGB", "L", "CMYK"):
        compressions.append("jpeg")
    if mode == "1":
        compressions += ["group3", "group4"]
    if mode in ("F", "I"):
        compressions = [None]
    compression = dice.choice(compressions)
    # Upstream cannot write what has several strips: mostly one.
    options: dict[str, Any] = {"strip_size": 1 << 14 if dice.random() < 0.1 else 1 << 26}
    # libtiff takes no directories and no wrong tags.
    if tags.block is not None and compression is None and not tags.note:
        options["exif"] = tags.block
    elif tags.orientation is not None:
        options["tiffinfo"] = {274: tags.orientation}
    if dice.random() < 0.3:
        options["dpi"] = (300, 300)
    data = saved(in_mode(rgba, mode), "TIFF", compression=compression, **options)
    return File(data, compression or "raw")


def _tiff_by_tifffile(dice: random.Random, rgba: Pixels, mode: str, tags: Tags) -> File:
    import tifffile

    samples: Any = {"RGB": rgba[:, :, :3], "RGBA": rgba, "L": rgba[:, :, 1], "I;16": rgba[:, :, 1]}[mode]
    notes = []
    options: dict[str, Any] = {"photometric": "rgb" if mode.startswith("RGB") else "minisblack"}
    if mode == "RGBA":
        options["extrasamples"] = [dice.choice(["unassalpha", "unassalpha", "assocalpha"])]
        notes.append(options["extrasamples"][0])
    if mode == "I;16" or (mode in ("RGB", "RGBA") and dice.random() < 0.2):
        samples = samples.astype(np.uint16) << 8 | samples[:, ::-1]
        notes.append("16 bits")
    elif mode == "L" and dice.random() < 0.3:
        options["photometric"] = "miniswhite"
        notes.append("white is 0")
    if mode.startswith("RGB") and dice.random() < 0.3:
        samples = np.ascontiguousarray(np.moveaxis(samples, 2, 0))
        options["planarconfig"] = "separate"
        notes.append("planes")
    draw = dice.random()
    if draw < 0.3:
        options["tile"] = (16 * dice.randint(1, 4), 16 * dice.randint(1, 4))
        notes.append("tiles")
    elif draw < 0.6:
        options["rowsperstrip"] = dice.randint(1, 40)
        notes.append("strips")
    if dice.random() < 0.4:
        options["compression"] = "adobe_deflate"
        notes.append("deflate")
        if dice.random() < 0.5:
            options["predictor"] = True
            notes.append("predictor")
    if tags.orientation is not None and tags.block is not None:
        options["extratags"] = [(274, "H", 1, tags.orientation, True)]
        notes.append(f"orientation {tags.orientation}")
    endian = dice.choice("<>")
    out = io.BytesIO()
    with tifffile.TiffWriter(out, byteorder=endian, bigtiff=dice.random() < 0.1) as writer:
        writer.write(np.ascontiguousarray(samples), metadata=None, **options)
        if dice.random() < 0.2:
            writer.write(np.zeros((3, 5), np.uint8), metadata=None)
            notes.append("two pages")
    return File(out.getvalue(), f"by tifffile {endian} {', '.join(notes)}")


# JPEG


def jpeg_file(dice: random.Random, rgba: Pixels, mode: str, tags: Tags) -> File:
    """A JPEG in ``L``, ``RGB`` or ``CMYK``."""
    notes = []
    options: dict[str, Any] = {"quality": dice.choice([1, 30, 75, 90, 95, 100])}
    picture = in_mode(rgba, mode)
    if mode == "RGB" and dice.random() < 0.25:
        data, note = _jpeg_by_opencv(dice, rgba, tags)
        return File(data, note)
    if mode == "RGB":
        options["subsampling"] = dice.choice([0, 1, 2, 2])
        notes.append(("4:4:4", "4:2:2", "4:2:0")[options["subsampling"]])
        if dice.random() < 0.1:
            options.update(keep_rgb=True, subsampling=0)
            notes.append("stored as RGB")
    if dice.random() < 0.3:
        options["progressive"] = True
        notes.append("progressive")
    if dice.random() < 0.2:
        options["optimize"] = True
    if dice.random() < 0.2:
        options[dice.choice(["restart_marker_rows", "restart_marker_blocks"])] = dice.randint(1, 5)
        notes.append("restart markers")
    if dice.random() < 0.2:
        options["icc_profile"] = b"no profile"
    if dice.random() < 0.2:
        options["comment"] = b"a comment"
    if tags.block is not None:
        options["exif"] = b"Exif\0\0" + tags.block
    try:
        data = saved(picture, "JPEG", **options)
    except OSError:  # of a tiny picture, whose file is larger than the buffer that Pillow gives libjpeg
        for option in ("progressive", "optimize", "restart_marker_rows", "restart_marker_blocks"):
            options.pop(option, None)
        notes = ["no progressive or restart markers after all"]
        data = saved(picture, "JPEG", **options)
    if dice.random() < 0.1 and data[2:4] == b"\xff\xe0":
        data = data[:2] + data[20:]  # no JFIF segment: upstream cannot tell the type from its name then
        notes.append("no JFIF")
    return File(data, ", ".join(notes))


def _jpeg_by_opencv(dice: random.Random, rgba: Pixels, tags: Tags) -> tuple[bytes, str]:
    """With samplings that Pillow does not write."""
    import cv2

    name = dice.choice(["411", "420", "422", "440", "444"])
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}")
    flags = [cv2.IMWRITE_JPEG_QUALITY, dice.choice([40, 90]), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
    if dice.random() < 0.3:
        flags += [cv2.IMWRITE_JPEG_RST_INTERVAL, dice.randint(1, 9)]
    data: bytes = cv2.imencode(".jpg", np.ascontiguousarray(rgba[:, :, 2::-1]), flags)[1].tobytes()
    if tags.block is not None:
        data = with_exif(data, tags.block)
    return data, f"by OpenCV, sampling {name}"


def with_exif(data: bytes, block: bytes) -> bytes:
    """A JPEG with an EXIF segment in front of all others."""
    body = b"Exif\0\0" + block
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def mpo_file(dice: random.Random, rgba: Pixels, mode: str, tags: Tags) -> File:
    """Two JPEGs in one file, as stereo cameras write them."""
    picture = in_mode(rgba, "RGB")
    options = {} if tags.block is None else {"exif": b"Exif\0\0" + tags.block}
    second = in_mode(rgba[::-1], "RGB")
    return File(saved(picture, "MPO", save_all=True, append_images=[second], **options), "two pictures")


# WebP


def webp_file(dice: random.Random, rgba: Pixels, mode: str, tags: Tags) -> File:
    """A WebP in ``RGB`` or ``RGBA``."""
    options: dict[str, Any] = {
        "lossless": dice.random() < 0.4,
        "quality": dice.choice([5, 60, 95]),
        "method": dice.choice([0, 0, 4]) if rgba.size < 200_000 else 0,
        "exact": dice.random() < 0.5,
    }
    notes = ["lossless" if options["lossless"] else "lossy"]
    if tags.block is not None:
        options["exif"] = dice.choice([b"Exif\0\0", b""]) + tags.block
    if dice.random() < 0.1:
        options["icc_profile"] = b"no profile"
    picture = in_mode(rgba, mode)
    if dice.random() < 0.15 and rgba.size < 1_000_000:
        others = [in_mode(np.roll(rgba, 1, axis=0), mode)]
        options.update(save_all=True, append_images=others, duration=80)
        notes.append("animated")
    return File(saved(picture, "WEBP", **options), ", ".join(notes))


# GIF


def gif_file(dice: random.Random, rgba: Pixels, mode: str, tags: Tags) -> File:
    """A GIF in ``P`` or ``L``; one in ``1`` is written, which Pillow opens in ``L`` or ``P``."""
    notes = []
    picture = in_mode(rgba, mode)
    options: dict[str, Any] = {"interlace": dice.randint(0, 1)}
    if options["interlace"]:
        notes.append("interlaced")
    if mode == "P" and dice.random() < 0.4:
        options["transparency"] = dice.randrange(8)
        notes.append("transparent")
    if dice.random() < 0.2:
        options["comment"] = b"a comment"
    if dice.random() < 0.25 and rgba.size < 1_000_000:
        frames = [in_mode(np.roll(rgba, shift, axis=0), mode) for shift in (1, 2)]
        options.update(save_all=True, append_images=frames, disposal=dice.randrange(4), loop=0)
        notes.append(f"animated, disposal {options['disposal']}")
    data = saved(picture, "GIF", **options)
    return File(data, ", ".join(notes))


def wide_screen(dice: random.Random, data: bytes, margin: tuple[int, int]) -> bytes:
    """A GIF on a screen that is larger than its first frame by ``margin``: (columns, rows)."""
    width, height = struct.unpack("<HH", data[6:10])
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while data[at] == 0x21:  # extensions: label, then blocks up to an empty one
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    out = bytearray(data)
    struct.pack_into("<HH", out, 6, width + margin[0], height + margin[1])
    struct.pack_into("<HH", out, at + 1, dice.randint(0, margin[0]), dice.randint(0, margin[1]))
    return bytes(out)


# Formats that the grid leaves to Pillow


def other_file(dice: random.Random, rgba: Pixels, mode: str, tags: Tags) -> File:
    """A file of a rarer format, which comes back as itself where upstream knows its name, else as JPEG."""
    form = mode  # here the wheel names the format
    modes = {
        "PPM": ["RGB", "L", "1", "I"],
        "TGA": ["RGB", "RGBA", "L"],
        "PCX": ["RGB", "L", "P"],
        "JPEG2000": ["RGB", "RGBA", "L"],
        "SGI": ["RGB", "RGBA", "L"],
    }[form]
    chosen = dice.choice(modes)
    picture = in_mode(rgba, chosen)
    if form == "PPM" and chosen == "I":
        picture = Image.fromarray(rgba[:, :, 0].astype(np.int32) * 257)
    options = {"irreversible": False} if form == "JPEG2000" else {}
    return File(saved(picture, form, **options), f"{form} {chosen}")


Writer = Callable[[random.Random, Pixels, str, Tags], File]

WRITERS: dict[str, Writer] = {
    "PNG": png_file,
    "APNG": apng_file,
    "BMP": bmp_file,
    "TIFF": tiff_file,
    "JPEG": jpeg_file,
    "MPO": mpo_file,
    "WEBP": webp_file,
    "GIF": gif_file,
    "OTHER": other_file,
}


def mask_file(dice: random.Random, mask: Pixels) -> File:
    """A mask as the page's canvas sends it, or as people upload it."""
    kind = dice.choice(
        ["L", "L", "RGB", "canvas", "canvas", "P", "1", "LA", "16 bits", "JPEG", "WEBP", "BMP", "GIF"]
    )
    grey = Image.fromarray(mask)
    if kind == "canvas":  # white strokes over nothing; their soft edge is in the alpha
        pixels = np.zeros((*mask.shape, 4), np.uint8)
        pixels[mask > 0, :3] = 255
        pixels[:, :, 3] = mask
        data = saved(Image.fromarray(pixels), "PNG", compress_level=1)
    elif kind == "16 bits":
        data = png.png(mask[:, :, np.newaxis].astype(np.uint16) * 257, png.GREY, 16)
    elif kind in ("JPEG", "WEBP", "BMP", "GIF"):
        options = {"quality": 90} if kind in ("JPEG", "WEBP") else {}
        mode = "RGB" if kind == "WEBP" or dice.random() < 0.5 else "L"
        data = saved(grey.convert(mode), kind, **options)
    elif kind == "P":
        data = saved(grey.convert("RGB").quantize(16), "PNG")
    elif kind == "LA":
        data = saved(Image.merge("LA", [grey, grey]), "PNG", compress_level=1)
    else:
        data = saved(grey.convert(kind), "PNG", compress_level=1)
    return File(data, kind)


def flipped(dice: random.Random, data: bytes, most: int) -> bytes:
    """The file with one to three bits changed, such that its header claims no more than ``most`` pixels."""
    for _ in range(20):
        out = bytearray(data)
        for _ in range(dice.randint(1, 3)):
            out[dice.randrange(len(out))] ^= 1 << dice.randrange(8)
        if _claim(bytes(out)) <= most:
            return bytes(out)
    return data[:-1]


def _claim(data: bytes) -> int:
    """Pixels that a file says it has; 0 if Pillow cannot tell."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.width * picture.height
    except Exception:  # a damaged header makes plugins raise anything
        return 0
