"""All faults, as often as it takes to believe it: fuzzing, the simulation, then processes under real signals.

usage: chaos.py                     ends with: faults N lost 0 duplicated 0 unexpected 0 unfinished 0
       chaos.py --sabotage FAULT    a scheduler that breaks a promise: that line must not say 0 everywhere

Ends with 1 unless the four counts are 0 and every test passed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = (sys.executable, "-m", "pytest", "-q", "--color=no", "-s")
SABOTAGES = {
    # The fault, the counter that must show it, and the test that meets it soonest.
    "drop-outcome": ("unfinished", "test_drains.py"),
    "double-accept": ("duplicated", "test_scheduler_kills.py"),
    "forget-row": ("lost", "test_scheduler_kills.py"),
    "stale-accept": ("unexpected", "test_freezes.py"),
}
ROUNDS = ("tests/hostile", "--rounds", "3")
UNREAD = ("tests/hostile/test_unread.py", "--unread-s", "20")
CUTS = ("tests/net/test_cuts.py", "--cuts", "20")
FAULTS = ("--chaos", "tests/faults")
NAMES = ("lost", "duplicated", "unexpected", "unfinished")
# Some of them need a late message at the wrong moment: the faults come by other seeds until they have met it.
SABOTAGED_ROUNDS = 12


def simulate() -> int:
    """Ten million steps of the scheduler's core."""
    command = ("cargo", "test", "--release", "--locked", "--lib", "simulation::", "--", "--nocapture")
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "SIM_STEPS": "10000000"}, check=False
    ).returncode


def hostile() -> int:
    """Ten million frames, handshakes and messages, then all hostile peers in rounds, then unread answers."""
    env = {**os.environ, "LAMAGRID_HOSTILE": "10000000"}
    packages = ("-p", "lamagrid-protocol", "-p", "lamagrid-gate")
    command = ("cargo", "test", "--release", "--locked", *packages, "--", "--nocapture")
    generated = subprocess.run((*command, "hostile"), cwd=ROOT, env=env, check=False).returncode
    generated |= subprocess.run((*command, "generated"), cwd=ROOT, env=env, check=False).returncode
    for options in (ROUNDS, UNREAD):
        generated |= subprocess.run((*PYTEST, *options), cwd=ROOT, check=False).returncode
    return generated


def cuts() -> int:
    """Networks that are cut in every way, twenty times each."""
    return subprocess.run((*PYTEST, *CUTS), cwd=ROOT, check=False).returncode


def fuzz() -> int:
    """Every fuzz target for two minutes."""
    return subprocess.run((sys.executable, "fuzz/run.py", "120"), cwd=ROOT, check=False).returncode


def sabotaged(fault: str) -> dict[str, str]:
    """Build the scheduler that does this, and say how the tests find it."""
    target = ROOT / "target" / "sabotage"
    command = ("cargo", "build", "--release", "--locked", "-p", "lamagrid-cli", "--example", "sabotaged")
    env = {**os.environ, "CARGO_TARGET_DIR": str(target)}
    subprocess.run((*command, "--features", "sabotage"), cwd=ROOT, env=env, check=True)
    program = target / "release" / "examples" / "sabotaged"
    return {"LAMAGRID_SABOTAGED_SCHEDULER": f"{program} scheduler", "LAMAGRID_SABOTAGE": fault}


def fault_tests(env: dict[str, str], options: tuple[str, ...]) -> tuple[int, int, list[int]]:
    """Run them. Returns pytest's status, the number of faults, and the counts."""
    verdicts = ROOT / "target" / "verdicts.jsonl"
    verdicts.unlink(missing_ok=True)
    command = (*PYTEST, *options, "--verdicts", str(verdicts))
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, check=False).returncode
    reported = [json.loads(line) for line in verdicts.read_text().splitlines()] if verdicts.exists() else []
    counts = [sum(column) for column in zip(*(one["counts"] for one in reported))] or [0] * len(NAMES)
    return status, sum(one["faults"] for one in reported), counts


def main() -> int:
    """Run it all, add the verdicts up, and print their line last."""
    parser = argparse.ArgumentParser(prog="chaos.py", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sabotage", choices=sorted(SABOTAGES), help="break a promise on purpose")
    sabotage = parser.parse_args().sabotage
    if sabotage is None:
        checked = fuzz() or simulate() or hostile() or cuts()
        status, faults, counts = fault_tests({}, FAULTS)
        failed = checked != 0 or status != 0 or any(counts) or faults == 0
    else:
        name, file = SABOTAGES[sabotage]
        env, wanted = sabotaged(sabotage), NAMES.index(name)
        # A result that is delivered twice is rare.
        often = ("--chaos",) if sabotage == "double-accept" else ()
        faults, counts = 0, [0] * len(NAMES)
        for turn in range(SABOTAGED_ROUNDS):
            print(f"sabotage {sabotage}: round {turn + 1} of at most {SABOTAGED_ROUNDS}", flush=True)
            _, more, found = fault_tests(env, (*often, f"tests/faults/{file}"))
            faults, counts = faults + more, [sum(pair) for pair in zip(counts, found)]
            if counts[wanted]:
                break
        else:
            print(f"the sabotage {sabotage} was not seen as {name}")
        failed = any(counts)
    print(f"faults {faults} " + " ".join(f"{name} {count}" for name, count in zip(NAMES, counts)))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
