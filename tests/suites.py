"""Runs the test suites, cheapest first, and shows what each costs.

usage: suites.py [NAME...] [-- ARGUMENT...]     all suites, or the named ones, in the order of the list

Arguments go to the command of each suite: `suites.py seam -- -k proxy`. Two suites run at a time, and their
output is shown when they end; those that hold answers to a second or so run alone. The first failure stops
the other one.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
PYTEST = (str(BIN / "python"), "-m", "pytest", "-q", "--color=no")
CARGO_TEST = ("cargo", "test", "--release", "--locked")
AT_A_TIME = min(2, os.cpu_count() or 1)
STOP_S = 60.0


@dataclass(frozen=True)
class Suite:
    """A command whose exit status decides, and whose output tells how many tests it ran."""

    name: str
    command: tuple[str, ...]
    single: bool = False
    """Counts as one test: it prints no summary."""
    alone: bool = False
    """Holds answers to a second or so: nothing may run beside it."""


SUITES = (
    Suite("rules", (*PYTEST, "tests/rules")),
    Suite("check", ("make", "--no-print-directory", "check"), single=True),
    Suite("pure", (*PYTEST, "tests/pure", "--cases", "5000")),
    Suite("binding", (*PYTEST, "tests/binding"), alone=True),
    Suite("rust", (*CARGO_TEST, "--", "--skip", "simulation::"), alone=True),
    Suite("parity", (*PYTEST, "tests/parity", "--requests", "150")),
    # Not `-p lamagrid-scheduler`: alone it resolves other features, and compiles everything again for them.
    Suite("simulation", (*CARGO_TEST, "--lib", "simulation::", "--", "--nocapture")),
    Suite("seam", (*PYTEST, "tests/seam")),
    Suite("api", (*PYTEST, "-s", "tests/api"), alone=True),
    Suite("wheels", (*PYTEST, "tests/wheels")),
    Suite("contract", (*PYTEST, "tests/contract")),
    Suite("hardware", (*PYTEST, "-s", "tests/hardware")),
    Suite("models", (*PYTEST, "tests/models")),
    Suite("e2e", (*PYTEST, "tests/e2e")),
    Suite("faults", (*PYTEST, "tests/faults")),
    Suite("browser", (*PYTEST, "tests/browser"), alone=True),
    Suite("hostile", (*PYTEST, "-s", "tests/hostile"), alone=True),
    Suite("net", (*PYTEST, "tests/net"), alone=True),
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


@dataclass(frozen=True)
class Result:
    """How a suite ended."""

    name: str
    count: Count
    seconds: float

    def __str__(self) -> str:
        return f"{self.name}: {self.count.passed} passed, {self.count.failed} failed, {self.seconds:.1f} s"


class Run:
    """A suite that runs. Its output is shown as it comes, or at its end where another one runs beside it."""

    def __init__(self, suite: Suite, is_shown: bool) -> None:
        self.suite = suite
        self._is_shown = is_shown
        self._output = bytearray()
        self._begin = time.monotonic()
        env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
        self._head = f"== {suite.name}: {' '.join(suite.command)}"
        print(self._head if is_shown else f"-- {suite.name} begins", flush=True)
        self.child = subprocess.Popen(
            suite.command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def fileno(self) -> int:
        """Of its output."""
        assert self.child.stdout is not None
        return self.child.stdout.fileno()

    def read(self) -> bool:
        """Take what it has printed. Returns False at its end."""
        data = os.read(self.fileno(), 1 << 16)
        self._output += data
        if self._is_shown:
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        return bool(data)

    def result(self) -> Result:
        """Wait for its end, show its output if it was not yet shown, and count its tests."""
        status = self.child.wait()
        text = self._output.decode(errors="replace")
        if not self._is_shown:
            print(f"{self._head}\n{text}", end="", flush=True)
        count = Count()
        for line in text.splitlines():
            count.read(line)
        if self.suite.single:
            count = Count(int(status == 0), int(status != 0))
        elif status == 0 and count.passed == 0:
            print(f"{self.suite.name}: no test ran", flush=True)
            count.failed = 1
        if status != 0 and count.failed == 0:
            count.failed = 1
        found = Result(self.suite.name, count, time.monotonic() - self._begin)
        print(f"-- {found}", flush=True)
        return found

    def stop(self) -> None:
        """End it as Ctrl-C does, so that it ends what it started."""
        self.child.send_signal(signal.SIGINT)
        try:
            self.child.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.communicate()
        print(f"-- {self.suite.name} was stopped", flush=True)


def may_begin(suite: Suite, running: list[Run]) -> bool:
    """Whether a suite may run beside those that run."""
    return not running or (
        len(running) < AT_A_TIME and not any(each.alone for each in (suite, *(run.suite for run in running)))
    )


def run_all(suites: list[Suite]) -> list[Result]:
    """Run suites in their order until one fails."""
    waiting, running, results = list(suites), list[Run](), list[Result]()
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as at_end:
        at_end.callback(lambda: [run.stop() for run in running])
        while waiting or running:
            while waiting and may_begin(waiting[0], running):
                suite = waiting.pop(0)
                run = Run(suite, is_shown=suite.alone or len(suites) == 1)
                running.append(run)
                selector.register(run, selectors.EVENT_READ)
            for key, _ in selector.select():
                run = key.fileobj  # type: ignore[assignment]
                if run.read():
                    continue
                selector.unregister(run)
                running.remove(run)
                results.append(run.result())
                if results[-1].count.failed:
                    return results
    return results


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
    begin = time.monotonic()
    try:
        results = run_all(chosen)
    except OSError as error:
        print(f"cannot start a suite: {error}; run `make build` first", flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    took = time.monotonic() - begin
    whole = sum(result.seconds for result in results) or 1.0
    print()
    for result in sorted(results, key=lambda each: each.seconds):
        print(f"suite {result.name}: {result.seconds:.1f} s ({100 * result.seconds / whole:.0f}%)")
    print(f"{whole:.0f} s of suites in {took:.0f} s")
    failed = [result.name for result in results if result.count.failed]
    if failed:
        left = [suite.name for suite in chosen if suite.name not in {result.name for result in results}]
        print(f"suite {failed[0]} failed" + (f"; not run to the end: {', '.join(left)}" if left else ""))
    passed = sum(result.count.passed for result in results)
    print(f"{passed} passed, {sum(result.count.failed for result in results)} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
