"""Writes `cases.txt`: what Lama Cleaner 1.2.5 answers to pictures that both sides make from a seed.

Run with the interpreter of the reference environment (lama-cleaner 1.2.5, numpy 1.26, OpenCV 4.11, x86-64):

    python src/imaging/tests/golden/make_golden.py

One line per case: a word for the suite, its parameters, and a hash of upstream's answer. `tests/inputs`
makes the same inputs and `tests/parity.rs` the same hash; change neither side alone.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from lama_cleaner.helper import boxes_from_mask, norm_img, pad_img_to_modulo
from lama_cleaner.model.base import InpaintModel
from lama_cleaner.schema import Config
from loguru import logger

M = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(seed: int, n: int) -> np.ndarray:
    """`n` pseudo-random u64 of stream `seed` (splitmix64, by counter)."""
    z = np.uint64(seed * 0x2545F4914F6CDD1D & M) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def digest(values: np.ndarray) -> int:
    """A position-dependent sum of the values (u64), modulo 2^64."""
    v = np.ascontiguousarray(values).reshape(-1)
    v = v.view(np.uint64) if v.dtype == np.float64 else v.astype(np.uint64)
    weights = mix(7, v.size) | np.uint64(1)
    return int(((v + np.uint64(1)) * weights).sum(dtype=np.uint64))


def picture(kind: str, seed: int, h: int, w: int) -> np.ndarray:
    """(H, W, 3) u8 RGB."""
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing="ij")
    if kind == "noise":
        return (mix(seed, h * w * 3) >> np.uint64(56)).astype(np.uint8).reshape(h, w, 3)
    if kind == "smooth":
        return ((x * 3 + y * 5 + c * 40 + seed) // 2 & 255).astype(np.uint8)
    if kind == "hard":
        return (((x // 5 + y // 3 + c // 2 + seed) % 2) * 255).astype(np.uint8)
    raise ValueError(kind)


def mask_of(kind: str, seed: int, h: int, w: int) -> np.ndarray:
    """(H, W) u8."""
    y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    r = [int(v >> np.uint64(33)) for v in mix(seed + 1000, 64)]
    out = np.zeros((h, w), np.uint8)
    if kind == "full":
        out[:] = 255
    elif kind == "blobs":  # rectangles, some over the border
        for k in range(1 + r[0] % 6):
            top, left, bh, bw = r[4 * k + 1] % h, r[4 * k + 2] % w, 1 + r[4 * k + 3] % 9, 1 + r[4 * k + 4] % 9
            out[(y >= top) & (y < top + bh) & (x >= left) & (x < left + bw)] = 255
    elif kind == "rings":  # nested squares about a centre, so that some lie in the holes of others
        cy, cx, step = r[1] % h, r[2] % w, 2 + r[3] % 4
        out[np.maximum(abs(y - cy), abs(x - cx)) % step == 0] = 255
        out[(y == r[4] % h) | (x == r[5] % w)] = 0
    elif kind == "noise":  # a density of 1/16 to 15/16
        draw = (mix(seed, h * w) >> np.uint64(60)).astype(np.int64).reshape(h, w)
        out[draw < 1 + seed % 15] = 255
    elif kind == "grey":
        out[:] = (mix(seed, h * w) >> np.uint64(56)).astype(np.uint8).reshape(h, w)
    elif kind == "ramp":
        out[:] = (x * 7 + y * 11 + seed) & 255
    elif kind == "border":
        out[(y == 0) | (x == w - 1)] = 255
        out[h - 1, 0] = 255
    elif kind != "empty":
        raise ValueError(kind)
    return out


def fake(kind: str, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A stand-in for a model: padded RGB and mask to padded BGR, every output byte telling of its place."""
    h, w = mask.shape[:2]
    m = mask.reshape(h, w, 1).astype(np.int64)
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing="ij")
    if kind == "sum":
        turned = image[:, :, [1, 2, 0]].astype(np.int64)
        return (turned * 5 + 31 * c + 3 * y + 7 * x + 97 * (m > 0) + m & 255).astype(np.uint8)
    if kind == "edge":
        black_white = ((x // 2 + y // 2) % 2) * 255
        return np.where(m > 0, black_white, image[:, :, ::-1]).astype(np.uint8)
    raise ValueError(kind)


class Fake(InpaintModel):
    name = "fake"

    def __init__(self, kind, modulo, square, min_size):
        self.kind, self.pad_mod, self.pad_to_square, self.min_size = kind, modulo, square, min_size
        self.sizes = []

    def init_model(self, device, **kwargs): ...

    @staticmethod
    def is_downloaded():
        return True

    def forward(self, image, mask, config):
        self.sizes += [image.shape[0], image.shape[1]]
        return fake(self.kind, image, mask)


LINES: list[str] = []


def emit(*words) -> None:
    LINES.append(" ".join(str(w) for w in words))


def inpaint(pk, mk, fk, seed, h, w, strategy, limit, trigger, margin, modulo, square, least) -> None:
    image, mask = picture(pk, seed, h, w), mask_of(mk, seed, h, w)
    model = Fake(fk, modulo, bool(square), least or None)
    config = Config(
        ldm_steps=1,
        hd_strategy=strategy,
        hd_strategy_resize_limit=limit,
        hd_strategy_crop_trigger_size=trigger,
        hd_strategy_crop_margin=margin,
    )
    head = ["inpaint", pk, mk, fk, seed, h, w, strategy, limit, trigger, margin, modulo, square, least]
    try:
        result = model(image, mask, config)
        if 0 in model.sizes:
            raise ValueError("upstream ran the model on nothing")
        emit(*head, len(model.sizes) // 2, digest(np.array(model.sizes)), digest(result.astype(np.uint8)))
    except (cv2.error, ValueError):
        emit(*head, "fails")


RULES = [(8, 0, 0), (1, 0, 0), (16, 0, 0), (32, 1, 64), (8, 0, 24), (7, 1, 0)]
PICTURES, FAKES = ["noise", "smooth", "hard"], ["sum", "edge"]
MASKS = ["blobs", "rings", "noise", "grey", "ramp", "border", "empty", "full"]


def suite_inpaint() -> None:
    for seed in range(420):
        r = [int(v >> np.uint64(33)) for v in mix(seed + 5000, 16)]
        small = r[0] % 4 == 0
        h, w = (1 + r[1] % 9, 1 + r[2] % 9) if small else (1 + r[1] % 90, 1 + r[2] % 90)
        longest = max(h, w, 3)
        limit = r[3] % (longest + 2) if r[4] % 8 else -(r[3] % 5)
        margin = r[5] % 30 if r[6] % 4 else [-1, -3, -9, -40, 10**12, -(10**12), 1, 0][r[5] % 8]
        trigger = r[7] % longest if r[8] % 8 else longest
        mask = MASKS[r[9] % 8] if r[9] % 3 else "blobs"
        if mask == "noise" and not small:
            h, w = min(h, 24), min(w, 24)
        strategy = ["Original", "Resize", "Crop", "Crop", "Resize", "crop"][r[10] % 6]
        rule = RULES[r[11] % 6]
        inpaint(
            PICTURES[r[12] % 3], mask, FAKES[r[13] % 2], seed, h, w, strategy, limit, trigger, margin, *rule
        )
    for seed, side in enumerate([511, 512, 513]):
        for strategy in ["Original", "Resize", "Crop"]:
            for mask in ["blobs", "border"]:
                args = (side, 514 - seed, strategy, 200, 500, 33, 8, 0, 0)
                inpaint("hard", mask, "edge", seed, *args)
                inpaint("noise", mask, "sum", seed, *args)
    # Few crops of a larger picture, some of them overlapping.
    for seed in range(80):
        r = [int(v >> np.uint64(33)) for v in mix(seed + 7000, 8)]
        args = (50 + r[0] % 30, 50 + r[1] % 30, "Crop", 0, 20, 2 + r[2] % 8, [1, 8][r[3] % 2], 0, 0)
        inpaint("noise", "blobs", "sum", seed, *args)
    # Sides under 3, where upstream's longest "side" is the number of channels.
    for seed in range(48):
        strategy = ["Resize", "Crop"][seed % 2]
        inpaint(
            "noise",
            "full",
            "sum",
            seed,
            1 + seed // 2 % 2,
            1 + seed // 4 % 2,
            strategy,
            *[seed // 8] * 2,
            0,
            8,
            0,
            0,
        )
    inpaint("smooth", "blobs", "sum", 5, 37, 300, "Original", 0, 0, 0, 512, 1, 512)


def suite_pad() -> None:
    for seed in range(60):
        r = [int(v >> np.uint64(33)) for v in mix(seed + 9000, 8)]
        h, w = 1 + r[0] % 20, 1 + r[1] % 20
        modulo = [1, 2, 5, 8, 16, 64, 100][r[2] % 7]
        square, least = r[3] % 2, modulo * (r[4] % 4)
        padded = pad_img_to_modulo(picture("noise", seed, h, w), modulo, bool(square), least or None)
        emit("pad", seed, h, w, modulo, square, least, *padded.shape[:2], digest(padded))


def suite_resize() -> None:
    sides = [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 64, 100, 257]
    for seed in range(240):
        r = [int(v >> np.uint64(33)) for v in mix(seed + 12000, 8)]
        h, w, to_h, to_w = (sides[v % 13] for v in r[:4])
        kind = PICTURES[r[4] % 3]
        image = picture(kind, seed, h, w)
        grey = np.ascontiguousarray(image[:, :, 0])
        size = {"dsize": (to_w, to_h), "interpolation": cv2.INTER_CUBIC}
        real = (mix(seed, h * w * 3) >> np.uint64(20)).astype(np.float64).reshape(h, w, 3) / 1e10 - 300
        real += image
        hashes = [digest(cv2.resize(one, **size)) for one in (image, grey, real)]
        emit("resize", kind, seed, h, w, to_h, to_w, *hashes)
    # Where float32 and fixed point part: some ten samples per million.
    for seed, (h, w, to_h, to_w) in enumerate(
        [(1500, 9, 1100, 5), (1200, 40, 900, 23), (900, 300, 700, 200)]
    ):
        image = picture("noise", seed, h, w)
        emit(
            "tall",
            seed,
            h,
            w,
            to_h,
            to_w,
            digest(cv2.resize(image, (to_w, to_h), interpolation=cv2.INTER_CUBIC)),
        )


def suite_boxes() -> None:
    for seed in range(600):
        r = [int(v >> np.uint64(33)) for v in mix(seed + 20000, 8)]
        h, w = 1 + r[0] % (9 if seed % 3 == 0 else 40), 1 + r[1] % (9 if seed % 3 == 0 else 40)
        kind = ["noise", "noise", "noise", "blobs", "rings", "grey", "border", "full"][r[2] % 8]
        margin = [0, 1, 2, 5, 128, -1, -2, 3, 7, -5, -30, -(10**6)][r[3] % 12]
        mask = mask_of(kind, seed, h, w)
        config = Config(
            ldm_steps=1, hd_strategy="Crop", hd_strategy_resize_limit=0,
            hd_strategy_crop_trigger_size=0, hd_strategy_crop_margin=margin,
        )  # fmt: skip
        boxes = boxes_from_mask(mask)
        index = np.arange(h)[:, None] * 65536 + np.arange(w)[None, :]
        crops = []
        for box in boxes:
            # The content of the slice, also with negative ends.
            _, held, _ = Fake("sum", 8, False, None)._crop_box(np.zeros((h, w, 3)), index, box, config)
            held = held.reshape(-1)
            crops += [int(held[0]), int(held[-1])] if held.size else [0, 1 << 40]
        flat = np.array([int(v) for box in boxes for v in box])
        emit("boxes", kind, seed, h, w, margin, len(boxes), digest(flat), digest(np.array(crops)))


def suite_arithmetic() -> None:
    """All masks against all values, the cast, and the tensors, as few hashes."""
    m, v = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    m, v = m.astype(np.uint8), v.astype(np.uint8)
    other = (v.astype(np.int64) * 7 + m + 3 & 255).astype(np.uint8)
    for name, result in (("same", v), ("other", other)):
        blended = result * (m / 255) + v * (1 - (m / 255))
        emit("blend", name, digest(blended), digest(blended.astype(np.uint8)))
    bits = mix(77, 4000)
    wild = bits.view(np.float64)
    mild = (bits >> np.uint64(11)).astype(np.float64) / 2**40 - 4000
    edge = np.array(
        [-0.5, -1, -3.2, 255.99, 256.7, 300.2, np.nan, np.inf, -np.inf, 5e9, -0.0, 2**31 - 1, -(2**31)]
    )
    with np.errstate(invalid="ignore"):
        emit("cast", digest(np.concatenate([wild, mild, edge]).astype(np.uint8)))
    image, mask = picture("noise", 3, 40, 33), mask_of("grey", 3, 40, 33)
    tensor = torch.from_numpy(norm_img(image)).unsqueeze(0)
    ints = torch.from_numpy((norm_img(mask) > 0) * 1).unsqueeze(0)
    assert (tensor.dtype, ints.dtype) == (torch.float32, torch.int64)
    emit("tensor", digest(tensor.contiguous().numpy().view(np.uint32)), digest(ints.contiguous().numpy()))
    raw = mix(78, 3 * 40 * 33)
    answer = ((raw >> np.uint64(40)).astype(np.float32) / np.float32(1 << 22) - np.float32(1)).reshape(
        1, 3, 40, 33
    )
    answer.reshape(-1)[:5] = [np.nan, np.inf, -np.inf, 1.0, -0.0]
    every = (np.arange(256, dtype=np.float32) / np.float32(255)).repeat(3)
    for name, one in (("wild", answer), ("every", every.reshape(1, 3, 16, 16))):
        out = torch.from_numpy(one)[0].permute(1, 2, 0).detach().cpu().numpy()
        with np.errstate(invalid="ignore"):
            out = np.clip(out * 255, 0, 255).astype("uint8")
        emit("answer", name, digest(cv2.cvtColor(out, cv2.COLOR_RGB2BGR)))
    small = cv2.resize(picture("noise", 1, 4, 5), (3, 2), interpolation=cv2.INTER_CUBIC)
    emit("raw", *small.reshape(-1))
    emit("rawpad", *pad_img_to_modulo(mask_of("grey", 2, 2, 3), 8).reshape(-1))


if __name__ == "__main__":
    cv2.ipp.setUseIPP(False)
    logger.remove()
    np.seterr(over="ignore")
    for suite in (suite_inpaint, suite_pad, suite_resize, suite_boxes, suite_arithmetic):
        suite()
    Path(__file__).with_name("cases.txt").write_text("\n".join(LINES) + "\n")
    print(len(LINES), "cases")
