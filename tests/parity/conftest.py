"""How many cases to run, and which."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The share of the cases."""
    group = parser.getgroup("parity")
    group.addoption("--requests", type=int, default=150, help="how many requests to compare (default: 150)")
    group.addoption(
        "--seed", type=int, action="append", default=[], help="compare this case alone; may be given again"
    )
