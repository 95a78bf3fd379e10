"""Writes `formats.txt`: what Lama Cleaner 1.2.5 with Pillow 10.4 makes of BMP, GIF, TIFF and WebP files.

Run with the interpreter of the reference environment (lama-cleaner 1.2.5, Pillow 10.4, OpenCV 4.11, x86-64):

    python src/imaging/tests/golden/make_formats.py

A line `read`, `may` or `fails` has a name, the mode, height and width that Pillow opens the file with, the
digests of the upright picture, of its alpha plane or `-`, and of the mask that it makes, and the file in
hexadecimal. A file of a line `read` must be decoded, one of `may` can be left to Pillow; of one that `fails`,
Pillow makes nothing. A line `write` has a format, a seeded picture, the seed of an alpha plane or `-`, a
quality, the digest of upstream's file and those of what it decodes to, colours and alpha.
`tests/codec_formats.rs` reads them.
"""

import io
import random
import struct
import sys
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from lama_cleaner.helper import load_img, pil_to_bytes
from PIL import Image, TiffImagePlugin
from PIL.GifImagePlugin import getdata

sys.path.insert(0, str(Path(__file__).parent))
from make_golden import digest, mask_of, picture

LINES: list[str] = []
RANDOM = random.Random(11)
INTERLACED, PALETTE = 0x40, 0x80


def read(name: str, data: bytes, word: str = "read") -> None:
    try:
        opened = Image.open(io.BytesIO(data))
        # The name of the class, so that the byte order is no matter.
        header = f"{opened.mode.replace('I;16B', 'I;16')} {opened.height} {opened.width}"
        pixels, alpha = load_img(data)
        grey, _ = load_img(data, gray=True)
    except Exception:
        LINES.append(f"fails {name} - - - - - - {data.hex()}")
        return
    mask = cv2.threshold(grey, 127, 255, cv2.THRESH_BINARY)[1]
    digests = f"{digest(pixels)} {'-' if alpha is None else digest(alpha)} {digest(mask)}"
    LINES.append(f"{word} {name} {header} {digests} {data.hex()}")


def damaged(name: str, data: bytes, count: int) -> None:
    """Cut and changed versions of a file; of what Pillow still reads, none needs to be read by others."""
    for index in range(count):
        cut = len(data) * (index + 1) // (count + 1)
        read(f"{name}_cut_{index}", data[:cut], "may")
        changed = bytearray(data)
        for _ in range(1 + index % 3):
            changed[RANDOM.randrange(len(changed))] = RANDOM.randrange(256)
        read(f"{name}_changed_{index}", bytes(changed), "may")


def write(
    file_format: str, kind: str, seed: int, h: int, w: int, alpha: int | None, quality: int = 95
) -> None:
    pixels = picture(kind, seed, h, w)
    if alpha is not None:
        pixels = np.dstack([pixels, mask_of("grey", alpha, h, w)])
    data = pil_to_bytes(Image.fromarray(pixels), file_format, quality, {"exif": Image.Exif()})
    colours, plane = load_img(data)
    # BMP files have an alpha that nothing reads.
    decoded = f"{digest(colours)} {'-' if plane is None else digest(plane)}"
    what = f"{file_format} {kind} {seed} {h} {w} {'-' if alpha is None else alpha} {quality}"
    LINES.append(f"write {what} {digest(np.frombuffer(data, np.uint8))} {decoded}")


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


# --- BMP ---

