"""The functions that requests are made of, one by one: upstream's own in this process against the crate's.

`pytest tests/pure --cases 50000` makes that many calls, `--case inpaint:137` one of them alone.
"""

from __future__ import annotations

import importlib
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pure import arithmetic, pictures
from pure.arithmetic import Draw
from pure.door import REFUSED, Door

SEED = 20231122
ALL = 50_000
SHOWN = 60

SHARES: dict[str, tuple[Draw, int]] = {
    "pad": (arithmetic.pad, 9),
    "pad_mask": (arithmetic.pad_mask, 5),
    "boxes_from_mask": (arithmetic.boxes, 11),
    "crop_box": (arithmetic.crop_box, 10),
    "resize_cubic": (arithmetic.resize, 8),
    "resize_cubic_mask": (arithmetic.resize_mask, 6),
    "resize_cubic_f64": (arithmetic.resize_float, 5),
    "blend_f64": (arithmetic.blend, 5),
    "wrap_to_u8": (arithmetic.wrap, 5),
    "rgb_to_nchw_f32": (arithmetic.to_tensor, 3),
    "mask_to_i64": (arithmetic.to_mask_tensor, 2),
    "nchw_f32_to_rgb": (arithmetic.from_tensor, 4),
    "rgb_to_gray_f32": (arithmetic.to_gray, 2),
    "gray_nchw_to_rgb": (arithmetic.from_gray, 2),
    "inpaint": (arithmetic.inpaint, 8),
    "probe": (pictures.probe, 2),
    "decode": (pictures.decode, 7),
    "decode_mask": (pictures.decode_mask, 4),
    "encode": (pictures.encode, 2),
}
"""Each function with its part of a hundred calls."""


@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")  # Pillow's about damaged files; upstream goes on after them
def test_functions(program: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]) -> None:
    """X2: every answer is upstream's, to the last bit."""
    import cv2

    cv2.ipp.setUseIPP(False)  # closed code whose resize differs in the last bit
    importlib.import_module("loguru").logger.disable("lama_cleaner")
    wanted = [named.rpartition(":")[::2] for named in pytestconfig.getoption("--case")]
    count = pytestconfig.getoption("--cases")
    calls: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    wrong: dict[str, list[str]] = {name: [] for name in SHARES}
    begin = time.monotonic()
    with Door(program) as door:
        for name, (draw, share) in SHARES.items():
            numbers = [int(number) for function, number in wanted if function == name]
            for number in numbers if wanted else range(-(-count * share // 100)):
                dice = random.Random(f"{SEED}:{name}:{number}")
                trial = draw(dice, np.random.default_rng(dice.getrandbits(64)))
                status, answer = door.ask(trial.op, trial.fields)
                calls[name] += 1
                refused[name] += trial.may_refuse and status == REFUSED
                found = trial.judge(status, answer)
                if found:
                    wrong[name].append(f"{name}:{number} {trial.description}\n    {found[:400]}")
    importlib.import_module("loguru").logger.enable("lama_cleaner")
    seconds = time.monotonic() - begin
    with capsys.disabled():
        print()
        for texts in wrong.values():
            for text in texts[:SHOWN]:
                print(text)
        for name in SHARES:
            left = f", {refused[name]} left to Pillow" if refused[name] else ""
            print(f"pure: {name:18} {calls[name]:6} calls, {len(wrong[name])} differing{left}")
        differing = sum(len(texts) for texts in wrong.values())
        print(f"pure: {calls.total()} of {ALL} calls in {seconds:.0f} s, {differing} differing")
    assert not differing, f"{differing} of {calls.total()} calls differ"
