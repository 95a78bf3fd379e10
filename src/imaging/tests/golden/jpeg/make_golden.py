"""Writes small JPEG files of every kind, and `cases.txt`: what Lama Cleaner 1.2.5 makes of them.

Run with the interpreter of the reference environment (lama-cleaner 1.2.5, Pillow 10.4, OpenCV 4.11, x86-64):

    python src/imaging/tests/golden/jpeg/make_golden.py

A line `read` has a file, the mode and size that Pillow opens it with, the size when upright, and the digests
of the picture and of the mask that upstream reads from it and of the file that it answers, at quality 90. A
line `cut` has a file and how many of its bytes Pillow needs for the whole picture. A line `write` has a
seeded picture, a quality and the digest of upstream's file. `tests/codec_jpeg.rs` reads all of them.
"""

import io
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
from lama_cleaner.helper import load_img, pil_to_bytes
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from make_golden import digest, picture  # noqa: E402

LINES: list[str] = []


def read(name: str, data: bytes) -> None:
    """Stores a file, and what upstream makes of it."""
    (HERE / f"{name}.jpg").write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    pixels, alpha, exif = load_img(data, return_exif=True)
    assert alpha is None
    mask = cv2.threshold(load_img(data, gray=True)[0], 127, 255, cv2.THRESH_BINARY)[1]
    answer = np.frombuffer(pil_to_bytes(Image.fromarray(pixels), "jpeg", 90, exif), np.uint8)
    size = f"{opened.height} {opened.width} {pixels.shape[0]} {pixels.shape[1]}"
    LINES.append(f"read {name} {opened.mode} {size} {digest(pixels)} {digest(mask)} {digest(answer)}")


def write(kind: str, seed: int, h: int, w: int, quality: int) -> None:
    file = pil_to_bytes(Image.fromarray(picture(kind, seed, h, w)), "jpeg", quality, {"exif": Image.Exif()})
    LINES.append(f"write {kind} {seed} {h} {w} {quality} {digest(np.frombuffer(file, np.uint8))}")


def saved(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "jpeg", **options)
    return out.getvalue()


