"""Submitting, waiting, listing, cancelling and retrying tasks. R3.1 R3.2 R3.3 R3.4 X3 R8.5"""

from __future__ import annotations

import base64
import threading
import time
import uuid

import httpx
import numpy as np
import pytest

from api.conftest import FILES, IMAGE, MASK, MS, Grid, is_problem, submit
from grids.pictures import decoded, encoded
from grids.procfs import rss_bytes

pytestmark = pytest.mark.timeout(60)


def wait_for(client: httpx.Client, task: str, state: str) -> dict[str, object]:
    """Wait until a task is in a state."""
    end = time.monotonic() + 20
    while True:
        found: dict[str, object] = client.get(f"/tasks/{task}").json()
        if found["state"] == state:
            return found
        assert time.monotonic() < end, found
        time.sleep(0.02)


def test_a_program_that_waits_gets_the_picture(http: httpx.Client) -> None:
    answer = submit(http, {"model": "lama"}, prefer="wait=20")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["preference-applied"] == "wait=20"
    assert np.array_equal(decoded(answer.content), decoded(IMAGE))
    task = answer.headers["x-lamagrid-task"]
    assert answer.headers["content-location"] == f"/api/v1/tasks/{task}/result"
    assert http.get(f"/tasks/{task}/result").content == answer.content
    assert http.head(f"/tasks/{task}/result").headers["content-length"] == str(len(answer.content))


