"""Bounds of a client with a certificate: grants, room, priority and memory. X12, X13"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostile.conftest import Grid
from hostile.honest import Honest
from hostile.speaker import ACCEPTED, REFUSED, SEND, STATUS, UNKNOWN, Client, new_id
from stock.processes import Processes

pytestmark = pytest.mark.timeout(120)

SPOOL_BYTES = 20_000_000
OWNER_BYTES = 12_000_000
OWNER_TASKS = 20
CANCELS = 50_500
SETTINGS = (
    f"limits.max_spool_bytes={SPOOL_BYTES}",
    f"limits.max_owner_bytes={OWNER_BYTES}",
    f"limits.max_client_bytes={OWNER_BYTES}",
    f"limits.max_owner_tasks={OWNER_TASKS}",
    "limits.max_client_tasks=5",
)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """One with little room."""
    folder = tmp_path_factory.mktemp("admission")
    processes = Processes(folder / "logs")
    try:
        yield Grid(processes, folder, settings=SETTINGS)
    finally:
        processes.close()


@pytest.fixture(scope="module", autouse=True)
def flat(grid: Grid, honest: Honest) -> Iterator[None]:
    """The scheduler stays up and small, and the honest client is served."""
    before = grid.rss_mb()
    yield
    honest.wait(20)
    growth = grid.rss_mb() - before
    print(f"\nadmission: {growth:+.1f} MB; honest {honest.done}, slowest {honest.slowest_s:.2f} s")
    assert grid.scheduler.poll() is None, grid.processes.log(grid.scheduler)
    assert not honest.wrong
    assert honest.slowest_s < 5
    assert growth < 64


@pytest.fixture
def bad(grid: Grid) -> Iterator[Client]:
    """The one that takes."""
    with Client(grid.address, grid.bundles["client"], "bad-client") as client:
        yield client


@pytest.fixture(scope="module")
def victim_bundle(grid: Grid) -> Path:
    """Of a client that does nothing wrong."""
    return grid.bundle("victim", role="client")


@pytest.fixture
def victim(grid: Grid, victim_bundle: Path) -> Iterator[Client]:
    """A client that does nothing wrong."""
    with Client(grid.address, victim_bundle, "victim") as client:
        yield client


def stored(grid: Grid, task: bytes) -> dict[str, int]:
    """The lengths of a task's files in the spool."""
    folder = grid.data_dir / "spool" / task.hex()[:2] / task.hex()
    files = folder.iterdir() if folder.exists() else iter(())
    return {file.name: file.stat().st_size for file in files}


def all_stored(grid: Grid) -> int:
    """Bytes in the spool."""
    total = 0
    for file in (grid.data_dir / "spool").rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def test_a_grant_is_for_one_id_and_one_size(grid: Grid, honest: Honest, bad: Client) -> None:
    """Two offers of one number: each has its own id and size."""
    small, large, huge = new_id(), new_id(), new_id()
    bad.say(bad.offer(small, 10), bad.offer(large, 3_000_000), bad.offer(huge, 10**18))
    assert [bad.receive()[0] for _ in range(3)] == [SEND, SEND, REFUSED]
    assert "10 are allowed" in bad.bring(small, "image", bytes(11))
    assert bad.bring(small, "image", bytes(10)).startswith("welcome")
    assert "its other blobs have 10" in bad.bring(small, "mask", b"x")
    assert bad.bring(large, "image", bytes(3_000_000)).startswith("welcome")
    assert "not yours" in bad.bring(huge, "image", b"x")
    assert stored(grid, small) == {"image": 10}
    bad.say(bad.cancel(small), bad.cancel(large))
    assert [bad.receive()[0] for _ in range(2)] == [UNKNOWN, UNKNOWN]
    honest.wait()


