"""JPEG files, sound and broken, read and answered: Pillow's pixels and Pillow's bytes.

`pytest tests/pure --cases 50000` takes 10,000 files, `--case jpeg:137` one of them alone.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pure import jpegs
from pure.arithmetic import Trial
from pure.door import DONE, Door, Fields

SEED = 20261129
FILES_PER_CASE = 5
SHOWN = 20


@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")  # Pillow's about damaged files
def test_jpeg_files(program: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]) -> None:
    """X2, X18: pixels and masks of JPEG files are Pillow's, broken ones too, and answers are its bytes."""
    named = [name.rpartition(":")[::2] for name in pytestconfig.getoption("--case")]
    numbers = [int(number) for function, number in named if function == "jpeg"]
    if named and not numbers:
        pytest.skip("other calls are named")
    count: Counter[str] = Counter()
    wrong: list[str] = []
    begin = time.monotonic()

    def ask(trial: Trial, number: int) -> tuple[int, bytes]:
        status, answer = door.ask(trial.op, trial.fields)
        found = trial.judge(status, answer)
        if found:
            wrong.append(f"jpeg:{number} {trial.description}\n    {found[:400]}")
        return status, answer

    with Door(program) as door:
        for number in numbers or range(pytestconfig.getoption("--cases") // FILES_PER_CASE):
            dice = random.Random(f"{SEED}:{number}")
            data, description = jpegs.file(dice, np.random.default_rng(dice.getrandbits(64)))
            count["files"] += 1
            trial, upstream = jpegs.read(data, description)
            status, answer = ask(trial, number)
            if upstream is None:
                count["refused by both"] += 1
            elif status != DONE:
                count["left to Pillow"] += 1
            else:
                count["read"] += 1
                rgb, kept = upstream
                fields = Fields(answer)
                fields.pixels(3)
                assert not fields.has(), "alpha"
                block = fields.blob() if fields.has() else None
                ask(jpegs.read_mask(data, description), number)
                ask(
                    jpegs.write(rgb, block, kept, dice.choice([95, 95, 95, 1, 30, 75, 100]), description),
                    number,
                )
    seconds = time.monotonic() - begin
    with capsys.disabled():
        print()
        for text in wrong[:SHOWN]:
            print(text)
        description = ", ".join(f"{number} {name}" for name, number in count.items())
        print(f"pure: JPEG: {description}, in {seconds:.0f} s, {len(wrong)} differing")
    assert not wrong, f"{len(wrong)} answers differ"
    if not numbers:
        assert count["read"] > count["files"] * 0.6
        assert count["refused by both"] > count["files"] * 0.05
        assert count["left to Pillow"] < count["files"] * 0.03
