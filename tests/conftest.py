"""Fixtures that the suites share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stock.forms import stock_form as make_stock_form
from stock.models import tiny_lama as make_tiny_lama
from stock.processes import Processes

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Hear SIGINT and SIGHUP where a shell or nohup ignores them, too: children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave GPU tests out where there is no GPU: that is no skip, nothing on such a host could run them."""
    if Path("/dev/nvidiactl").exists():
        return
    out = [item for item in items if item.get_closest_marker("gpu")]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Under CI=true a skipped test is a failure: everything that a test needs can be installed there."""
    if os.environ.get("CI") != "true":
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    skipped = len(reporter.stats.get("skipped", []))
    if skipped and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        reporter.write_line(f"\n{skipped} skipped: under CI=true that is a failure", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts child processes, each with a log file, and ends those that are left."""
    owner = Processes(tmp_path / "logs")
    try:
        yield owner
    finally:
        owner.close()


@pytest.fixture
def stock_form() -> Callable[..., dict[str, str]]:
    """The 34 mandatory fields of ``/inpaint``: ``stock_form(model, **overrides)``."""
    return make_stock_form


@pytest.fixture(scope="session")
def tiny_lama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random TorchScript model of lama's signature."""
    return make_tiny_lama(tmp_path_factory.mktemp("models"))
