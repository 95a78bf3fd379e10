"""EXIF blocks as cameras and editors write them, and some that are wrong."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

ORIENTATION = 0x0112
EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, SLONG, SRATIONAL, FLOAT, DOUBLE = (
    1,
    2,
    3,
    4,
    5,
    7,
    9,
    10,
    11,
    12,
)
LETTERS = {BYTE: "B", SHORT: "H", LONG: "L", SLONG: "l", FLOAT: "f", DOUBLE: "d"}
SIZES = {
    BYTE: 1,
    ASCII: 1,
    SHORT: 2,
    LONG: 4,
    RATIONAL: 8,
    UNDEFINED: 1,
    SLONG: 4,
    SRATIONAL: 8,
    FLOAT: 4,
    DOUBLE: 8,
}


@dataclass(frozen=True)
class Entry:
    """One tag: its number, its type, its value as bytes of that type in the block's byte order."""

    tag: int
    kind: int
    value: bytes
    count: int | None = None
    """Said in the file; None is the true one."""


class Block:
    """A TIFF structure of one byte order, to which directories are added."""

    def __init__(self, endian: str) -> None:
        self.endian = endian
        self._directories: dict[str, list[Entry]] = {"first": []}

    def number(self, tag: int, kind: int, *values: float) -> Entry:
        """A tag of numbers; a rational takes two for each."""
        letter = {RATIONAL: "L", SRATIONAL: "l"}.get(kind) or LETTERS[kind]
        return Entry(tag, kind, struct.pack(f"{self.endian}{len(values)}{letter}", *values))

    def add(self, directory: str, *entries: Entry) -> None:
        """Add tags to ``first``, ``exif``, ``gps``, ``interop`` or ``thumbnail``."""
        self._directories.setdefault(directory, []).extend(entries)

    def encoded(self) -> bytes:
        """The block, from its byte order mark on."""
        pointers = {"exif": ("first", EXIF_IFD), "gps": ("first", GPS_IFD), "interop": ("exif", INTEROP_IFD)}
        for directory, (parent, tag) in pointers.items():
            if directory in self._directories:
                self.add(parent, Entry(tag, LONG, directory.encode().ljust(8)))
        order = [
            name for name in ("first", "exif", "interop", "gps", "thumbnail") if name in self._directories
        ]
        places, end = {}, 8
        for name in order:
            places[name] = end
            end += self._size(name)
        head = (b"II*\0" if self.endian == "<" else b"MM\0*") + struct.pack(self.endian + "L", 8)
        return head + b"".join(self._directory(name, places) for name in order)

    def _size(self, name: str) -> int:
        entries = self._directories[name]
        long = (len(entry.value) for entry in entries if not _is_pointer(entry) and len(entry.value) > 4)
        return 2 + 12 * len(entries) + 4 + sum(size + size % 2 for size in long)

    def _directory(self, name: str, places: dict[str, int]) -> bytes:
        entries = sorted(self._directories[name], key=lambda entry: entry.tag)
        data_at = places[name] + 2 + 12 * len(entries) + 4
        table, data = struct.pack(self.endian + "H", len(entries)), b""
        for entry in entries:
            value = entry.value
            if _is_pointer(entry):
                value = struct.pack(self.endian + "L", places[value.decode().strip()])
            count = len(value) // SIZES.get(entry.kind, 1) if entry.count is None else entry.count
            if len(value) > 4:
                field = struct.pack(self.endian + "L", data_at + len(data))
                data += value + b"\0" * (len(value) % 2)
            else:
                field = value.ljust(4, b"\0")
            table += struct.pack(self.endian + "HHL", entry.tag, entry.kind, count) + field
        following = places.get("thumbnail", 0) if name == "first" else 0
        return table + struct.pack(self.endian + "L", following) + data


def _is_pointer(entry: Entry) -> bool:
    return entry.tag in (EXIF_IFD, GPS_IFD, INTEROP_IFD) and entry.kind == LONG and len(entry.value) == 8


