"""A peer that speaks the whole protocol: what it says is well-formed, and not true."""

from __future__ import annotations

import struct
from pathlib import Path
from types import TracebackType
from typing import Any

from hostile.peers import LONG, MORE, SOCKET_TYPES, channel, greeting, message, pack, prelude, ready

HELLO, POLL, GOODBYE, READY, ACCEPT = 0x0301, 0x0302, 0x0303, 0x0501, 0x0502
WELCOME, REJECTED, SESSION_GONE, FAREWELL = 0x0401, 0x0402, 0x0404, 0x0405


def hello(name: str, **changes: Any) -> dict[str, Any]:
    """What a node introduces itself with; ``changes`` replace fields of its info or of the message."""
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


class Speaker:
    """One connection on a channel, through the gate."""

    def __init__(self, address: tuple[str, int], bundle: Path, name: str) -> None:
        self._socket, said = channel(address, bundle, name)
        assert said.startswith("welcome "), said
        self._is_req = SOCKET_TYPES[name] == b"REQ"
        self._socket.sendall(greeting() + ready(SOCKET_TYPES[name]))
        self._heard = b""
        self._read(64)
        self._frame()  # its READY

    def __enter__(self) -> Speaker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def say(self, kind: int, body: dict[str, Any]) -> None:
        """Send one message."""
        parts = (prelude(kind), pack(body))
        self._socket.sendall(message(b"", *parts) if self._is_req else message(*parts))

    def ask(self, kind: int, body: dict[str, Any]) -> tuple[int, bytes]:
        """Send one message; the kind and the header of the next answer."""
        self.say(kind, body)
        return self.hear()

    def hear(self) -> tuple[int, bytes]:
        """The kind and the header of the next message."""
        parts, flags = [], MORE
        while flags & MORE:
            flags, part = self._frame()
            parts.append(part)
        said = parts[1:] if self._is_req else parts
        (kind,) = struct.unpack(">H", said[0][4:6])
        return kind, said[1]

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
        flags, first = self._read(2)
        if not flags & LONG:
            return flags, self._read(first)
        (length,) = struct.unpack(">Q", bytes((first,)) + self._read(7))
        return flags, self._read(length)

    def _read(self, count: int) -> bytes:
        while len(self._heard) < count:
            more = self._socket.recv(65_536)
            if not more:
                raise ConnectionError("the gate closed the connection")
            self._heard += more
        read, self._heard = self._heard[:count], self._heard[count:]
        return read


def field(header: bytes, name: str, length: int) -> bytes:
    """So many bytes behind a field's name and the one or two bytes of its type."""
    at = header.index(name.encode()) + len(name)
    skip = 2 if header[at] in {0xC4, 0xD9} else 1
    return header[at + skip : at + skip + length]
