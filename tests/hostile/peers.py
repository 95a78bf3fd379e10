"""Peers that mean no good: bare TCP, TLS with a real certificate, ZMTP by hand."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from pathlib import Path

PROTOCOL = "1.5"
WAIT_S = 15.0
# Theirs: what is allowed per address is not taken from honest peers.
SOURCE = "127.0.0.66"
# The socket type of each channel's peers, as the scheduler's side expects it.
SOCKET_TYPES = {
    "client": b"DEALER",
    "admin": b"REQ",
    "control": b"REQ",
    "result": b"DEALER",
    "node-events": b"PUB",
}
MORE, LONG, COMMAND = 1, 2, 4


def greeting(mechanism: bytes = b"NULL", major: int = 3) -> bytes:
    """The first 64 bytes of ZMTP."""
    signature = b"\xff" + bytes(8) + b"\x7f"
    return signature + bytes((major, 0)) + mechanism.ljust(20, b"\0") + bytes(32)


def frame(body: bytes, flags: int = 0, length: int | None = None) -> bytes:
    """One frame; ``length`` is what it claims, if not the truth."""
    length = len(body) if length is None else length
    if length < 256 and not flags & LONG:
        return bytes((flags, length)) + body
    return bytes((flags | LONG,)) + struct.pack(">Q", length) + body


def ready(socket_type: bytes, identity: bytes = b"") -> bytes:
    """The command that ends the handshake."""
    body = b"\x05READY"
    for name, value in ((b"Socket-Type", socket_type), (b"Identity", identity)):
        body += bytes((len(name),)) + name + struct.pack(">I", len(value)) + value
    return frame(body, COMMAND)


def message(*parts: bytes) -> bytes:
    """Frames that belong together."""
    return b"".join(frame(part, MORE) for part in parts[:-1]) + frame(parts[-1])


def prelude(kind: int, major: int = 1, minor: int = 5) -> bytes:
    """The first part of a message of ours."""
    return b"LG" + bytes((major, minor)) + struct.pack(">HH", kind, 0)


def unix(path: Path) -> socket.socket:
    """A connection to a private socket of the scheduler's own host."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAIT_S)
    connection.connect(str(path))
    return connection


def tcp(address: tuple[str, int]) -> socket.socket:
    """A bare connection."""
    connection = socket.create_connection(address, WAIT_S, (SOURCE, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def tls(address: tuple[str, int], bundle: Path | None) -> ssl.SSLSocket:
    """A connection with the certificate of a bundle, or with none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # whom the attacker talks to is the attacker's business
    if bundle is not None:
        context.load_cert_chain(bundle)
    return context.wrap_socket(tcp(address), server_hostname="scheduler.lamagrid")


def channel(address: tuple[str, int], bundle: Path, name: str) -> tuple[ssl.SSLSocket, str]:
    """A connection on a channel, and what the gate said to that."""
    connection = tls(address, bundle)
    connection.sendall(f"lamagrid {PROTOCOL} {name}\n".encode())
    return connection, line(connection)


def line(connection: socket.socket) -> str:
    """One line, or what came of it."""
    said = b""
    while not said.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            break
        said += byte
    return said.decode(errors="replace").strip()


def is_dropped(connection: socket.socket, wait_s: float = WAIT_S) -> bool:
    """Whether the other side closes it within a while; what it says before that is read and forgotten."""
    connection.settimeout(wait_s)
    try:
        while connection.recv(65_536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            connection.close()
    return True


def send(connection: socket.socket, data: bytes) -> None:
    """Send as much as the other side takes."""
    with contextlib.suppress(OSError):
        connection.sendall(data)
