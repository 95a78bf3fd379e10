"""The list of certificates is gone or damaged, or allows less than before. R4.3, R7.1"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from grids.server import BIN
from hostile.conftest import Grid
from hostile.honest import Honest
from hostile.peers import channel
from hostile.speaker import Speaker

pytestmark = pytest.mark.timeout(120)

PING, PONG = 0x0101, 0x0201
# The scheduler looks once a second; that and a slow machine.
NOTICED_S = 3.0
# Connections that one look at the list ends are ended together.
AT_ONCE_S = 0.3


def _said(grid: Grid, bundle: Path, name: str = "client") -> str:
    connection, said = channel(grid.address, bundle, name)
    connection.close()
    return said


def _wait_said(grid: Grid, bundle: Path, text: str, name: str = "client") -> None:
    end = time.monotonic() + NOTICED_S
    while text not in (said := _said(grid, bundle, name)):
        assert time.monotonic() < end, said
        time.sleep(0.05)


def _doctor(grid: Grid) -> str:
    env = {**os.environ, "LAMAGRID__GATE__LISTEN": f"{grid.address[0]}:{grid.address[1]}"}
    command = [BIN / "lamagrid", "doctor", "--output", "json", "--data-dir", grid.data_dir]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    return str({found["check"]: found["what"] for found in json.loads(done.stdout)}["certificates"])


@pytest.fixture(scope="module")
def revoked(grid: Grid, turn: int) -> Path:
    """The bundle of a revoked client. A revoked name is not issued again, so each round has its own."""
    name = f"revoked-{turn}"
    bundle = grid.bundle(name, role="client")
    grid.certs("revoke", name)
    _wait_said(grid, bundle, f"the certificate {name} was revoked")
    return bundle


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "another text"])
def test_without_a_ledger_nothing_new_is_let_in_and_nothing_revoked_comes_back(
    grid: Grid, honest: Honest, revoked: Path, damage: str
) -> None:
    ledger = grid.data_dir / "certs" / "issued.json"
    whole = ledger.read_bytes()
    with Speaker(grid.address, grid.bundles["client"], "client") as standing:
        assert standing.ask(PING, {"seq": 1})[0] == PONG
        if damage == "gone":
            ledger.unlink()
        else:
            ledger.write_bytes({"empty": b"", "cut": whole[:-20], "another text": b"{}"}[damage])
        for bundle in (revoked, grid.bundles["client"]):
            _wait_said(grid, bundle, "the scheduler cannot read its list of certificates")
        assert standing.ask(PING, {"seq": 2})[0] == PONG, "what was allowed stays connected"
        assert "so none is valid: put a backup in its place" in _doctor(grid)
        assert "the gate lets in no new connection" in grid.processes.log(grid.scheduler)
        ledger.write_bytes(whole)
        _wait_said(grid, grid.bundles["client"], "welcome ")
        assert f"the certificate {revoked.stem} was revoked" in _said(grid, revoked)
        assert standing.ask(PING, {"seq": 3})[0] == PONG
    honest.wait()


def test_a_certificate_that_may_do_less_ends_the_older_one(grid: Grid, honest: Honest, turn: int) -> None:
    """Within a second or so, as a revocation does; one that may do as much leaves it.

    A revocation that is written behind that one tells when the scheduler has read both.
    """
    worker, leaver = f"worker-{turn}", f"another-leaver-{turn}"
    leaving_bundle = grid.bundle(leaver, role="node")
    older = grid.bundle(worker, role="node").read_bytes()
    bundle = grid.folder / "older.bundle"
    bundle.write_bytes(older)
    with Speaker(grid.address, bundle, "control") as standing:
        with Speaker(grid.address, leaving_bundle, "control") as leaving:
            grid.certs("issue", "--role", "node", "--name", worker)
            grid.certs("revoke", leaver)
            assert leaving.is_closed(NOTICED_S)
        assert not standing.is_closed(AT_ONCE_S)
        grid.certs("issue", "--role", "node", "--name", worker, "--queue", "cpu")
        assert standing.is_closed(NOTICED_S)
    said = _said(grid, bundle, "control")
    refusal = f"refused invalid_input this certificate of the name {worker} is not in the scheduler's list"
    assert refusal in said
    newer = grid.folder / "newer.bundle"
    where = f"{grid.address[0]}:{grid.address[1]}"
    grid.certs("bundle", worker, "--scheduler", where, "--out", newer)
    assert _said(grid, newer, "control").startswith("welcome ")


def test_a_revocation_ends_open_connections(grid: Grid, honest: Honest, turn: int) -> None:
    leaver = f"leaver-{turn}"
    bundle = grid.bundle(leaver, role="client")
    with Speaker(grid.address, bundle, "client") as standing:
        assert standing.ask(PING, {"seq": 1})[0] == PONG
        grid.certs("revoke", leaver)
        assert standing.is_closed(NOTICED_S)
    honest.wait()
