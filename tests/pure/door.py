"""Talks to the imaging crate's example `pure`, which answers one call of one function at a time."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

DONE, REFUSED = 0, 1


class Door:
    """One running program. Not for several threads."""

    def __init__(self, program: Path) -> None:
        self._child = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Door:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.stdout.close()
        self._child.wait(10)

    def ask(self, op: int, fields: bytes) -> tuple[int, bytes]:
        """Call a function. Gives `DONE` with the fields of its answer, or `REFUSED` with why."""
        assert self._child.stdin is not None
        self._child.stdin.write(struct.pack("<IB", len(fields) + 1, op) + fields)
        self._child.stdin.flush()
        (length,) = struct.unpack("<I", self._read(4))
        answer = self._read(length)
        assert answer[0] in (DONE, REFUSED), answer[1:]
        return answer[0], answer[1:]

    def _read(self, length: int) -> bytes:
        assert self._child.stdout is not None
        data = self._child.stdout.read(length)
        assert len(data) == length, f"the program ended with {self._child.wait(10)}"
        return data


def blob(data: bytes | str) -> bytes:
    """Bytes, or a text, behind their length."""
    data = data.encode() if isinstance(data, str) else data
    return struct.pack("<I", len(data)) + data


def optional(data: bytes | None) -> bytes:
    """A field that may be missing."""
    return b"\0" if data is None else b"\1" + data


def pixels(array: Pixels) -> bytes:
    """``(H, W, 3)`` or ``(H, W)``."""
    return struct.pack("<II", *array.shape[:2]) + np.ascontiguousarray(array).tobytes()


def rule(modulo: int, square: bool = False, least: int | None = None) -> bytes:
    """How sides are padded."""
    return struct.pack("<IBI", modulo, square, least or 0)


class Fields:
    """Reads an answer field by field."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        """Little-endian numbers by `struct`'s letters."""
        found = struct.unpack_from("<" + form, self._data, self._at)
        self._at += struct.calcsize("<" + form)
        return found

    def blob(self) -> bytes:
        """Bytes behind their length."""
        (length,) = self.numbers("I")
        self._at += length
        return self._data[self._at - length : self._at]

    def pixels(self, channels: int) -> Pixels:
        """``(H, W, 3)`` or ``(H, W)``."""
        height, width = self.numbers("II")
        shape = (height, width, channels) if channels > 1 else (height, width)
        found = np.frombuffer(self._data, np.uint8, height * width * channels, self._at).reshape(shape)
        self._at += found.size
        return found

    def has(self) -> bool:
        """Whether the optional field that comes is there."""
        present: int = self.numbers("B")[0]
        return bool(present)

    @property
    def left(self) -> int:
        """Bytes that were not read."""
        return len(self._data) - self._at
