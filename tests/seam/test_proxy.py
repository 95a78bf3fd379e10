"""Upstream's server behind a reverse proxy: whose request is whose, and under which address.

R7.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from werkzeug.test import Client

from grids.pictures import encoded, hole
from lamagrid.settings import WebSettings
from lamagrid.web.browser_tasks import BrowserTasks
from lamagrid.web.request_filter import RequestFilter
from lamagrid.web.same_origin import SameOrigin
from seam.conftest import FakeClient
from seam.test_browser_tasks import browsers as browsers  # a fixture
from seam.test_inpaint_route import post
from seam.test_request_filter import Engine

PHOTO = encoded(np.full((30, 50, 3), 90, np.uint8))
MASK = encoded(hole(30, 50, 5, 9, 8))
PROXY = "10.0.0.7"


class Through:
    """Requests that a proxy passes on."""

    def __init__(self, server: Any, peer: str, **forwarded: str) -> None:
        web = WebSettings(trusted_proxies=("10.0.0.0/24",))
        door = RequestFilter(server.app.wsgi_app, Engine().sessions, web, 100_000, SameOrigin(web))
        self._client = Client(door)
        self._headers = {f"X-Forwarded-{name}": value for name, value in forwarded.items()}
        self._environ = {"REMOTE_ADDR": peer}

    def post(self, path: str, **named: Any) -> Any:
        """POST."""
        return self._client.post(path, headers=self._headers, environ_overrides=self._environ, **named)

    def get(self, path: str) -> Any:
        """GET."""
        return self._client.get(path, headers=self._headers, environ_overrides=self._environ)


@pytest.mark.parametrize(
    ("peer", "forwarded", "name"),
    [
        (PROXY, "203.0.113.7", "203.0.113.7"),
        (PROXY, "203.0.113.8", "203.0.113.8"),
        (PROXY, "203.0.113.7, 203.0.113.8, 10.0.0.9", "203.0.113.8"),
        (PROXY, "2001:db8::7", "2001:db8::/64"),
        ("203.0.113.9", "203.0.113.7", "203.0.113.9"),
    ],
)
def test_clients_behind_a_trusted_proxy_are_distinguished(
    browsers: BrowserTasks, client: FakeClient, server_module: Any, peer: str, forwarded: str, name: str
) -> None:
    answer = post(Through(server_module, peer, For=forwarded), PHOTO, MASK)
    assert answer.status_code == 200
    assert client.submitted[0][2]["client"] == name


def test_the_cookie_is_for_the_path_and_the_scheme_that_the_proxy_serves(
    browsers: BrowserTasks, server_module: Any
) -> None:
    for path in ("/grid", "/lama/grid"):  # with the prefix removed, or not
        answer = Through(server_module, PROXY, Prefix="/lama", Proto="https").get(path)
        assert answer.status_code == 200
        cookie = answer.headers["Set-Cookie"].split("; ")
        assert {"Path=/lama", "Secure", "HttpOnly", "SameSite=Lax"} <= set(cookie)
    cookie = (
        Through(server_module, "10.9.9.9", Prefix="/lama", Proto="https").get("/grid").headers["Set-Cookie"]
    )
    assert "Path=/;" in cookie
    assert "Secure" not in cookie


def test_the_host_name_forwarded_by_the_proxy_is_checked(browsers: BrowserTasks, server_module: Any) -> None:
    assert Through(server_module, PROXY, Host="mybox").get("/grid").status_code == 200
    refused = Through(server_module, PROXY, Host="evil.test").get("/grid")
    assert refused.status_code == 403
    assert "evil.test" in refused.text


def test_the_pages_links_are_relative(browsers: BrowserTasks, server_module: Any) -> None:
    page = Through(server_module, PROXY).get("/grid").text
    for kind in ("css", "js"):
        assert f'"grid/page.{kind}"' in page
        text = Through(server_module, PROXY).get(f"/grid/page.{kind}").text
        assert "/grid" not in text.replace("`grid/", "").replace('"grid/', "")
    assert Through(server_module, PROXY).get("/grid/page.py").status_code == 404
