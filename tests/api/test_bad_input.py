"""Every kind of bad input gets a problem that names it, and leaves nothing behind. X12 X13"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import time
import uuid
from typing import Any

import httpx
import pytest

from api.conftest import FILES, IMAGE, MASK, Grid, is_problem, submit

pytestmark = pytest.mark.timeout(60)
HEAD = b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n"
JSON = {"image": base64.b64encode(IMAGE).decode(), "mask": base64.b64encode(MASK).decode()}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hd_stratgy": "Crop"}, ["hd_stratgy", "did you mean hd_strategy?"]),
        ({"hd_strategy": "crop"}, ["did you mean Crop?"]),
        ({"sd_steps": "many"}, ["sd_steps", "whole number"]),
        ({"sd_scale": "inf"}, ["sd_scale", "finite"]),
        ({"use_croper": "yes"}, ["true or false"]),
        ({"priority": 1_000}, ["from -128 to 127"]),
        ({"deadline": -1}, ["0 or more"]),
        ({"output": "gif"}, ["png, jpeg, webp"]),
        ({"model": "../etc"}, ["no connected node", "../etc"]),
        ({"model": ""}, ["model"]),
        ({"queue": "nowhere"}, ["no queue nowhere"]),
        ({"task_id": "7"}, ["32 hexadecimal digits"]),
        ({"client": "a b"}, ["client"]),
        ({"prompt": "x" * 9_000}, ["too long"]),
    ],
)
def test_wrong_fields(http: httpx.Client, fields: dict[str, Any], words: list[str]) -> None:
    if fields.get("model") == "../etc":
        fields = {**fields, "no_node_wait": 0}
        assert is_problem(submit(http, fields, prefer="wait=10"), 404)
        return
    assert is_problem(submit(http, fields), 400, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": None}, ["image is missing"]),
        ({"mask": "%"}, ["mask is not base64"]),
        ({"image": 7}, ["image is not base64"]),
        ({"model": ["lama"]}, ["plain values"]),
        ({"sd_steps": "5"}, ['sd_steps is "5"']),
        ({"use_croper": 1}, ["true or false"]),
        ({"imgae": ""}, ["did you mean image?"]),
    ],
)
def test_wrong_members(http: httpx.Client, change: dict[str, Any], words: list[str]) -> None:
    assert is_problem(http.post("/tasks", json={**JSON, **change}), 400, *words)


def test_missing_doubled_and_wrong_parts(http: httpx.Client) -> None:
    assert is_problem(submit(http, files={"image": FILES["image"]}), 400, "mask is missing")
    assert is_problem(submit(http, files={**FILES, "mask": ("m", b"")}), 400, "mask is missing or empty")
    twice = [("image", FILES["image"]), ("image", FILES["image"]), ("mask", FILES["mask"])]
    assert is_problem(http.post("/tasks", files=twice), 400, "comes twice")
    assert is_problem(submit(http, files={**FILES, "model": ("m", b"lama")}), 400, "model is a file")
    many = {f"f{at}": (None, b"") for at in range(200)}
    assert is_problem(http.post("/tasks", files=many), 400, "more than 100 fields")


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"x", 415),
        (None, b"x", 415),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=b", b"nonsense", 400),
        ("multipart/form-data; boundary=b", b"--b\r\nx: y\r\n\r\n", 400),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="a\xff"\r\n\r\n',
            400,
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--b--\r\n',
            400,
        ),
        ("application/json", b"[]", 400),
        ("application/json", b'{"a": \xff}', 400),
        ("application/json", b'{"image": "", "image": ""}', 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b"", 400),
    ],
)
def test_wrong_bodies(http: httpx.Client, kind: str | None, body: bytes, status: int) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    assert is_problem(http.post("/tasks", content=body, headers=headers), status)


def test_lengths_are_refused_before_the_body_is_sent(grid: Grid) -> None:
    for head in (b"Content-Type: multipart/form-data; boundary=b\r\n", b"Content-Type: application/json\r\n"):
        with grid.connect() as connection:
            connection.sendall(HEAD + head + b"Content-Length: 99999999999\r\n\r\n")
            assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_cut_bodies_leave_nothing(grid: Grid, http: httpx.Client) -> None:
    before = http.get("/tasks").json()["total"]
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    for _ in range(5):
        with grid.connect() as connection:
            head = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 30000000\r\n\r\n"
            connection.sendall(HEAD + head + part + bytes(1_000_000))
    whole = HEAD + b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n" % (
        len(part) + 9
    )
    with grid.connect() as connection:
        connection.sendall(whole + part + b"cut short")
        assert connection.recv(64).startswith(b"HTTP/1.1 400")
    grid.wait(lambda: not list((grid.data_dir / "uploads").iterdir()))
    assert http.get("/tasks").json()["total"] == before


def test_trickling_bodies_end(grid: Grid) -> None:
    """A body that pauses is ended after ten seconds; another program is served meanwhile."""
    crowd = []
    for _ in range(20):
        connection = grid.connect()
        head = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000\r\n\r\n--b\r\n"
        connection.sendall(HEAD + head)
        crowd.append(connection)
    with grid.client() as client:
        assert submit(client, prefer="wait=20").status_code == 200
    began = time.monotonic()
    for connection in crowd:
        connection.settimeout(14)
        assert connection.recv(64).startswith(b"HTTP/1.1 408")
        connection.close()
    assert time.monotonic() - began < 14


def test_paths_queries_and_headers(http: httpx.Client) -> None:
    unknown = uuid.uuid4().hex
    for path in (
        f"/tasks/{unknown}",
        "/tasks/7",
        f"/tasks/{unknown}/result",
        f"/tasks/{unknown}/events",
    ):
        assert is_problem(http.get(path), 404), path
    assert is_problem(http.get("/nothing"), 404, "/api/openapi.json")
    for method, path in (("PUT", "/tasks"), ("POST", "/queues"), ("PATCH", f"/tasks/{unknown}")):
        answer = http.request(method, path)
        assert is_problem(answer, 405), path
        assert "GET" in answer.headers["allow"]
    for query in (
        {"cursor": "made-up"},
        {"cursor": "0"},
        {"cursor": "-" * 5_000},
        {"limit": "0"},
        {"limit": "1000"},
        {"state": "done"},
        {"stat": "failed"},
        {"model": "a b"},
    ):
        assert is_problem(http.get("/tasks", params=query), 400), query
    assert is_problem(http.get("/tasks?limit=1&limit=2"), 400, "twice")
    assert http.get(f"/tasks?cursor=ffffffffffffffff-{unknown}").status_code == 200
    assert is_problem(http.get("/queues?x=1"), 400)
    assert is_problem(submit(http, idempotency_key="a b"), 400, "Idempotency-Key")
    assert is_problem(submit(http, {"task_id": unknown}, idempotency_key="a"), 400)


def test_requests_that_are_no_http(grid: Grid) -> None:
    for request in (
        b"nonsense\r\n\r\n",
        b"GET /api/v1/tasks HTTP/1.1\r\n\r\n\r\n",
        b"GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD
        + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\nzz\r\n",
    ):
        with grid.connect() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(request)
            # The server may have refused and closed by now; then there is no connection to shut down.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(64)
            assert answer[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 2", b""), (request[:60], answer)
    with grid.client() as client:
        assert json.loads(client.get("/queues").text)["queues"]
