"""The measurements can be started; what they measure is `make bench`'s to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.parametrize("name", ["run", "tasks", "gate", "web_load", "models", "gpu_check"])
def test_a_measurement_has_all_that_it_imports(name: str) -> None:
    command = [sys.executable, str(BENCH / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
