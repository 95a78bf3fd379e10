"""Which requests reach upstream's application: by host, origin, proxy and size of the body.

R7.1, X8.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pytest
from flask import Flask, request
from werkzeug.test import Client

from lamagrid.settings import WebSettings
from lamagrid.web.fair_share import Client as ShareClient
from lamagrid.web.fair_share import FairShare
from lamagrid.web.flask_classes import make_request_class
from lamagrid.web.forwarded_headers import ForwardedHeaders, client_key
from lamagrid.web.request_body import (
    FIELDS_BYTES,
    PARTS,
    READ_BYTES,
    max_file_bytes,
    max_form_bytes,
)
from lamagrid.web.request_filter import SMALL_BODY_BYTES, RequestFilter
from lamagrid.web.same_origin import SameOrigin
from lamagrid.web.socketio_limits import SessionLimit

MAX_PIXELS = 1_000
BOUNDARY = "boundary"
PEER = {"REMOTE_ADDR": "127.0.0.1"}


class Engine:
    """Engine.IO, with sessions that are bounded."""

    def __init__(self) -> None:
        self.sockets: dict[str, object] = {}
        self.sessions = SessionLimit(self)
        self.generate_id = self.sessions.counting(lambda: f"{len(self.sockets)}")


def refused(rules: SameOrigin, **headers: str) -> bool:
    environ = {"REQUEST_METHOD": "POST", "HTTP_HOST": "127.0.0.1:8080", **headers}
    return rules.refusal_reason(environ) is not None


# Hosts.


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8080",
        "192.168.1.5",
        "[::1]:8080",
        "[fe80::1]",
        "localhost:8080",
        "LOCALHOST",
        "mybox:8080",
        "mybox.local",
        "mybox.lan.",
        "lama.localhost:1",
        "own.example.com:8080",
        "given.example.org",
        "a.b.example.net",
    ],
)
def test_private_and_configured_host_names_are_accepted(host: str) -> None:
    web = WebSettings(allowed_hosts=("given.example.org", "*.example.net"))
    assert not refused(SameOrigin(web, ["own.example.com"]), HTTP_HOST=host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "evil.test:8080",
        "127.0.0.1.evil.test",
        "localhost.evil.test",
        "evil.test.",
        "local.evil.test",
        "example.net",
        "evilexample.net",
        "user@127.0.0.1",
        "127.0.0.1/evil.test",
        "",
        "[",
        ":8080",
    ],
)
def test_other_host_names_are_refused_with_the_setting(host: str) -> None:
    rules = SameOrigin(WebSettings(allowed_hosts=("*.example.net",)), ["0.0.0.0"])
    if host == "":  # no header at all: no browser
        assert not refused(rules, HTTP_HOST=host)
        return
    text = rules.refusal_reason({"REQUEST_METHOD": "GET", "HTTP_HOST": host})
    assert text is not None
    assert "web.allowed_hosts" in text
    assert not refused(SameOrigin(WebSettings(allowed_hosts=("*",))), HTTP_HOST=host)


# Origins.


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("localhost", "http://localhost"),
        ("localhost:443", "https://localhost"),
        ("mybox", "https://mybox"),  # a proxy speaks TLS for it
        ("[::1]:8080", "http://[::1]:8080"),
        ("127.0.0.1:8080", "https://app.example.com"),
    ],
)
def test_own_and_configured_origins_are_accepted(host: str, origin: str) -> None:
    web = WebSettings(allowed_origins=("https://app.example.com",))
    assert not refused(SameOrigin(web), HTTP_HOST=host, HTTP_ORIGIN=origin)


@pytest.mark.parametrize(
    "origin",
    [
        "http://127.0.0.1:9999",
        "http://localhost:8080",
        "http://127.0.0.1",
        "https://evil.test",
        "null",
        "",
        "http://127.0.0.1:8080@evil.test",
        "http://app.example.com",
        "https://app.example.com.evil.test",
    ],
)
def test_other_origins_are_refused_with_the_setting(origin: str) -> None:
    rules = SameOrigin(WebSettings(allowed_origins=("https://app.example.com",)))
    for method in ("GET", "POST", "OPTIONS"):
        environ = {"REQUEST_METHOD": method, "HTTP_HOST": "127.0.0.1:8080", "HTTP_ORIGIN": origin}
        text = rules.refusal_reason(environ)
        assert text is not None
        assert "web.allowed_origins" in text
    assert not refused(SameOrigin(WebSettings(allowed_origins=("*",))), HTTP_ORIGIN=origin)


def test_sec_fetch_site_decides_where_a_browser_sends_it() -> None:
    rules = SameOrigin(WebSettings())
    # Behind a proxy that puts its own name into Host.
    assert not refused(rules, HTTP_ORIGIN="https://a.example", HTTP_SEC_FETCH_SITE="same-origin")
    assert not refused(rules)
    assert refused(rules, HTTP_SEC_FETCH_SITE="cross-site")
    assert refused(rules, HTTP_SEC_FETCH_SITE="same-site")
    # A link, or a bookmark.
    assert not refused(rules, HTTP_SEC_FETCH_SITE="cross-site", REQUEST_METHOD="GET")
    assert not refused(rules, HTTP_SEC_FETCH_SITE="none", REQUEST_METHOD="GET")


# Proxies.


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7", "203.0.113.7"),  # the first was sent by the client
        ("198.51.100.1, 203.0.113.7, 10.1.2.3", "203.0.113.7"),  # a chain of trusted ones
        ("203.0.113.7:4711", "203.0.113.7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("10.9.9.9, 10.1.2.3", "10.9.9.9"),
        ("203.0.113.7, unknown", "127.0.0.1"),
        ("203.0.113.7, unknown, 10.1.2.3", "10.1.2.3"),
        ("", "127.0.0.1"),
    ],
)
def test_the_client_is_the_rightmost_untrusted_address(forwarded: str, client: str) -> None:
    environ = {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": forwarded}
    ForwardedHeaders(["127.0.0.1", "10.0.0.0/8"]).apply(environ)
    assert environ["REMOTE_ADDR"] == client


@pytest.mark.parametrize("trusted", [(), ("10.0.0.0/8",), ("::/0",)])
def test_headers_of_an_untrusted_peer_are_ignored(trusted: tuple[str, ...]) -> None:
    environ = {
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/lama/grid",
        "HTTP_X_FORWARDED_FOR": "203.0.113.7",
        "HTTP_X_FORWARDED_PROTO": "https",
        "HTTP_X_FORWARDED_HOST": "pictures.example.com",
        "HTTP_X_FORWARDED_PREFIX": "/lama",
    }
    before = dict(environ)
    ForwardedHeaders(trusted).apply(environ)
    assert environ == before


def test_scheme_host_and_prefix_come_from_the_nearest_proxy() -> None:
    environ = {
        "REMOTE_ADDR": "::1",
        "wsgi.url_scheme": "http",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/lama/grid",
        "HTTP_X_FORWARDED_PROTO": "ftp, https",
        "HTTP_X_FORWARDED_HOST": "evil.test, pictures.example.com",
        "HTTP_X_FORWARDED_PREFIX": "/lama/",
    }
    ForwardedHeaders(["::1"]).apply(environ)
    assert environ["wsgi.url_scheme"] == "https"
    assert environ["lamagrid.proxied_host"] == "pictures.example.com"
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/lama", "/grid")
    assert refused(SameOrigin(WebSettings()), **{"lamagrid.proxied_host": "pictures.example.com"})
    for prefix in ("//evil.test", "/a\r\nb", "lama", '/"onload="', "/a//b"):
        bad = {"REMOTE_ADDR": "::1", "SCRIPT_NAME": "", "HTTP_X_FORWARDED_PREFIX": prefix}
        ForwardedHeaders(["::1"]).apply(bad)
        assert bad["SCRIPT_NAME"] == "", prefix


def test_a_client_is_an_address_or_a_network_of_ipv6() -> None:
    assert client_key("203.0.113.7") == "203.0.113.7"
    assert client_key("2001:db8::1") == client_key("2001:db8::ffff:1") == "2001:db8::/64"
    assert client_key("2001:db8:0:1::1") != client_key("2001:db8::1")
    assert client_key("::ffff:203.0.113.7") == "203.0.113.7"
    assert client_key(None) is None


# Shares.


def test_a_client_may_hold_as_much_as_it_leaves_and_a_proxy_all() -> None:
    share = FairShare(100)
    assert sum(share.take(ShareClient("greedy")) for _ in range(100)) == 50
    assert sum(share.take(ShareClient("second")) for _ in range(100)) == 25
    assert share.take(ShareClient("third"), 10)
    assert sum(share.take(ShareClient("proxy", is_proxy=True)) for _ in range(100)) == 15
    assert not share.take(ShareClient("fourth"))
    share.give_back(ShareClient("greedy"), 50)
    assert share.take(ShareClient("fourth"), 25)
    assert not share.take(ShareClient("fourth"), 10)


# Bodies.


class Endless(io.RawIOBase):
    """A body that has no end, and counts what is read of it."""

    def __init__(self, pattern: bytes) -> None:
        self.got = 0
        self._pattern = pattern * (READ_BYTES // len(pattern) + 1)

    def read(self, size: int = -1) -> bytes:
        """All that is asked for."""
        assert size >= 0, "asked for all of it"
        self.got += size
        return self._pattern[:size]


def served(max_pixels: int = MAX_PIXELS, rules: SameOrigin | None = None) -> tuple[Client, RequestFilter]:
    """An application that reads forms, behind the door."""
    app = Flask("served")
    app.request_class = make_request_class(app.request_class, max_pixels)

    def view() -> dict[str, Any]:
        files = {name: len(file.stream.read()) for name, file in request.files.items()}
        return {"form": request.form.to_dict(), "files": files}

    for path in ("/inpaint", "/model", "/socket.io/"):
        app.add_url_rule(path, path, view, methods=["GET", "POST"])
    door = RequestFilter(app.wsgi_app, Engine().sessions, WebSettings(), max_pixels, rules)
    return Client(door), door


def form(parts: Iterable[tuple[str, bytes]]) -> bytes:
    """A form of parts with their headers."""
    body = b"".join(
        b"--boundary\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (head.encode(), data)
        for head, data in parts
    )
    return body + b"--boundary--\r\n"


def send(client: Client, path: str, body: Any, length: int | None, kind: str = "multipart") -> Any:
    """POST a body, with its length or in chunks."""
    kinds = {
        "multipart": f"multipart/form-data; boundary={BOUNDARY}",
        "urlencoded": "application/x-www-form-urlencoded",
    }
    environ: dict[str, Any] = {**PEER, "wsgi.input": body, "CONTENT_TYPE": kinds[kind]}
    if length is None:
        environ.update({"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True})
    else:
        environ["CONTENT_LENGTH"] = str(length)
    return client.open(path, method="POST", environ_overrides=environ, buffered=True)


def test_a_form_is_read_as_it_was_sent() -> None:
    body = form(
        [
            ('name="prompt"', "ein Wörtchen".encode()),
            ('name="empty"', b""),
            ('name="image"; filename="a.png"', b"\r\n--boundar" * 10_000),
            ('name="mask"; filename="blob"', b""),
        ]
    )
    for length in (len(body), None):
        answer = send(served()[0], "/inpaint", io.BytesIO(body), length)
        assert answer.json == {
            "form": {"prompt": "ein Wörtchen", "empty": ""},
            "files": {"image": 110_000, "mask": 0},
        }
    answer = send(served()[0], "/model", io.BytesIO(b"name=lama&x=&y"), 14, "urlencoded")
    assert answer.json["form"] == {"name": "lama", "x": "", "y": ""}


@pytest.mark.parametrize(
    "body",
    [
        form([('name="a"', b"x")])[:-10],
        b"",
        b"no form",
        form([("filename", b"x")]),
        b"--boundary\r\n" + b"X: y\r\n" * 1000,
    ],
)
def test_a_broken_form_has_no_fields(body: bytes) -> None:
    answer = send(served()[0], "/inpaint", io.BytesIO(body), len(body))
    assert answer.json == {"form": {}, "files": {}}


@pytest.mark.parametrize("path", ["/inpaint", "/model", "/socket.io/"])
def test_a_body_with_a_too_large_declared_length_is_not_read(path: str) -> None:
    body = Endless(b"x")
    limit = max_form_bytes(MAX_PIXELS) if path == "/inpaint" else SMALL_BODY_BYTES
    answer = send(served()[0], path, body, limit + 1)
    assert (answer.status_code, body.got) == (413, 0)
    assert answer.mimetype == "text/plain"
    assert str(limit) in answer.text


@pytest.mark.parametrize("length", ["-1", "x", "1.5", "٣"])
def test_an_invalid_content_length_is_refused(length: str) -> None:
    answer = served()[0].open("/model", method="POST", environ_overrides={"CONTENT_LENGTH": length})
    assert answer.status_code == 400


HEAD = 'Content-Disposition: form-data; name="image"'
ENDLESS = {
    "a field": (b"x", f"--boundary\r\n{HEAD}\r\n\r\n", FIELDS_BYTES),
    "a file": (b"\r\n", f'--boundary\r\n{HEAD}; filename="a"\r\n\r\n', max_file_bytes(MAX_PIXELS)),
    "parts": (f"--boundary\r\n{HEAD}\r\n\r\n\r\n".encode(), "", PARTS * 100),
    "a header": (b"x", "--boundary\r\nA: ", 10_000),
    "no form": (b"x", "", 10_000),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_an_endless_body_is_read_up_to_its_limit(what: str) -> None:
    pattern, start, limit = ENDLESS[what]
    body = Endless(pattern)
    first, rest = io.BytesIO(start.encode()), body.read
    body.read = lambda size=-1: first.read(size) or rest(size)  # type: ignore[method-assign]
    answer = send(served()[0], "/inpaint", body, None)
    assert answer.status_code == (200 if what in ("a header", "no form") else 413)
    assert body.got <= limit + 2 * READ_BYTES
    body = Endless(b"a=1&")
    answer = send(served()[0], "/inpaint", body, None, "urlencoded")
    assert answer.status_code == 413
    assert body.got <= FIELDS_BYTES + 2 * READ_BYTES


def test_bytes_of_bodies_are_counted_and_given_back() -> None:
    client, door = served()
    body = form([('name="image"; filename="a"', b"x" * 1000)])
    door._bodies = FairShare(3 * len(body))
    assert send(client, "/inpaint", io.BytesIO(body), len(body)).status_code == 200
    assert door._bodies.take(ShareClient("127.0.0.1"), len(body))
    answer = send(client, "/inpaint", io.BytesIO(body), len(body))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    door._bodies.give_back(ShareClient("127.0.0.1"), len(body))
    assert send(client, "/inpaint", io.BytesIO(body), len(body)).status_code == 200


# Answers.


def test_answers_have_security_headers_and_other_origins_are_refused() -> None:
    client, _ = served(rules=SameOrigin(WebSettings(allowed_origins=("https://app.example.com",))))
    answer = client.get("/model", base_url="http://127.0.0.1:8080")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    foreign = client.get("/model", headers={"Origin": "https://evil.test"})
    assert foreign.status_code == 403
    assert foreign.headers["X-Content-Type-Options"] == "nosniff"


def test_jsonp_is_refused_and_sessions_are_limited() -> None:
    client, door = served()
    assert client.get("/socket.io/?EIO=4&transport=polling&j=1").status_code == 400
    engine = door._sessions._engine
    new = {"path": "/socket.io/", "query_string": "EIO=4&xsid=1", "environ_overrides": PEER}
    opened = 0
    for _ in range(2000):
        if client.open(**new).status_code != 200:
            break
        opened += 1
        engine.sockets[engine.generate_id()] = object()
    assert opened == 512
    assert client.get("/socket.io/?EIO=4&sid=7").status_code == 200
    engine.sockets.clear()
    assert client.open(**new).status_code == 200
