"""Compiled and installed packages: licences, sources, pins and hashes, without asking any registry.

`deny.toml` is the rule; `make deny` lets cargo-deny check the same where it is installed.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
DENY = tomllib.loads((ROOT / "deny.toml").read_text())
CONSTRAINTS = ROOT / "constraints"

PINNED = (
    "comfy-table",
    "fdeflate",
    "libwebp-sys",
    "pythonize",
    "simd-adler32",
    "tch",
    "turbojpeg-sys",
    "weezl",
    "zeromq",
)
"""Crates that are young, or one person's and read what others send: a new release is looked at first."""


def allows(expression: str, allowed: Collection[str]) -> bool:
    """Whether an SPDX expression can be met with these licences; "/" is the older way to say OR."""
    words = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def choice() -> bool:
        met = both()
        while words and words[0] == "OR":
            words.pop(0)
            met = both() or met
        return met

    def both() -> bool:
        met = one()
        while words and words[0] == "AND":
            words.pop(0)
            met = one() and met
        return met

    def one() -> bool:
        word = words.pop(0)
        if word == "(":
            met = choice()
            assert words.pop(0) == ")"
            return met
        if words and words[0] == "WITH":
            word = " ".join([word, words.pop(0), words.pop(0)])
        return word in allowed

    met = choice()
    assert not words, expression
    return met


@pytest.mark.parametrize(
    ("expression", "met"),
    [
        ("MIT", True),
        ("GPL-3.0", False),
        ("GPL-3.0 OR MIT", True),
        ("MIT/GPL-3.0", True),
        ("MIT AND GPL-3.0", False),
        ("(GPL-3.0 OR MIT) AND ISC", True),
        ("MIT OR ISC AND GPL-3.0", True),
        ("ISC WITH LLVM-exception", False),
    ],
)
def test_expressions_are_judged_by_their_parts(expression: str, met: bool) -> None:
    assert allows(expression, {"MIT", "ISC"}) is met


def packages(lock: Path) -> list[dict[str, Any]]:
    """The packages of a lock file."""
    found: list[dict[str, Any]] = tomllib.loads(lock.read_text())["package"]
    return found


@pytest.mark.parametrize("lock", ["Cargo.lock", "fuzz/Cargo.lock"])
def test_crates_come_from_one_registry_with_checksums_and_none_is_banned(lock: str) -> None:
    foreign = [package for package in packages(ROOT / lock) if "source" in package]
    assert len({package["source"] for package in foreign}) == 1
    assert [package["name"] for package in foreign if not package["source"].startswith("registry+")] == []
    assert [package["name"] for package in foreign if "checksum" not in package] == []
    banned = {ban["crate"] for ban in DENY["bans"]["deny"]}
    assert [package["name"] for package in foreign if package["name"] in banned] == []


def test_every_licence_is_allowed() -> None:
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--offline"]
    command += ["--filter-platform", "x86_64-unknown-linux-gnu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    metadata = json.loads(done.stdout)
    compiled = {node["id"] for node in metadata["resolve"]["nodes"]}
    foreign = [each for each in metadata["packages"] if each["source"] and each["id"] in compiled]
    assert len(foreign) > 100
    allowed = DENY["licenses"]["allow"]
    refused = [
        (each["name"], each["license"]) for each in foreign if not allows(each["license"] or "?", allowed)
    ]
    assert refused == []


def test_young_crates_are_pinned_and_no_requirement_is_open() -> None:
    wanted = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["dependencies"]
    versions = {
        name: each if isinstance(each, str) else each.get("version", "") for name, each in wanted.items()
    }
    assert [name for name in PINNED if not versions[name].startswith("=")] == []
    assert [name for name, version in versions.items() if "*" in version] == []


def test_every_python_pin_has_a_hash() -> None:
    """And nothing else has: `tools/hashes.py` was run after the last change of a pin."""

    def name(pin: str) -> str:
        return re.sub(r"[-_.]+", "-", pin).lower()

    pins = {
        name(line.split()[0])
        for file in ("lama-cleaner.txt", "plugins.txt", "dev.txt")
        for line in (CONSTRAINTS / file).read_text().splitlines()
        if line and not line.startswith("#")
    }
    lines = [
        line for line in (CONSTRAINTS / "hashes.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert [line for line in lines if not re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}", line)] == []
    assert {name(line.split()[0]) for line in lines} == pins
    assert len(lines) == len(pins)
