"""The pages in a real browser: upstream's, unchanged, and our own of a browser's tasks."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from skimage import data

from browser.conftest import CANVAS_URL, paint, pixels_of, upload_picture
from grids.models import slow_lama
from grids.pictures import encoded, hole, plain
from grids.server import ORIGINAL, lamagrid_json, start_grid
from stock.forms import stock_form
from stock.processes import Processes

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

SCREENSHOT = Path(__file__).parents[2] / "target" / "browser.png"
TASKS_SCREENSHOT = SCREENSHOT.with_name("browser-tasks.png")
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
# Does what upstream's page does, with a picture that says how long to work.
SEND = """
([fields, image, mask]) => {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  const file = text => new Blob([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))]);
  form.append('image', file(image), 'image.png');
  form.append('mask', file(mask), 'mask.png');
  window.answers = window.answers || [];
  fetch('/inpaint', {method: 'POST', body: form})
    .then(async reply => window.answers.push([reply.status, await reply.text()]));
}
"""


def test_a_painted_stroke_is_cleaned(page: Page, processes: Processes, tmp_path: Path) -> None:
    """R8.1: the frontend is upstream's own; nothing in it knows of the grid."""
    grid = start_grid(processes, tmp_path / "grid", "--grid-demo-model", "--grid-python-models", "")
    grid.wait_ready()
    photo = data.astronaut()
    upload = tmp_path / "photo.png"
    Image.fromarray(photo).save(upload)

    page.add_init_script(KEEP_ANSWER)
    page.goto(grid.base)
    upload_picture(page, upload, photo.shape[1])
    blank = np.zeros_like(photo)
    while np.array_equal(before := pixels_of(page.evaluate(CANVAS_URL)), blank):
        page.wait_for_timeout(50)  # the picture is drawn a moment after the canvas has its size
    assert np.array_equal(before, photo)

    with page.expect_response(lambda reply: reply.url.endswith("/inpaint")) as reply:
        paint(page, 0.28, 0.7)
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


def test_a_browser_sees_its_tasks_and_cancels_them(page: Page, processes: Processes, tmp_path: Path) -> None:
    """One task is done, two wait and are cancelled; their callers are told so."""
    flags = ("--model", "lama", "--grid-model", f"lama={slow_lama(tmp_path)}", "--grid-python-models", "")
    # The other core is the browser's, so that it sees the task at work on a machine with two.
    grid = start_grid(processes, tmp_path / "grid", *flags, env={"LAMAGRID__NODE__THREADS": "1"})
    grid.wait_ready()
    troubles: list[str] = []
    page.on("console", lambda line: troubles.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(f"{grid.base}/grid")
    page.get_by_text("Nothing yet").wait_for()

    files = [
        base64.b64encode(encoded(each)).decode() for each in (plain(64, 96, 255), hole(64, 96, 9, 9, 20))
    ]
    request = [stock_form(**ORIGINAL), *files]
    page.evaluate(SEND, request)
    page.locator("li", has_text="being worked on, by torch-0").wait_for()
    lamagrid_json("queue", "pause", "gpu", data_dir=grid.data_dir)
    for _ in range(2):
        page.evaluate(SEND, request)
    next_one = page.locator("li", has_text="waits, and is the next one")
    last_one = page.locator("li", has_text="waits, 1 before it")
    last_one.wait_for()
    next_one.wait_for()
    page.locator("li[data-state=completed]").wait_for()
    TASKS_SCREENSHOT.parent.mkdir(exist_ok=True)
    page.screenshot(path=str(TASKS_SCREENSHOT))
    assert grid.get("/grid/tasks").json() == {"tasks": []}, "a browser without the cookie"

    next_one.get_by_role("button", name="Cancel").click()
    page.locator("li[data-state=cancelled]").wait_for()
    next_one.get_by_role("button", name="Cancel").click()
    page.locator("li[data-state=cancelled]").nth(1).wait_for()
    while page.evaluate("window.answers.length") < 3:
        page.wait_for_timeout(50)
    answers = page.evaluate("window.answers")
    assert [status for status, _ in answers] == [200, 500, 500]
    for _, text in answers[1:]:
        assert "cancel" in text.lower()
        assert "<" not in text
    assert page.get_by_role("button").count() == 0
    assert [line for line in troubles if "500" not in line] == []
