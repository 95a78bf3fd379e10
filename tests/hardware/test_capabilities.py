"""`lamagrid-node capabilities` (P4.1): GPUs and faults of a driver, and the file that people edit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tomllib

from .conftest import NODE, Driver, capabilities, gpu

GIB = 1 << 30


def shown(found: dict[str, Any]) -> list[tuple[str, float]]:
    """Device and memory in GiB of each GPU."""
    return [(each["device"], each["memory_bytes"] / GIB) for each in found["gpus"]]


@pytest.mark.parametrize(("count", "memory_gib"), [(1, 80), (2, 40), (4, 24), (8, 4)])
def test_every_gpu_is_listed_with_its_memory(driver: Driver, count: int, memory_gib: int) -> None:
    driver.write(*(gpu(number, memory_gib) for number in range(count)))
    found = capabilities(driver)
    print(f"{count} GPUs of {memory_gib} GiB: {shown(found)}")
    assert shown(found) == [(f"cuda:{number}", memory_gib) for number in range(count)]
    assert {each["name"] for each in found["gpus"]} == {f"NVIDIA H{memory_gib}"}
    assert found["remarks"] == []
    assert found["cpu"]["cores"] >= 1
    assert found["cpu"]["memory_bytes"] > 0


def test_instances_and_lost_gpus(driver: Driver) -> None:
    driver.write(
        gpu(0, 80, "mig"),
        "instance MIG-11111111 H80_MIG_3g.40gb 40960 0",
        "instance MIG-22222222 H80_MIG_1g.10gb 10240 0",
        gpu(1, 80, "mig"),
        gpu(2, 48, "lost"),
        gpu(3, 24),
    )
    found = capabilities(driver)
    print(f"MIG: {shown(found)}")
    assert shown(found) == [("cuda:0:0", 40), ("cuda:0:1", 10), ("cuda:3", 24)]
    remarks = [each["text"] for each in found["remarks"]]
    print("\n".join(remarks))
    assert len(remarks) == 2
    assert "GPU 1 (NVIDIA H80) is in MIG mode without an instance" in remarks[0]
    assert "GPU 2 is left out: it has fallen off the bus" in remarks[1]
    visible = {"CUDA_VISIBLE_DEVICES": "MIG-22,GPU-3,9"}
    found = capabilities(driver, env=visible)
    assert shown(found) == [("cuda:0:1", 10), ("cuda:3", 24)]
    assert "entry `9` is too high: this host has 4 GPUs" in found["remarks"][-1]["text"]


@pytest.mark.parametrize(
    ("flags", "state", "text"),
    [
        ((), "init 9", "its kernel module is not loaded"),
        (("-DWITHOUT_INIT",), "", "undefined symbol: nvmlInit_v2"),
        (("-DWITHOUT_MEMORY",), gpu(0, 24), "GPU 0 (GPU-00000000-aaaa) is left out: its library lacks"),
    ],
)
def test_a_broken_driver_is_a_warning(tmp_path: Path, flags: tuple[str, ...], state: str, text: str) -> None:
    driver = Driver(tmp_path / "broken", *flags)
    driver.write(state)
    found = capabilities(driver)
    print(found["remarks"])
    assert found["gpus"] == []
    assert [each["severity"] for each in found["remarks"]] == ["warning"]
    assert text in found["remarks"][0]["text"]


def test_a_file_is_written_edited_and_used(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, 80), gpu(1, 40))
    path = tmp_path / "node.toml"
    whole = {**os.environ, **driver.env}
    command = [NODE, "capabilities", "--write", path]
    done = subprocess.run(command, env=whole, capture_output=True, text=True, check=True)
    print(done.stdout)
    assert "cuda:1" in done.stdout
    assert "NVIDIA H40, 40.0 GiB" in done.stdout
    written = tomllib.loads(path.read_text())
    assert [each["id"] for each in written["gpus"]] == ["GPU-00000000-aaaa", "GPU-10000000-aaaa"]
    found = capabilities(driver)
    assert capabilities(driver, "--capabilities", path) == found
    again = subprocess.run(command, env=whole, capture_output=True, text=True, check=False)
    assert again.returncode == 78
    assert "remove an older file first" in again.stderr
    edited = path.read_text().replace("labels = []", 'labels = ["lab-2"]')
    edited = edited.replace("memory_mib = 40960\nuse = true", "memory_mib = 8192\nuse = false")
    path.write_text(edited)
    narrowed = capabilities(driver, "--capabilities", path)
    assert narrowed["labels"] == ["lab-2"]
    assert shown(narrowed) == [("cuda:0", 80), ("cuda:1", 8)]
    assert [each["in_use"] for each in narrowed["gpus"]] == [True, False]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("memroy = 1", "unknown field `memroy`"),
        ("[[gpus]]\nid = 'GPU-00000000-aaaa'\nmemory_mib = 99999", "`gpus[0].memory_mib`"),
        ("[cpu]\nmemory_mib = 'all'", "line 2, column 14 (`memory_mib = 'all'`)"),
        ("labels = [", "line 1"),
        ("leave_out = ['lama']", "`leave_out`"),
    ],
)
def test_nonsense_in_a_file_is_refused_before_the_node_starts(
    driver: Driver, tmp_path: Path, text: str, key: str
) -> None:
    driver.write(gpu(0, 24))
    path = tmp_path / "node.toml"
    path.write_text(text)
    command = [NODE, "--backend", "echo", "--model", "lama", "--data-dir", tmp_path, "--capabilities", path]
    done = subprocess.run(
        command, env={**os.environ, **driver.env}, capture_output=True, text=True, timeout=30, check=False
    )
    print(done.stderr.strip())
    assert done.returncode == 78
    assert key in done.stderr
    assert "write" in done.stderr or "line 1" in done.stderr or "remove one" in done.stderr
