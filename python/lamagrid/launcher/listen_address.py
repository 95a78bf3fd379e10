"""Checks the address that the web server shall listen on, before anything is started."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

from lamagrid.launcher.errors import LaunchError

UNIX = "unix://"  # before the path of a socket, as Werkzeug writes it
UNIX_PATH_BYTES = 107
CONNECT_LIMIT_S = 5.0


def check_port(host: str, port: int) -> int:
    """The port to serve on: ``port``, or a free one for 0.

    Raises:
        LaunchError: Nothing can listen there; the text says what to do.
    """
    if os.environ.get("WERKZEUG_RUN_MAIN") == "true":
        return port  # the socket is inherited
    if host.startswith(UNIX):
        check_socket(Path(host.removeprefix(UNIX)))
        return port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            probe.bind(address)
            probe.listen(1)
            free: int = probe.getsockname()[1]
            return free
    except OverflowError as error:
        raise LaunchError(f"--port {port}: a port is a number up to 65535") from error
    except OSError as error:
        if isinstance(error, socket.gaierror):
            hint = f"--host {host}: {error.strerror}"
        elif error.errno == errno.EADDRNOTAVAIL:
            hint = f"--host {host}: this host has no such address; 127.0.0.1 is for itself, 0.0.0.0 for all"
        elif isinstance(error, PermissionError):
            hint = f"port {port} may only be used by root: choose one from 1024 on with --port"
        else:
            hint = (
                f"port {port} on {host} cannot be used: {error.strerror}. Stop the program that uses it, "
                f"or choose another with --port"
            )
        raise LaunchError(hint) from error


def check_socket(path: Path) -> None:
    """Check that a Unix socket can be made at a path; one that no server listens on any more is replaced.

    Raises:
        LaunchError: It cannot; the text says what to do.
    """
    flag = f"--host {UNIX}{path}"
    if not path.is_absolute() or len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise LaunchError(f"{flag}: write an absolute path of at most {UNIX_PATH_BYTES} bytes")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise LaunchError(f"{flag}: {path.parent} is no directory that may be written to")
    if path.exists() and not path.is_socket():
        raise LaunchError(f"{flag}: there is a file of that name, and it is no socket")
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.settimeout(CONNECT_LIMIT_S)
        probe.connect(str(path))
        raise LaunchError(f"{flag}: another server listens there; stop it, or choose another path")


def is_loopback(host: str) -> bool:
    """Whether only this host can reach the address."""
    return host in ("localhost", "::1") or host.startswith(("127.", UNIX))
