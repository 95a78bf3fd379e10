"""A client's side of the protocol by hand: what an ordinary library would never say."""

from __future__ import annotations

import contextlib
import secrets
import ssl
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hostile.peers import PROTOCOL, channel, greeting, line, message, pack, prelude, ready, send, tls

PING, OFFER, SUBMIT, ATTACH, CANCEL = 0x0101, 0x0102, 0x0103, 0x0104, 0x0105
PONG, SEND, ACCEPTED, REFUSED, TOLD, UNKNOWN, OUTCOME = 0x0201, 0x0202, 0x0203, 0x0204, 0x0205, 0x0206, 0x0207
CHUNK = 1 << 16
PIXEL = b"rgb"


class _Reader:
    """Reads MessagePack."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def value(self) -> Any:
        """The next value."""
        tag = self._number(">B")
        sizes = {0: ">B", 1: ">H", 2: ">I"}
        numbers = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
        numbers |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
        if tag < 0x80:
            return tag
        if tag < 0x90:
            return self._map(tag & 15)
        if tag < 0xA0:
            return [self.value() for _ in range(tag & 15)]
        if tag < 0xC0:
            return self._take(tag & 31).decode()
        if tag >= 0xE0:
            return tag - 256
        if tag in numbers:
            return self._number(numbers[tag])
        if 0xC4 <= tag <= 0xC6:
            return self._take(self._number(sizes[tag - 0xC4]))
        if 0xD9 <= tag <= 0xDB:
            return self._take(self._number(sizes[tag - 0xD9])).decode()
        if tag in (0xDC, 0xDD):
            return [self.value() for _ in range(self._number(sizes[tag - 0xDB]))]
        if tag in (0xDE, 0xDF):
            return self._map(self._number(sizes[tag - 0xDD]))
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag]

    def _map(self, count: int) -> dict[Any, Any]:
        return {self.value(): self.value() for _ in range(count)}


def new_id() -> bytes:
    """A task's id as clients draw it."""
    return (time.time_ns() // 1_000_000).to_bytes(6, "big") + secrets.token_bytes(10)


class Speaker:
    """A client with a certificate that says what it likes.

    Attributes:
        owner: Its certificate's name.
    """

    def __init__(self, address: tuple[str, int], bundle: Path, owner: str) -> None:
        self.owner = owner
        self._address, self._bundle = address, bundle
        self._connection, said = channel(address, bundle, "client")
        assert said.startswith("welcome "), said
        send(self._connection, greeting() + ready(b"DEALER"))
        self._buffer = b""
        self._read(64)
        self._frame()  # READY

    def _read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            more = self._connection.recv(CHUNK)
            assert more, "the gate closed the connection"
            self._buffer += more
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _frame(self) -> tuple[bool, bytes]:
        flags, length = self._read(2)
        if flags & 2:
            length = struct.unpack(">Q", bytes((length,)) + self._read(7))[0]
        return bool(flags & 1), self._read(length)

    def hear(self) -> tuple[int, dict[str, Any]]:
        """The next message: its kind and what it says."""
        parts, more = [], True
        while more:
            more, part = self._frame()
            parts.append(part)
        return struct.unpack(">H", parts[0][4:6])[0], _Reader(parts[1]).value()

    def say(self, *requests: tuple[int, Mapping[str, Any]]) -> None:
        """Send requests at once."""
        said = b""
        for kind, fields in requests:
            inline = [PIXEL] if fields.get("inline") else []
            said += message(prelude(kind), pack(fields), *inline)
        self._connection.sendall(said)

    def ask(self, kind: int, fields: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Send one request and hear its answer."""
        self.say((kind, fields))
        return self.hear()

    def offer(self, task: bytes, size: int, seq: int = 1, **more: Any) -> tuple[int, dict[str, Any]]:
        """An offer, as a request."""
        digest = bytes(32)
        fields = {"seq": seq, "id": task, "owner": self.owner, "queue": "gpu", "digest": digest}
        return OFFER, {**fields, "bytes": size, "priority": 0, **more}

    def cancel(self, task: bytes, seq: int = 1) -> tuple[int, dict[str, Any]]:
        """A cancel, as a request."""
        return CANCEL, {"seq": seq, "id": task, "owner": self.owner}

    def submit(
        self, task: bytes, seq: int = 1, model: str = "lama", **more: Any
    ) -> tuple[int, dict[str, Any]]:
        """A submission of a picture of one pixel, as a request."""
        form = {"raw": {"height": 1, "width": 1, "channels": 3}}
        image = {"role": "image", "len": len(PIXEL), "hash": bytes(32), "form": form}
        spec = {"id": task, "owner": self.owner, "model": model, "queue": "gpu", "params": {}, "priority": 0}
        spec |= {"durability": "process", "blobs": [image], **more}
        return SUBMIT, {"seq": seq, "spec": spec, "inline": ["image"], "follow": False}

    def bring(self, task: bytes, role: str, data: bytes) -> str:
        """Bring an input, and what the gate says to that."""
        connection: ssl.SSLSocket = tls(self._address, self._bundle)
        with contextlib.closing(connection):
            connection.sendall(f"lamagrid {PROTOCOL} bring {task.hex()} {role} {len(data)} new\n".encode())
            said = line(connection)
            if not said.startswith("welcome "):
                return said
            assert connection.recv(8) == bytes(8)
            connection.sendall(data)
            return line(connection)

    def close(self) -> None:
        """Leave."""
        self._connection.close()