MASKS = [
    (0xFF0000, 0xFF00, 0xFF, 0),
    (0xFF000000, 0xFF0000, 0xFF00, 0),
    (0xFF000000, 0xFF00, 0xFF, 0),
    (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
    (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
    (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    (0xFF000000, 0xFF00, 0xFF, 0xFF0000),
    (0, 0, 0, 0),
]


def bmp(
    bits: int,
    size: tuple[int, int] = (9, 7),
    header: int = 40,
    palette: bytes = b"",
    compression: int = 0,
    masks: Sequence[int] = (),
    colours: int = 0,
    top_down: bool = False,
    data: bytes | None = None,
    start: int | None = None,
) -> bytes:
    w, h = size
    if data is None:
        data = RANDOM.randbytes(((w * bits + 31) // 8 & ~3) * h)
    if header == 12:
        info = struct.pack("<IHHHH", 12, w, h, 1, bits)
    else:
        signed = (1 << 32) - h if top_down else h
        info = struct.pack("<IIIHHIIIIII", header, w, signed, 1, bits, compression, 0, 2835, 2835, colours, 0)
        fields = struct.pack(f"<{len(masks)}I", *masks)
        info += fields[:12] if header == 40 else fields.ljust(header - 40, b"\0")[: header - 40]
    if start is None:
        start = 14 + len(info) + len(palette)
    return (
        b"BM"
        + struct.pack("<III", 14 + len(info) + len(palette) + len(data), 0, start)
        + info
        + palette
        + data
    )


def greys(count: int, step: int = 1, size: int = 4) -> bytes:
    return b"".join(bytes([index * step & 255] * 3) + b"\0" * (size - 3) for index in range(count))


def bmps() -> None:
    colours = RANDOM.randbytes
    for bits in (16, 24, 32):
        read(f"bmp_{bits}", bmp(bits))
        read(f"bmp_{bits}_top_down", bmp(bits, top_down=True, header=124))
    read("bmp_24_core", bmp(24, header=12))
    read("bmp_no_start", bmp(24, start=0))
    for index, masks in enumerate(MASKS):
        read(f"bmp_fields_{index}", bmp(32, header=56, compression=3, masks=masks))
    for header in (40, 52, 64, 108, 124):
        read(
            f"bmp_fields_header_{header}",
            bmp(32, header=header, compression=3, masks=(0xFF0000, 0xFF00, 0xFF, 0)),
        )
    read("bmp_565", bmp(16, compression=3, masks=(0xF800, 0x7E0, 0x1F)))
    read("bmp_555", bmp(16, compression=3, masks=(0x7C00, 0x3E0, 0x1F)))
    for bits, count in ((1, 2), (4, 16), (8, 256)):
        read(f"bmp_{bits}_palette", bmp(bits, palette=colours(4 * count)))
        read(f"bmp_{bits}_palette_top_down", bmp(bits, palette=colours(4 * count), top_down=True))
        read(f"bmp_{bits}_palette_core", bmp(bits, header=12, palette=colours(3 * count)))
        # As many colours as indices are rare in practice; the rest is black.
        read(f"bmp_{bits}_palette_short", bmp(bits, palette=colours(4 * (count // 2)), colours=count // 2))
    read("bmp_8_grey", bmp(8, palette=greys(256)))
    read("bmp_8_grey_core", bmp(8, header=12, palette=greys(256, size=3)))
    read("bmp_8_grey_100", bmp(8, palette=greys(100), colours=100))
    read("bmp_1_black_white", bmp(1, palette=greys(2, 255)))
    read("bmp_8_black_white", bmp(8, palette=greys(2, 255), colours=2))
    read("bmp_1_white_black", bmp(1, palette=greys(2, 255)[::-1]))
    read("bmp_4_grey_steps", bmp(4, palette=greys(16, 17)))
    read("bmp_4_counting", bmp(4, palette=greys(16)), "may")
    read("bmp_start_at_palette", bmp(8, palette=colours(1024), start=54))
    runs8 = (
        b"\x05\x11\x03\x22\0\0\0\x04abcd\x02\x33\0\0\0\x03xyz\0\x0a\x44\0\0" * 2
        + b"\x09\x55\0\0" * 7
        + b"\0\1"
    )
    read("bmp_runs8", bmp(8, palette=colours(1024), compression=1, data=runs8))
    read("bmp_runs8_grey", bmp(8, palette=greys(256), compression=1, data=runs8, top_down=True))
    read("bmp_runs8_step", bmp(8, palette=colours(1024), compression=1, data=b"\0\2\0\0\3\1" + runs8))
    read("bmp_runs4", bmp(4, palette=colours(64), compression=2, data=runs8))
    read("bmp_runs8_short", bmp(8, palette=colours(1024), compression=1, data=b"\x05\x11\0\1"))
    read("bmp_runs8_of_16", bmp(16, compression=1, data=runs8))
    read("bmp_colours_300", bmp(8, palette=colours(1200), colours=300))
    read("bmp_header_41", bmp(24, header=41))
    read("bmp_compression_4", bmp(24, compression=4))
    damaged("bmp_24", bmp(24), 4)
    damaged("bmp_8", bmp(8, palette=colours(64), colours=16), 4)
    for kind, seed, h, w in (("noise", 1, 1, 1), ("smooth", 2, 5, 6), ("hard", 3, 9, 7), ("noise", 4, 3, 8)):
        write("bmp", kind, seed, h, w, None)
        write("bmp", kind, seed, h, w, seed)


# --- GIF ---


def gif(
    size: tuple[int, int],
    frames: Sequence[bytes],
    palette: bytes = b"",
    extensions: bytes = b"",
    background: int = 0,
) -> bytes:
    flags = PALETTE | (len(palette) // 3).bit_length() - 2 if palette else 0
    head = b"GIF89a" + struct.pack("<HHBBB", *size, flags, background, 0)
    return head + palette + extensions + b"".join(frames) + b";"


def frame(
    image: Image.Image, place: tuple[int, int] = (0, 0), palette: bytes = b"", interlaced: bool = False
) -> bytes:
    """A frame of Pillow's with a palette of its own, or none."""
    data = b"".join(getdata(image, place, interlace=interlaced))
    flags = data[9] & INTERLACED
    if palette:
        flags |= PALETTE | (len(palette) // 3).bit_length() - 2
    return data[:9] + bytes([flags]) + palette + data[10:]


def indices(h: int, w: int, most: int = 255) -> Image.Image:
    return Image.fromarray((picture("noise", h * 100 + w, h, w)[..., 0] % (most + 1)).astype(np.uint8))


def control(transparent: int | None, disposal: int = 0) -> bytes:
    flags = disposal << 2 | (transparent is not None)
    return b"!\xf9\x04" + struct.pack("<BHBB", flags, 10, transparent or 0, 0)


def gifs() -> None:
    colours = RANDOM.randbytes(768)
    few = colours[:12]
    read("gif_palette", gif((9, 7), [frame(indices(7, 9))], colours))
    read("gif_few", gif((9, 7), [frame(indices(7, 9, 3))], few))
    read("gif_beyond_palette", gif((9, 7), [frame(indices(7, 9))], few))
    read("gif_grey", gif((9, 7), [frame(indices(7, 9))], greys(256, size=3)))
    read("gif_no_palette", gif((9, 7), [frame(indices(7, 9))]))
    read("gif_local", gif((9, 7), [frame(indices(7, 9), palette=colours)]))
    read("gif_local_and_global", gif((9, 7), [frame(indices(7, 9), palette=colours[::-1])], colours))
    read("gif_local_grey", gif((9, 7), [frame(indices(7, 9), palette=greys(256, size=3))], colours), "may")
    for h in (1, 2, 3, 4, 5, 7, 8, 9, 17):
        read(f"gif_interlaced_{h}", gif((5, h), [frame(indices(h, 5, 3), interlaced=True)], few))
    read("gif_small_frame", gif((12, 9), [frame(indices(4, 5, 3), (3, 2))], few, background=2))
    read("gif_small_frame_transparent", gif((12, 9), [frame(indices(4, 5, 3), (3, 2))], few, control(1)))
    read("gif_small_frame_grey", gif((12, 9), [frame(indices(4, 5), (3, 2))], b"", control(77)))
    read("gif_large_frame", gif((4, 3), [frame(indices(4, 5, 3), (3, 2))], few))
    for disposal in (1, 2, 3):
        read(f"gif_disposal_{disposal}", gif((6, 5), [frame(indices(5, 6, 3))], few, control(3, disposal)))
    two = [frame(indices(5, 6, 3)), control(0, 2), frame(indices(3, 3, 3), (1, 1))]
    comment = b"!\xfe\x05hello\x03you\0!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0!\x01\x02ab\0"
    read("gif_animated", gif((6, 5), two, few, comment + control(2)))
    read("gif_empty_comment", gif((6, 5), two, few, b"!\xfe\0"))
    # Long runs, so that the codes grow to 12 bits and the table is full.
    read("gif_long", gif((120, 70), [frame(Image.fromarray(picture("smooth", 1, 70, 120)[..., 0]))], colours))
    read("gif_nothing", gif((6, 5), [], few))
    damaged("gif_palette", gif((9, 7), [frame(indices(7, 9, 3))], few, comment), 8)


# --- TIFF ---

Tags = dict[int, tuple[int, Sequence[int]]]
SHORT, LONG = 3, 4


def pack_bits(data: bytes) -> bytes:
    out = bytearray()
    while data:
        run = next((i for i, byte in enumerate(data[:128]) if byte != data[0]), min(len(data), 128))
        if run > 1:
            out += bytes([257 - run, data[0]])
        else:
            run = min(len(data), RANDOM.randint(1, 9))
            out += bytes([run - 1]) + data[:run]
        data = data[run:]
    return bytes(out)


def compressed(data: bytes, compression: int) -> bytes:
    if compression == 32773:
        return pack_bits(data)
    return data if compression == 1 else zlib.compress(data)


def differences(rows: bytes, row: int, samples: int, bits: int, order: str) -> bytes:
    values = (
        np.frombuffer(rows, f"{order}u{bits // 8}").reshape(-1, row // (samples * bits // 8), samples).copy()
    )
    values[:, 1:] -= values[:, :-1].copy()
    return values.tobytes()


def tiff(
    photometric: int,
    bits: int,
    samples: int,
    extra: Sequence[int] = (),
    *,
    size: tuple[int, int] = (11, 7),
    order: str = "<",
    compression: int = 1,
    planar: bool = False,
    tile: tuple[int, int] | None = None,
    rows: int | None = None,
    predictor: bool = False,
    more: Tags | None = None,
    pixels: bytes | None = None,
) -> bytes:
    w, h = size
    cw, ch = tile or (w, rows or h)
    per_chunk = 1 if planar else samples
    row = (cw * per_chunk * bits + 7) // 8
    count = -(-w // cw) * -(-h // ch)
    chunks = []
    for index in range(count * (samples if planar else 1)):
        height = ch if tile else min(ch, h - index % count * ch)
        start = index % count * ch * row
        data = RANDOM.randbytes(row * height) if pixels is None else pixels[start : start + row * height]
        if predictor:
            data = differences(data, row, per_chunk, bits, order)
        chunks.append(compressed(data, compression))
    places = np.cumsum([8] + [len(chunk) for chunk in chunks]).tolist()
    tags: Tags = {
        256: (LONG, [w]),
        257: (LONG, [h]),
        258: (SHORT, [bits] * samples),
        259: (SHORT, [compression]),
        262: (SHORT, [photometric]),
        277: (SHORT, [samples]),
        284: (SHORT, [2 if planar else 1]),
        324 if tile else 273: (LONG, places[:-1]),
        325 if tile else 279: (LONG, [len(chunk) for chunk in chunks]),
    }
    if tile:
        tags |= {322: (SHORT, [cw]), 323: (SHORT, [ch])}
    elif rows:
        tags[278] = (SHORT, [rows])
    if predictor:
        tags[317] = (SHORT, [2])
    if extra:
        tags[338] = (SHORT, list(extra))
    if photometric == 3:
        tags[320] = (SHORT, [RANDOM.randrange(65536) for _ in range(3 << bits)])
    tags |= more or {}
    magic = b"II*\0" if order == "<" else b"MM\0*"
    file = magic + struct.pack(order + "I", places[-1]) + b"".join(chunks)
    entries, values = struct.pack(order + "H", len(tags)), b""
    at = len(file) + 2 + 12 * len(tags) + 4
    for tag, (kind, numbers) in sorted(tags.items()):
        value = struct.pack(f"{order}{len(numbers)}{'H' if kind == SHORT else 'I'}", *numbers)
        field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "I", at + len(values))
        values += value if len(value) > 4 else b""
        entries += struct.pack(order + "HHI", tag, kind, len(numbers)) + field
    return file + entries + struct.pack(order + "I", 0) + values


KINDS: list[tuple[int, int, int, tuple[int, ...]]] = [
    *[(photometric, bits, 1, ()) for bits in (1, 2, 4, 8) for photometric in (0, 1, 3)],
    *[(1, 16, 1, ()), (1, 8, 2, (2,)), (2, 8, 3, ()), (2, 16, 3, ()), (5, 8, 4, ()), (5, 8, 5, (0,))],
    *[(2, 8, 4, extra) for extra in ((), (0,), (1,), (2,), (999,))],
    *[(2, 8, 5, (0, 0)), (2, 8, 5, (1, 0)), (2, 8, 6, (2, 0, 0)), (2, 16, 4, (2,)), (2, 16, 4, ())],
]


def tiffs() -> None:
    for index, (photometric, bits, samples, extra) in enumerate(KINDS):
        name = f"tiff_{photometric}_{bits}_{samples}" + "".join(f"_{number}" for number in extra)
        order = "<>"[index % 2]
        kind = (photometric, bits, samples, extra)
        read(f"{name}_plain", tiff(*kind, order=order, rows=3))
        read(
            f"{name}_deflate",
            tiff(*kind, order="<>"[1 - index % 2], compression=8, predictor=bits in (8, 16)),
        )
        if index % 4 == 0:
            read(f"{name}_bits", tiff(*kind, order=order, compression=32773, rows=4))
            read(f"{name}_tiles", tiff(*kind, order=order, tile=(16, 16), size=(18, 3)), "may")
            read(
                f"{name}_deflated_tiles",
                tiff(*kind, order=order, compression=32946, tile=(16, 16), size=(18, 3)),
            )
    read("tiff_0_16_1", tiff(0, 16, 1))
    for name, kind in {"rgb": (2, 8, 3, ()), "rgba": (2, 8, 4, (2,)), "cmyk": (5, 8, 4, ())}.items():
        read(f"tiff_planes_{name}", tiff(*kind, planar=True, rows=3))
        read(f"tiff_planes_{name}_deflate", tiff(*kind, planar=True, compression=8, predictor=True))
        read(f"tiff_planes_{name}_tiles", tiff(*kind, planar=True, compression=8, tile=(16, 16)))
    for orientation in range(10):
        read(
            f"tiff_orientation_{orientation}", tiff(2, 8, 3, size=(5, 3), more={274: (SHORT, [orientation])})
        )
    lzw = Image.fromarray(picture("noise", 7, 20, 30) // 32)
    read("tiff_lzw", saved(lzw, "tiff", compression="tiff_lzw"))
    read("tiff_lzw_predictor", saved(lzw, "tiff", compression="tiff_lzw", tiffinfo={317: 2}))
    read(
        "tiff_lzw_long",
        saved(Image.fromarray(picture("smooth", 8, 90, 120)[..., 0]), "tiff", compression="tiff_lzw"),
    )
    # Every value of 16-bit grey, every pair of ink and black, and colours of every luma.
    ramp = np.arange(65536, dtype="<u2")
    every = partial(tiff, size=(256, 256), compression=8, predictor=True)
    read("tiff_every_16_bit", every(1, 16, 1, pixels=ramp.tobytes()))
    y, x = np.divmod(np.arange(65536), 256)
    inks = np.stack([x, x, x, y], -1).astype(np.uint8)
    read("tiff_every_ink", every(5, 8, 4, pixels=inks.tobytes()))
    lumas = np.stack([x, y, 3 * x + 5 * y], -1).astype(np.uint8)
    read("tiff_every_luma", every(2, 8, 3, pixels=lumas.tobytes()))
    with_alpha = np.column_stack([lumas, 7 * x]).astype(np.uint8)
    read("tiff_every_luma_rgba", every(2, 8, 4, (2,), pixels=with_alpha.tobytes()))
    more: dict[str, Tags] = {
        "fill_order": {266: (SHORT, [2])},
        "float": {339: (SHORT, [3, 3, 3])},
        "ycbcr": {262: (SHORT, [6])},
        "jpeg": {259: (SHORT, [7])},
        "few_bits": {258: (SHORT, [8, 8])},
        "no_width": {256: (LONG, [0])},
        "no_strips": {273: (LONG, [])},
        "far": {273: (LONG, [1 << 30])},
    }
    for name, tags in more.items():
        read(f"tiff_{name}", tiff(2, 8, 3, size=(5, 3), more=tags), "may")
    swapped = tiff(2, 8, 3, size=(5, 3))
    read("tiff_odd_magic", b"II\0*" + swapped[4:])
    damaged("tiff_plain", swapped, 6)
    damaged("tiff_deflate", tiff(2, 8, 3, size=(5, 3), compression=8), 6)
    for content, seed, h, w in (("noise", 1, 1, 1), ("smooth", 2, 5, 6), ("hard", 3, 9, 7)):
        write("tiff", content, seed, h, w, None)
        write("tiff", content, seed, h, w, seed)


# --- WebP ---


def webps() -> None:
    def image(seed: int, h: int, w: int, alpha: bool = False) -> Image.Image:
        colours = picture("smooth", seed, h, w) // 2 + picture("noise", seed, h, w) // 16
        return Image.fromarray(np.dstack([colours, mask_of("grey", seed, h, w)]) if alpha else colours)

    tags = Image.Exif()
    tags[271] = "Maker"
    tags[274] = 6
    for h, w in ((1, 1), (1, 17), (16, 16), (33, 18)):
        for alpha in (False, True):
            name = f"{h}x{w}" + ("_alpha" if alpha else "")
            read(f"webp_{name}", saved(image(h, h, w, alpha), "webp", quality=80))
            read(f"webp_{name}_lossless", saved(image(h, h, w, alpha), "webp", lossless=True))
    read("webp_exif", saved(image(1, 12, 9), "webp", exif=tags))
    read(
        "webp_exif_prefix",
        saved(image(1, 12, 9, True), "webp", exif=b"Exif\0\0Exif\0\0" + tags.tobytes()[6:]),
    )
    others = [image(seed, 20, 24, True) for seed in (2, 3)]
    still = image(4, 20, 24, True)
    read("webp_animated", saved(still, "webp", save_all=True, append_images=others, duration=40))
    hole = still.copy()
    hole.paste((0, 0, 0, 0), (0, 0, 24, 9))
    read("webp_animated_part", saved(hole, "webp", save_all=True, append_images=others, lossless=True))
    opaque = [image(seed, 20, 24) for seed in (5, 6)]
    read("webp_animated_opaque", saved(image(7, 20, 24), "webp", save_all=True, append_images=opaque))
    plain = saved(image(9, 10, 12), "webp")
    damaged("webp", plain, 6)
    damaged("webp_lossless", saved(image(9, 10, 12, True), "webp", lossless=True), 6)
    read("webp_unknown_chunk", plain[:12] + b"VP8Y" + plain[16:])
    for seed, (quality, h, w) in enumerate(((95, 1, 1), (95, 20, 31), (50, 33, 16), (100, 17, 40))):
        write("webp", "smooth", seed, h, w, None, quality)
        write("webp", "smooth", seed, h, w, seed, quality)


def main() -> None:
    np.seterr(over="ignore")
    assert TiffImagePlugin.READ_LIBTIFF is False
    for suite in (bmps, gifs, tiffs, webps):
        suite()
    Path(__file__).with_name("formats.txt").write_text("\n".join(LINES) + "\n")
    print(len(LINES), "cases")


if __name__ == "__main__":
    main()
