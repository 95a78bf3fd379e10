"""A hundred clients for a minute, stock and then the grid; rates, times, errors, memory.

Prints a table and writes ``target/bench-web-load.json``. Returns 1 if the grid answered an error or grew.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from grids import procfs
from machine import machine
from networks import write_inverse
from pictures import brush_stroke, encoded, photo
from servers import ROOT, Running, pair
from stats import figure, quantile
from traffic import load, upload

OUT = ROOT / "target" / "bench-web-load.json"
SETTLED_S = 10
GROWTH_MB = 20.0
"""The most that the grid may have grown between the first seconds and the end."""


def resident(server: Running) -> dict[str, float]:
    """MB of the process that serves the page, and it with all its children; shared pages count each time."""
    all_of_it = [server.pid, *procfs.descendants(server.pid)]
    sizes = [procfs.rss_bytes(pid) / 1e6 for pid in all_of_it]
    return {"web": sizes[0], "all": sum(sizes)}


def run_clients(server: Running, clients: int, seconds: float) -> dict[str, float]:
    """The work of one server."""
    requests = [
        upload(encoded(photo(512, 512), form), brush_stroke(512, 512), hdStrategy="Crop")
        for form in ("PNG", "JPEG")
    ]
    load(server.port, requests, 2, min(3.0, seconds))  # the network compiles
    idle = resident(server)
    seen: dict[str, dict[str, float]] = {}

    def look() -> None:
        began = time.monotonic()
        for name, at in (("settled", min(SETTLED_S, seconds / 3)), ("end", seconds - 0.5)):
            time.sleep(max(0.0, began + at - time.monotonic()))
            seen[name] = resident(server)

    watcher = threading.Thread(target=look)
    watcher.start()
    one = load(server.port, requests, clients, seconds)
    watcher.join()
    for text, times in Counter(one.errors).most_common(3):
        print(f"{server.name}: {times} times {text}", flush=True)
    return {
        "requests/s": one.in_time / one.wall_s,
        "p50, ms": 1e3 * quantile(one.seconds, 0.5),
        "p99, ms": 1e3 * quantile(one.seconds, 0.99),
        "answered": len(one.seconds),
        "errors": len(one.errors),
        "web, idle, MB": idle["web"],
        "web, at the end, MB": seen["end"]["web"],
        "all, idle, MB": idle["all"],
        "all, at the end, MB": seen["end"]["all"],
        "web, growth, MB": seen["end"]["web"] - seen["settled"]["web"],
        "all, growth, MB": seen["end"]["all"] - seen["settled"]["all"],
    }


def main() -> int:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(prog="bench/web_load.py", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clients", type=int, default=100, help="at the same time (100)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each server (60)")
    options = parser.parse_args()
    print("machine: " + ", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    columns = {}
    with (
        tempfile.TemporaryDirectory(prefix="lamagrid-bench-") as scratch,
        pair(write_inverse(Path(scratch))) as servers,
    ):
        for server in (servers.stock, servers.grid):
            columns[server.name] = run_clients(server, options.clients, options.seconds)
            print(f"{server.name}: done", flush=True)
    print(f"\n{options.clients} clients, {options.seconds:g} s each\n{'':22}{'stock':>10}{'grid':>10}")
    for row in columns["stock"]:
        print(f"{row:22}{figure(columns['stock'][row]):>10}{figure(columns['grid'][row]):>10}")
    grid = columns["grid"]
    grew = max(grid["web, growth, MB"], grid["all, growth, MB"])
    failed = grid["errors"] > 0 or grew > GROWTH_MB
    verdict = "MISS" if failed else "ok"
    print(f"grid: {grid['errors']:g} errors, growth {grew:.1f} MB (at most {GROWTH_MB:g}): {verdict}")
    OUT.write_text(
        json.dumps({"clients": options.clients, "seconds": options.seconds, **columns}, indent=1) + "\n"
    )
    print(f"written: {OUT}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
