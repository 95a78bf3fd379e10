"""Writes `png.txt`: what Lama Cleaner 1.2.5 with Pillow 10.4 reads from PNG files, whole and damaged.

Run with the interpreter of the reference environment:

    python src/imaging/tests/golden/make_png.py

One line per file: its name; height, width and CRC-32 of the picture's RGB samples, or three times `fails`;
the CRC-32 of its alpha plane, or `-`; that of the mask that it makes, or `fails`; the text `parameters` as
UTF-8 in hexadecimal, or `-`; the file in hexadecimal. `tests/codec_png.rs` reads it.
"""

import random
import struct
import sys
import zlib
from pathlib import Path

import cv2
from lama_cleaner.helper import load_img
from loguru import logger

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
TYPES = [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (2, 3), (4, 3), (8, 3)]
TYPES += [(8, 4), (16, 4), (8, 6), (16, 6)]
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
# Orientation 6, little endian.
EXIF = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
XMP = b'<rdf:Description tiff:Orientation="8"/>'
END = b"\0\0\0\0IEND\xaeB`\x82"
random_bytes = random.Random(3).randbytes


def chunk(kind: bytes, content: bytes, wrong: int = 0) -> bytes:
    """`wrong` is added to the checksum."""
    checksum = zlib.crc32(kind + content) + wrong & 0xFFFFFFFF
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def ihdr(
    width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0, filters: int = 0
) -> bytes:
    return chunk(b"IHDR", struct.pack(">II", width, height) + bytes([depth, colour, 0, filters, interlace]))


def rows(width: int, height: int, bits: int) -> bytes:
    """Every filter in turn; any bytes are a filtered row."""
    length = (width * bits + 7) // 8
    return b"".join(bytes([y % 5]) + random_bytes(length) for y in range(height))


def data(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    bits = depth * SAMPLES[colour]
    if not interlace:
        return rows(width, height, bits)
    sizes = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in ADAM7]
    return b"".join(rows(w, h, bits) for w, h in sizes if w and h)


def idat(content: bytes) -> bytes:
    return chunk(b"IDAT", content)


