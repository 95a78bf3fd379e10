"""How many cases to run, and with which program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The share of the cases."""
    group = parser.getgroup("pure")
    group.addoption("--cases", type=int, default=5000, help="how many calls to compare (default: 5000)")
    group.addoption(
        "--case",
        action="append",
        default=[],
        help="compare this call alone, FUNCTION:NUMBER; may be given again",
    )
    group.addoption("--program", type=Path, help="the example `pure` (default: it is built)")


@pytest.fixture(scope="session")
def program(pytestconfig: pytest.Config) -> Path:
    """The example, built as the rest of the workspace is."""
    given: Path | None = pytestconfig.getoption("--program")
    if given is not None:
        return given
    # Without `-p`: alone the crate resolves other features, and everything would be compiled again for it.
    subprocess.run(
        ["cargo", "build", "--release", "--locked", "--quiet", "--example", "pure"], cwd=ROOT, check=True
    )
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "examples" / "pure"
