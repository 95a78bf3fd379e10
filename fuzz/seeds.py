"""Writes the corpora that fuzzing starts from, with the generators of the tests: small files of every kind.

Messages have none: their golden files in `src/protocol/tests/golden` are the corpus.

usage: PYTHONPATH=tests .venv/bin/python fuzz/seeds.py
"""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from parity import content, files
from parity.cases import WHEEL
from parity.exif import exif_block, odd_block

CORPUS = Path(__file__).resolve().parent / "corpus"
FILES = 24
LARGEST_BYTES = 2048


def pictures(form: str) -> Iterator[bytes]:
    """Files of a format in all of its modes."""
    modes = [mode for name, mode in WHEEL if name == form]
    for number in range(10_000):
        dice = random.Random(f"{form}:{number}")
        rng = np.random.default_rng(number)
        rgba, _ = content.picture(dice, rng, dice.randint(1, 20), dice.randint(1, 20))
        tags = files.NO_TAGS if form in ("BMP", "GIF") else files.draw_tags(dice)
        data = files.WRITERS[form](dice, rgba, modes[number % len(modes)], tags).data
        if len(data) <= LARGEST_BYTES:
            yield data


def exif_blocks() -> Iterator[bytes]:
    """Sound and odd EXIF blocks."""
    for number in range(FILES):
        dice = random.Random(f"exif:{number}")
        yield exif_block(dice, 1 + number % 8) if number % 2 else odd_block(dice, 1 + number % 8)[0]


def lines() -> Iterator[bytes]:
    """Requests and answers of the line before ZMTP."""
    version = "lamagrid 1.5"
    token = "0123456789abcdef" * 2
    for text in (
        *(f"{version} {channel}" for channel in ("client", "admin", "control", "result", "node-events")),
        f"{version} lane-0123456789abcdef-0",
        f"{version} lane-0123456789abcdef-12",
        f"{version} get {token} image 0",
        f"{version} put {token} 100 new",
        f"{version} bring {token} mask 100 again",
        f"{version} fetch {token} 100",
        "lamagrid 1.4 client",
        "lamagrid 9.9 client",
        "welcome 1700000000000",
        "refused incompatible you speak another protocol",
        "refused disconnected this blob is not yours",
    ):
        yield text.encode() + b"\n"


def conversations() -> Iterator[bytes]:
    """ZMTP: greeting, READY and messages, behind the length of the pieces."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + bytes(32)
    for piece, kind in ((1, b"DEALER"), (7, b"PUB"), (64, b"ROUTER"), (255, b"SUB")):
        ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
        ready += b"\x08Identity" + struct.pack(">I", 4) + b"name"
        short = b"\x04" + bytes([len(ready)]) + ready
        long = b"\x06" + struct.pack(">Q", len(ready)) + ready
        for handshake in (short, long):
            for messages in (
                b"\x00\x03abc",
                b"\x01\x00\x00\x01x",
                b"\x02" + struct.pack(">Q", 300) + bytes(300),
            ):
                yield bytes([piece]) + greeting + handshake + messages


def main() -> None:
    """Write them all anew."""
    shutil.rmtree(CORPUS, ignore_errors=True)
    sources = {form.lower(): pictures(form) for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")}
    sources |= {"exif": exif_blocks(), "line": lines(), "zmtp": conversations()}
    for target, seeds in sources.items():
        folder = CORPUS / target
        folder.mkdir(parents=True)
        for number, data in zip(range(FILES), seeds):
            (folder / f"{number:02}").write_bytes(data)


if __name__ == "__main__":
    main()