def files() -> dict[str, bytes]:
    out = {}
    for depth, colour in TYPES:
        for interlace in (0, 1):
            what = (13, 9, depth, colour, interlace)
            palette = chunk(b"PLTE", random_bytes(3 << depth)) if colour == 3 else b""
            pixels = idat(zlib.compress(data(*what)))
            out[f"type_{depth}_{colour}_{interlace}"] = SIGNATURE + ihdr(*what) + palette + pixels + END
    for width, height in [(1, 1), (1, 7), (7, 1), (2, 3), (5, 5), (33, 1), (1, 33)]:
        for depth, colour in [(1, 0), (8, 2)]:
            what = (width, height, depth, colour, 1)
            pixels = idat(zlib.compress(data(*what)))
            out[f"small_{width}_{height}_{depth}"] = SIGNATURE + ihdr(*what) + pixels + END

    raw = data(6, 4)
    z = zlib.compress(raw)
    head = SIGNATURE + ihdr(6, 4)
    pixels = idat(z)

    def text(value: bytes, key: bytes = b"parameters") -> bytes:
        return chunk(b"tEXt", key + b"\0" + value)

    def itxt(flags: bytes, value: bytes, key: bytes = b"parameters") -> bytes:
        return chunk(b"iTXt", key + b"\0" + flags + b"en\0\xc3\xbc\0" + value)

    words = "Größe, Steps: 20".encode()
    ztxt = chunk(b"zTXt", b"parameters\0\0" + zlib.compress("Größe ".encode("latin-1") * 90))
    out["text"] = head + text("a\nGröße".encode("latin-1")) + pixels + END
    out["text_empty"] = head + text(b"") + pixels + END
    out["text_without_nul"] = head + chunk(b"tEXt", b"parameters") + pixels + END
    out["text_twice"] = head + text(b"first") + text(b"second") + pixels + END
    out["text_compressed"] = head + ztxt + pixels + END
    out["text_international"] = head + itxt(b"\0\0", words) + pixels + END
    out["text_international_compressed"] = head + itxt(b"\1\0", zlib.compress(words)) + pixels + END
    out["text_not_utf8"] = head + text(b"kept") + itxt(b"\0\0", b"\xff") + pixels + END
    # Upstream sees what follows the pixels only if something came before them, and no EXIF.
    out["text_after"] = head + pixels + text(b"unseen") + END
    out["text_after_another"] = head + text(b"", b"Comment") + pixels + text(b"seen") + END
    out["text_after_exif"] = head + chunk(b"eXIf", EXIF) + pixels + text(b"unseen") + END
    out["exif"] = head + chunk(b"eXIf", EXIF) + pixels + END
    out["exif_after"] = head + pixels + chunk(b"eXIf", EXIF) + END
    out["exif_text"] = head + text(b"Exif\0\0" + EXIF, b"exif") + pixels + END
    profile = b"\nexif\n      32\n" + (b"Exif\0\0" + EXIF).hex().encode()
    out["exif_raw_profile"] = head + text(profile, b"Raw profile type exif") + pixels + END
    out["xmp"] = head + itxt(b"\0\0", XMP, b"XML:com.adobe.xmp") + pixels + END

    out["data_in_pieces"] = head + b"".join(idat(z[i : i + 3]) for i in range(0, len(z), 3)) + idat(b"") + END
    out["data_checksum"] = head + chunk(b"IDAT", z, 1) + END
    out["data_stored"] = head + idat(zlib.compress(raw, 0)) + END
    out["data_too_much"] = head + idat(zlib.compress(raw + random_bytes(99))) + END
    out["no_end"] = head + pixels
    out["more_after_end"] = head + pixels + END + random_bytes(20)
    out["late_checksum"] = head + pixels + chunk(b"tIME", bytes(7), 1) + END
    out["unknown_chunks"] = head + chunk(b"ABCD", b"x") + chunk(b"ab_1", b"") + pixels + END
    out["header_twice"] = SIGNATURE + ihdr(9, 9, 4, 0) + ihdr(6, 4) + pixels + END
    out["header_late"] = SIGNATURE + text(b"first") + ihdr(6, 4) + pixels + END
    for depth, colour, content in [(1, 0, b"\0\1"), (8, 0, b"\0\7"), (16, 0, b"\1\0"), (8, 2, bytes(6))]:
        what = (6, 4, depth, colour)
        trns = chunk(b"tRNS", content)
        body = idat(zlib.compress(data(*what)))
        out[f"trns_{depth}_{colour}"] = SIGNATURE + ihdr(*what) + trns + body + END
    grey = idat(zlib.compress(data(6, 4, 8, 3)))
    indexed = SIGNATURE + ihdr(6, 4, 8, 3)
    out["palette_none"] = indexed + grey + END
    out["palette_short"] = indexed + chunk(b"PLTE", random_bytes(300)) + grey + END
    out["palette_odd"] = indexed + chunk(b"PLTE", random_bytes(298)) + grey + END
    for name, alpha in [("one", b"\xff\0\xff"), ("some", bytes(range(9)))]:
        palette = chunk(b"PLTE", random_bytes(768))
        out[f"palette_trns_{name}"] = indexed + palette + chunk(b"tRNS", alpha) + grey + END
    control = chunk(b"acTL", struct.pack(">II", 2, 0))

    def frame(number: int, width: int = 6) -> bytes:
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, 4, 0, 0, 1, 9, 0, 0))

    later = frame(1) + chunk(b"fdAT", struct.pack(">I", 2) + z)
    out["animation"] = head + control + frame(0) + pixels + later + END
    out["animation_default"] = head + control + pixels + frame(0) + chunk(b"fdAT", b"\0\0\0\1" + z) + END
    out["animation_part"] = head + control + frame(0, 5) + pixels + later + END

    out["fails_signature_alone"] = SIGNATURE
    out["fails_no_header"] = SIGNATURE + pixels + END
    out["fails_header_checksum"] = SIGNATURE + chunk(b"IHDR", ihdr(6, 4)[8:21], 1) + pixels + END
    out["fails_header_short"] = SIGNATURE + chunk(b"IHDR", ihdr(6, 4)[8:20]) + pixels + END
    out["fails_header_empty"] = SIGNATURE + ihdr(0, 4) + pixels + END
    out["fails_kind"] = SIGNATURE + ihdr(6, 4, 3) + pixels + END
    out["fails_filters"] = SIGNATURE + ihdr(6, 4, filters=1) + pixels + END
    out["fails_no_data"] = head + END
    out["fails_chunk_cut"] = head + text(b"a longer text")[:-9]
    out["fails_text_checksum"] = head + chunk(b"tEXt", b"a\0b", 1) + pixels + END
    out["fails_no_chunk"] = head + b"\0\0\0\0<?!>" + pixels + END
    bomb = zlib.compress(bytes((1 << 20) + 1))
    out["fails_text_bomb"] = head + chunk(b"zTXt", b"a\0\0" + bomb) + pixels + END
    out["fails_profile_bomb"] = head + chunk(b"iCCP", b"a\0\0" + bomb) + pixels + END
    out["fails_palette_long"] = indexed + chunk(b"PLTE", bytes(771)) + grey + END
    out["fails_cut"] = (head + pixels + END)[:-40]
    out["fails_data_cut"] = head + idat(z[:40]) + END
    out["fails_claim"] = SIGNATURE + ihdr(16000, 10000) + pixels + END
    # Upstream has a mask of these all the same, of what came before the damage.
    out["damaged_filter"] = head + idat(zlib.compress(b"\7" + raw[1:])) + END
    out["damaged_data"] = head + idat(z[:30] + b"\xff\xff" + z[32:]) + END
    out["damaged_checksum"] = head + idat(z[:-1] + b"\0") + END
    out["data_ends_early"] = head + idat(zlib.compress(raw[:38])) + END
    return out


def picture(file: bytes) -> tuple[str, str, str]:
    """The picture, its alpha and its `parameters`."""
    try:
        pixels, alpha, tags = load_img(file, return_exif=True)
    except Exception:
        return "fails", "-", "-"
    height, width = pixels.shape[:2]
    text = tags["parameters"]
    return (
        f"{height} {width} {zlib.crc32(pixels.tobytes()):08x}",
        "-" if alpha is None else f"{zlib.crc32(alpha.tobytes()):08x}",
        "-" if text is None else "0x" + text.encode().hex(),
    )


def mask(file: bytes) -> str:
    try:
        grey, _ = load_img(file, gray=True)
    except Exception:
        return "fails"
    return f"{zlib.crc32(cv2.threshold(grey, 127, 255, cv2.THRESH_BINARY)[1].tobytes()):08x}"


def main() -> None:
    lines = []
    for name, file in files().items():
        colours, alpha, text = picture(file)
        if colours == "fails":
            colours = "fails fails fails"
        lines.append(f"{name} {colours} {alpha} {mask(file)} {text} {file.hex()}")
    (Path(__file__).parent / "png.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    main()
