"""Compares what the grid answers with what stock answers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from grids.server import is_one_line
from parity.page import StockAnswer

HTML, PLAIN = "text/html; charset=utf-8", "text/plain; charset=utf-8"
SAME_BYTES = "image/jpeg"
LOSSY = frozenset(["image/webp", "image/gif"])
LARGEST_DIFFERENCE, MEAN_DIFFERENCE = 3, 1.0
"""The most that two encoders of a lossy format may differ by, in levels of 0 to 255."""

EXIF_IFD, GPS_IFD = 0x8769, 0x8825
STRIP_OFFSETS = 0x0111  # where in a TIFF the pixels lie, which is no statement about the picture


@dataclass(frozen=True)
class GridAnswer:
    """The grid's answer to ``/inpaint``."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Difference:
    """How two decoded pictures differ: samples, and levels."""

    samples: int
    largest: int
    mean: float


def decoded(data: bytes) -> Image.Image:
    """A file's first frame with its header, loaded."""
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def difference(one: NDArray[Any], other: NDArray[Any]) -> Difference:
    """Of two arrays of one shape."""
    levels = np.abs(one.astype(np.int32) - other.astype(np.int32))
    return Difference(int((levels != 0).sum()), int(levels.max(initial=0)), float(levels.mean()))


def complaints(stock: StockAnswer, grid: GridAnswer) -> tuple[list[str], Difference | None]:
    """The fault of an answer, and how far its pixels are from stock's."""
    if stock.status != grid.status:
        return [f"status {grid.status}, stock {stock.status}: {grid.body[:200]!r}"], None
    wrong = []
    if stock.failed_in_model:  # upstream prints whatever the library said; the grid has words of its own
        return (["an error page longer than a text"] if len(grid.body) > 1000 else []), None
    # Pages of other sites may not read the grid's answers: a row of docs/compatibility.md.
    expected = {name for name in stock.headers if not name.startswith("access-control-")}
    missing = expected - grid.headers.keys()
    if missing:
        wrong.append(f"without the headers {sorted(missing)}")
    for name in ("content-type", "cache-control"):
        wanted = stock.headers.get(name)
        if name == "content-type" and wanted == HTML and not grid.body.startswith(b"<!doctype"):
            wanted = PLAIN  # a text is no page, so that no browser runs what is in it: another row
        if wanted != grid.headers.get(name):
            wrong.append(f"{name} {grid.headers.get(name)!r}, stock {wanted!r}")
    if stock.status != 200:
        if stock.body.startswith(b"<!doctype"):
            if not is_one_line(grid.body):
                wrong.append(f"no line for stock's page: {grid.body[:200]!r}")
        elif stock.body != grid.body:
            wrong.append(f"text {grid.body[:200]!r}, stock {stock.body[:200]!r}")
        return wrong, None
    try:
        wanted = decoded(stock.body)
    except Exception:  # stock writes unreadable TIFFs now and then
        return [
            *wrong,
            *([] if stock.body == grid.body else ["other bytes than stock's unreadable file"]),
        ], None
    try:
        given = decoded(grid.body)
    except Exception as error:
        return [*wrong, f"an unreadable file: {error!r}"], None
    if grid.headers.get("content-type") == SAME_BYTES and stock.body != grid.body:
        wrong.append(f"{len(grid.body)} bytes that are not stock's {len(stock.body)}")
    reported, far = _pictures(wanted, given, grid.headers.get("content-type") in LOSSY)
    return [*wrong, *reported], far


def _pictures(wanted: Image.Image, given: Image.Image, lossy: bool) -> tuple[list[str], Difference | None]:
    if (wanted.mode, wanted.size, wanted.format) != (given.mode, given.size, given.format):
        return [
            f"{given.format} {given.mode} {given.size}, stock {wanted.format} {wanted.mode} {wanted.size}"
        ], None
    wrong = []
    if wanted.mode == "P":  # palettes may be ordered otherwise
        far = difference(np.array(wanted.convert("RGBA")), np.array(given.convert("RGBA")))
    else:
        far = difference(np.array(wanted), np.array(given))
    if lossy:
        if far.largest > LARGEST_DIFFERENCE or far.mean > MEAN_DIFFERENCE:
            wrong.append(f"encoded pixels differ by {far.largest} at most and {far.mean:.2f} in the mean")
    elif far.samples:
        wrong.append(f"{far.samples} samples differ, by {far.largest} at most")
    for part, of_stock, of_grid in (
        ("EXIF", exif(wanted), exif(given)),
        ("parameters", wanted.info.get("parameters"), given.info.get("parameters")),
    ):
        if of_stock != of_grid:
            wrong.append(f"{part} {of_grid!r}, stock {of_stock!r}")
    return wrong, far


def exif(picture: Image.Image) -> str:
    """Every tag that Pillow finds, with its value, in the picture's own directory and in EXIF's and GPS's."""
    try:
        tags = picture.getexif()
        parts = [dict(tags), dict(tags.get_ifd(EXIF_IFD)), dict(tags.get_ifd(GPS_IFD))]
    except Exception as error:  # a block that Pillow does not understand
        return f"unreadable: {type(error).__name__}"
    # As text: a rational of 0/0 is not equal to itself. Pointers differ with the layout of the file.
    layout = {EXIF_IFD, GPS_IFD, STRIP_OFFSETS}
    return repr([sorted((tag, value) for tag, value in part.items() if tag not in layout) for part in parts])
