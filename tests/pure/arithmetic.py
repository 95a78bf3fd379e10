"""Trials of the functions on pixels: upstream's own answer, and whether the grid's is the same."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from lama_cleaner.helper import boxes_from_mask, norm_img, pad_img_to_modulo, resize_max_size
from lama_cleaner.model.base import InpaintModel
from lama_cleaner.model.lama import LaMa
from lama_cleaner.model.manga import Manga
from numpy.typing import NDArray

from parity import content
from parity.stock import stock_config
from pure.door import DONE, Fields, pixels, rule

Pixels = NDArray[np.uint8]
SIDES = (*range(1, 10), 15, 16, 17, 31, 32, 33)


@dataclass(frozen=True)
class Trial:
    """One call.

    Attributes:
        op: Number of the function.
        fields: Its arguments.
        judge: Says what is wrong with the answer, from its status and fields; "" for nothing.
        description: The call in a few words.
        may_refuse: Whether the function may leave this to Pillow.
    """

    op: int
    fields: bytes
    judge: Callable[[int, bytes], str]
    description: str
    may_refuse: bool = False


Draw = Callable[[random.Random, np.random.Generator], Trial]


def _same_bytes(wanted: NDArray[Any], head: bytes = b"") -> Callable[[int, bytes], str]:
    """Exactly these values in row-major order behind `head`."""
    whole = head + np.ascontiguousarray(wanted).tobytes()

    def judge(status: int, answer: bytes) -> str:
        if status != DONE:
            return f"refused: {answer.decode()}"
        if answer == whole:
            return ""
        if len(answer) != len(whole):
            return f"{len(answer)} bytes, upstream {len(whole)}"
        given = np.frombuffer(answer, wanted.dtype, wanted.size, len(head))
        wrong = np.flatnonzero(given != np.ascontiguousarray(wanted).ravel())
        if not wrong.size:
            return "other bits of equal values, or another head"
        first = int(wrong[0])
        return (
            f"{wrong.size} values differ, first {first}: {given[first]!r}, upstream {wanted.ravel()[first]!r}"
        )

    return judge


def _same_pixels(wanted: Pixels) -> Callable[[int, bytes], str]:
    return _same_bytes(wanted, struct.pack("<II", *wanted.shape[:2]))


def _refusal(status: int, answer: bytes) -> str:
    return "" if status != DONE else "an answer, where upstream raises"


def _side(dice: random.Random, longest: int = 90) -> int:
    return dice.choice(SIDES) if dice.random() < 0.5 else dice.randint(1, longest)


def _picture(dice: random.Random, rng: np.random.Generator, longest: int = 90) -> Pixels:
    """``(H, W, 3)``: noise, or black and white."""
    picture = rng.integers(0, 256, (_side(dice, longest), _side(dice, longest), 3), np.uint8)
    if dice.random() < 0.3:
        picture = np.where(picture > 127, 255, 0).astype(np.uint8)
    return picture


def pad(dice: random.Random, rng: np.random.Generator) -> Trial:
    """`helper.pad_img_to_modulo`."""
    picture = _picture(dice, rng)
    return _pad(dice, 1, picture, pad_img_to_modulo)


def pad_mask(dice: random.Random, rng: np.random.Generator) -> Trial:
    """`helper.pad_img_to_modulo` of a mask."""
    mask = rng.integers(0, 256, (_side(dice), _side(dice)), np.uint8)
    return _pad(dice, 2, mask, lambda *args, **named: pad_img_to_modulo(*args, **named)[:, :, 0])


def _pad(dice: random.Random, op: int, array: Pixels, upstream: Callable[..., Pixels]) -> Trial:
    modulo = dice.choice([8, 8, 8, 1, 2, 3, 5, 16, 32, 64])
    square = dice.random() < 0.2
    least = modulo * dice.randint(1, max(1, 160 // modulo)) if dice.random() < 0.2 else None
    wanted = upstream(array, mod=modulo, square=square, min_size=least)
    description = f"{array.shape} modulo {modulo}, square {square}, least {least}"
    return Trial(op, rule(modulo, square, least) + pixels(array), _same_pixels(wanted), description)


def boxes(dice: random.Random, rng: np.random.Generator) -> Trial:
    """`helper.boxes_from_mask`, order included."""
    mask, kind = content.mask(dice, rng, _side(dice, 120), _side(dice, 120))
    if dice.random() < 0.3:  # many small forms that touch, enclose and border one another
        mask = np.where(rng.random(mask.shape) < dice.uniform(0.05, 0.9), 255, 0).astype(np.uint8)
        kind = "dust"
    found = np.array(boxes_from_mask(mask), np.uint32).reshape(-1, 4)
    judge = _same_bytes(found, struct.pack("<I", len(found)))
    return Trial(3, pixels(mask), judge, f"{mask.shape} {kind}, {len(found)} boxes")


class Numbers(InpaintModel):
    """A model without weights, as the example's networks are."""

    name = "numbers"

    def __init__(self, network: int = 0, modulo: int = 8) -> None:
        self.network = network
        self.pad_mod = modulo
        self.calls: list[tuple[int, int]] = []

    def init_model(self, device: Any, **kwargs: Any) -> None:
        """Nothing to load."""

    @staticmethod
    def is_downloaded() -> bool:
        """It always is."""
        return True

    def forward(self, image: Pixels, mask: Pixels, config: Any) -> Pixels:
        """The example's networks' answers, finished as `LaMa.forward` does it."""
        height, width = image.shape[:2]
        self.calls.append((height, width))
        y, x = np.arange(height)[:, np.newaxis, np.newaxis], np.arange(width)[np.newaxis, :, np.newaxis]
        channel = np.arange(3)[np.newaxis, np.newaxis, :]
        level = mask.reshape(height, width, 1).astype(np.int64)
        if self.network in (0, 2):
            total = 5 * image.astype(np.int64) + 31 * channel + 3 * y + 7 * x + 97 * (level > 0) + level
            out = (total % 512).astype(np.float32) / np.float32(256) - np.float32(0.5)
            if self.network == 2:
                return _manga(torch.from_numpy(2 * out[:, :, :1]).permute(2, 0, 1)[None], image)
        else:
            squares = ((x // 2 + y // 2) % 2).astype(np.float32) * np.float32(2) - np.float32(0.5)
            out = np.where(level > 0, squares, image.astype(np.float32) / np.float32(255))
        result: Pixels = cv2.cvtColor(np.clip(out * 255, 0, 255).astype("uint8"), cv2.COLOR_RGB2BGR)
        return result


def crop_box(dice: random.Random, rng: np.random.Generator) -> Trial:
    """`InpaintModel._crop_box`: the rectangle that is cut out, as slicing takes its numbers."""
    height, width = dice.randint(1, 1600), dice.randint(1, 1600)
    if dice.random() < 0.3:
        height, width = dice.randint(1, 9), dice.randint(1, 9)
    left, top = dice.randrange(width), dice.randrange(height)
    right, bottom = dice.randint(left + 1, width), dice.randint(top + 1, height)
    margin = dice.choice([0, 1, 2, 3, 7, 31, 32, 128, 196, 5000, dice.randint(0, 400)])
    if dice.random() < 0.1:
        margin = dice.choice([-1, -2, -5, -100, -1000, dice.randint(-800, 0)])
    # No memory behind it: only the shape counts.
    picture = np.broadcast_to(np.zeros((), np.uint8), (height, width, 3))
    config = stock_config(hd_strategy_crop_margin=margin)
    box = np.array([left, top, right, bottom])
    cut, _, edges = Numbers()._crop_box(picture, picture[:, :, 0], box, config)
    columns, rows = slice(*edges[::2]).indices(width), slice(*edges[1::2]).indices(height)
    wanted = b"\1" + struct.pack("<4I", columns[0], rows[0], columns[1], rows[1]) if cut.size else b"\0"

    def judge(status: int, answer: bytes) -> str:
        return "" if (status, answer) == (DONE, wanted) else f"{answer.hex()}, upstream {wanted.hex()}"

    fields = struct.pack("<4IIIq", left, top, right, bottom, height, width, margin)
    return Trial(4, fields, judge, f"{box.tolist()} in {width}x{height}, margin {margin}")


def resize(dice: random.Random, rng: np.random.Generator) -> Trial:
    """`helper.resize_max_size` and OpenCV's cubic resize of a picture."""
    return _resize(dice, 5, _picture(dice, rng))


def resize_mask(dice: random.Random, rng: np.random.Generator) -> Trial:
    """`helper.resize_max_size` and OpenCV's cubic resize of a mask."""
    mask = rng.integers(0, 256, (_side(dice), _side(dice)), np.uint8)
    if dice.random() < 0.5:
        mask = np.where(mask > 127, 255, 0).astype(np.uint8)
    return _resize(dice, 6, mask)


def _resize(dice: random.Random, op: int, array: Pixels) -> Trial:
    height, width = array.shape[:2]
    if dice.random() < 0.5 and max(height, width) > 1:
        limit = dice.randint(max(1, max(height, width) // (2 * min(height, width)) + 1), max(height, width))
        wanted = resize_max_size(array, limit)
    else:
        size = (_side(dice, 130), _side(dice, 130))
        wanted = cv2.resize(array, size, interpolation=cv2.INTER_CUBIC)
    fields = struct.pack("<II", *wanted.shape[:2]) + pixels(array)
    return Trial(op, fields, _same_pixels(wanted), f"{array.shape} to {wanted.shape[:2]}")


def resize_float(dice: random.Random, rng: np.random.Generator) -> Trial:
    """OpenCV's cubic resize of float64, as it enlarges what Resize gives."""
    height, width = _side(dice, 60), _side(dice, 60)
    values = rng.integers(0, 256, (height, width, 3)).astype(np.float64)
    if dice.random() < 0.5:
        values = rng.uniform(-3, 260, (height, width, 3))
    size = (_side(dice, 90), _side(dice, 90))
    wanted = cv2.resize(values, size, interpolation=cv2.INTER_CUBIC)
    fields = struct.pack("<IIII", size[1], size[0], height, width) + values.tobytes()
    return Trial(7, fields, _same_bytes(wanted), f"{height}x{width} to {size[1]}x{size[0]}")


def blend(dice: random.Random, rng: np.random.Generator) -> Trial:
    """The last line of `InpaintModel._pad_forward`."""
    count = dice.randint(1, 300)
    result, picture = rng.integers(0, 256, (2, count, 1, 3), np.uint8)
    mask = rng.integers(0, 256, (count, 1), np.uint8)
    if dice.random() < 0.3:
        mask = np.where(mask > 127, 255, 0).astype(np.uint8)
    model = Numbers(modulo=1)
    model.forward = lambda *_: result  # type: ignore[method-assign]
    # Upstream turns the picture's colours around there; the function gets both in one order.
    wanted = model._pad_forward(picture[:, :, ::-1], mask, None)
    fields = struct.pack("<I", count) + result.tobytes() + picture.tobytes() + mask.tobytes()
    return Trial(8, fields, _same_bytes(wanted), f"{count} pixels")


def wrap(dice: random.Random, rng: np.random.Generator) -> Trial:
    """numpy's `astype(uint8)` of float64."""
    count = dice.randint(1, 300)
    span = dice.choice([1.0, 300.0, 1000.0, 1e6, 2.0**31, 1e10, 1e300])
    values = rng.uniform(-span, span, count)
    edges = [
        0.0,
        -0.0,
        -0.5,
        -1.0,
        255.0,
        255.99,
        256.0,
        256.7,
        2.0**31 - 1,
        2.0**31,
        -(2.0**31),
        2.0**32,
        5e9,
    ]
    special = [*edges, -(2.0**31) - 1, np.nan, np.inf, -np.inf, 5e-324, 2.0**53, 2.0**63, -(2.0**63), 1e308]
    for at in range(0, count, 3):
        values[at] = dice.choice(special) + dice.choice([0.0, 0.0, 0.25, -0.25])
    with np.errstate(invalid="ignore"):
        wanted = values.astype(np.uint8)
    return Trial(
        9, struct.pack("<I", count) + values.tobytes(), _same_bytes(wanted), f"{count} up to {span:g}"
    )


def to_tensor(dice: random.Random, rng: np.random.Generator) -> Trial:
    """`helper.norm_img`."""
    picture = _picture(dice, rng)
    return Trial(10, pixels(picture), _same_bytes(norm_img(picture)), f"{picture.shape}")


class _Taken(Exception):
    """Raised once the model's input was taken."""


def _lama(model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> LaMa:
    """Upstream's class around any function."""
    lama: LaMa = LaMa.__new__(LaMa)
    lama.device = torch.device("cpu")
    lama.model = model
    return lama


def to_mask_tensor(dice: random.Random, rng: np.random.Generator) -> Trial:
    """The mask that `LaMa.forward` gives its model."""
    mask = rng.integers(0, 3, (_side(dice), _side(dice)), np.uint8) * dice.choice([1, 100, 127])
    seen: list[torch.Tensor] = []

    def model(_: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        seen.append(hole)
        raise _Taken

    try:
        _lama(model).forward(np.zeros((*mask.shape, 3), np.uint8), mask[:, :, np.newaxis], None)
    except _Taken:
        wanted = seen[0].numpy()
    return Trial(11, pixels(mask), _same_bytes(wanted), f"{mask.shape}")


def _manga(answer: torch.Tensor, image: Pixels, seen: list[torch.Tensor] | None = None) -> Pixels:
    """The result of upstream's ``Manga.forward`` for its network's answer; `seen` takes the grey picture."""
    manga: Manga = Manga.__new__(Manga)
    manga.device, manga.seed = torch.device("cpu"), 42
    manga.line_model = lambda grey: (seen if seen is not None else []).append(grey) or grey
    manga.inpaintor_model = lambda *_: answer
    with np.errstate(invalid="ignore"):
        result: Pixels = manga.forward(image, np.zeros((*image.shape[:2], 1), np.uint8), None)
    return result


def to_gray(dice: random.Random, rng: np.random.Generator) -> Trial:
    """The grey picture that `Manga.forward` gives its first model."""
    picture, seen = _picture(dice, rng), list[torch.Tensor]()
    _manga(torch.zeros(1, 1, 1, 1), picture, seen)
    return Trial(18, pixels(picture), _same_bytes(seen[0].numpy()), f"{picture.shape}")


def from_gray(dice: random.Random, rng: np.random.Generator) -> Trial:
    """The result of `Manga.forward` for its model's answer."""
    height, width = _side(dice, 60), _side(dice, 60)
    span = dice.choice([(-1, 1), (-1.02, 1.02), (-5, 5), (-1e10, 1e10)])
    values = rng.uniform(*span, (1, 1, height, width)).astype(np.float32)
    if dice.random() < 0.5:  # near whole numbers, where rounding shows
        values = ((rng.integers(-2, 259, values.shape) - np.float32(127.5)) / np.float32(127.5)).astype(
            np.float32
        )
        values = np.nextafter(values, dice.choice([-9, 9])).astype(np.float32)
    if dice.random() < 0.1:
        values[0, 0, 0, 0] = dice.choice([np.inf, -np.inf, np.nan])
    bgr = _manga(torch.from_numpy(values), np.zeros((height, width, 3), np.uint8))
    fields = struct.pack("<BII", 1, height, width) + values.tobytes()
    return Trial(12, fields, _same_pixels(bgr[:, :, ::-1]), f"{height}x{width} in {span}")


def from_tensor(dice: random.Random, rng: np.random.Generator) -> Trial:
    """The result of `LaMa.forward` for its model's answer."""
    height, width = _side(dice, 60), _side(dice, 60)
    span = dice.choice([(0, 1), (-0.01, 1.01), (-3, 4), (-1e10, 1e10)])
    values = rng.uniform(*span, (1, 3, height, width)).astype(np.float32)
    if dice.random() < 0.5:  # near whole numbers, where rounding shows
        values = (rng.integers(-2, 259, values.shape) / np.float32(255)).astype(np.float32)
        values = np.nextafter(values, dice.choice([-9, 9])).astype(np.float32)
    if dice.random() < 0.1:
        values[0, 0, 0, 0] = dice.choice([np.inf, -np.inf])
    lama = _lama(lambda *_: torch.from_numpy(values))
    bgr = lama.forward(np.zeros((height, width, 3), np.uint8), np.zeros((height, width, 1), np.uint8), None)
    fields = struct.pack("<BII", 0, height, width) + values.tobytes()
    return Trial(12, fields, _same_pixels(bgr[:, :, ::-1]), f"{height}x{width} in {span}")


def inpaint(dice: random.Random, rng: np.random.Generator) -> Trial:
    """`InpaintModel.__call__` and the server's cast, with every size that the network saw."""
    height, width = _side(dice, 110), _side(dice, 110)
    picture, _ = content.picture(dice, rng, height, width)
    picture = np.ascontiguousarray(picture[:, :, :3])
    mask, kind = content.mask(dice, rng, height, width)
    mask = np.where(mask > 127, 255, 0).astype(np.uint8)
    longest = max(height, width)
    strategy = dice.choice(["Original", "Resize", "Resize", "Crop", "Crop", "Crop", "crop", ""])
    limit = dice.choice([longest, longest - 1, longest // 2, longest // 3, 2, 3, 1, 0, -4])
    trigger = dice.choice([0, 2, 3, longest // 2, longest - 1, longest, -1])
    margin = dice.choice([0, 1, 2, 7, 8, 33, 196, dice.choice([5000, -1, -3, -20])])
    modulo = dice.choice([8, 8, 8, 1, 16, 32])
    network = dice.randrange(3)
    model = Numbers(network, modulo)
    config = stock_config(
        hd_strategy=strategy,
        hd_strategy_resize_limit=limit,
        hd_strategy_crop_trigger_size=trigger,
        hd_strategy_crop_margin=margin,
    )
    fields = (
        struct.pack("<I", len(strategy)) + strategy.encode() + struct.pack("<qqq", limit, trigger, margin)
    )
    fields += rule(modulo) + bytes([network]) + pixels(picture) + pixels(mask)
    description = (
        f"{width}x{height} {strategy!r} limit {limit} trigger {trigger} margin {margin} modulo {modulo} "
        f"network {network} mask {kind}"
    )
    try:
        # Crop writes into the picture that it is given.
        wanted = model(picture.copy(), mask.copy(), config)
    except Exception:  # OpenCV and numpy refuse in many ways
        return Trial(13, fields, _refusal, description)
    with np.errstate(invalid="ignore"):
        rgb = wanted.astype(np.uint8)[:, :, ::-1]
    calls = struct.pack("<I", len(model.calls)) + b"".join(struct.pack("<II", *call) for call in model.calls)

    def judge(status: int, answer: bytes) -> str:
        if status != DONE:
            return f"refused: {answer.decode()}"
        found = Fields(answer)
        given = found.pixels(3)
        if given.shape != rgb.shape or not np.array_equal(given, rgb):
            return f"pixels {given.shape} differ from upstream's {rgb.shape}"
        return "" if answer.endswith(calls) and found.left == len(calls) else "the network saw other sizes"

    return Trial(13, fields, judge, description)
