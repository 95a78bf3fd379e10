"""The models of a Rust node: verified before they are offered, and in memory within a limit. R2.1."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grids.pictures import hole, plain
from grids.procfs import rss_bytes
from lamagrid import TaskClient
from lamagrid.errors import LamaGridError
from models.conftest import torch_grid
from stock.models import heavy_lama, tiny_lama

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20
SIZE_MIB = 100
BUDGET_MIB = 300
"""Room for two of the models, and for what libtorch needs besides when it loads its first one."""
SLACK_MIB = 60
"""For pictures, and for memory that the allocator keeps."""
TASKS = 40
NAMES = ("one", "two", "three")
IMAGE = plain(64, 80)
MASK = hole(64, 80, 10, 10, 30)
ANSWER_S = 120.0
REPAIR_S = 6.0


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of which two fit, one that never fits, one that is cut off, and one that is not there."""
    folder = tmp_path_factory.mktemp("heavy")
    paths = {name: heavy_lama(folder / f"{name}.pt", SIZE_MIB, level) for level, name in enumerate(NAMES, 1)}
    paths["huge"] = folder / "huge.pt"
    with paths["huge"].open("wb") as file:
        file.truncate((BUDGET_MIB + 1) * MIB)
    whole = tiny_lama(folder).read_bytes()
    paths["cut"] = folder / "cut.pt"
    paths["cut"].write_bytes(whole[: len(whole) // 2])
    (folder / "whole.pt").write_bytes(whole)
    paths["gone"] = folder / "gone.pt"
    file_ = folder / "config.toml"
    sections = [f'[models.{name}]\npath = "{path}"' for name, path in paths.items()]
    file_.write_text("\n".join([f"[node]\nmemory_mib = {BUDGET_MIB}", *sections]))
    return file_


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def client(configuration: Path, folder: Path) -> Iterator[TaskClient]:
    with torch_grid(folder, [*NAMES, "huge", "cut", "gone"], {"LAMAGRID_CONFIG": str(configuration)}) as made:
        yield made


def the_node(client: TaskClient) -> Any:
    """The registration of the only node; it is away for a moment while it registers again."""
    end = time.monotonic() + ANSWER_S
    while not (nodes := client.survey()["nodes"]):
        assert time.monotonic() < end
        time.sleep(0.02)
    return nodes[0]["info"]


def offered(client: TaskClient) -> set[str]:
    return {offer["model"] for offer in the_node(client)["models"]}


def wait_for(client: TaskClient, models: set[str], seconds: float) -> None:
    """Wait until the node offers these models."""
    end = time.monotonic() + seconds
    while offered(client) != models:
        assert time.monotonic() < end, the_node(client)
        time.sleep(0.05)


def test_only_models_that_were_verified_are_offered_and_a_repaired_one_follows(
    client: TaskClient, configuration: Path, folder: Path
) -> None:
    wait_for(client, set(NAMES), 60.0)
    withheld = {each["model"]: each["reason"] for each in the_node(client)["withheld"]}
    assert set(withheld) == {"huge", "cut", "gone"}
    assert f"model huge needs {BUDGET_MIB + 1} MiB, but its node may use {BUDGET_MIB} MiB" in withheld["huge"]
    # A long reason is cut; the node's log has all of it.
    assert f"{configuration.parent / 'cut.pt'} is not a" in withheld["cut"]
    assert f"there is no file {configuration.parent / 'gone.pt'}" in withheld["gone"]
    sizes = {offer["model"]: offer["memory_bytes"] for offer in the_node(client)["models"]}
    assert all(SIZE_MIB * MIB <= size < 2 * SIZE_MIB * MIB for size in sizes.values()), sizes
    # The next start need not check them again.
    recorded = (folder / "data" / "verified-models").read_text()
    assert all(f" load {configuration.parent / name}.pt\n" in recorded for name in NAMES)
    for name in ("cut", "gone"):
        new = configuration.parent / f"{name}.new"
        new.write_bytes((configuration.parent / "whole.pt").read_bytes())
        new.rename(new.with_suffix(".pt"))
    wait_for(client, {*NAMES, "cut", "gone"}, REPAIR_S)
    assert client.inpaint(IMAGE, MASK, model="cut", timeout=ANSWER_S).shape == IMAGE.shape


def test_models_leave_least_recently_used_and_memory_stays_bounded(client: TaskClient) -> None:
    """Each load is needed: as many as a list of the two models that were used last has misses."""
    rng = np.random.default_rng(3)
    pid = the_node(client)["pid"]
    for name in NAMES[:2]:
        client.inpaint(IMAGE, MASK, model=name, timeout=ANSWER_S)
    recent, misses, loads, highest = list(NAMES[:2]), 0, 0, 0
    lowest = rss_bytes(pid)
    for name in rng.choice(NAMES, TASKS):
        task = client.submit(IMAGE, MASK, model=str(name))
        result = task.wait(ANSWER_S)
        assert (result[MASK > 0] == NAMES.index(name) + 1).all(), "another model's answer"
        loads += task.status()["stages"]["load_ms"] > 0
        misses += name not in recent
        recent = [*(each for each in recent if each != name), str(name)][-2:]
        now = rss_bytes(pid)
        highest, lowest = max(highest, now), min(lowest, now)
    print(f"{TASKS} tasks, {loads} loads, resident {lowest // MIB} to {highest // MIB} MiB")
    assert loads == misses
    assert highest - lowest < (SIZE_MIB + SLACK_MIB) * MIB, "the memory of a model that left went back"


def test_a_model_that_cannot_fit_is_refused(client: TaskClient) -> None:
    with pytest.raises(LamaGridError):
        client.inpaint(IMAGE, MASK, model="huge", timeout=3.0)
    assert client.inpaint(IMAGE, MASK, model="one", timeout=ANSWER_S).shape == IMAGE.shape
