"""Decides which requests of browsers are answered: by the name that they ask for, and by the page that asks.

A page of another site cannot use the server through its visitor's browser: its requests carry its own origin.
DNS rebinding, by which a site's own name leads to this server, fails because that name is not accepted here.

Does not: tell people apart; who reaches the server with a program of their own may use it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from lamagrid.settings import WebSettings

PRIVATE_SUFFIXES = (".localhost", ".local", ".lan", ".internal", ".home.arpa")
"""Names that no public name server leads to: a web site cannot have one."""
SAFE_METHODS = frozenset(["GET", "HEAD", "OPTIONS"])
SHOWN_CHARS = 100
DEFAULT_PORTS = {"http": 80, "https": 443}


class SameOrigin:
    """The rules of one server.

    Args:
        settings: What the configuration adds.
        own_names: Names of this host, and the one given by ``--host``.
    """

    def __init__(self, settings: WebSettings, own_names: Iterable[str] = ()) -> None:
        names = [*settings.allowed_hosts, *own_names, socket.gethostname()]
        self._any_host = "*" in names
        self._hosts = {name.lower().rstrip(".") for name in names if not name.startswith("*")}
        self._suffixes = tuple(name[1:].lower() for name in names if name.startswith("*.")) + PRIVATE_SUFFIXES
        self._any_origin = "*" in settings.allowed_origins
        self._origins = {_normal_origin(origin) for origin in settings.allowed_origins}

    def refusal_reason(self, environ: Mapping[str, Any]) -> str | None:
        """Why a request is refused, None if it is not."""
        hosts = [environ[key] for key in ("HTTP_HOST", "lamagrid.proxied_host") if environ.get(key)]
        for host in hosts:  # a browser always sends it; a probe of HTTP/1.0 may not
            if not self._is_own_host(host):
                name = _shown(host)
                return (
                    f"This server does not answer by the name {name}: open it by its IP address, or add the "
                    "name to web.allowed_hosts in the server's configuration."
                )
        if self._is_foreign(environ, hosts):
            origin = _shown(environ.get("HTTP_ORIGIN") or environ.get("HTTP_REFERER") or "unknown")
            return (
                f"The request came from a page of another site ({origin}), which may not use this server: "
                "add the site to web.allowed_origins in the server's configuration. Behind a reverse proxy, "
                "let it pass the header Host on, with its port."
            )
        return None

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether the configuration lets pages of that origin use the server."""
        return self._any_origin or _normal_origin(origin) in self._origins

    def _is_own_host(self, host: str) -> bool:
        name = _split_host(host)[0].rstrip(".")
        if self._any_host or name in self._hosts:
            return True
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return True  # no name was asked for, so no name server was believed
        # A name without a dot is one of this network: no site of the internet has such a name.
        return bool(name) and ("." not in name or name.endswith(self._suffixes))

    def _is_foreign(self, environ: Mapping[str, Any], hosts: list[str]) -> bool:
        """Whether a page of another origin sent the request.

        ``Sec-Fetch-Site`` is the browser's own word, which no page can set; browsers send it to HTTPS and to
        localhost only. ``Origin`` comes with all but plain navigation.
        """
        origin: str | None = environ.get("HTTP_ORIGIN")
        if origin is not None and self.is_allowed_origin(origin):
            return False
        site = environ.get("HTTP_SEC_FETCH_SITE")
        if site in ("same-origin", "none"):
            return False
        if origin is None:
            return site is not None and environ["REQUEST_METHOD"] not in SAFE_METHODS
        return all(not _is_origin_of(origin, host) for host in hosts)


def _split_host(host: str) -> tuple[str, int | None]:
    """The name of a ``Host`` header, without brackets and in lower case, and its port."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(f"//{host}")
        if parts.hostname and parts.username is None and not parts.path:
            return parts.hostname, parts.port
    return "", None


def _normal_origin(origin: str) -> tuple[str, str, int | None]:
    scheme, _, place = origin.lower().partition("://")
    name, port = _split_host(place)
    return scheme, name, port or DEFAULT_PORTS.get(scheme)


def _is_origin_of(origin: str, host: str) -> bool:
    """Whether an origin's name and port are those of a ``Host`` header.

    The schemes are not compared: a proxy that speaks TLS for this server need not be known here.
    """
    scheme, name, port = _normal_origin(origin)
    own_name, own_port = _split_host(host)
    return bool(name) and (name, port) == (own_name, own_port or DEFAULT_PORTS.get(scheme))


def _shown(text: str) -> str:
    return ascii(text[:SHOWN_CHARS])
