"""API keys: roles, owners, limits, revocation; and pages of other sites. X8 X11"""

from __future__ import annotations

import ssl
import subprocess
import time
import uuid
from pathlib import Path

import httpx
import pytest

from api.conftest import MS, Grid, is_problem, submit
from grids.server import BIN, free_port
from stock.processes import Processes

pytestmark = pytest.mark.timeout(60)


def name() -> str:
    """A new one."""
    return uuid.uuid4().hex


def test_each_key_has_its_own_tasks(grid: Grid, http: httpx.Client) -> None:
    with grid.client(grid.key(name())) as mine, grid.client(grid.key(name())) as other:
        task = submit(mine, prefer="wait=20").headers["x-lamagrid-task"]
        assert [each["id"] for each in mine.get("/tasks").json()["tasks"]] == [task]
        assert other.get("/tasks").json()["total"] == 0
        for method, path in (
            ("GET", ""),
            ("GET", "/result"),
            ("GET", "/events"),
            ("DELETE", ""),
            ("POST", "/retry"),
        ):
            assert mine.request(method, f"/tasks/{task}{path}").status_code != 404
            assert is_problem(other.request(method, f"/tasks/{task}{path}"), 404), path
        assert is_problem(submit(other, {"task_id": task}), 400, "in use")
        unknown = other.get(f"/tasks/{uuid.uuid4().hex}").json()
        foreign = other.get(f"/tasks/{task}").json()
        assert {**unknown, "task": 0, "detail": 0} == {**foreign, "task": 0, "detail": 0}
    assert http.get(f"/tasks/{task}/result").status_code == 200, "this host's user is an administrator"


def test_roles(grid: Grid) -> None:
    with (
        grid.client(grid.key(name())) as user,
        grid.client(grid.key(name(), "--role", "operator")) as operator,
    ):
        task = submit(user, prefer="wait=20").headers["x-lamagrid-task"]
        for path in ("/nodes", "/stats", "/tasks?owner=local"):
            assert is_problem(user.get(path), 403), path
            assert operator.get(path).status_code == 200, path
        assert operator.get(f"/tasks/{task}").json()["id"] == task
        assert is_problem(operator.get(f"/tasks/{task}/result"), 403, "admin")
        running = submit(user, {MS: 60_000}).json()["id"]
        assert operator.delete(f"/tasks/{running}").json()["state"] == "cancelled"
    with grid.client(grid.key(name(), "--role", "admin")) as admin:
        assert admin.get(f"/tasks/{task}/result").status_code == 200


def test_wrong_and_revoked_keys(grid: Grid) -> None:
    label = name()
    token = grid.key(label)
    for wrong in ("x", token[:-1], token[:-1] + ("0" if token[-1] != "0" else "1"), token.upper()):
        assert is_problem(grid.client(wrong).get("/queues"), 401)
    assert is_problem(grid.client().get("/queues", headers={"Authorization": f"Basic {token}"}), 401)
    with grid.client(token) as client:
        task = submit(client, {MS: 60_000}).json()["id"]
        with client.stream("GET", f"/tasks/{task}/events") as events:
            lines = events.iter_lines()
            next(lines)
            grid.lamagrid("key", "revoke", label)
            began = time.monotonic()
            grid.wait(lambda: client.get("/queues").status_code == 401)
            assert time.monotonic() - began < 1.5
            list(lines)  # an open stream ends, too
            assert time.monotonic() - began < 4
        assert is_problem(client.get(f"/tasks/{task}"), 401, "revoked")
    shown = grid.lamagrid("key", "show", label)
    assert shown["revoked"] is not None
    # The key is refused first, and its use recorded then.
    grid.wait(lambda: grid.lamagrid("key", "show", label)["last_used"] is not None)
    assert token not in str(grid.lamagrid("key", "list"))
    with grid.client() as local:
        assert local.delete(f"/tasks/{task}").json()["state"] == "cancelled", "its tasks went on"


def test_limits_of_a_key(grid: Grid) -> None:
    flags = ("--max-tasks", "2", "--max-task-bytes", "1500", "--max-priority", "-1")
    with grid.client(grid.key(name(), *flags)) as client:
        assert is_problem(submit(client), 403, "above -1")
        big = {"image": ("x", bytes(2_000)), "mask": ("x", b"x")}
        assert is_problem(submit(client, {"priority": -1}, big), 413, "1500 bytes")
        made = [submit(client, {MS: 60_000, "priority": -1}).json()["id"] for _ in range(2)]
        assert is_problem(submit(client, {"priority": -1}), 429, "2 unfinished tasks")
        client.delete(f"/tasks/{made[0]}")
        grid.wait(lambda: submit(client, {"priority": -1}).status_code == 202)
        client.delete(f"/tasks/{made[1]}")
    with grid.client(grid.key(name(), "--rate", "3")) as client:
        answers = [client.get("/queues") for _ in range(8)]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused
        assert all(is_problem(answer, 429, "3 requests per second") for answer in refused)


def test_pages_of_other_sites_can_do_nothing(grid: Grid) -> None:
    with grid.client() as client:
        for headers, status in (
            ({"Host": "evil.example"}, 421),
            ({"Host": "127.0.0.1.evil.example"}, 421),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
        ):
            assert is_problem(client.get("/queues", headers=headers), status), headers
            assert is_problem(submit(client, **headers), status), headers
        own = client.get("/queues", headers={"Origin": f"http://127.0.0.1:{grid.address[1]}"})
        assert own.status_code == 200
        assert own.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in own.headers


def test_beyond_loopback_there_is_tls_and_every_request_needs_a_key(
    tmp_path: Path, processes: Processes
) -> None:
    # A certificate of the grid's own authority, for the name scheduler.lamagrid.
    command = [BIN / "lamagrid", "certs", "init", "--data-dir", tmp_path / "c"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    pair = tmp_path / "c" / "certs" / "scheduler.pem"
    refused = subprocess.run(
        [BIN / "lamagrid", "scheduler", "--data-dir", tmp_path / "d", "--set", "http.listen=0.0.0.0:1"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert refused.returncode == 78
    assert "http.certificate" in refused.stderr
    port = free_port()
    words = [f"http.listen=0.0.0.0:{port}", f"http.certificate={pair}", f"http.key={pair}"]
    command = [BIN / "lamagrid", "scheduler", "--data-dir", tmp_path / "d"]
    scheduler = processes.start(
        "scheduler", [*command, *(each for word in words for each in ("--set", word))]
    )
    trust = ssl.create_default_context(cafile=str(pair))
    trust.check_hostname = False
    with httpx.Client(base_url=f"https://localhost:{port}", verify=trust, trust_env=False) as client:

        def answers() -> bool:
            try:
                return client.get("/healthz").status_code == 200
            except httpx.TransportError:
                return False

        processes.wait_until(answers, 20, "HTTPS", [scheduler])
        for path in ("/metrics", "/readyz"):
            assert client.get(path).status_code == 401
        assert is_problem(client.get("/api/v1/queues"), 401)
        made = subprocess.run(
            [BIN / "lamagrid", "key", "create", "far", "--role", "operator", "--data-dir", tmp_path / "d"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        client.headers["Authorization"] = f"Bearer {made.stdout.strip()}"
        processes.wait_until(lambda: client.get("/api/v1/queues").status_code == 200, 5, "the key")
        assert "lamagrid_" in client.get("/metrics").text
