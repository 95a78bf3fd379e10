"""`make chaos` takes fifty minutes, so that a mistake in what it runs must show before."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest

import chaos


@pytest.mark.parametrize("options", [chaos.ROUNDS, chaos.UNREAD, chaos.CUTS, chaos.FAULTS])
def test_what_chaos_runs_is_collected(options: Sequence[str]) -> None:
    command = (*chaos.PYTEST, "--collect-only", *options)
    done = subprocess.run(command, cwd=chaos.ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2_000:]
