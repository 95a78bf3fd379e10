"""Socket.IO's events of the contract, as two connected browsers receive them: names, payloads, order.

R8.2, R8.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from contract.conftest import Servers
from contract.test_http import FIXED, MASK, PHOTO, ROUND, inpaint, post, same
from grids.browser import SOON_S, Browser
from grids.pictures import encoded, hole
from stock.forms import stock_form
from stock.processes import Processes

pytestmark = pytest.mark.timeout(300)

FINISH = ("diffusion_finish",)
MINE, THEIRS = "1" * 32, "2" * 32


@pytest.fixture
def browsers() -> Iterator[list[Browser]]:
    """To be filled; closed afterwards."""
    made: list[Browser] = []
    yield made
    for browser in made:
        browser.close()


def events_after(processes: Processes, browsers: list[Browser], last: int = 1) -> list[list[tuple[Any, ...]]]:
    """The events that each client has received, once each has received this number of ends."""
    processes.wait_until(
        lambda: all(browser.events.count(FINISH) >= last for browser in browsers), SOON_S, "the last event"
    )
    # Our own event goes to browsers with our cookie.
    return [[event for event in browser.events if event[0] != "task_status"] for browser in browsers]


def test_all_receive_the_end_of_each_good_request_and_none_that_of_a_bad_one(
    servers: Servers, running: Processes, browsers: list[Browser]
) -> None:
    """Answers to the bad ones would come before the end of the last good one."""
    for server in servers.all():
        two = [Browser(server), Browser(server)]
        browsers += two
        assert inpaint()(server).status_code == 200
        for bad in (inpaint(b"no picture"), inpaint(mask=None), inpaint(cv2Flag="INPAINT_MAGIC")):
            assert bad(server).status_code in (400, 500)
        assert inpaint()(server).status_code == 200
        assert events_after(running, two, last=2) == [[FINISH, FINISH]] * 2


def test_the_steps_of_a_diffusion_model_arrive_in_their_order(
    servers: Servers, running: Processes, browsers: list[Browser]
) -> None:
    pictures, reported = [], []
    request = inpaint(
        encoded(ROUND), encoded(hole(64, 64, 20, 20, 20)), sdSteps=2, sdStrength=1, prompt="a cat"
    )
    for server in (servers.stock, servers.grid):
        assert post("/model", {"name": "sd1.5"})(server).status_code == 200
        two = [Browser(server), Browser(server)]
        browsers += two
        pictures.append(request(server))
        reported.append(events_after(running, two))
        assert post("/model", {"name": "cv2"})(server).status_code == 200
    same(*pictures)
    steps = [("diffusion_progress", {"step": step}) for step in range(2)]
    assert reported == [[[*steps, FINISH]] * 2] * 2


def test_with_our_cookie_a_browser_receives_only_events_of_its_own_requests(
    servers: Servers, running: Processes, browsers: list[Browser]
) -> None:
    """The row of docs/compatibility.md; with ``--grid-strict`` all browsers receive all, as with stock."""
    for server, reported in ((servers.stock, True), (servers.grid, False), (servers.strict, True)):
        mine, theirs = Browser(server, MINE), Browser(server, THEIRS)
        browsers += [mine, theirs]
        for cookie in (MINE, THEIRS):
            answer = server.post(
                "/inpaint",
                files={"image": ("image", encoded(PHOTO)), "mask": ("mask", MASK)},
                data=stock_form(**FIXED),
                headers={"Cookie": f"lamagrid={cookie}"},
            )
            assert answer.status_code == 200
        if not reported:
            for browser in (mine, theirs):
                browser.await_silence()
        events = events_after(running, [mine, theirs], 2 if reported else 1)
        assert events == [[FINISH, FINISH] if reported else [FINISH]] * 2
