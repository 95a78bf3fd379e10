"""Cables that are pulled: what is sent is lost without a word, for a while. X8."""

from __future__ import annotations

import time

import numpy as np
import pytest

from grids.pictures import hole
from net.conftest import Grid
from net.hosts import Network

pytestmark = pytest.mark.timeout(600)

PHOTO = np.random.default_rng(4).integers(0, 256, (400, 600, 3), np.uint8)
MASK = hole(400, 600, 100, 100, 40)
CUTS = 10
CUT_S = (0.5, 1.5, 3.0, 5.0)
BACK_S = 5.0


def test_a_cut_shorter_than_the_lease_costs_no_second_attempt(
    grid: Grid, network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    """The work goes on meanwhile; the node is back soon after the cable is."""
    host = network.host("far")
    node = grid.join(host, grid.bundle("gpu-1"), "--backend", "echo", "--model", "lama")
    grid.wait_ready("gpu-1", node)
    backs, second_attempts = [], 0
    for number in range(CUTS):
        cut_s = CUT_S[number % len(CUT_S)]
        task = grid.client.submit(PHOTO, MASK, model="lama", echo_ms=int(cut_s * 1_000) + 500)
        grid.wait_begun(task)
        host.cut()
        time.sleep(cut_s)  # the cut itself
        host.mend()
        backs.append(grid.wait_heard("gpu-1", node))
        assert np.array_equal(task.wait(60), PHOTO)
        second_attempts += task.status()["counters"]["attempts"] - 1
        grid.wait_ready("gpu-1", node)
    with capsys.disabled():
        told = ", ".join(f"{back:.1f}" for back in sorted(backs))
        print(f"\ncuts: {CUTS}, second attempts {second_attempts}, back after {told} s")
    assert second_attempts == 0
    assert max(backs) <= BACK_S
