"""Inpainting from a Python program: submit, wait, cancel, follow.

    client = TaskClient()
    picture = client.inpaint(image, mask)                 # RGB in, RGB out
    png = client.inpaint_bytes(photo, mask, output="png")  # files in, a file out

    task = client.submit(image, mask, model="lama", hd_strategy="Original")
    for progress in task.follow():
        print(progress.status, progress.step, progress.of)
    picture = task.wait()

A wait lets other threads run and is ended by Ctrl-C. A client may be shared by threads; after a fork it makes
its own connection in the child.

Does not: decode or encode pictures (nodes do), or touch a pixel besides the order of its colours.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from lamagrid import _native
from lamagrid.errors import InvalidInputError, LamaGridError, WaitTimeoutError
from lamagrid.options import MODEL_OPTIONS, PLUGIN_OPTIONS, checked, chosen
from lamagrid.types import Durability, OutputFormat, PluginOptions, TaskOptions
from lamagrid.upstream.catalog import PLUGIN_PREFIX

if TYPE_CHECKING:
    from lamagrid.types import GridStatus, Pixels, TaskInfo

    _Blob = tuple[str, bytes, tuple[int, int, int] | None]

Result = TypeVar("Result")

ACCEPT_TIMEOUT_S = 30.0  # a scheduler that restarts is back within a few seconds
ANSWER_TIMEOUT_S = 5.0  # a scheduler that runs answers within milliseconds
CANCEL_TIMEOUT_S = 1.0  # for a caller that wants to leave


def new_task_id() -> str:
    """Make the id of a new task: the time in milliseconds, then random bits.

    A scheduler refuses ids that are older than its records, or more than a day in the future.
    """
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


TERMINAL = frozenset(["completed", "failed", "cancelled"])


@dataclass(frozen=True)
class Progress:
    """How far a task is.

    Attributes:
        status: ``queued``, ``processing``, ``completed``, ``failed`` or ``cancelled``.
        step: Steps done; of a fetch of the model's files, hundredths of it.
        of: Steps in all; 0 where that is unknown or none was begun.
        activity: ``loading`` while the node loads the model, ``running`` while it runs it.
    """

    status: str
    step: int
    of: int
    activity: str = "running"


@dataclass(frozen=True)
class Outcome:
    """The result of a completed task.

    Attributes:
        data: The result's bytes.
        dims: Height, width and channels of raw BGR pixels; None for an encoded file.
        task: As it ended.
    """

    data: bytes | bytearray
    dims: tuple[int, int, int] | None
    task: TaskInfo

    def encoded(self) -> bytes:
        """The file, of a task that was submitted with an output format."""
        if not isinstance(self.data, bytes):
            raise InvalidInputError(
                "the result is plain pixels: submit with output='png' for a file", task_id=self.task["id"]
            )
        return self.data

    def bgr(self) -> Pixels:
        """``(H, W, 3)`` u8 BGR, as upstream's models give it. Writable, in the memory of ``data``."""
        import numpy as np

        if self.dims is None:
            raise InvalidInputError(
                "the result is an encoded file: use wait_bytes() or Outcome.data", task_id=self.task["id"]
            )
        return np.frombuffer(self.data, np.uint8).reshape(self.dims)

    def rgb(self) -> Pixels:
        """``(H, W, 3)`` u8 RGB, in memory of its own."""
        import numpy as np

        # A third of the time that copying a view with a negative stride takes.
        return np.take(self.bgr(), (2, 1, 0), axis=2)


class TaskEvents:
    """The events of a task, from its creation on."""

    def __init__(self, native: _native.Follow) -> None:
        self._native = native

    def next(self, timeout: float) -> Progress | None:
        """The next event, the last one with a terminal status; None after ``timeout`` seconds.

        Raises:
            LamaGridError: The task cannot be followed any more, for example because its scheduler forgot it.
        """
        event = self._native.next_event(timeout)
        if event is None:
            return None
        return Progress(event["status"], event["step"], event["of"], event["activity"])


