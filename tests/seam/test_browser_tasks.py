"""Which browser receives which events: upstream's unchanged server, and clients of Socket.IO of two browsers.

R3.5, R8.2, P5.2.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from werkzeug.routing import Map

from grids.pictures import encoded, hole
from lamagrid import errors
from lamagrid.client import Progress
from lamagrid.web.browser_tasks import COOKIE, SUBSCRIPTIONS, TASKS_EACH, BrowserTasks
from lamagrid.web.error_responses import AnswerStyle
from lamagrid.web.model_manager import RemoteModelManager, WebTasks
from lamagrid.web.routes import tasks_page
from seam.conftest import FakeClient, FakeTask
from seam.test_inpaint_route import post, use_inpaint_route

ONE, TWO = "1" * 32, "2" * 32
PHOTO = encoded(np.full((30, 50, 3), 90, np.uint8))
MASK = encoded(hole(30, 50, 5, 9, 8))


@pytest.fixture
def browsers(
    client: FakeClient, server_module: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BrowserTasks]:
    """Upstream's server with our routes and events; as it was afterwards."""
    app, socketio = server_module.app, server_module.socketio
    kept = {name: copy.deepcopy(getattr(app, name)) for name in ("view_functions", "after_request_funcs")}
    handlers = copy.deepcopy(socketio.server.handlers)
    # As at a start: before the first request, and with routes of its own (nothing takes one out of a map).
    monkeypatch.setattr(app, "_got_first_request", False)
    monkeypatch.setattr(app, "url_map", Map([rule.empty() for rule in app.url_map.iter_rules()]))
    made = BrowserTasks(socketio)
    made.register(app)
    tasks_page.register(app, made)
    monkeypatch.setattr(socketio, "emit", made.emit)
    use_inpaint_route(server_module, monkeypatch)
    web = WebTasks(made, AnswerStyle.READABLE)
    manager = RemoteModelManager("lama", "cpu", client, web=web)  # type: ignore[arg-type]
    monkeypatch.setattr(server_module, "model", manager)
    client.work = lambda image, mask: b"a file"
    yield made
    for name, value in kept.items():
        setattr(app, name, value)
    socketio.server.handlers = handlers


def web(server: Any, browser: str | None) -> Any:
    """A client of HTTP with that browser's cookie."""
    made = server.app.test_client()
    if browser is not None:
        made.set_cookie("localhost", COOKIE, browser)
    return made


def listener(server: Any, browser: str | None) -> Any:
    """A connection of Socket.IO with that browser's cookie."""
    return server.socketio.test_client(server.app, flask_test_client=web(server, browser))


def events(connection: Any, name: str) -> list[Any]:
    return [each["args"] for each in connection.get_received() if each["name"] == name]


