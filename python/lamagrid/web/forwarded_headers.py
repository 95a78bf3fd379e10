"""Takes address, scheme, host and path prefix of a request from the headers of a trusted reverse proxy.

``X-Forwarded-For`` is read from its right end, where the nearest proxy wrote: the first address there that is
no trusted proxy is the client's. Entries to the left of it were sent by the client and are ignored.

Does not: trust headers of connections that do not come from a trusted proxy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any, Union

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")


class ForwardedHeaders:
    """Applies the headers of trusted proxies.

    Args:
        trusted: Addresses and networks; the configuration checked them.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(each, strict=False) for each in trusted]

    def is_trusted(self, address: str) -> bool:
        """Whether that is a trusted proxy's address."""
        parsed = parse_address(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def apply(self, environ: dict[str, Any]) -> None:
        """Change the request to what the first trusted proxy received."""
        peer = environ.get("REMOTE_ADDR") or ""
        if not self.is_trusted(peer):
            return
        environ["lamagrid.proxy"] = peer
        environ["REMOTE_ADDR"] = self._client(peer, environ.get("HTTP_X_FORWARDED_FOR", ""))
        scheme = _last(environ, "HTTP_X_FORWARDED_PROTO").lower()
        if scheme in ("http", "https"):
            environ["wsgi.url_scheme"] = scheme
        if host := _last(environ, "HTTP_X_FORWARDED_HOST"):
            environ["lamagrid.proxied_host"] = host
        prefix = _last(environ, "HTTP_X_FORWARDED_PREFIX").rstrip("/")
        if PREFIX.fullmatch(prefix):
            environ["SCRIPT_NAME"] = prefix
            path = environ.get("PATH_INFO", "")
            if path == prefix or path.startswith(f"{prefix}/"):  # of a proxy that does not remove it
                environ["PATH_INFO"] = path[len(prefix) :] or "/"

    def _client(self, peer: str, forwarded: str) -> str:
        client = peer
        for each in reversed(forwarded.split(",")):
            address = parse_address(each)
            if address is None:
                break  # "unknown", or no address: use the last valid one
            client = str(address)
            if not self.is_trusted(client):
                break
        return client


def parse_address(text: str) -> Address | None:
    """Parse an entry of ``X-Forwarded-For``, with or without port; None if it is invalid."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def client_key(text: str | None) -> str | None:
    """The key by which limits are counted: an IPv4 address, or the /64 network of an IPv6 address."""
    address = None if text is None else parse_address(text)
    if isinstance(address, ipaddress.IPv6Address) and not address.is_loopback:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return text if address is None else str(address)


def _last(environ: dict[str, Any], key: str) -> str:
    value: str = environ.get(key, "")
    return value.rpartition(",")[2].strip()
