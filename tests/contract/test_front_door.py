"""Headers of answers, and which pages get any: stock, the grid, and a strict grid.

R7.1, X8.
"""

from __future__ import annotations

import pytest
import requests

from contract.conftest import Servers
from contract.test_http import get, inpaint, plugin, post
from grids.server import Server

pytestmark = pytest.mark.timeout(300)

SCRIPT = "<script>alert(1)</script>"
FOREIGN = "http://elsewhere.example"
ANSWERS = [
    get("/model"),
    get("/nothing"),
    get("/media/image/photo.png"),
    get("/server_config"),
    get("/socket.io/?EIO=4&transport=polling"),
    post("/model", {"name": "nonsense"}),
    inpaint(),
    inpaint(b"no picture"),
    plugin("Nonsense"),
]


def test_each_answer_says_what_browsers_may_do_with_it(servers: Servers) -> None:
    for server in (servers.grid, servers.strict):
        for send in ANSWERS:
            headers = send(server).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Content-Security-Policy"].endswith("sandbox")
        page = requests.get(server.base, timeout=30).headers
        assert page["X-Content-Type-Options"] == "nosniff"
        assert "Content-Security-Policy" not in page, "upstream's page is upstream's"
    policy = requests.get(f"{servers.grid.base}/grid", timeout=30).headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert "X-Content-Type-Options" not in get("/model")(servers.stock).headers


@pytest.mark.parametrize("name", [SCRIPT, f"<!doctype html>{SCRIPT}"])
def test_a_name_that_is_a_script_is_text(servers: Servers, name: str) -> None:
    stock, *ours = (post("/model", {"name": name})(server) for server in servers.all())
    assert stock.headers["Content-Type"].startswith("text/html")
    for answer in ours:
        assert (answer.status_code, answer.text) == (stock.status_code, stock.text)
        assert answer.headers["Content-Type"].startswith("text/plain")
    for server in (servers.grid, servers.strict):
        for send in (
            inpaint(cv2Flag=SCRIPT),
            post("/save_image", {"filename": f"{SCRIPT}/x"}, image=b"x"),
            get(f"/model_downloaded/{SCRIPT}"),
            get(f"/nothing{SCRIPT}"),
        ):
            answer = send(server)
            assert SCRIPT not in answer.text or answer.headers["Content-Type"].startswith("text/plain")


def allowed(server: Server, **headers: str) -> dict[str, str]:
    """The headers for pages of other sites."""
    answer = requests.get(f"{server.base}/model", headers=headers, timeout=30)
    return {name: value for name, value in answer.headers.items() if name.startswith("Access-Control-")}


def test_no_page_of_another_site_may_read_an_answer(servers: Servers) -> None:
    for server in (servers.stock, servers.strict):
        assert allowed(server)["Access-Control-Allow-Origin"] == "*"
        assert allowed(server, Origin=FOREIGN)["Access-Control-Allow-Origin"] == FOREIGN
    for origin in ({}, {"Origin": FOREIGN}, {"Origin": servers.grid.base}, {"Origin": "null"}):
        assert allowed(servers.grid, **origin) == {}
    assert requests.get(f"{servers.grid.base}/model", headers={"Origin": servers.grid.base}, timeout=30).ok, (
        "its own page"
    )


def test_jsonp_is_not_served(servers: Servers) -> None:
    asked = get("/socket.io/?EIO=4&transport=polling&j=1")
    stock, *ours = map(asked, servers.all())
    assert stock.status_code == 200
    assert "___eio[1]" in stock.text
    for answer in ours:
        assert answer.status_code == 400


def test_a_thumbnail_is_no_larger_than_a_screen(servers: Servers) -> None:
    for size in ("width=4097", "height=5000", "width=-1", "height=1e9"):
        for server in (servers.grid, servers.strict):
            assert get(f"/media_thumbnail/image/photo.png?{size}")(server).status_code == 400
