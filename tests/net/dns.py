"""A name server of the test's own, and one that never answers."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from net.hosts import Host

PORT = 53
TYPE_A = 1


def _answer(query: bytes, addresses: Sequence[str]) -> bytes:
    """The addresses for whatever name is asked for; nothing but A records."""
    end = query.index(b"\0", 12) + 5
    (kind,) = struct.unpack("!H", query[end - 4 : end - 2])
    found = addresses if kind == TYPE_A else ()
    header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
    records = [
        struct.pack("!HHHIH", 0xC00C, TYPE_A, 1, 60, 4) + socket.inet_aton(address) for address in found
    ]
    return header + query[12:end] + b"".join(records)


class NameServer:
    """Answers every name with ``addresses``, on a host; with none it is silent.

    Attributes:
        queries: How many came.
    """

    def __init__(self, host: Host, addresses: Sequence[str] = ()) -> None:
        self.addresses = addresses
        self.queries = 0
        self._socket = host.inside(self._bound)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @staticmethod
    def _bound() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", PORT))
        made.settimeout(0.2)
        return made

    def _serve(self) -> None:
        while True:
            try:
                query, sender = self._socket.recvfrom(2_048)
                self.queries += 1
                if self.addresses:
                    self._socket.sendto(_answer(query, self.addresses), sender)
            except TimeoutError:
                continue
            except OSError:
                return

    def close(self) -> None:
        """Stop to answer."""
        self._socket.close()
        self._thread.join()


@contextlib.contextmanager
def resolver(host: Host, servers: Sequence[str]) -> Iterator[None]:
    """Programs that are started on ``host`` meanwhile ask these name servers."""
    folder = Path("/etc/netns", host.namespace)
    folder.mkdir(parents=True)
    try:
        (folder / "resolv.conf").write_text("".join(f"nameserver {server}\n" for server in servers))
        yield
    finally:
        shutil.rmtree(folder)


def hurry(host: Host) -> None:
    """Programs that are started on ``host`` from now on ask each name server once, for a second."""
    with Path("/etc/netns", host.namespace, "resolv.conf").open("a") as lines:
        lines.write("options timeout:1 attempts:1\n")
