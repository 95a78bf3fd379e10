"""Why the launcher does not go on, and its exit statuses."""

from __future__ import annotations

import sys

OK = 0
FAILED = 1
WRONG_FLAGS = 2


class LaunchError(Exception):
    """The launcher cannot go on; the text says why and what to do."""


def print_error(error: BaseException) -> int:
    """Print an error for people. Returns the exit status."""
    print(f"lama-cleaner-grid: {error}", file=sys.stderr, flush=True)
    return FAILED


def refuse_flags(text: str) -> SystemExit:
    """Print the fault in the command line, and return the exception that ends the launcher."""
    print(f"lama-cleaner-grid: error: {text}", file=sys.stderr)
    return SystemExit(WRONG_FLAGS)