class Task:
    """A task that a scheduler has on record; made by :meth:`TaskClient.submit` or :meth:`TaskClient.task`.

    Attributes:
        id: 32 hexadecimal digits. A name, not a secret.
    """

    def __init__(self, native: _native.Client, task_id: str) -> None:
        self._native = native
        self.id = task_id

    def __repr__(self) -> str:
        return f"Task({self.id!r})"

    def wait(self, timeout: float | None = None) -> Pixels:
        """Wait for the picture.

        Args:
            timeout: Seconds; by default the configured ``client.timeout_ms``.

        Returns:
            ``(H, W, 3)`` u8 **RGB**, in memory of its own.

        Raises:
            WaitTimeoutError: It is not ready; the task goes on, and this may be called again.
            LamaGridError: The task failed, by the class of its kind; or the scheduler cannot be reached.
        """
        return self.outcome(timeout).rgb()

    def wait_bgr(self, timeout: float | None = None) -> Pixels:
        """As :meth:`wait`, but ``(H, W, 3)`` u8 **BGR**, as upstream's models give it."""
        return self.outcome(timeout).bgr()

    def wait_bytes(self, timeout: float | None = None) -> bytes:
        """As :meth:`wait`, but returns the file, of a task that was submitted with an output format."""
        return self.outcome(timeout).encoded()

    def outcome(self, timeout: float | None = None) -> Outcome:
        """Wait for the result and the record of the task; see :meth:`wait`.

        The result stays with the scheduler until :meth:`release` or the end of its retention.
        """
        ended = self._native.wait(self.id, timeout)
        if ended is None:
            waited = self._native.timeout_s if timeout is None else timeout
            raise WaitTimeoutError(
                f"task {self.id} was not ready after {waited:g} s; it goes on, wait again or cancel it",
                task_id=self.id,
            )
        return Outcome(ended["data"], ended["dims"], ended["task"])

    def follow(self, timeout: float | None = None) -> Iterator[Progress]:
        """Yield the progress of the task until it has ended; the last one has a terminal status.

        A slow reader misses steps, but never the end. A failed task does not raise here; :meth:`wait` does.

        Args:
            timeout: Seconds between two events; by default the configured ``client.timeout_ms``.

        Raises:
            WaitTimeoutError: Nothing happened in that time; the task goes on.
        """
        timeout_s = self._native.timeout_s if timeout is None else timeout
        events = self.events()
        while True:
            progress = events.next(timeout_s)
            if progress is None:
                raise WaitTimeoutError(f"task {self.id} did not move for {timeout_s:g} s", task_id=self.id)
            yield progress
            if progress.status in TERMINAL:
                return

    def events(self) -> TaskEvents:
        """As :meth:`follow`, for a reader that does other work between two events."""
        return TaskEvents(self._native.follow(self.id))

    def cancel(self, timeout: float = ANSWER_TIMEOUT_S) -> str:
        """Stop the task. Returns its status; a task that has ended stays as it is."""
        return self._native.cancel(self.id, timeout)["status"]

    def status(self, timeout: float = ANSWER_TIMEOUT_S) -> TaskInfo:
        """Ask the scheduler: ``status``, ``position``, ``node``, ``failure``, ``stages``, ..."""
        return self._native.status(self.id, timeout)

    def release(self, timeout: float = ANSWER_TIMEOUT_S) -> None:
        """Delete the result, which is not needed any more."""
        self._native.release(self.id, timeout)


def statuses(tasks: Sequence[Task], timeout: float = ANSWER_TIMEOUT_S) -> list[TaskInfo | None]:
    """:meth:`Task.status` of several tasks of one client, in one round trip; None for an unknown one."""
    return tasks[0]._native.statuses([task.id for task in tasks], timeout) if tasks else []


