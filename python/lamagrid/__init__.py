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
from lamagrid.types import GridStatus, NodeInfo, NodeStatus, PluginOptions, QueueStatus, TaskInfo, TaskOptions

__all__ = [
    "CancelledError",
    "ConfigError",
    "DeadlineExceededError",
    "DisconnectedError",
    "DiskFullError",
    "GridStatus",
    "IncompatibleError",
    "InferenceError",
    "InternalError",
    "InvalidInputError",
    "LamaGridError",
    "ModelLoadError",
    "NodeInfo",
    "NodeLostError",
    "NodeStatus",
    "OutOfMemoryError",
    "Outcome",
    "OverloadedError",
    "PluginOptions",
    "Progress",
    "QueueStatus",
    "RanTooLongError",
    "Task",
    "TaskClient",
    "TaskInfo",
    "TaskOptions",
    "UnknownModelError",
    "UnknownTaskError",
    "WaitTimeoutError",
    "WaitedTooLongError",
    "__version__",
    "build_info",
    "new_task_id",
    "protocol_version",
]
