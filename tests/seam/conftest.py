"""A client that plays the grid, and upstream's server around it."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lamagrid.client import Outcome, Progress
from lamagrid.errors import WaitTimeoutError
from lamagrid.types import TaskOptions

Pixels = NDArray[np.uint8]

with warnings.catch_warnings():  # upstream's, of what it stands on; in a test they would be errors
    warnings.simplefilter("ignore")
    SERVER_MODULE = importlib.import_module("lama_cleaner.server")


class FakeTask:
    """A submitted task; what becomes of it was decided before."""

    def __init__(
        self, id: str, outcome: Pixels | bytes | BaseException, steps: int, loading: bool = False
    ) -> None:
        self.id = id
        self.cancelled = self.released = False
        self._native = self
        self._outcome = outcome
        self._steps = steps
        self._loading = loading
        self._step = 0

    def events(self) -> FakeTask:
        """Itself: what happens to it."""
        return self

    def next(self, _timeout: float) -> Progress | None:
        """Progress, then the end; nothing of a task that does not get ready."""
        if isinstance(self._outcome, WaitTimeoutError):
            return None
        if self._loading:
            self._loading = False
            return Progress("processing", 40, 100, "loading")
        self._step += 1
        if self._step <= self._steps:
            return Progress("processing", self._step, self._steps)
        return Progress("completed", 0, 0)

    def outcome(self, timeout: float | None = None) -> Outcome:
        """The outcome: BGR pixels, or a file."""
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        if isinstance(self._outcome, bytes):
            return Outcome(self._outcome, None, {})
        return Outcome(bytearray(self._outcome.tobytes()), self._outcome.shape, {})

    def status(self, timeout: float | None = None) -> dict[str, Any]:
        """It waits."""
        return {"position": 4, "wait_ms": 12_500, "node": None}

    def statuses(self, ids: list[str], timeout: float | None = None) -> list[dict[str, Any] | None]:
        """All of them wait."""
        return [self.status(timeout) for _ in ids]

    def cancel(self) -> str:
        """Take note."""
        self.cancelled = True
        return "cancelled"

    def release(self) -> None:
        """Take note."""
        self.released = True


class FakeClient:
    """Plays `lamagrid.client.TaskClient`.

    Attributes:
        work: Gives the outcome of a task from its picture and mask.
        submitted: The arguments of each submit.
        tasks: The tasks that came of them.
        models: The models of its nodes.
        missing: Those of them whose files are not there.
        loading: Whether its nodes load the model before the first step.
    """

    def __init__(self) -> None:
        self.work: Callable[[Any, Any], Pixels | bytes | BaseException] = lambda image, mask: image[
            :, :, ::-1
        ]
        self.steps = 0
        self.loading = False
        self.submitted: list[tuple[Any, Any, dict[str, Any]]] = []
        self.tasks: list[FakeTask] = []
        self.models = ["lama", "cv2"]
        self.missing: list[str] = []
        self.unreachable: BaseException | None = None

    def submit(self, image: Any, mask: Any, options: TaskOptions) -> FakeTask:
        """Take a task."""
        given = {name: value for name in options.names() if (value := getattr(options, name)) is not None}
        self.submitted.append((image, mask, {**given, **options.params}))
        task = FakeTask(f"{len(self.tasks):032x}", self.work(image, mask), self.steps, self.loading)
        self.tasks.append(task)
        return task

    def survey(self, *_: Any, **__: Any) -> dict[str, Any]:
        """One node."""
        if self.unreachable is not None:
            raise self.unreachable
        offers = [
            {"model": name, "queue": "gpu", "loaded": False, "present": name not in self.missing}
            for name in self.models
        ]
        node = {
            "info": {"name": "n", "device": "cpu", "models": offers},
            "state": "ready",
            "running": 0,
            "slots": 1,
        }
        return {"version": "0", "nodes": [node], "queues": []}


@pytest.fixture
def client() -> FakeClient:
    """A grid that answers each picture with itself."""
    return FakeClient()


@pytest.fixture(scope="session")
def server_module() -> Any:
    """Upstream's server module, imported unchanged."""
    return SERVER_MODULE
