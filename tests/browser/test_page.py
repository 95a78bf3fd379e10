"""The unchanged page in a real browser: a photo uploaded, a stroke painted, the cleaned picture shown."""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from grids.server import start_grid
from stock.processes import Processes

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

SCREENSHOT = Path(__file__).parents[2] / "target" / "browser.png"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# The page takes the answer as a blob, which the browser's own tools do not hand out: keep a copy.
KEEP_ANSWER = """
const plain = window.fetch;
window.fetch = async (...request) => {
  const reply = await plain(...request);
  if (String(request[0]).endsWith('/inpaint')) {
    const bytes = new Uint8Array(await reply.clone().arrayBuffer());
    window.answered = btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(''));
  }
  return reply;
};
"""
CANVAS_URL = "document.querySelector('canvas').toDataURL('image/png')"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A page of Debian's Chromium with a fresh profile."""
    program = shutil.which("chromium")
    if program is None:
        reason = "no browser: chromium is missing (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=program,
            args=list(FLAGS),
            viewport={"width": 1280, "height": 900},
        )
        try:
            yield context.new_page()
        finally:
            context.close()


def pixels_of(file: str) -> NDArray[np.int64]:
    """The pixels of a file in base64, with or without a data URL before it."""
    with Image.open(io.BytesIO(base64.b64decode(file.rpartition(",")[2]))) as picture:
        return np.array(picture.convert("RGB")).astype(np.int64)


def test_a_painted_stroke_is_cleaned(page: Page, processes: Processes, tmp_path: Path) -> None:
    """R8.1: the frontend is upstream's own; nothing in it knows of the grid."""
    grid = start_grid(processes, tmp_path / "grid", "--grid-demo-model", "--grid-python-models", "")
    grid.wait_ready()
    photo = data.astronaut()
    upload = tmp_path / "photo.png"
    Image.fromarray(photo).save(upload)

    page.add_init_script(KEEP_ANSWER)
    page.goto(grid.base)
    page.locator("input[type=file]").first.set_input_files(str(upload))
    page.wait_for_function(f"document.querySelector('canvas')?.width === {photo.shape[1]}")
    blank = np.zeros_like(photo)
    while np.array_equal(before := pixels_of(page.evaluate(CANVAS_URL)), blank):
        page.wait_for_timeout(50)  # the picture is drawn a moment after the canvas has its size
    assert np.array_equal(before, photo)

    box = page.locator("canvas").first.bounding_box()
    while True:  # the page fits the picture into the window, with an animation
        page.wait_for_timeout(200)
        last, box = box, page.locator("canvas").first.bounding_box()
        if box is not None and box == last:
            break
    x, y = box["x"] + box["width"] * 0.28, box["y"] + box["height"] * 0.7
    with page.expect_response(lambda reply: reply.url.endswith("/inpaint"), timeout=60_000) as reply:
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 60, y + 10, steps=10)
        page.mouse.up()
    assert reply.value.status == 200, grid.log
    assert reply.value.headers["x-lamagrid-task"]
    page.wait_for_function("window.answered")
    cleaned = pixels_of(page.evaluate("window.answered"))
    # Shown is what was answered.
    for _ in range(100):
        shown = pixels_of(page.evaluate(CANVAS_URL))
        if np.array_equal(shown, cleaned):
            break
        page.wait_for_timeout(50)
    SCREENSHOT.parent.mkdir(exist_ok=True)
    page.screenshot(path=str(SCREENSHOT))
    assert np.array_equal(shown, cleaned)
    # It differs from the photo where the stroke was, and nowhere else.
    rows, columns = np.nonzero((shown != before).any(axis=2))
    assert 500 < len(rows) < shown.shape[0] * shown.shape[1] // 10
    assert abs(rows.mean() - shown.shape[0] * 0.7) < 40
    assert abs(columns.mean() - shown.shape[1] * 0.34) < 60
