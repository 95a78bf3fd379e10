"""Runs the test suites, cheapest first, and shows what each costs.

usage: suites.py [NAME...] [-- ARGUMENT...]     all suites, or the named ones, in the order of the list

Arguments go to the command of each suite: `suites.py seam -- -k proxy`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
PYTEST = (str(BIN / "python"), "-m", "pytest", "-q", "--color=no")
CARGO_TEST = ("cargo", "test", "--release", "--locked")


@dataclass(frozen=True)
class Suite:
    """A command whose exit status decides, and whose output tells how many tests it ran."""

    name: str
    command: tuple[str, ...]
    single: bool = False
    """Counts as one test: it prints no summary."""


SUITES = (
    Suite("rules", (*PYTEST, "tests/rules")),
    Suite("check", ("make", "--no-print-directory", "check"), single=True),
    Suite("rust", (*CARGO_TEST, "--", "--skip", "core::simulation")),
    # Not `-p lamagrid-scheduler`: alone it resolves other features, and compiles everything again for them.
    Suite("simulation", (*CARGO_TEST, "--lib", "core::simulation", "--", "--nocapture")),
    Suite("pure", (*PYTEST, "tests/pure", "--cases", "5000")),
    Suite("binding", (*PYTEST, "tests/binding")),
    Suite("seam", (*PYTEST, "tests/seam")),
    Suite("parity", (*PYTEST, "tests/parity", "--requests", "150")),
    Suite("contract", (*PYTEST, "tests/contract")),
    Suite("models", (*PYTEST, "tests/models")),
    Suite("wheels", (*PYTEST, "tests/wheels")),
    Suite("browser", (*PYTEST, "tests/browser")),
    Suite("hostile", (*PYTEST, "-s", "tests/hostile")),
    Suite("net", (*PYTEST, "tests/net")),
    Suite("faults", (*PYTEST, "tests/faults")),
    Suite("e2e", (*PYTEST, "tests/e2e")),
)

CARGO_LINE = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed")
PYTEST_LINE = re.compile(r"^=*\s*((?:\d+ \w+,? ?)+)in [\d.]+s")


@dataclass
class Count:
    """Tests of a suite, as its output says."""

    passed: int = 0
    failed: int = 0

    def read(self, line: str) -> None:
        """Add what a summary line of cargo or pytest says."""
        if match := CARGO_LINE.match(line):
            self.passed += int(match[1])
            self.failed += int(match[2])
        elif match := PYTEST_LINE.match(line):
            for number, word in re.findall(r"(\d+) (\w+)", match[1]):
                if word in ("passed", "xfailed"):
                    self.passed += int(number)
                elif word in ("failed", "error", "errors", "xpassed"):
                    self.failed += int(number)


def run(suite: Suite) -> tuple[int, Count, float]:
    """Run one suite, passing its output on as it comes."""
    print(f"== {suite.name}: {' '.join(suite.command)}", flush=True)
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    count = Count()
    begin = time.monotonic()
    try:
        child = subprocess.Popen(
            suite.command,
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        print(
            f"{suite.name}: cannot start {suite.command[0]}: {error}; run `make build` first",
            flush=True,
        )
        return 1, Count(0, 1), 0.0
    assert child.stdout is not None
    for line in child.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        count.read(line)
    status = child.wait()
    if suite.single:
        count = Count(int(status == 0), int(status != 0))
    elif status == 0 and count.passed == 0:
        print(f"{suite.name}: no test ran", flush=True)
        status = 1
    if status != 0 and count.failed == 0:
        count.failed = 1
    return status, count, time.monotonic() - begin


def main(arguments: list[str]) -> int:
    """Run, stop at the first suite that fails, show the shares and the sum."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    names, extra = arguments[:at], tuple(arguments[at + 1 :])
    unknown = set(names) - {suite.name for suite in SUITES}
    if unknown:
        print(
            f"no such suite: {', '.join(sorted(unknown))}",
            f"there are: {', '.join(suite.name for suite in SUITES)}",
            sep="; ",
        )
        return 2
    chosen = [
        replace(suite, command=suite.command + extra) for suite in SUITES if not names or suite.name in names
    ]
    total = Count()
    times: list[tuple[str, float]] = []
    failed = ""
    for suite in chosen:
        status, count, seconds = run(suite)
        total.passed += count.passed
        total.failed += count.failed
        times.append((suite.name, seconds))
        if status != 0:
            failed = suite.name
            break
    whole = sum(seconds for _, seconds in times) or 1.0
    print()
    for name, seconds in times:
        print(f"suite {name}: {seconds:.1f} s ({100 * seconds / whole:.0f}%)")
    if failed:
        left = [suite.name for suite in chosen[len(times) :]]
        print(f"suite {failed} failed" + (f"; not run: {', '.join(left)}" if left else ""))
    print(f"{total.passed} passed, {total.failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