def test_the_page_sets_a_cookie_once(browsers: BrowserTasks, server_module: Any) -> None:
    first = web(server_module, None).get("/grid")
    cookie = first.headers["Set-Cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Set-Cookie" not in web(server_module, ONE).get("/grid").headers
    assert "Set-Cookie" in web(server_module, "../../etc/passwd").get("/grid").headers
    assert "Set-Cookie" not in web(server_module, None).get("/grid/tasks").headers
    assert "Set-Cookie" not in web(server_module, None).get("/server_config").headers


def test_a_browser_gets_events_of_its_own_tasks_only(
    browsers: BrowserTasks, client: FakeClient, server_module: Any
) -> None:
    mine, other = listener(server_module, ONE), listener(server_module, TWO)
    client.steps = 2
    assert post(web(server_module, ONE), PHOTO, MASK).status_code == 200
    reported = [args[0] for args in events(mine, "task_status")]
    assert [each["state"] for each in reported] == ["queued", "processing", "processing", "completed"]
    assert [each["step"] for each in reported] == [0, 1, 2, 2]
    assert reported[0]["position"] == 4
    assert reported[0]["expected_wait_s"] == 12.5
    assert {each["id"] for each in reported} == {client.tasks[0].id}
    assert {each["what"] for each in reported} == {"lama"}
    assert other.get_received() == []


def test_loading_a_model_is_reported_and_is_not_a_step(
    browsers: BrowserTasks, client: FakeClient, server_module: Any
) -> None:
    steps: list[int] = []
    server_module.model.kwargs["callback"] = lambda step, *_: steps.append(step)
    server_module.model.name = "sd1.5"
    mine = listener(server_module, ONE)
    client.loading, client.steps = True, 2
    assert post(web(server_module, ONE), PHOTO, MASK).status_code == 200
    reported = [args[0] for args in events(mine, "task_status")]
    assert [(each["activity"], each["step"], each["of"]) for each in reported] == [
        (None, 0, 0),
        ("loading", 40, 100),
        ("running", 1, 2),
        ("running", 2, 2),
        (None, 2, 2),
    ]
    assert steps == [0, 1]


def test_upstreams_events_go_to_their_browser_or_else_to_all(
    browsers: BrowserTasks, server_module: Any
) -> None:
    mine, other = listener(server_module, ONE), listener(server_module, TWO)
    post(web(server_module, ONE), PHOTO, MASK)
    assert len(events(mine, "diffusion_finish")) == 1
    assert events(other, "diffusion_finish") == []
    # A program without a cookie, and a browser that holds no connection: as upstream does.
    for sender in (None, "3" * 32):
        post(web(server_module, sender), PHOTO, MASK)
        assert len(events(mine, "diffusion_finish")) == 1
        assert len(events(other, "diffusion_finish")) == 1
    mine.disconnect()
    post(web(server_module, ONE), PHOTO, MASK)
    assert len(events(other, "diffusion_finish")) == 1


def test_a_subscriber_gets_the_state_at_once_and_each_change(
    browsers: BrowserTasks, client: FakeClient, server_module: Any
) -> None:
    with server_module.app.test_request_context("/"):
        watch = browsers.watch(FakeTask("a" * 32, b"", 0), "lama")  # type: ignore[arg-type]
    anybody = listener(server_module, ONE)
    known = anybody.emit("subscribe_task", "a" * 32, callback=True)
    assert (known["id"], known["state"], known["position"]) == ("a" * 32, "queued", 4)
    watch.on_event(Progress("processing", 3, 9))
    assert [args[0]["step"] for args in events(anybody, "task_status")] == [3]
    anybody.disconnect()
    again = listener(server_module, ONE)
    assert again.emit("subscribe_task", "a" * 32, callback=True)["step"] == 3
    assert again.emit("unsubscribe_task", "a" * 32, callback=True) == {}
    watch.failed(errors.InferenceError("the model failed"))
    assert events(again, "task_status") == []
    ended = again.emit("subscribe_task", "a" * 32, callback=True)
    assert (ended["state"], ended["failure"], ended["position"]) == ("failed", "the model failed", None)


def test_another_browsers_task_cannot_be_subscribed_to(browsers: BrowserTasks, server_module: Any) -> None:
    with server_module.app.test_request_context("/", headers={"Cookie": f"{COOKIE}={TWO}"}):
        browsers.watch(FakeTask("b" * 32, b"", 0), "lama")  # type: ignore[arg-type]
    curious = listener(server_module, ONE)
    for asked in ("b" * 32, "c" * 32, "", None, 7, {"id": "b" * 32}, ["b" * 32]):
        assert "no such task" in curious.emit("subscribe_task", asked, callback=True)["error"], asked
        assert curious.emit("unsubscribe_task", asked, callback=True) == {}
    assert "id" in listener(server_module, TWO).emit("subscribe_task", "b" * 32, callback=True)


def test_subscriptions_per_connection_are_limited(browsers: BrowserTasks, server_module: Any) -> None:
    ids = [f"{number:032x}" for number in range(SUBSCRIPTIONS + 1)]
    with server_module.app.test_request_context("/"):
        for each in ids:
            browsers.watch(FakeTask(each, b"", 0), "lama")  # type: ignore[arg-type]
    one = listener(server_module, ONE)
    assert all("id" in one.emit("subscribe_task", each, callback=True) for each in ids[:-1])
    assert "at most" in one.emit("subscribe_task", ids[-1], callback=True)["error"]
    one.emit("unsubscribe_task", ids[0])
    assert "id" in one.emit("subscribe_task", ids[-1], callback=True)


@pytest.mark.filterwarnings("ignore:The 'JSON_AS_ASCII'")  # upstream's
def test_the_page_shows_and_cancels_the_tasks_of_its_browser(
    browsers: BrowserTasks, client: FakeClient, server_module: Any
) -> None:
    post(web(server_module, ONE), PHOTO, MASK)
    with server_module.app.test_request_context("/", headers={"Cookie": f"{COOKIE}={ONE}"}):
        browsers.watch(FakeTask("d" * 32, b"", 0), "cv2")  # type: ignore[arg-type]
    shown = web(server_module, ONE).get("/grid/tasks").json["tasks"]
    assert [(each["what"], each["state"], each["position"]) for each in shown] == [
        ("cv2", "queued", 4),
        ("lama", "completed", None),
    ]
    for stranger in (TWO, None):
        assert web(server_module, stranger).get("/grid/tasks").json == {"tasks": []}
        assert web(server_module, stranger).post(f"/grid/tasks/{'d' * 32}/cancel").status_code == 404
    answer = web(server_module, ONE).post(f"/grid/tasks/{'d' * 32}/cancel")
    assert (answer.status_code, answer.get_data(as_text=True)) == (200, "cancelled")
    task = browsers.find(ONE, "d" * 32)
    assert task is not None
    assert task.task.cancelled  # type: ignore[attr-defined]


def test_remembered_tasks_and_browsers_are_limited(browsers: BrowserTasks, server_module: Any) -> None:
    with server_module.app.test_request_context("/", headers={"Cookie": f"{COOKIE}={ONE}"}):
        for number in range(TASKS_EACH + 5):
            browsers.watch(FakeTask(f"{number:032x}", b"", 0), "lama")  # type: ignore[arg-type]
    assert len(browsers.tasks(ONE)) == TASKS_EACH
    assert browsers.tasks(ONE)[0].task.id == f"{TASKS_EACH + 4:032x}"
    for number in range(1_001):
        header = {"Cookie": f"{COOKIE}={number:032x}"}
        with server_module.app.test_request_context("/", headers=header):
            browsers.watch(FakeTask(f"{number:032x}", b"", 0), "lama")  # type: ignore[arg-type]
    assert browsers.tasks(ONE) == []
    assert len(browsers.tasks(f"{1_000:032x}")) == 1
