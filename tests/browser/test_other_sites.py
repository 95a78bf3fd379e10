"""Pages of other sites in a real browser, whose visitor uses the server: nothing is read, nothing is sent.

R7.1, X8. A server with ``--grid-strict`` answers them as stock does, which shows that they are attacks.
"""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from browser.test_page import SEND
from grids.pictures import encoded, hole, plain
from grids.server import ORIGINAL, GridServer, free_port, lamagrid_json, start_grid
from stock.forms import stock_form
from stock.processes import Processes

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

FILES = [base64.b64encode(encoded(each)).decode() for each in (plain(64, 96, 255), hole(64, 96, 9, 9, 20))]
REQUEST = [stock_form(**ORIGINAL), *FILES]
ATTACK = """
async ([target, task, fields, image, mask]) => {
  const got = {};
  const note = async (name, work) => { try { got[name] = await work(); } catch { got[name] = null; } };
  const text = async (path, options) => {
    const reply = await fetch(target + path, {credentials: 'include', ...options});
    return reply.ok ? await reply.text() : null;
  };
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  const file = text => new Blob([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))]);
  form.append('image', file(image), 'image.png');
  form.append('mask', file(mask), 'mask.png');
  await note('model', () => text('/model', {credentials: 'omit'}));
  await note('model with cookie', () => text('/model'));
  await note('tasks', () => text('/grid/tasks'));
  await note('cancel', () => text(`/grid/tasks/${task}/cancel`, {method: 'POST'}));
  await note('inpaint', () => text('/inpaint', {method: 'POST', body: form, credentials: 'omit'}));
  await note('switch', () => text('/model', {method: 'POST', body: new URLSearchParams({name: 'cv2'})}));
  await note('polling', () => text('/socket.io/?EIO=4&transport=polling', {credentials: 'omit'}));
  await note('websocket', () => new Promise((done, fail) => {
    const socket = new WebSocket(target.replace('http', 'ws') + '/socket.io/?EIO=4&transport=websocket');
    socket.onmessage = event => done(event.data);
    socket.onerror = fail;
  }));
  await note('script', () => new Promise((done, fail) => {
    window.___eio = [null, done];
    const script = document.createElement('script');
    script.src = target + '/socket.io/?EIO=4&transport=polling&j=1';
    script.onload = () => setTimeout(() => fail(), 100);
    script.onerror = fail;
    document.body.append(script);
  }));
  // Sent without a wish to read the answer.
  await fetch(target + '/inpaint', {method: 'POST', body: form, mode: 'no-cors'}).catch(() => null);
  return got;
}
"""
POST_A_SCRIPT = """
([target, name]) => {
  const form = document.createElement('form');
  form.method = 'POST';
  form.action = target + '/model';
  form.append(Object.assign(document.createElement('input'), {name: 'name', value: name}));
  document.body.append(form);
  form.submit();
}
"""
SCRIPT = "<!doctype html><script>document.title = 'it runs'</script>"


@pytest.fixture(scope="module")
def evil_port() -> Iterator[int]:
    """Where a page of another site is served."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<!doctype html><title>evil</title><body></body>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def task_ids(grid: GridServer) -> set[str]:
    """All tasks of the scheduler."""
    return {task["id"] for task in lamagrid_json("task", "list", data_dir=grid.data_dir)}


def attack(page: Page, where: str, target: str, task: str) -> dict[str, Any]:
    """Visit a page of another site, which tries everything; what it read."""
    page.goto(where)
    got: dict[str, Any] = page.evaluate(ATTACK, [target, task, *REQUEST])
    return got


def test_pages_of_other_sites_read_nothing_and_send_nothing(
    page: Page, processes: Processes, tmp_path: Path, evil_port: int
) -> None:
    flags = ("--model", "cv2", "--grid-nodes", "0")
    grid = start_grid(processes, tmp_path / "grid", *flags)
    grid.wait_ready()
    strict = start_grid(
        processes,
        grid.data_dir,
        "--model",
        "cv2",
        "--grid-scheduler",
        grid.data_dir,
        "--grid-strict",
        name="strict",
    )
    strict.wait_ready()
    port = grid.base.rpartition(":")[2]

    # The visitor uses the server: it has its cookie, and one task.
    page.goto(f"{grid.base}/grid")
    page.evaluate(SEND, REQUEST)
    page.locator("li[data-state=completed]").wait_for()
    (task,) = (own := task_ids(grid))

    rebound = f"http://rebound.test:{port}"
    page.route(f"{rebound}/evil", lambda route: route.fulfill(content_type="text/html", body="<body></body>"))
    places = {
        f"http://127.0.0.1:{evil_port}/": grid.base,  # another port: the cookie comes along
        f"http://localhost:{evil_port}/": grid.base,  # another host
        f"http://evil.test:{evil_port}/": grid.base,  # another site
        f"{rebound}/evil": rebound,  # a site whose name leads to the server by now
    }
    for where, target in places.items():
        got = attack(page, where, target, task)
        assert len(got) == 9
        assert set(got.values()) == {None}, (where, got)
    assert task_ids(grid) == own

    # The same where stock's answers are asked for.
    got = attack(page, f"http://evil.test:{evil_port}/", strict.base, task)
    read = {name for name, value in got.items() if value is not None}
    assert read == {"model", "inpaint", "polling", "websocket"}
    assert len(task_ids(grid)) == len(own) + 2

    # A script in the server's own origin.
    for server in (grid, strict):
        page.goto(f"http://evil.test:{evil_port}/")
        with page.expect_navigation(url=f"{server.base}/model"):
            page.evaluate(POST_A_SCRIPT, [server.base, SCRIPT])
        page.wait_for_load_state()
        assert page.title() != "it runs"
        assert page.evaluate("document.contentType") == "text/plain"

    # The visitor's own page goes on.
    page.goto(f"{grid.base}/grid")
    page.locator("li[data-state=completed]").wait_for()
    assert page.locator("li").count() == 1


def test_the_page_of_tasks_runs_no_foreign_script_and_works_below_a_path(
    page: Page, processes: Processes, tmp_path: Path
) -> None:
    """Texts of a task are shown as text; a proxy serves the page below a path."""
    env = {"LAMAGRID__WEB__TRUSTED_PROXIES": "127.0.0.1"}
    grid = start_grid(processes, tmp_path / "grid", "--model", "cv2", "--grid-nodes", "0", env=env)
    grid.wait_ready()
    troubles: list[str] = []
    page.on("console", lambda line: troubles.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))

    # A proxy that removes /lama, and says so.
    def pass_on(route: Any) -> None:
        path = route.request.url.partition("/lama")[2]
        headers = {**route.request.headers, "x-forwarded-prefix": "/lama", "x-forwarded-for": "203.0.113.7"}
        route.fulfill(response=route.fetch(url=f"{grid.base}{path}", headers=headers))

    page.route("http://pictures.localhost:1/lama/**", pass_on)
    page.goto("http://pictures.localhost:1/lama/grid")
    page.get_by_text("Nothing yet").wait_for()
    assert {each["path"] for each in page.context.cookies()} == {"/lama"}
    assert page.get_by_text("Back to the picture").evaluate("link => link.href").endswith(":1/lama/")

    # The policy holds: what is injected does not run.
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    )
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None
    assert troubles
    assert all("Content Security Policy" in line for line in troubles), troubles