def test_uploads_of_another_owner_stay(grid: Grid, honest: Honest, bad: Client, victim: Client) -> None:
    task = new_id()
    assert victim.ask(*victim.offer(task, 1_000))[0] == SEND
    assert victim.bring(task, "image", b"v" * 1_000).startswith("welcome")
    kind, said = bad.ask(*bad.offer(task, 1_000))
    assert kind == REFUSED
    assert "in use" in str(said["failure"])
    assert "not yours" in bad.bring(task, "image", b"b" * 1_000)
    assert bad.ask(*bad.cancel(task))[0] == UNKNOWN
    assert bad.ask(*bad.submit(task))[0] == REFUSED
    assert stored(grid, task) == {"image": 1_000}
    assert victim.ask(*victim.cancel(task))[0] == UNKNOWN
    grid.wait(lambda: not stored(grid, task), "the upload to be deleted")
    honest.wait()


def test_uploads_count_before_they_are_submitted(grid: Grid, honest: Honest, bad: Client) -> None:
    """An offer reserves its room, and uploads stay within it."""
    before = all_stored(grid)
    tasks = [new_id() for _ in range(40)]
    let_in = [task for task in tasks if bad.ask(*bad.offer(task, 2_500_000, client=task.hex()))[0] == SEND]
    assert len(let_in) == OWNER_BYTES // 2_500_000
    for task in let_in:
        for role in ("image", "mask", "example"):
            bad.bring(task, role, bytes(2_500_000))
            bad.bring(task, role, bytes(2_500_000))
    assert all_stored(grid) - before < OWNER_BYTES + 5_000_000, "the honest client's own, too"
    honest.wait(5)
    for task in let_in:
        assert bad.ask(*bad.cancel(task))[0] == UNKNOWN
    last = new_id()
    assert bad.ask(*bad.offer(last, 2_500_000))[0] == SEND, "there is room again"
    bad.ask(*bad.cancel(last))
    honest.wait()


def test_names_and_priorities_gain_nothing(grid: Grid, honest: Honest, bad: Client) -> None:
    """A client's names and priorities are bounded by its certificate."""
    tasks = [new_id() for _ in range(30)]
    # No node has that model: they wait for one.
    for number, task in enumerate(tasks):
        bad.say(bad.submit(task, model="manga", client=f"name-{number}"))
    kinds = [bad.receive()[0] for _ in tasks]
    assert kinds == [ACCEPTED] * OWNER_TASKS + [REFUSED] * 10
    kind, said = bad.ask(*bad.submit(new_id(), priority=127))
    assert kind == REFUSED
    assert "limits.max_remote_priority" in str(said["failure"])
    honest.wait(5)
    bad.say(*(bad.cancel(task) for task in tasks))
    assert {bad.receive()[0] for _ in tasks} == {STATUS, UNKNOWN}


def test_cancels_push_out_only_own_memory(grid: Grid, honest: Honest, bad: Client, victim: Client) -> None:
    """A task that was cancelled before its submission does not run, however many cancels follow."""
    theirs, own = new_id(), new_id()
    assert victim.ask(*victim.cancel(theirs))[0] == UNKNOWN
    assert bad.ask(*bad.cancel(own))[0] == UNKNOWN
    left = CANCELS
    while left > 0:
        count = min(500, left)
        bad.say(*(bad.cancel(new_id()) for _ in range(count)))
        assert {bad.receive()[0] for _ in range(count)} == {UNKNOWN}
        left -= count
    kind, said = victim.ask(*victim.submit(theirs))
    assert (kind, said.get("expired")) == (UNKNOWN, True)
    kind, said = bad.ask(*bad.submit(own))
    assert kind in (REFUSED, UNKNOWN)
    assert "expired" in str(said)
    # Nor is anything new taken for old.
    assert victim.ask(*victim.submit(new_id()))[0] == ACCEPTED
    honest.wait(5)


def test_the_refusal_of_an_id_of_a_wrong_clock_names_both_clocks(bad: Client) -> None:
    kind, said = bad.ask(*bad.submit(bytes(range(200, 216))))
    assert kind == REFUSED
    assert "in the future" in str(said["failure"])
    assert "NTP" in str(said["failure"])