def test_json_carries_the_same_and_formats_are_chosen(http: httpx.Client) -> None:
    body = {
        "image": base64.b64encode(IMAGE).decode(),
        "mask": "data:image/png;base64," + base64.b64encode(MASK).decode(),
        "output": "jpeg",
        "hd_strategy": "Crop",
        "sd_seed": 2**64 - 1,
    }
    answer = http.post("/tasks", json=body, headers={"Prefer": "wait=20"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert answer.content[:3] == b"\xff\xd8\xff"


def test_a_task_is_submitted_followed_and_fetched(http: httpx.Client) -> None:
    answer = submit(http, {MS: 300})
    assert answer.status_code == 202
    task = answer.json()
    assert answer.headers["location"] == f"/api/v1/tasks/{task['id']}"
    assert task["state"] in ("queued", "processing")
    assert is_problem(http.get(f"/tasks/{task['id']}/result"), 409, "wait for its end")
    done = wait_for(http, task["id"], "completed")
    assert done["attempts"] == 1
    assert done["stages"]["infer_ms"] >= 300  # type: ignore[index]
    assert http.get(f"/tasks/{task['id']}/result").status_code == 200


def test_a_wait_that_is_too_short_answers_the_task(http: httpx.Client) -> None:
    answer = submit(http, {MS: 3_000}, prefer="wait=1")
    assert (answer.status_code, answer.json()["state"]) == (202, "processing")
    assert http.delete(f"/tasks/{answer.json()['id']}").json()["state"] == "cancelled"


def test_cancelling(http: httpx.Client) -> None:
    task = submit(http, {MS: 60_000}).json()["id"]
    wait_for(http, task, "processing")
    assert http.delete(f"/tasks/{task}").json()["state"] == "cancelled"
    assert http.delete(f"/tasks/{task}").status_code == 200, "again changes nothing"
    assert is_problem(http.get(f"/tasks/{task}/result"), 409, "cancelled")
    done = submit(http, prefer="wait=20").headers["x-lamagrid-task"]
    assert is_problem(http.delete(f"/tasks/{done}"), 409, "completed")
    unknown = uuid.uuid4().hex
    assert is_problem(http.delete(f"/tasks/{unknown}"), 404)


def test_a_program_that_disconnects_frees_the_node(grid: Grid, http: httpx.Client) -> None:
    """Unless it can come back for the task by its idempotency key."""
    for headers, state in (({}, "cancelled"), ({"idempotency_key": uuid.uuid4().hex}, "completed")):
        client = uuid.uuid4().hex
        with grid.client() as leaving:
            leaving.timeout = httpx.Timeout(1.0)
            with pytest.raises(httpx.ReadTimeout):
                submit(leaving, {MS: 2_000, "client": client}, prefer="wait=30", **headers)
        (task,) = http.get("/tasks", params={"client": client}).json()["tasks"]
        wait_for(http, task["id"], state)


def test_a_failed_task_is_a_problem_and_a_dead_letter_can_be_retried(http: httpx.Client) -> None:
    broken = {**FILES, "image": ("x", b"\x89PNG\r\n\x1a\nbroken")}
    answer = submit(http, files=broken, prefer="wait=20")
    assert is_problem(answer, 400)
    task = answer.json()["task"]
    shown = http.get(f"/tasks/{task}").json()
    assert (shown["state"], shown["failure"]["kind"]) == ("failed", "invalid_input")
    assert is_problem(http.post(f"/tasks/{task}/retry"), 409)
    assert http.get("/dead-letters", params={"model": "none"}).json() == {
        "tasks": [],
        "next": None,
        "total": 0,
    }


def test_dead_letters_are_retried(grid: Grid, http: httpx.Client) -> None:
    """A task that kills its nodes: a node of its own comes for it."""
    model = "crash"
    words = [word if word != "lama" else model for word in map(str, grid.node)]
    answer = submit(http, {"model": model, "echo_abort": 1, "no_node_wait": 60})
    task = answer.json()["id"]
    node = grid.processes.start("crashing", [*words, "--name", "crashing"])
    grid.wait(lambda: http.get(f"/tasks/{task}").json()["state"] == "failed", 40)
    (dead,) = http.get("/dead-letters", params={"model": model}).json()["tasks"]
    assert (dead["id"], dead["dead"], dead["failure"]) == (task, True, "node_lost")
    answer = http.post(f"/tasks/{task}/retry")
    again = answer.json()["runs_as"]
    assert (answer.status_code, answer.headers["location"]) == (202, f"/api/v1/tasks/{again}")
    assert again != task
    http.delete(f"/tasks/{again}")
    grid.processes.stop(node)


def test_lists_go_page_by_page(http: httpx.Client) -> None:
    client = uuid.uuid4().hex
    made = [submit(http, {"client": client}, prefer="wait=20").headers["x-lamagrid-task"] for _ in range(5)]
    params = {"client": client, "limit": "2", "state": "completed,failed", "queue": "gpu", "model": "lama"}
    seen, cursor = [], None
    while True:
        page = http.get("/tasks", params={**params, **({"cursor": cursor} if cursor else {})}).json()
        assert page["total"] == 5
        seen += [task["id"] for task in page["tasks"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == made[::-1]
    assert http.get("/tasks", params={"client": client, "state": "queued"}).json()["tasks"] == []


def test_the_grid_is_shown(http: httpx.Client) -> None:
    (model,) = [each for each in http.get("/models").json()["models"] if each["name"] == "lama"]
    assert (model["nodes"], model["loaded"]) == (2, 2)
    names = [node["name"] for node in http.get("/nodes").json()["nodes"] if node["models"] == ["lama"]]
    assert names == ["echo-0", "echo-1"]
    assert {queue["queue"] for queue in http.get("/queues").json()["queues"]} == {"gpu", "cpu"}
    lines = http.get("/stats").json()["statistics"]
    assert any(line["model"] == "lama" and line["completed"] > 0 for line in lines)


def test_a_repeated_request_gets_the_same_task(http: httpx.Client) -> None:
    key = uuid.uuid4().hex
    first = submit(http, {MS: 200}, idempotency_key=key)
    again = submit(http, {MS: 200}, idempotency_key=f'"{key}"')
    assert first.json()["id"] == again.json()["id"]
    waited = submit(http, {MS: 200}, idempotency_key=key, prefer="wait=20")
    assert (waited.status_code, waited.headers["x-lamagrid-task"]) == (200, first.json()["id"])
    assert http.get(f"/tasks/{first.json()['id']}").json()["attempts"] == 1
    assert is_problem(submit(http, {MS: 201}, idempotency_key=key), 422, "another request")


def test_requests_at_the_same_time_with_one_key_make_one_task(grid: Grid) -> None:
    key, tasks = uuid.uuid4().hex, []

    def ask() -> None:
        with grid.client() as client:
            answer = submit(client, {MS: 100}, prefer="wait=20", idempotency_key=key)
            tasks.append((answer.status_code, answer.headers.get("x-lamagrid-task")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(tasks)) == 1
    assert tasks[0][0] == 200


def test_a_task_id_of_the_program_s_own(http: httpx.Client) -> None:
    task = f"{int(time.time() * 1000):012x}{uuid.uuid4().hex[:20]}"
    for _ in range(2):
        answer = submit(http, {"task_id": task}, prefer="wait=20")
        assert (answer.status_code, answer.headers["x-lamagrid-task"]) == (200, task)
    assert is_problem(submit(http, {"task_id": task, "quality": 1, "prompt": "x"}), 400, "in use")


def test_a_large_upload_costs_no_memory(grid: Grid, http: httpx.Client) -> None:
    """30 MB: parts go to a file while they come, and the result goes out in pieces."""
    rng = np.random.default_rng(3)
    image = encoded(rng.integers(0, 256, (2_900, 3_500, 3), np.uint8), "BMP")
    assert len(image) > 30e6
    files = {"image": ("x", image), "mask": ("x", encoded(np.zeros((2_900, 3_500), np.uint8)))}
    submit(http, prefer="wait=30")
    before, peak, ended = rss_bytes(grid.scheduler.pid), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            peak[0] = max(peak[0], rss_bytes(grid.scheduler.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answer = submit(http, {"output": "bmp"}, files, prefer="wait=50")
    finally:
        ended.set()
        watcher.join()
    assert answer.status_code == 200
    assert np.array_equal(decoded(answer.content), decoded(image))
    assert peak[0] - before < 12e6, f"{(peak[0] - before) / 1e6:.1f} MB"
    assert list((grid.data_dir / "uploads").iterdir()) == []
