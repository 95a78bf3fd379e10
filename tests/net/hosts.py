"""Hosts of the test's own: network namespaces on one switch, whose cables can be cut."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from stock.processes import Processes

Value = TypeVar("Value")

NETWORK = "10.77.0"
CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


class Network:
    """A switch in a namespace of its own, and the hosts on it."""

    def __init__(self) -> None:
        self._prefix = f"lg{os.getpid()}"
        self.switch = f"{self._prefix}s"
        self._namespaces: list[str] = []
        self._add(self.switch)
        self._in(self.switch, "link", "add", "switch", "type", "bridge")
        self._in(self.switch, "link", "set", "switch", "up")

    def _add(self, namespace: str) -> None:
        _ip("netns", "add", namespace)
        self._namespaces.append(namespace)

    def _in(self, namespace: str, *words: str) -> None:
        _ip("-n", namespace, *words)

    def host(self, name: str) -> Host:
        """One more host, with an address and a cable to the switch."""
        number = next(_numbers)
        namespace, port = f"{self._prefix}{number}", f"p{number}"
        self._add(namespace)
        _ip(
            "link",
            "add",
            port,
            "netns",
            self.switch,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            namespace,
        )
        self._in(self.switch, "link", "set", port, "master", "switch", "up")
        self._in(namespace, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        self._in(namespace, "link", "set", "eth0", "up")
        self._in(namespace, "link", "set", "lo", "up")
        return Host(self, name, namespace, port, f"{NETWORK}.{number}")

    def plug(self, port: str, is_in: bool) -> None:
        """Put a cable's end into the switch, or pull it: what is sent is lost without a word."""
        self._in(self.switch, "link", "set", port, "up" if is_in else "down")

    def narrow(self, port: str, bytes: int) -> None:
        """Give a cable's both ends in the switch a smaller MTU than its hosts': a switch sends no errors."""
        # Segments that the kernel cuts into packets later would not be dropped.
        for each in self._namespaces[1:]:
            self._in(each, "link", "set", "eth0", "gso_max_segs", "1", "gso_max_size", "1500")
        self._in(self.switch, "link", "set", port, "mtu", str(bytes))

    def close(self) -> None:
        """Take everything away."""
        for namespace in reversed(self._namespaces):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True, timeout=20)


class Host:
    """One host.

    Attributes:
        address: Its own.
        namespace: Its name in the kernel.
    """

    def __init__(self, network: Network, name: str, namespace: str, port: str, address: str) -> None:
        self.name = name
        self.address = address
        self._network = network
        self.namespace = namespace
        self._port = port

    def start(
        self,
        processes: Processes,
        command: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command there."""
        return processes.start(self.name, ["ip", "netns", "exec", self.namespace, *command], env, cwd)

    def swallow_large(self, bytes: int) -> None:
        """Have the switch drop what is longer on its way to this host and from it, without a word."""
        self._network.narrow(self._port, bytes)

    def cut(self) -> None:
        """Pull its cable."""
        self._network.plug(self._port, False)

    def mend(self) -> None:
        """Plug it in again."""
        self._network.plug(self._port, True)

    def inside(self, call: Callable[[], Value]) -> Value:
        """Run ``call`` in a thread of this host: the sockets that it makes are in its network."""
        outcome: list[Value | BaseException] = []

        def run() -> None:
            try:
                with Path("/var/run/netns", self.namespace).open("rb") as namespace:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), f"cannot enter {self.name}")
                outcome.append(call())
            except BaseException as error:  # raised in the caller's thread
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        (result,) = outcome
        if isinstance(result, BaseException):
            raise result
        return result
