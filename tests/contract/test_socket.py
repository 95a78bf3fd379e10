"""Socket.IO's events of the contract, as two connected browsers hear them: names, payloads, order.

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


def heard_after(processes: Processes, browsers: list[Browser], last: int = 1) -> list[list[tuple[Any, ...]]]:
    """The events that each client has received, once each has received this number of ends."""
    processes.wait_until(
        lambda: all(browser.heard.count(FINISH) >= last for browser in browsers), SOON_S, "the last event"
    )
    # Our own event goes to browsers with our cookie.
    return [[event for event in browser.heard if event[0] != "task_status"] for browser in browsers]


def test_the_end_of_each_good_request_is_told_to_all_and_of_a_bad_one_to_none(
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
        assert heard_after(running, two, last=2) == [[FINISH, FINISH]] * 2


def test_the_steps_of_a_diffusion_model_are_told_in_their_order(
    servers: Servers, running: Processes, browsers: list[Browser]
) -> None:
    pictures, told = [], []
    request = inpaint(
        encoded(ROUND), encoded(hole(64, 64, 20, 20, 20)), sdSteps=2, sdStrength=1, prompt="a cat"
    )
    for server in (servers.stock, servers.grid):
        assert post("/model", {"name": "sd1.5"})(server).status_code == 200
        two = [Browser(server), Browser(server)]
        browsers += two
        pictures.append(request(server))
        told.append(heard_after(running, two))
        assert post("/model", {"name": "cv2"})(server).status_code == 200
    same(*pictures)
    steps = [("diffusion_progress", {"step": step}) for step in range(2)]
    assert told == [[[*steps, FINISH]] * 2] * 2


def test_with_our_cookie_a_browser_hears_of_its_own_requests_alone(
    servers: Servers, running: Processes, browsers: list[Browser]
) -> None:
    """The row of docs/compatibility.md; ``--grid-strict`` tells all, as stock."""
    for server, told in ((servers.stock, True), (servers.grid, False), (servers.strict, True)):
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
        if not told:
            for browser in (mine, theirs):
                browser.hear_out()
        heard = heard_after(running, [mine, theirs], 2 if told else 1)
        assert heard == [[FINISH, FINISH] if told else [FINISH]] * 2
