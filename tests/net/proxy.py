"""A way between two hosts that can be made bad: slow, thin, half open, silent, or cut within a frame."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future

from net.hosts import Host

CHUNK = 64 * 1024
TRICKLE_CHUNK = 512
READY_S = 10.0
Address = tuple[str, int]


class Proxy:
    """Forwards TCP connections to ``target`` on a host of its own.

    Attributes:
        target: Where new connections lead.
        delay_s: How much later everything arrives.
        rate: Bytes per second and direction; None for all at once.
        is_silent: Whether everything is swallowed; connections stay open, and new ones are taken.
        carried: Bytes so far.
    """

    def __init__(self, host: Host, port: int, target: Address) -> None:
        self.target = target
        self.delay_s = 0.0
        self.rate: float | None = None
        self.is_silent = False
        self.carried = 0
        self._links: set[_Link] = set()
        self._host = host
        self._port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        # Sockets belong to the network in which their thread makes them.
        self._thread = threading.Thread(target=lambda: host.inside(self._run), daemon=True)
        self._thread.start()
        assert self._ready.wait(READY_S), "the proxy does not listen"

    @property
    def address(self) -> str:
        """``host:port``, where others reach it."""
        return f"{self._host.address}:{self._port}"

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, self._host.address, self._port)
        self._ready.set()
        await self._end.wait()
        server.close()
        for link in list(self._links):
            link.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), (far_reader, far_writer))
        self._links.add(link)
        with contextlib.suppress(asyncio.CancelledError):  # the proxy ends
            await link.run()
        self._links.discard(link)

    def _now(self, act: Callable[[], None]) -> None:
        done: Future[None] = Future()

        def run() -> None:
            act()
            done.set_result(None)

        assert self._loop is not None
        self._loop.call_soon_threadsafe(run)
        done.result(READY_S)

    def reset(self) -> None:
        """Reset all connections, on both sides."""
        self._now(lambda: [link.abort() for link in list(self._links)] and None)

    def half_open(self) -> None:
        """Reset the scheduler's side of all connections; the others hear nothing of it."""
        self._now(lambda: [link.abort_far() for link in list(self._links)] and None)

    def cut_after(self, count: int) -> None:
        """Reset each open connection once it has carried ``count`` bytes more."""

        def act() -> None:
            for link in self._links:
                link.left = count

        self._now(act)

    def close(self) -> None:
        """End it."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(READY_S)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection and the one that it is continued by.

    Attributes:
        left: Bytes until it is cut; None for no cut.
    """

    def __init__(self, proxy: Proxy, near: Stream, far: Stream) -> None:
        self.left: int | None = None
        self._proxy = proxy
        self._near = near
        self._far = far
        self._is_half = False

    async def run(self) -> None:
        up = asyncio.ensure_future(self._carry(self._near[0], self._far[1]))
        down = asyncio.ensure_future(self._carry(self._far[0], self._near[1]))
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        while self._is_half and not up.done():
            await asyncio.sleep(0.05)
        for task in (up, down):
            task.cancel()
        for _, writer in (self._near, self._far):
            with contextlib.suppress(OSError):
                writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                chunk = await reader.read(CHUNK if self._proxy.rate is None else TRICKLE_CHUNK)
                if not chunk:
                    return
                if self._proxy.is_silent or self._is_half:
                    continue
                if self._proxy.rate is not None:
                    await asyncio.sleep(len(chunk) / self._proxy.rate)
                if self._proxy.delay_s:
                    await asyncio.sleep(self._proxy.delay_s)
                if self.left is not None:
                    chunk, self.left = chunk[: self.left], self.left - len(chunk)
                self._proxy.carried += len(chunk)
                writer.write(chunk)
                await writer.drain()
                if self.left is not None and self.left <= 0:
                    return self.abort()

    def abort(self) -> None:
        _reset(self._near[1])
        _reset(self._far[1])

    def abort_far(self) -> None:
        self._is_half = True
        _reset(self._far[1])


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            # No FIN and no waiting: what is on its way is lost.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
