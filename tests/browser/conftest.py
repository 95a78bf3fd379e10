"""Debian's Chromium, and what people do on upstream's page."""

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

if TYPE_CHECKING:
    from playwright.sync_api import Page

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Names that lead here, as a site's own name does after DNS rebinding.
    "--host-resolver-rules=MAP *.test 127.0.0.1",
)
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
        # For a busy machine; a wait in vain ends by the test's own limit.
        context.set_default_timeout(120_000)
        try:
            yield context.new_page()
        finally:
            context.close()


def pixels_of(file: str) -> NDArray[np.int64]:
    """The pixels of a file in base64, with or without a data URL before it."""
    with Image.open(io.BytesIO(base64.b64decode(file.rpartition(",")[2]))) as picture:
        return np.array(picture.convert("RGB")).astype(np.int64)


def upload_picture(page: Page, file: Path, width: int) -> None:
    """Choose a file; returns when the page shows it."""
    page.locator("input[type=file]").first.set_input_files(str(file))
    page.wait_for_function(f"document.querySelector('canvas')?.width === {width}")


def paint(page: Page, across: float, down: float) -> None:
    """Draw a short stroke from there, in parts of the canvas; the page sends it when the button is let go."""
    box = page.locator("canvas").first.bounding_box()
    while True:  # the page fits the picture into the window, with an animation
        page.wait_for_timeout(200)
        last, box = box, page.locator("canvas").first.bounding_box()
        if box is not None and box == last:
            break
    x, y = box["x"] + box["width"] * across, box["y"] + box["height"] * down
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 10, steps=10)
    page.mouse.up()
