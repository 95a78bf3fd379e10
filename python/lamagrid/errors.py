"""Why a task or a call failed: one class per kind of failure.

All are ``RuntimeError``, because that is the only exception that Lama Cleaner's server turns into a readable
answer. All can be pickled. ``kind`` is the name of the kind in logs, metrics and JSON.

Does not: decide about retries; the scheduler did before a task failed.
"""

from __future__ import annotations

from typing import ClassVar

OUT_OF_MEMORY_TEXT = "CUDA out of memory. "
"""Lama Cleaner's server recognizes a ``RuntimeError`` of this kind by this text."""


UNREADABLE_PICTURE_TEXT = "The picture cannot be read: it is no image file of a kind that Pillow knows."


class LamaGridError(RuntimeError):
    """An error of the grid; the text says what happened, to what, and what to do.

    Args:
        message: For people.
        task_id: The task that it is about, where there is one.
        queue_len: Tasks that wait in the queue, if a task was refused.
        wait_s: Expected wait in seconds, if a task was refused and the scheduler can estimate it.
    """

    kind: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str = "",
        *,
        task_id: str | None = None,
        queue_len: int | None = None,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.queue_len = queue_len
        self.wait_s = wait_s


# Network.


class NodeLostError(LamaGridError):
    """Nodes died or fell silent under the task too often, or none is connected."""

    kind = "node_lost"


class DisconnectedError(LamaGridError, ConnectionError):
    """The scheduler cannot be reached, or a connection broke and the work could not be resumed."""

    kind = "disconnected"


class DeadlineExceededError(LamaGridError, TimeoutError):
    """The task's own time limit passed."""

    kind = "deadline_exceeded"


class WaitedTooLongError(DeadlineExceededError):
    """No node took the task within its limit on waiting."""

    kind = "waited_too_long"


class RanTooLongError(DeadlineExceededError):
    """Each attempt took longer than the task's limit on running."""

    kind = "ran_too_long"


class WaitTimeoutError(DeadlineExceededError):
    """The call timed out while the scheduler was reachable. A task that was accepted goes on."""


# Resources.


class OutOfMemoryError(LamaGridError, MemoryError):
    """The device or the host of a node had no memory left."""

    kind = "out_of_memory"

    def __init__(
        self,
        message: str = "",
        *,
        task_id: str | None = None,
        queue_len: int | None = None,
        wait_s: float | None = None,
    ) -> None:
        if OUT_OF_MEMORY_TEXT not in message:
            message = OUT_OF_MEMORY_TEXT + message
        super().__init__(message, task_id=task_id, queue_len=queue_len, wait_s=wait_s)


class DiskFullError(LamaGridError):
    """A disk was full or refused to write."""

    kind = "disk_full"


class OverloadedError(LamaGridError):
    """A bound was reached; ``queue_len`` and ``wait_s`` say how long to wait."""

    kind = "overloaded"


# Models and their input.


class UnknownModelError(LamaGridError, LookupError):
    """No connected node serves the model."""

    kind = "unknown_model"


class ModelLoadError(LamaGridError):
    """The model's file is missing, broken or of another signature."""

    kind = "model_load"


class InferenceError(LamaGridError):
    """The model ran and failed."""

    kind = "inference"


class InvalidInputError(LamaGridError, ValueError):
    """The request itself is invalid."""

    kind = "invalid_input"


class UnknownTaskError(InvalidInputError):
    """The scheduler knows no such task of this owner; it may have ended long ago."""


class ConfigError(InvalidInputError):
    """The configuration is wrong; the text names the key and where it is."""


# The rest.


class CancelledError(LamaGridError):
    """The task was cancelled."""

    kind = "cancelled"


class IncompatibleError(LamaGridError):
    """The two sides are different versions of LamaGrid."""

    kind = "incompatible"


class InternalError(LamaGridError):
    """A defect of LamaGrid; please report it."""

    kind = "internal"
