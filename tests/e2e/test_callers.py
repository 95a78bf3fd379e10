"""X3: a browser that goes away frees its node; one that stays is not disturbed."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests

from grids.pictures import decoded, encoded, hole, plain
from grids.server import ORIGINAL, GridServer
from stock.forms import stock_form
from stock.processes import Processes

pytestmark = pytest.mark.timeout(180)

HOLE = hole(64, 96, 20, 30, 16)
LONG = 255
WENT_AWAY = "The browser went away while it waited"


def leave(grid: GridServer, model: str, after: Callable[[], object]) -> None:
    """Send a request, wait for ``after``, and close the connection without reading an answer."""
    files = {"image": ("image", encoded(plain(64, 96, LONG))), "mask": ("mask", encoded(HOLE))}
    request = requests.Request(
        "POST", f"{grid.base}/inpaint", files=files, data=stock_form(model, **ORIGINAL)
    ).prepare()
    connection = http.client.HTTPConnection(urlsplit(grid.base).netloc, timeout=30)
    assert request.url is not None
    connection.request("POST", urlsplit(request.url).path, request.body, dict(request.headers))
    after()
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


def test_a_browser_that_goes_away_cancels_its_task(
    shared_grid: tuple[Processes, GridServer], background: Callable[..., Future[Any]]
) -> None:
    processes, grid = shared_grid

    def is_running() -> bool:
        return sum(node["running"] for node in grid.nodes()) == 1

    stays = None
    before = grid.log.count(WENT_AWAY)
    for number in range(2):
        leave(grid, "lama", lambda: processes.wait_until(is_running, 30, "a running task"))
        left = time.monotonic()
        if number == 0:
            # Another browser waits at the same time, and gets the picture.
            stays = background(grid.inpaint, encoded(plain(64, 96)), encoded(HOLE), **ORIGINAL)
        processes.wait_until(
            lambda count=before + number + 1: grid.log.count(WENT_AWAY) == count,
            10,
            "the end of the task",
        )
        assert time.monotonic() - left < 10
    assert stays is not None
    answer = stays.result(60)
    assert answer.status_code == 200, answer.text
    expected = plain(64, 96)
    expected[HOLE > 0] = 127
    assert np.array_equal(decoded(answer.content), expected)
