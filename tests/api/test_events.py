"""Server-sent events of a task, with resumption. R3.5"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from api.conftest import MS, Grid, submit
from grids.procfs import rss_bytes

pytestmark = pytest.mark.timeout(60)


class Event(NamedTuple):
    """One server-sent event."""

    id: str
    name: str
    data: Any


def events(response: httpx.Response) -> Iterator[Event]:
    """Parse a stream."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
            fields = {}


def test_events_tell_the_states_and_the_progress(http: httpx.Client) -> None:
    task = submit(http, {MS: 800}).json()["id"]
    with http.stream("GET", f"/tasks/{task}/events") as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        seen = list(events(stream))
    assert seen[-1].name == "done"
    assert seen[-1].data["state"] == "completed"
    assert seen[-1].data["id"] == task
    assert seen[-1].id == "completed.1"
    progress = [event.data for event in seen if event.name == "progress"]
    assert progress
    assert all(each["of"] == 80 and each["activity"] == "running" for each in progress)
    assert [each["step"] for each in progress] == sorted(each["step"] for each in progress)


def test_a_reader_that_comes_back_goes_on_where_it_was(http: httpx.Client) -> None:
    task = submit(http, {MS: 1_500}).json()["id"]
    with http.stream("GET", f"/tasks/{task}/events") as stream:
        last = next(event for event in events(stream) if event.name == "progress")
    again = {"Last-Event-ID": last.id}
    with http.stream("GET", f"/tasks/{task}/events", headers=again) as stream:
        seen = list(events(stream))
    assert all(event.name == "progress" for event in seen[:-1]), "the state was seen already"
    assert all(event.data["step"] >= last.data["step"] for event in seen[:-1])
    assert seen[-1].name == "done"
    for missed in ({"Last-Event-ID": "processing.1"}, {"Last-Event-ID": "nonsense"}, {}):
        with http.stream("GET", f"/tasks/{task}/events", headers=missed) as stream:
            assert [event.name for event in events(stream)] == ["done"]
    answer = http.get(f"/tasks/{task}/events", headers={"Last-Event-ID": seen[-1].id})
    assert (answer.status_code, answer.content) == (204, b"")


def test_the_stream_of_a_cancelled_task_ends(http: httpx.Client) -> None:
    task = submit(http, {MS: 60_000}).json()["id"]
    with http.stream("GET", f"/tasks/{task}/events") as stream:
        found = events(stream)
        next(found)
        http.delete(f"/tasks/{task}")
        assert list(found)[-1].data["state"] == "cancelled"


def test_readers_that_do_not_read_cost_little(grid: Grid, http: httpx.Client) -> None:
    task = submit(http, {MS: 4_000}).json()["id"]
    before = rss_bytes(grid.scheduler.pid)
    crowd = []
    for _ in range(300):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect(grid.address)
        connection.sendall(f"GET /api/v1/tasks/{task}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        crowd.append(connection)
    with http.stream("GET", f"/tasks/{task}/events") as stream:
        assert list(events(stream))[-1].name == "done"
    assert rss_bytes(grid.scheduler.pid) - before < 30e6
    for connection in crowd:
        connection.close()