def exif_block(dice: random.Random, orientation: int | None) -> bytes:
    """A sound block with this orientation (None: without the tag) and some other tags."""
    block = Block(dice.choice("<>"))
    number = block.number
    if orientation is not None:
        block.add("first", number(ORIENTATION, SHORT, orientation))
    if dice.random() < 0.7:
        block.add(
            "first",
            Entry(0x010F, ASCII, b"Camera & Sons\0"),
            Entry(0x0110, ASCII, b"X1\0"),
            number(0x011A, RATIONAL, 72, 1),
            number(0x011B, RATIONAL, 720, 10),
            number(0x0128, SHORT, 2),
        )
    if dice.random() < 0.3:
        block.add(
            "first", Entry(0x013B, ASCII, "Zoë\0".encode()), Entry(0x9C9B, BYTE, "Bild".encode("utf-16-le"))
        )
    if dice.random() < 0.6:
        block.add(
            "exif",
            number(0x829A, RATIONAL, 1, 125),
            number(0x8827, SHORT, 400),
            Entry(0x9000, UNDEFINED, b"0231"),
            Entry(0x9003, ASCII, b"2023:11:22 10:00:00\0"),
            number(0x9204, SRATIONAL, -1, 3),
            Entry(0x9286, UNDEFINED, b"ASCII\0\0\0a comment"),
            number(0xA002, LONG, dice.randint(1, 9999)),
            number(0xA432, RATIONAL, 24, 1, 70, 1, 28, 10, 0, 0),
        )
        if dice.random() < 0.4:
            block.add("exif", Entry(0x927C, UNDEFINED, dice.randbytes(dice.randint(1, 200))))
        if dice.random() < 0.4:
            block.add("interop", Entry(0x0001, ASCII, b"R98\0"))
    if dice.random() < 0.3:
        block.add(
            "gps",
            number(0x0000, BYTE, 2, 3, 0, 0),
            Entry(0x0001, ASCII, b"N\0"),
            number(0x0002, RATIONAL, 52, 1, 31, 1, 1234, 100),
        )
    if dice.random() < 0.2:
        block.add("thumbnail", number(0x0103, SHORT, 6), number(0x0201, LONG, 0), number(0x0202, LONG, 0))
    return block.encoded()


def odd_block(dice: random.Random, orientation: int) -> tuple[bytes, str]:
    """A block that breaks some rule, and which one. Its orientation may hold or not: Pillow decides."""
    block = Block(dice.choice("<>"))
    number = block.number
    oddity = dice.choice(
        [
            *("long orientation", "orientation text", "orientation pair", "orientation out of range"),
            *(
                "orientation twice",
                "unknown type",
                "offset outside",
                "huge count",
                "no value",
                "cut",
                "noise",
            ),
            *("floats", "zero denominators", "empty", "looping", "wrong mark", "orientation byte"),
        ]
    )
    holds = number(ORIENTATION, SHORT, orientation)
    if oddity == "long orientation":
        block.add("first", number(ORIENTATION, LONG, orientation))
    elif oddity == "orientation byte":
        block.add("first", number(ORIENTATION, BYTE, orientation))
    elif oddity == "orientation text":
        block.add("first", Entry(ORIENTATION, ASCII, b"%d\0" % orientation))
    elif oddity == "orientation pair":
        block.add("first", number(ORIENTATION, SHORT, orientation, 1))
    elif oddity == "orientation out of range":
        block.add("first", number(ORIENTATION, SHORT, dice.choice([0, 9, 65535])))
    elif oddity == "orientation twice":
        block.add("first", holds, number(ORIENTATION, SHORT, 1))
    elif oddity == "unknown type":
        block.add("first", holds, Entry(0x010F, 77, b"abc"))
    elif oddity == "offset outside":
        block.add("first", holds, Entry(EXIF_IFD, LONG, struct.pack(block.endian + "L", 60000)))
    elif oddity == "huge count":
        block.add("first", holds, Entry(0x010F, ASCII, b"abcdefgh", 0x7FFFFFFF))
    elif oddity == "no value":
        block.add("first", holds, Entry(0x010F, ASCII, b"", 0), Entry(0x0128, SHORT, b"", 0))
    elif oddity == "floats":
        block.add(
            "first",
            holds,
            number(0xC000, FLOAT, 1.5, -2.25),
            number(0xC001, DOUBLE, 0.1),
            number(0xC002, SLONG, -5),
        )
    elif oddity == "zero denominators":
        block.add("first", holds, number(0x011A, RATIONAL, 72, 0), number(0x011B, RATIONAL, 0, 0))
    else:
        block.add("first", holds, Entry(0x010F, ASCII, b"Camera & Sons\0"))
    data = block.encoded()
    if oddity == "cut":
        data = data[: dice.randint(1, len(data) - 1)]
    elif oddity == "noise":
        data = dice.randbytes(dice.randint(1, 64))
    elif oddity == "empty":
        data = b""
    elif oddity == "looping":
        data = data[:-20] + data[-20:].replace(b"\0\0\0\0", struct.pack(block.endian + "L", 8), 1)
    elif oddity == "wrong mark":
        data = b"XX" + data[2:]
    return data, oddity
