"""The cost of the gate: pictures between hosts beside a stream of TLS alone, and a message there and back.

usage: bench/gate.py [--rounds N]

On loopback. Prints a table with each row's floor and aim, and writes ``target/bench-gate.json``. Ends with 1
if a floor is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from machine import machine
from thresholds import Row, show

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "bench-gate.json"
PROGRAM = ROOT / "target" / "release" / "examples" / "gate"
SIZES_MB = (1, 10, 30)
ROWS = (
    *(Row(f"{way}_{size}mb", "MB/s", 400, 1_000, more=True) for size in SIZES_MB for way in ("get", "put")),
    *(Row(f"{way}_{size}mb_of_raw", "", 0.5, 0.9, more=True) for size in SIZES_MB for way in ("get", "put")),
    Row("round_trip_added", "us", 60, 30),
)


def main() -> int:
    """Measure, show, write. Returns 1 if a floor was missed."""
    parser = argparse.ArgumentParser(prog="bench/gate.py", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=61, help="the median of so many counts (default: 61)")
    options = parser.parse_args()
    print("machine: " + ", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    done = subprocess.run(
        [PROGRAM, str(options.rounds)], check=True, capture_output=True, text=True, timeout=600
    )
    told = json.loads(done.stdout)
    values = {"round_trip_added": told["gate_us"] - told["socket_us"]}
    for size in told["sizes"]:
        for way in ("get", "put"):
            values[f"{way}_{size['mb']}mb"] = size[way]
            values[f"{way}_{size['mb']}mb_of_raw"] = size[way] / size["raw"]
    return show(ROWS, values, OUT)


if __name__ == "__main__":
    sys.exit(main())
