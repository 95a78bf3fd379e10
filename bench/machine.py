"""The machine and the versions that figures belong to."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

BUSY_SHARE = 0.25
"""Of the cores, by the load average: above it other programs disturb the figures."""


def machine() -> dict[str, str]:
    """The machine and the software versions, by name."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }


def disturbance() -> str | None:
    """A sentence when other programs keep the processor busy, else None."""
    busy, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if busy <= cores * BUSY_SHARE:
        return None
    return (
        f"the load average is {busy:.1f} on {cores} cores: other programs run, expect noise in every figure"
    )


def versions(*packages: str) -> dict[str, str]:
    """Of Python, the packages, this project and the compiler; one that is not here is left out."""
    found = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    try:
        from lamagrid import _native

        found["lamagrid"] = _native.__version__
    except ImportError:
        pass
    try:
        told = subprocess.run(["rustc", "--version"], capture_output=True, text=True, timeout=30, check=False)
        if told.returncode == 0:
            found["rustc"] = told.stdout.split()[1]
    except (OSError, subprocess.TimeoutExpired):
        pass
    return found