def smooth(seed: int, h: int, w: int) -> Image.Image:
    """Soft colours with some noise, so that all coefficients occur but the file stays small."""
    noise = picture("noise", seed, h, w).astype(np.int64) // 16
    return Image.fromarray((picture("smooth", seed, h, w).astype(np.int64) * 7 // 8 + noise).astype(np.uint8))


def kinds() -> None:
    sizes = [(1, 1), (1, 37), (37, 1), (8, 8), (16, 16), (17, 33), (31, 18), (40, 49)]
    for seed, (h, w) in enumerate(sizes):
        for name, subsampling in (("444", 0), ("422", 1), ("420", 2)):
            quality = (75, 95, 30, 100, 1)[(seed + subsampling) % 5]
            read(f"{name}_{h}x{w}", saved(smooth(seed, h, w), quality=quality, subsampling=subsampling))
        for name, factors in (("440", 0x121111), ("411", 0x411111)):
            pixels = np.asarray(smooth(seed, h, w))[:, :, ::-1]
            options = [cv2.IMWRITE_JPEG_QUALITY, 80, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factors]
            read(f"{name}_{h}x{w}", cv2.imencode(".jpg", pixels, options)[1].tobytes())
    image = smooth(9, 35, 42)
    for subsampling in range(3):
        read(
            f"progressive_{subsampling}", saved(image, quality=85, progressive=True, subsampling=subsampling)
        )
    read("optimised", saved(image, optimize=True))
    read("restart_blocks", saved(image, restart_marker_blocks=2))
    read("restart_rows", saved(image, restart_marker_rows=1, progressive=True))
    read("hard", saved(Image.fromarray(picture("hard", 1, 40, 40)), quality=20))
    read("noise", saved(Image.fromarray(picture("noise", 1, 24, 24)), quality=5))
    read("grey", saved(image.convert("L")))
    read("grey_progressive", saved(image.convert("L"), progressive=True))
    read("rgb", saved(image, keep_rgb=True))
    cmyk = saved(Image.merge("CMYK", [*image.split(), smooth(10, 35, 42).getchannel(1)]))
    read("cmyk", cmyk)
    adobe = cmyk.index(b"Adobe") + 11
    read("ycck", cmyk[:adobe] + b"\2" + cmyk[adobe + 1 :])
    jfif = saved(image)
    read("no_jfif", jfif[:2] + jfif[20:])
    read("trailing_bytes", jfif + b"\0" * 9 + jfif)


def segment(block: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block


def camera_block(order: str, orientation: int) -> bytes:
    """An EXIF block as cameras write them: odd padding, a thumbnail, all directories, unsorted."""
    pack = lambda form, *values: struct.pack(order + form, *values)  # noqa: E731
    out = bytearray((b"II*\0" if order == "<" else b"MM\0*") + pack("L", 8))

    def directory(entries: list[tuple[int, int, int, bytes]], following: int) -> None:
        """Appends a directory of (tag, type, count, value)."""
        at = len(out)
        tail = at + 2 + 12 * len(entries) + 4 + 6
        head, values = pack("H", len(entries)), b"\0" * 6
        for tag, kind, count, value in entries:
            if len(value) <= 4:
                field = value.ljust(4, b"\0")
            else:
                field = pack("L", tail - 6 + len(values))
                values += value + b"\0" * (len(value) % 2)
            head += pack("HHL", tag, kind, count) + field
        out.extend(head + pack("L", following) + values)

    # Directories are put at fixed places, far enough apart.
    exif, gps, interop, thumbnail = 400, 900, 1200, 1300
    directory(
        [
            (0x8769, 4, 1, pack("L", exif)),
            (0x010F, 2, 6, b"Canon\0"),
            (0x0110, 2, 13, b"EOS \xe9tude 5D\0"),
            (0x0112, 3, 1, pack("H", orientation)),
            (0x011A, 5, 1, pack("LL", 720000, 10000)),
            (0x011B, 5, 1, pack("LL", 720000, 10000)),
            (0x0128, 3, 1, pack("H", 2)),
            (0x0213, 3, 1, pack("H", 2)),
            (0x8825, 4, 1, pack("L", gps)),
            (0x9C9B, 1, 6, b"a\0b\0\0\0"),
        ],
        thumbnail,
    )
    out.extend(bytes(exif - len(out)))
    directory(
        [
            (0x829A, 5, 1, pack("LL", 10, 2000)),
            (0x8827, 3, 1, pack("H", 400)),
            (0x9000, 7, 4, b"0230"),
            (0x9003, 2, 20, b"2023:01:02 03:04:05\0"),
            (0x9101, 7, 4, b"\1\2\3\0"),
            (0x9201, 10, 1, pack("ll", -6, 4)),
            (0x9204, 10, 1, pack("ll", 0, 3)),
            (0x927C, 7, 61, bytes(range(61))),
            (0x9286, 7, 12, b"ASCII\0\0\0note"),
            (0xA002, 4, 1, pack("L", 4000)),
            (0xA003, 4, 1, pack("L", 70000)),
            (0xA005, 4, 1, pack("L", interop)),
            (0xA432, 5, 4, pack("8L", 24, 1, 70, 1, 0, 0, 0, 0)),
        ],
        0,
    )
    out.extend(bytes(gps - len(out)))
    directory(
        [
            (0, 1, 4, b"\2\3\0\0"),
            (1, 2, 2, b"N\0"),
            (2, 5, 3, pack("6L", 52, 1, 31, 1, 1234, 100)),
            (5, 1, 1, b"\1"),
            (29, 2, 11, b"2023:01:02\0"),
        ],
        0,
    )
    out.extend(bytes(interop - len(out)))
    directory([(1, 2, 4, b"R98\0"), (2, 7, 4, b"0100")], 0)
    out.extend(bytes(thumbnail - len(out)))
    directory(
        [(0x0103, 3, 1, pack("H", 6)), (0x0201, 4, 1, pack("L", 1400)), (0x0202, 4, 1, pack("L", 99))], 0
    )
    out.extend(bytes(1500 - len(out)))
    return bytes(out)


def exif() -> None:
    plain = saved(smooth(11, 9, 20), quality=70)
    inserted = lambda *blocks: plain[:2] + b"".join(map(segment, blocks)) + plain[2:]  # noqa: E731
    for orientation in range(1, 9):
        read(f"exif_{orientation}", inserted(camera_block("<>"[orientation % 2], orientation)))
    block = camera_block(">", 6)
    read("exif_two_segments", inserted(block[:700], block[700:]))
    read("exif_cut", inserted(block[:600]))
    read("exif_orientation_9", inserted(camera_block("<", 9)))
    head = b"MM\0*\0\0\0\x08"
    read("exif_no_tags", inserted(head + b"\0\0"))
    read("exif_out_of_range", inserted(head + b"\0\1\x01\x0f\0\2\xff\xff\xff\xff\0\0\0\0" + b"\0" * 4))
    read("exif_loop", inserted(head + b"\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08" + b"\0" * 4))
    read("exif_long_orientation", inserted(head + b"\0\1\x01\x12\0\4\0\0\0\1\0\0\0\x06" + b"\0" * 4))


def cuts() -> None:
    for name in ("420_17x33", "progressive_2", "restart_blocks", "restart_rows", "cmyk", "exif_6"):
        data = (HERE / f"{name}.jpg").read_bytes()
        sound = [end for end in range(len(data) + 1) if whole(data[:end])]
        assert sound == list(range(sound[0], len(data) + 1)), name
        LINES.append(f"cut {name} {sound[0]}")


def whole(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:
        return False
    return True


def files() -> None:
    for seed in range(40):
        kind = ("noise", "smooth", "hard")[seed % 3]
        h, w = 1 + seed * 29 % 67, 1 + seed * 13 % 71
        write(kind, seed, h, w, (95, 75, 100, 1, 50)[seed % 5])


if __name__ == "__main__":
    np.seterr(over="ignore")
    for suite in (kinds, exif, cuts, files):
        suite()
    (HERE / "cases.txt").write_text("\n".join(LINES) + "\n")
    print(len(LINES), "cases")
