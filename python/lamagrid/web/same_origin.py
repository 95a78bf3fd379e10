"""Refuses requests of browsers by host name and origin.

A page of another site cannot use the server through its visitor's browser: its requests carry its own origin.
DNS rebinding, which points a site's own name to this server, fails because that name is not accepted.

Does not: authenticate users; programs other than browsers may use the server.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lamagrid.settings import WebSettings

PRIVATE_SUFFIXES = (".localhost", ".local", ".lan", ".internal", ".home.arpa")
"""Suffixes that no public name server resolves: a web site cannot have such a name."""
SAFE_METHODS = frozenset(["GET", "HEAD", "OPTIONS"])
SHOWN_CHARS = 100
DEFAULT_PORTS = {"http": 80, "https": 443}


class SameOrigin:
    """The rules of one server.

    Args:
        settings: The configured exceptions.
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
        """The reason to refuse a request, None if it is accepted."""
        hosts = [environ[key] for key in ("HTTP_HOST", "lamagrid.proxied_host") if environ.get(key)]
        for host in hosts:  # browsers always send it; an HTTP/1.0 probe may not
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
            return True  # an address: DNS rebinding needs a name
        # A name without a dot is one of this network: no site of the internet has such a name.
        return bool(name) and ("." not in name or name.endswith(self._suffixes))

    def _is_foreign(self, environ: Mapping[str, Any], hosts: list[str]) -> bool:
        """Whether a page of another origin sent the request.

        Browsers set ``Sec-Fetch-Site`` themselves, for HTTPS and localhost only; no page can change it. They
        send ``Origin`` with all requests but plain navigation.
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


class _Host(NamedTuple):
    """A ``Host`` header: its name without brackets and in lower case, and its port."""

    name: str
    port: int | None


class _Origin(NamedTuple):
    scheme: str
    name: str
    port: int | None


def _split_host(host: str) -> _Host:
    """The parts of a ``Host`` header; an empty name if it is invalid."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(f"//{host}")
        if parts.hostname and parts.username is None and not parts.path:
            return _Host(parts.hostname, parts.port)
    return _Host("", None)


def _normal_origin(origin: str) -> _Origin:
    scheme, _, place = origin.lower().partition("://")
    name, port = _split_host(place)
    return _Origin(scheme, name, port or DEFAULT_PORTS.get(scheme))


def _is_origin_of(origin: str, host: str) -> bool:
    """Whether an origin's name and port are those of a ``Host`` header.

    The schemes are not compared: a proxy that speaks TLS for this server need not be known here.
    """
    scheme, name, port = _normal_origin(origin)
    own_name, own_port = _split_host(host)
    return bool(name) and (name, port) == (own_name, own_port or DEFAULT_PORTS.get(scheme))


def _shown(text: str) -> str:
    return ascii(text[:SHOWN_CHARS])
