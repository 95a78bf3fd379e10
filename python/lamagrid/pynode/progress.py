"""Reports how far the work on a task is."""

from __future__ import annotations

from lamagrid import _native
from lamagrid.pynode.failures import Stopped


class Progress:
    """Reports nothing: for work outside a task."""

    def loading_began(self) -> None:
        """A model or plugin is being loaded."""

    def loading_ended(self) -> None:
        """It is in memory."""

    def fetched(self, done: int, whole: int | None) -> None:
        """A part of a missing file has been fetched.

        Raises:
            Stopped: The task was cancelled.
        """

    def step(self, done: int, total: int) -> bool:
        """A diffusion model has done a step. Returns whether to go on."""
        return True


class FetchProgress(Progress):
    """Reports downloads only: for a plugin that is loaded as a part of another.

    Args:
        whole: The progress of the whole.
    """

    def __init__(self, whole: Progress) -> None:
        self._whole = whole

    def fetched(self, done: int, whole: int | None) -> None:
        """Report a download."""
        self._whole.fetched(done, whole)


class JobProgress(Progress):
    """Reports to the scheduler.

    Args:
        job: The task.
    """

    def __init__(self, job: _native.Job) -> None:
        self._job = job

    def loading_began(self) -> None:
        """Report that the model is being loaded."""
        self._job.loading()

    def loading_ended(self) -> None:
        """Report that the model runs."""
        self._job.step(0, 0)

    def fetched(self, done: int, whole: int | None) -> None:
        """Report hundredths of the file."""
        step = (min(done, whole) * 100 // whole, 100) if whole else (0, 0)
        if not self._job.loading(*step):
            raise Stopped

    def step(self, done: int, total: int) -> bool:
        """Report a step."""
        return self._job.step(done, total)
