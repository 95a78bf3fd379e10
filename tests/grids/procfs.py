"""Facts about processes from /proc."""

from __future__ import annotations

import os
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def parents() -> dict[int, int]:
    """The parent of each living process."""
    table = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in parentheses may hold anything, also spaces.
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # ended meanwhile
            if state != "Z":
                table[int(entry.name)] = int(parent)
    return table


def descendants(pid: int) -> list[int]:
    """The living children of a process, their children, and so on."""
    table = parents()
    found = [pid]
    for parent in found:
        found += [child for child, of in table.items() if of == parent]
    return found[1:]


def started_at(pid: int) -> str | None:
    """When a living process started, which tells it from a later one of the same number; None if it ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def command(pid: int) -> str:
    """The command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def peak_megabytes(pid: int) -> float:
    """The most memory that a process had resident at a time, in MB (10^6 bytes); shared pages count."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def rss_bytes(pid: int) -> int:
    """The memory that a process has resident now; shared pages count."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    """The processor time that a process spent so far, in user and kernel, by all its threads.

    Its children do not count. Of the resolution of the kernel's clock tick, mostly 10 ms.
    """
    # The name in parentheses may hold anything, also spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
