"""LamaGrid: inpainting as tasks that a scheduler hands to nodes on GPU hosts.

``TaskClient`` submits tasks from any Python program. Importing this starts nothing: no thread, no socket and
no log handler; numpy is imported with the first picture.
"""

from lamagrid._native import __version__, build_info, protocol_version
from lamagrid.client import Outcome, Progress, Task, TaskClient, new_task_id
from lamagrid.errors import (
    CancelledError,
    ConfigError,
    DeadlineExceededError,
    DisconnectedError,
    DiskFullError,
    IncompatibleError,
    InferenceError,
    InternalError,
    InvalidInputError,
    LamaGridError,
    ModelLoadError,
    NodeLostError,
    OutOfMemoryError,
    OverloadedError,
    RanTooLongError,
    UnknownModelError,
    UnknownTaskError,
    WaitedTooLongError,
    WaitTimeoutError,
)

__all__ = [
    "CancelledError",
    "ConfigError",
    "DeadlineExceededError",
    "DisconnectedError",
    "DiskFullError",
    "IncompatibleError",
    "InferenceError",
    "InternalError",
    "InvalidInputError",
    "LamaGridError",
    "ModelLoadError",
    "NodeLostError",
    "OutOfMemoryError",
    "Outcome",
    "OverloadedError",
    "Progress",
    "RanTooLongError",
    "Task",
    "TaskClient",
    "UnknownModelError",
    "UnknownTaskError",
    "WaitTimeoutError",
    "WaitedTooLongError",
    "__version__",
    "build_info",
    "new_task_id",
    "protocol_version",
]