class TaskClient:
    """Hands tasks to one scheduler, of this host or another.

    Args:
        data_dir: The data directory of a scheduler on this host; by default what is configured,
            ``client.join`` before ``data_dir``.
        owner: Who may see and cancel these tasks; by default all users of the socket directory, or the holder
            of the bundle's certificate. With a bundle, it can name no other.
        join: A file of ``lamagrid certs bundle`` for the role client: the scheduler is on another host.

    Raises:
        ConfigError: The configuration is wrong, or there is no usable socket directory.
        InvalidInputError: The bundle cannot be used; the text says why.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        owner: str | None = None,
        *,
        join: str | os.PathLike[str] | None = None,
    ) -> None:
        self._native = _native.Client(None if data_dir is None else os.fspath(data_dir), owner, join=join)

    @property
    def address(self) -> str:
        """The address of the scheduler."""
        return self._native.address

    def submit(
        self,
        image: Pixels | bytes,
        mask: Pixels | bytes,
        options: TaskOptions | None = None,
        *,
        timeout: float | None = None,
        **keywords: Any,
    ) -> Task:
        """Submit a task. It is on the scheduler's record when this returns.

        Args:
            image: ``(H, W, 3)`` u8 RGB, or the bytes of a file: PNG, JPEG, WebP, BMP, GIF or TIFF.
            mask: ``(H, W)`` u8, 255 in the hole, other values blend; or the bytes of a file, which count as
                255 where their grey is above 127. Of the image's height and width.
            options: How it is run.
            timeout: Seconds to get it on record, a scheduler that is not there yet included; by default 30.
            keywords: Fields of `TaskOptions` and parameters of the model by their names; they go before those
                of ``options``: ``submit(image, mask, model="lama", hd_strategy="Crop")``.

        Raises:
            InvalidInputError: An argument is unknown or wrong; the text names it and the nearest known one.
            OverloadedError: The queue is full; ``queue_len`` and ``wait_s`` say how long to wait.
            DisconnectedError: No scheduler answered in time; the text says how to start one.
        """
        options = (options or TaskOptions()).with_keywords(keywords)
        blobs = [_blob("image", image, 3), _blob("mask", mask, 1)]
        sizes = [dims[:2] for _, _, dims in blobs if dims is not None]
        if len(sizes) == 2 and sizes[0] != sizes[1]:
            raise InvalidInputError(
                f"mask is {sizes[1][0]}x{sizes[1][1]} pixels, but image {sizes[0][0]}x{sizes[0][1]}: "
                "they must have the same height and width"
            )
        if options.example is not None:
            blobs.append(_blob("example", options.example, 3))
        spec: dict[str, Any] = {"model": options.model, "priority": _priority(options.priority)}
        if options.output is not None:
            output = chosen("output", options.output, get_args(OutputFormat))
            spec |= {"output": output, "quality": _quality(options.quality)}
        if options.queue is not None:
            spec["queue"] = options.queue
        limits = {
            "wait_limit_s": options.wait_limit,
            "no_node_wait_s": options.no_node_wait,
            "run_limit_s": options.run_limit,
        }
        spec |= {name: limit for name, limit in limits.items() if limit is not None}
        spec["params"] = checked(options.params, MODEL_OPTIONS, [*options.names(), "timeout"])
        return self._submit(spec, options, blobs, timeout)

    def submit_plugin(
        self,
        plugin: str,
        image: bytes,
        options: PluginOptions | None = None,
        *,
        timeout: float | None = None,
        **keywords: Any,
    ) -> Task:
        """Submit a task for one of Lama Cleaner's plugins; its file comes from :meth:`Task.wait_bytes`.

        Args:
            plugin: Upstream's name: ``RemoveBG``, ``RealESRGAN``, ...
            image: The bytes of a file.
            options: How it is run.
            timeout: See :meth:`submit`.
            keywords: Fields of `PluginOptions` and parameters of the plugin, as for :meth:`submit`.

        Raises:
            LamaGridError: As :meth:`submit`.
        """
        options = (options or PluginOptions()).with_keywords(keywords)
        blobs = [_file("image", image)]
        if options.example is not None:
            blobs.append(_file("example", options.example))
        known = PLUGIN_OPTIONS[chosen("plugin", plugin, PLUGIN_OPTIONS)]
        spec: dict[str, Any] = {"model": PLUGIN_PREFIX + plugin}
        spec["params"] = checked(options.params, known, [*options.names(), "timeout"])
        return self._submit(spec, options, blobs, timeout)

    def _submit(
        self,
        spec: dict[str, Any],
        options: TaskOptions | PluginOptions,
        blobs: list[_Blob],
        timeout: float | None,
    ) -> Task:
        spec["durability"] = chosen("durability", options.durability, get_args(Durability))
        for name, value in (
            ("deadline_s", options.deadline),
            ("client", options.client),
            ("id", options.task_id),
        ):
            if value is not None:
                spec[name] = value
        limit_s = ACCEPT_TIMEOUT_S if timeout is None else timeout
        return Task(self._native, self._native.submit(spec, blobs, limit_s))

    def inpaint(
        self,
        image: Pixels | bytes,
        mask: Pixels | bytes,
        options: TaskOptions | None = None,
        *,
        timeout: float | None = None,
        **keywords: Any,
    ) -> Pixels:
        """Submit and wait: ``(H, W, 3)`` u8 RGB. A wait that ends early cancels the task.

        Args:
            image: See :meth:`submit`.
            mask: See :meth:`submit`.
            options: See :meth:`submit`; without ``output``.
            timeout: Seconds for the result, getting the task on record included; by default the configured
                ``client.timeout_ms``.
            keywords: See :meth:`submit`.

        Raises:
            LamaGridError: As :meth:`submit` and :meth:`Task.wait`.
        """
        options = (options or TaskOptions()).with_keywords(keywords)
        if options.output is not None:
            raise InvalidInputError("output is for files: inpaint_bytes() gives one")
        return self._run(image, mask, options, timeout, Task.wait)

    def inpaint_bytes(
        self,
        image: Pixels | bytes,
        mask: Pixels | bytes,
        options: TaskOptions | None = None,
        *,
        timeout: float | None = None,
        **keywords: Any,
    ) -> bytes:
        """As :meth:`inpaint`, but the result is a file of the format ``output``, by default PNG."""
        options = (options or TaskOptions()).with_keywords(keywords)
        if options.output is None:
            options = replace(options, output="png")
        return self._run(image, mask, options, timeout, Task.wait_bytes)

    def _run(
        self,
        image: Pixels | bytes,
        mask: Pixels | bytes,
        options: TaskOptions,
        timeout: float | None,
        wait: Callable[[Task, float], Result],
    ) -> Result:
        timeout_s = self._native.timeout_s if timeout is None else timeout
        deadline = time.monotonic() + timeout_s
        task = self.submit(image, mask, options, timeout=min(timeout_s, ACCEPT_TIMEOUT_S))
        return self._finish(task, lambda task: wait(task, max(0.0, deadline - time.monotonic())))

    def _finish(self, task: Task, wait: Callable[[Task], Result]) -> Result:
        try:
            result = wait(task)
        except BaseException:
            with contextlib.suppress(LamaGridError):  # the first error is the one that matters
                task.cancel(CANCEL_TIMEOUT_S)
            raise
        with contextlib.suppress(LamaGridError):  # the picture is here; retention ends in any case
            task.release()
        return result

    def task(self, task_id: str) -> Task:
        """A task that was submitted earlier, in this process or another."""
        return Task(self._native, task_id)

    def survey(self, timeout: float = ANSWER_TIMEOUT_S) -> GridStatus:
        """Ask for the nodes and queues of the grid, and its ``version``."""
        return self._native.survey(timeout)


def _file(name: str, data: Any) -> _Blob:
    if not isinstance(data, bytes):
        raise InvalidInputError(f"{name} is a {type(data).__name__}, but must be the bytes of a file")
    return name, data, None


def _blob(name: str, pixels: Any, channels: int) -> _Blob:
    """Check and convert one input."""
    import numpy as np

    if isinstance(pixels, bytes):
        return name, pixels, None

    wanted = "(height, width, 3) RGB" if channels == 3 else "(height, width)"
    if not isinstance(pixels, np.ndarray):
        raise InvalidInputError(
            f"{name} is a {type(pixels).__name__}, but must be a numpy array {wanted} of uint8, "
            "or the bytes of a file"
        )
    shape: tuple[int, ...] = pixels.shape
    fits = len(shape) == 3 and shape[2] == 3 if channels == 3 else len(shape) == 2
    if not fits:
        raise InvalidInputError(f"{name} has the shape {shape}, but must be {wanted}")
    if pixels.dtype != np.uint8:
        raise InvalidInputError(f"{name} is of {pixels.dtype}, but must be of uint8: 0 to 255, not 0 to 1")
    if 0 in shape:
        raise InvalidInputError(f"{name} has the shape {shape}: it has no pixels")
    # Row-major, whatever the strides: one copy.
    return name, pixels.tobytes(), (shape[0], shape[1], channels)


def _quality(value: int) -> int:
    if not 1 <= value <= 100:
        raise InvalidInputError(f"quality is {value}, but must be between 1 and 100")
    return value


def _priority(value: int) -> int:
    if not -128 <= value <= 127:
        raise InvalidInputError(f"priority is {value}, but must be between -128 and 127")
    return value
