"""How many cases to run, and with which program."""

from __future__ import annotations

from pathlib import Path

import pytest


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
