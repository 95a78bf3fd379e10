"""A peer that speaks the whole protocol: its messages are well-formed, and what they say is false."""

from __future__ import annotations

import contextlib
import secrets
import ssl
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack

from hostile.peers import (
    LONG,
    MORE,
    PROTOCOL,
    SOCKET_TYPES,
    channel,
    greeting,
    line,
    message,
    prelude,
    ready,
    tls,
)

PING, OFFER, SUBMIT, ATTACH, CANCEL = 0x0101, 0x0102, 0x0103, 0x0104, 0x0105
PONG, SEND, ACCEPTED, REFUSED = 0x0201, 0x0202, 0x0203, 0x0204
STATUS, UNKNOWN, OUTCOME = 0x0205, 0x0206, 0x0207
HELLO, POLL, GOODBYE, READY, ACCEPT = 0x0301, 0x0302, 0x0303, 0x0501, 0x0502
WELCOME, REJECTED, SESSION_GONE, FAREWELL = 0x0401, 0x0402, 0x0404, 0x0405
CHUNK = 1 << 16
PIXEL = b"rgb"

Request = tuple[int, Mapping[str, Any]]
Answer = tuple[int, dict[str, Any]]


class Speaker:
    """One connection on a channel, through the gate."""

    def __init__(self, address: tuple[str, int], bundle: Path, name: str) -> None:
        self._address, self._bundle = address, bundle
        self._socket, said = channel(address, bundle, name)
        assert said.startswith("welcome "), said
        self._envelope = (b"",) if SOCKET_TYPES[name] == b"REQ" else ()
        self._socket.sendall(greeting() + ready(SOCKET_TYPES[name]))
        self._buffer = b""
        self._read(64)
        self._frame()  # its READY

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def say(self, *requests: Request) -> None:
        """Send requests at once."""
        said = b""
        for kind, fields in requests:
            inline = [PIXEL] if fields.get("inline") else []
            said += message(*self._envelope, prelude(kind), msgpack.packb(fields), *inline)
        self._socket.sendall(said)

    def ask(self, kind: int, fields: Mapping[str, Any]) -> Answer:
        """Send one request and return the next message."""
        self.say((kind, fields))
        return self.receive()

    def receive(self) -> Answer:
        """The kind of the next message, and its fields."""
        parts, flags = [], MORE
        while flags & MORE:
            flags, part = self._frame()
            parts.append(part)
        head, fields = parts[len(self._envelope) :][:2]
        return struct.unpack(">H", head[4:6])[0], msgpack.unpackb(fields)

    def is_closed(self, wait_s: float) -> bool:
        """Whether the other side closes the connection within a while."""
        self._socket.settimeout(wait_s)
        try:
            return self._socket.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def _frame(self) -> tuple[int, bytes]:
        flags, length = self._read(2)
        if flags & LONG:
            (length,) = struct.unpack(">Q", bytes((length,)) + self._read(7))
        return flags, self._read(length)

    def _read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            more = self._socket.recv(CHUNK)
            if not more:
                raise ConnectionError("the gate closed the connection")
            self._buffer += more
        read, self._buffer = self._buffer[:count], self._buffer[count:]
        return read


def hello(name: str, **changes: Any) -> dict[str, Any]:
    """The fields of a node's ``Hello``; ``changes`` replace fields of its info or of the message."""
    info = {
        "name": name,
        "kind": "echo",
        "version": "0",
        "device": "cpu",
        "gpu": None,
        "memory_bytes": 0,
        "cores": 1,
        "models": [{"model": "lama", "queue": "gpu", "loaded": True, "present": True}],
        "pid": 1,
    }
    said = {"info": info, "slots": 1, "overlap": 0, "running": [], "held": []}
    for key, value in changes.items():
        (said if key in said or key == "boot" else info)[key] = value
    return said


def new_id() -> bytes:
    """A task's id as clients draw it."""
    return (time.time_ns() // 1_000_000).to_bytes(6, "big") + secrets.token_bytes(10)


class Client(Speaker):
    """A client with a certificate, which sends requests of its own making.

    Attributes:
        owner: Its certificate's name.
    """

    def __init__(self, address: tuple[str, int], bundle: Path, owner: str) -> None:
        super().__init__(address, bundle, "client")
        self.owner = owner

    def offer(self, task: bytes, size: int, seq: int = 1, **more: Any) -> Request:
        """An offer of a task whose inputs have ``size`` bytes in all."""
        fields = {"seq": seq, "id": task, "owner": self.owner, "queue": "gpu", "digest": bytes(32)}
        return OFFER, {**fields, "bytes": size, "priority": 0, **more}

    def cancel(self, task: bytes, seq: int = 1) -> Request:
        """A cancel."""
        return CANCEL, {"seq": seq, "id": task, "owner": self.owner}

    def submit(self, task: bytes, seq: int = 1, model: str = "lama", **more: Any) -> Request:
        """A submission of a picture of one pixel."""
        form = {"raw": {"height": 1, "width": 1, "channels": 3}}
        image = {"role": "image", "len": len(PIXEL), "hash": bytes(32), "form": form}
        spec = {"id": task, "owner": self.owner, "model": model, "queue": "gpu", "params": {}, "priority": 0}
        spec |= {"durability": "process", "blobs": [image], **more}
        return SUBMIT, {"seq": seq, "spec": spec, "inline": ["image"], "follow": False}

    def bring(self, task: bytes, role: str, data: bytes) -> str:
        """Upload an input; the gate's answer."""
        connection: ssl.SSLSocket = tls(self._address, self._bundle)
        with contextlib.closing(connection):
            connection.sendall(f"lamagrid {PROTOCOL} bring {task.hex()} {role} {len(data)} new\n".encode())
            said = line(connection)
            if not said.startswith("welcome "):
                return said
            assert connection.recv(8) == bytes(8)
            connection.sendall(data)
            return line(connection)
