"""Upstream's page with more than one model, a plugin, steps and an error: what a visitor sees of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from skimage import data

from browser.conftest import CANVAS_URL, paint, pixels_of, upload_picture
from grids.server import start_grid
from stock.processes import Processes
from stock.small import small_models

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SCREENSHOTS = Path(__file__).parents[2] / "target"
# Each value that the bar of the steps takes while it is to be seen.
WATCH_BAR = """
window.bar = [];
const bar = document.querySelector('[role=progressbar]');
const note = () => {
  const seen = getComputedStyle(bar.closest('.ProgressWrapper')).visibility === 'visible';
  if (seen) window.bar.push(Number(bar.dataset.value));
};
new MutationObserver(note).observe(bar, {attributes: true, attributeFilter: ['data-value']});
"""


def choose_model(page: Page, name: str) -> None:
    """In the settings, as a visitor does; returns when the server has answered."""
    page.locator(".header-icons .btn-primary").last.click()
    page.locator(".model-setting-block").get_by_role("combobox").first.click()
    page.get_by_role("option", name=name, exact=True).click()
    chosen = lambda reply: reply.url.endswith("/model") and reply.request.method == "POST"  # noqa: E731
    with page.expect_response(chosen) as reply:
        page.locator(".modal-setting .modal-header .btn-primary").click()
    assert reply.value.status == 200
    page.locator(".modal-setting").wait_for(state="detached")


def test_a_plugin_an_error_another_model_and_its_steps(
    page: Page, processes: Processes, tmp_path: Path
) -> None:
    """R3.5, R8.1, R8.3."""
    env = {**small_models(tmp_path), "LAMAGRID__LIMITS__MAX_PIXELS": "100000"}
    flags = ("--model", "cv2", "--enable-remove-bg", "--grid-python-models", "cv2,sd1.5", "--grid-nodes", "0")
    grid = start_grid(processes, tmp_path / "grid", *flags, env=env, cwd=tmp_path).wait_ready()
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.fromarray(data.astronaut()[:200, :240]).save(small)
    Image.fromarray(data.astronaut()[:300, :400]).save(large)
    errors: list[str] = []
    refused: list[tuple[int, str]] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on(
        "response",
        lambda reply: (
            refused.append((reply.status, reply.url.removeprefix(grid.base))) if reply.status >= 400 else None
        ),
    )
    page.goto(grid.base)
    upload_picture(page, small, 240)
    before = pixels_of(page.evaluate(CANVAS_URL))
    own = list(refused)  # what upstream's page asks in vain by itself

    # A plugin.
    with page.expect_response(lambda reply: reply.url.endswith("/run_plugin")) as reply:
        page.locator("button.plugins").click()
        page.get_by_role("menuitem", name="RemoveBG").click()
    assert reply.value.status == 200
    while (pixels_of(page.evaluate(CANVAS_URL)) == before).all():
        page.wait_for_timeout(50)
    page.screenshot(path=str(SCREENSHOTS / "browser-plugin.png"))

    # An error, in words.
    upload_picture(page, large, 400)
    paint(page, 0.3, 0.5)
    toast = page.locator(".toast-viewpoint li", has_text="Something went wrong")
    toast.wait_for()
    page.screenshot(path=str(SCREENSHOTS / "browser-error.png"))
    text = toast.inner_text()
    assert "The image is too large: it has 400 x 300 = 120000 pixels" in text
    assert "limits.max_pixels" in text
    assert "<" not in text

    # Another model, and its steps.
    upload_picture(page, small, 240)
    choose_model(page, "sd1.5")
    assert grid.get("/model").text == "sd1.5"
    page.screenshot(path=str(SCREENSHOTS / "browser-model.png"))
    page.goto(grid.base)  # upstream's bar hears of its connection only where the model is chosen before that
    upload_picture(page, small, 240)
    page.locator(".setting-block", has_text="Steps").locator("input").fill("4")
    page.get_by_placeholder("I want to repaint of...").fill("a cat")
    page.evaluate(WATCH_BAR)
    with page.expect_response(lambda reply: reply.url.endswith("/inpaint")) as reply:
        paint(page, 0.3, 0.5)
        page.get_by_text("Dream", exact=True).click()
        page.wait_for_function("window.bar.length > 1")
        page.screenshot(path=str(SCREENSHOTS / "browser-steps.png"))
    assert reply.value.status == 200
    moved = [value for value in page.evaluate("window.bar") if value > 0]
    assert len(moved) >= 3
    assert moved == sorted(moved)
    assert [each for each in refused if each not in own] == [(413, "/inpaint")]
    assert [line for line in errors if "Failed to load resource" not in line] == []
