"""Builds the fuzz targets with AddressSanitizer and runs each for some time.

usage: run.py SECONDS [TARGET...]     all targets, or the named ones; ends with 1 if one has a finding

Needs `cargo install cargo-fuzz --locked` and a nightly compiler. With clang the C libraries are instrumented
too: then a target finds its way through them, and the sanitizer sees their mistakes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
GOLDEN = FUZZ.parent / "src" / "protocol" / "tests" / "golden"
GROWN = FUZZ / "target" / "corpus"
TARGETS = ("jpeg", "png", "webp", "bmp", "gif", "tiff", "exif", "line", "zmtp", "messages")
LIMITS = ("-rss_limit_mb=2048", "-timeout=25", "-max_len=8192", "-print_final_stats=1")


def missing() -> str:
    """Missing programs, and how to install them; "" if all are there."""
    for name, command, remedy in (
        ("a nightly compiler", ("cargo", "+nightly", "--version"), "rustup toolchain install nightly"),
        ("cargo-fuzz", ("cargo", "fuzz", "--version"), "cargo install cargo-fuzz --locked"),
    ):
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return f"{name} is missing: {remedy}"
    return ""


def environment() -> dict[str, str]:
    """With clang, the sanitizer and coverage in C code as well."""
    if shutil.which("clang") is None:
        print("fuzz: no clang: the C libraries are not instrumented", flush=True)
        return dict(os.environ)
    return {**os.environ, "CC": "clang", "CFLAGS": "-fsanitize=address,fuzzer-no-link -g -O1"}


def run(target: str, seconds: int, env: dict[str, str]) -> int:
    """Run one target from its committed corpus and what earlier runs have found."""
    grown = GROWN / target
    grown.mkdir(parents=True, exist_ok=True)
    seeds = max(GOLDEN.iterdir()) if target == "messages" else FUZZ / "corpus" / target
    command = ("cargo", "+nightly", "fuzz", "run", "--fuzz-dir", FUZZ, target, grown, seeds)
    print(f"fuzz: {target} for {seconds} s", flush=True)
    options = ("--", f"-max_total_time={seconds}", *LIMITS)
    return subprocess.run((*command, *options), env=env, check=False).returncode


def main(arguments: list[str]) -> int:
    """Run them one after the other, all of them whatever one finds."""
    seconds, targets = int(arguments[0]), arguments[1:] or list(TARGETS)
    unknown = set(targets) - set(TARGETS)
    if unknown:
        print(f"fuzz: no such target: {', '.join(sorted(unknown))}; there are: {', '.join(TARGETS)}")
        return 2
    if lack := missing():
        print(f"fuzz: {lack}")
        return 2
    env = environment()
    found = [target for target in targets if run(target, seconds, env) != 0]
    print(f"fuzz: {len(targets)} targets for {seconds} s each, findings in {', '.join(found) or 'none'}")
    return int(bool(found))


if __name__ == "__main__":
    if len(sys.argv) < 2 or not sys.argv[1].isdigit():
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
