"""The newest commit that speaks the protocol's minor version before ours, built beside us."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from grids.server import PROGRAMS

ROOT = Path(__file__).parents[2]
WORK = ROOT / "target" / "upgrade"
# Where the minor version stands, in this commit and in earlier ones.
FRAMES = ("src/protocol/src/frame.rs", "src/wire/src/frame.rs")
BUILD_S = 3_600.0


@dataclass(frozen=True)
class Version:
    """One version of the programs.

    Attributes:
        name: For logs.
        node: Its node program.
        path: Where its Python package lies; None for the one that is installed.
    """

    name: str
    node: Path
    path: Path | None

    @property
    def env(self) -> dict[str, str]:
        """For its processes."""
        return {} if self.path is None else {"PYTHONPATH": str(self.path)}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _minor(commit: str) -> int:
    found = _git("grep", "-h", "pub const MINOR: u8 = ", commit, "--", *FRAMES)
    return int(re.findall(r"= (\d+);", found)[0])


def _previous_commit() -> str:
    """The parent of the commit that raised the minor version last."""
    for commit in _git("log", "--format=%H", "--", *FRAMES).split():
        if _minor(f"{commit}^") == _minor("HEAD") - 1:
            return _git("rev-parse", f"{commit}^").strip()
    raise AssertionError("no commit of the minor version before; is this a shallow clone?")


@pytest.fixture(scope="session")
def current() -> Version:
    """This version."""
    return Version("new", PROGRAMS / "lamagrid-node", None)


@pytest.fixture(scope="session")
def previous() -> Version:
    """The one before, without libtorch: its echo nodes need none. Built once per commit, in some minutes."""
    commit = _previous_commit()
    source, site = WORK / "source", WORK / f"site-{commit[:12]}"
    target = WORK / "target"
    if not site.exists():
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir(parents=True)
        with subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE) as archive:
            subprocess.run(["tar", "-x", "-C", source], stdin=archive.stdout, check=True)
        assert archive.returncode == 0
        env = {**os.environ, "CARGO_TARGET_DIR": str(target)}
        cargo = ["cargo", "build", "--release", "--locked", "-p", "lamagrid-node", "--no-default-features"]
        subprocess.run(cargo, cwd=source, env=env, check=True, timeout=BUILD_S)
        wheels = WORK / "wheels"
        maturin = [Path(sys.executable).parent / "maturin", "build", "--release", "--locked", "--out", wheels]
        subprocess.run(maturin, cwd=source, env=env, check=True, timeout=BUILD_S)
        wheel = max(wheels.glob("lamagrid-*.whl"), key=lambda path: path.stat().st_mtime)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", f"{site}.part", wheel]
        subprocess.run(pip, check=True)
        Path(f"{site}.part").rename(site)
    return Version("old", target / "release" / "lamagrid-node", site)
