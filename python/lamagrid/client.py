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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from lamagrid import _native
from lamagrid.errors import InvalidInputError, LamaGridError, WaitTimeoutError
from lamagrid.options import MODEL_OPTIONS, PLUGIN_OPTIONS, checked, chosen
from lamagrid.upstream.catalog import PLUGIN_PREFIX

if TYPE_CHECKING:
    import enum

    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Scalar = bool | int | float | str | np.generic | enum.Enum | None
    _Blob = tuple[str, bytes, tuple[int, int, int] | None]

Result = TypeVar("Result")
Durability = Literal["full", "process"]
OutputFormat = Literal["png", "jpeg", "webp", "bmp", "tiff"]

ACCEPT_TIMEOUT_S = 30.0  # a scheduler that restarts is back within a few seconds
ANSWER_TIMEOUT_S = 5.0  # a scheduler that runs answers within milliseconds
CANCEL_TIMEOUT_S = 1.0  # for a caller that wants to leave


def new_task_id() -> str:
    """Draw the id of a new task: the time in milliseconds, then random bits.

    A scheduler refuses ids that are older than what it remembers, or more than a day in the future.
    """
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


TERMINAL = frozenset(["completed", "failed", "cancelled"])


@dataclass(frozen=True)
class Progress:
    """Where a task is.

    Attributes:
        status: ``queued``, ``processing``, ``completed``, ``failed`` or ``cancelled``.
        step: Steps done; of a fetch of the model's files, hundredths of it.
        of: Steps in all; 0 where that is unknown or none was begun.
        activity: What a node that processes it does: ``loading`` the model, or ``running`` it.
    """

    status: str
    step: int
    of: int
    activity: str = "running"


@dataclass(frozen=True)
class Outcome:
    """What a completed task gave.

    Attributes:
        data: The result's bytes.
        dims: Height, width and channels of raw BGR pixels; None for an encoded file.
        task: The task as it ended: ``node``, ``stages`` (milliseconds), ``counters``, ...
    """

    data: bytes | bytearray
    dims: tuple[int, int, int] | None
    task: Mapping[str, Any]

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
    """What happens to a task, from its making on."""

    def __init__(self, native: _native.Follow) -> None:
        self._native = native

    def next(self, timeout: float) -> Progress | None:
        """The next thing that happens, the last one with a terminal status; None after so many seconds.

        Raises:
            LamaGridError: The task cannot be followed any more, as when its scheduler forgot it.
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
        """As :meth:`wait`, but the file, of a task that was submitted with an output format."""
        return self.outcome(timeout).encoded()

    def outcome(self, timeout: float | None = None) -> Outcome:
        """Wait for the result and everything that is known about it; see :meth:`wait`.

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
        """Yield where the task is, from now on until it has ended; the last one has a terminal status.

        A slow reader misses steps, never the end. A task that failed does not raise here; :meth:`wait` does.

        Args:
            timeout: Seconds between two events; by default the configured ``client.timeout_ms``.

        Raises:
            WaitTimeoutError: Nothing happened in that time; the task goes on.
        """
        patience = self._native.timeout_s if timeout is None else timeout
        events = self.events()
        while True:
            progress = events.next(patience)
            if progress is None:
                raise WaitTimeoutError(f"task {self.id} did not move for {patience:g} s", task_id=self.id)
            yield progress
            if progress.status in TERMINAL:
                return

    def events(self) -> TaskEvents:
        """As :meth:`follow`, for a reader that has something else to do at times."""
        return TaskEvents(self._native.follow(self.id))

    def cancel(self, timeout: float = ANSWER_TIMEOUT_S) -> str:
        """Ask that the task be stopped. Returns its status then; a task that has ended stays as it is."""
        status: str = self._native.cancel(self.id, timeout)["status"]
        return status

    def status(self, timeout: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """What the scheduler knows: ``status``, ``position``, ``node``, ``failure``, ``stages``, ..."""
        return self._native.status(self.id, timeout)

    def release(self, timeout: float = ANSWER_TIMEOUT_S) -> None:
        """Say that the result is not needed any more; it is gone then."""
        self._native.release(self.id, timeout)


def statuses(tasks: Sequence[Task], timeout: float = ANSWER_TIMEOUT_S) -> list[dict[str, Any] | None]:
    """:meth:`Task.status` of several tasks of one client, in one round trip; None for an unknown one."""
    return tasks[0]._native.statuses([task.id for task in tasks], timeout) if tasks else []


class TaskClient:
    """Hands tasks to one scheduler, of this host or another.

    Args:
        data_dir: The data directory of a scheduler on this host; by default what is configured,
            ``client.join`` before ``data_dir``.
        owner: Who may see and cancel these tasks; by default everybody who may use the socket directory,
            or the holder of the bundle's certificate, who is the only one that it may name.
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
        """Where the scheduler is looked for."""
        return self._native.address

    def submit(
        self,
        image: Pixels | bytes,
        mask: Pixels | bytes,
        *,
        model: str = "lama",
        example: Pixels | bytes | None = None,
        output: OutputFormat | None = None,
        quality: int = 95,
        priority: int = 0,
        durability: Durability = "full",
        deadline: float | None = None,
        wait_limit: float | None = None,
        run_limit: float | None = None,
        client: str | None = None,
        task_id: str | None = None,
        timeout: float | None = None,
        **params: Scalar,
    ) -> Task:
        """Submit a task. It is on the scheduler's record when this returns.

        Args:
            image: ``(H, W, 3)`` u8 RGB, or the bytes of a file: PNG, JPEG, WebP, BMP, GIF or TIFF.
            mask: ``(H, W)`` u8, 255 in the hole, other values blend; or the bytes of a file, which count as
                255 where their grey is above 127. Of the image's height and width.
            model: As nodes offer it.
            example: ``(h, w, 3)`` u8 RGB, or the bytes of a file, for paint by example.
            output: The format of the file that the result shall be, with alpha, EXIF and PNG ``parameters``
                of an image that is a file; see :meth:`Task.wait_bytes`. Its orientation is 1: the pixels are
                upright. EXIF that cannot be read is left out. Without ``output`` the result is pixels.
            quality: Of that file, 1 to 100, where its format is lossy.
            priority: -128 to 127, higher goes first.
            durability: What the record survives: ``full``, power loss; ``process``, the death of any process.
            deadline: Seconds after which nobody wants the result any more; the task fails then.
            wait_limit: Seconds that it may wait for a node. Can only shorten the scheduler's
                ``wait_limit_ms``.
            run_limit: Seconds that one attempt may take; then it is stopped and tried again. Can only shorten
                the scheduler's ``run_limit_ms``.
            client: On whose behalf, up to 128 letters, digits and ``-_.:@/%``: shares are fair and limits
                hold between clients. Without it everybody of this program is one client.
            task_id: From :func:`lamagrid.new_task_id`: who submits the same task under the same id again is
                told how the first one is doing, and nothing runs twice.
            timeout: Seconds to get it on record, a scheduler that is not there yet included; by default 30.
            params: Fields of Lama Cleaner's ``Config`` by their names: ``hd_strategy="Crop"``, ...; and how
                its model is built: ``sd_controlnet``, ``no_half``, ... (`lamagrid.options` has all of them).
                With ``keep_orientation=True`` a file's EXIF is upstream's: its orientation stays as it was.

        Raises:
            InvalidInputError: An argument is unknown or wrong; the text names it, and what was perhaps meant.
            OverloadedError: The queue is full; ``queue_len`` and ``wait_s`` say how long to wait.
            DisconnectedError: No scheduler answered in time; the text says how to start one.
        """
        blobs = [_blob("image", image, 3), _blob("mask", mask, 1)]
        sizes = [dims[:2] for _, _, dims in blobs if dims is not None]
        if len(sizes) == 2 and sizes[0] != sizes[1]:
            raise InvalidInputError(
                f"mask is {sizes[1][0]}x{sizes[1][1]} pixels, but image {sizes[0][0]}x{sizes[0][1]}: "
                "they must have the same height and width"
            )
        if example is not None:
            blobs.append(_blob("example", example, 3))
        spec: dict[str, Any] = {"model": model, "priority": _priority(priority)}
        if output is not None:
            spec |= {"output": chosen("output", output, get_args(OutputFormat)), "quality": _quality(quality)}
        options = {
            "deadline_s": deadline,
            "wait_limit_s": wait_limit,
            "run_limit_s": run_limit,
            "client": client,
            "id": task_id,
        }
        fields = checked(params, MODEL_OPTIONS, _arguments(TaskClient.submit))
        return self._submit(spec, durability, options, fields, blobs, timeout)

    def submit_plugin(
        self,
        plugin: str,
        image: bytes,
        *,
        example: bytes | None = None,
        durability: Durability = "full",
        deadline: float | None = None,
        client: str | None = None,
        task_id: str | None = None,
        timeout: float | None = None,
        **params: Scalar,
    ) -> Task:
        """Submit a task for one of Lama Cleaner's plugins; its file comes from :meth:`Task.wait_bytes`.

        Args:
            plugin: Upstream's name: ``RemoveBG``, ``RealESRGAN``, ...
            image: The bytes of a file.
            example: The bytes of the file that MakeGIF compares with.
            durability: See :meth:`submit`.
            deadline: See :meth:`submit`.
            client: See :meth:`submit`.
            task_id: See :meth:`submit`.
            timeout: See :meth:`submit`.
            params: The fields of upstream's form: ``upscale=2``, ``clicks="[[10, 20, 1, 0]]"``; how the
                plugin is built: ``realesrgan_model``, ``realesrgan_no_half``, ``interactive_seg_model``,
                ``background``; and ``quality`` and ``keep_orientation`` of the answer, see :meth:`submit`.

        Raises:
            LamaGridError: As :meth:`submit`.
        """
        blobs = [_file("image", image)] + ([] if example is None else [_file("example", example)])
        known = PLUGIN_OPTIONS[chosen("plugin", plugin, PLUGIN_OPTIONS)]
        fields = checked(params, known, _arguments(TaskClient.submit_plugin))
        spec: dict[str, Any] = {"model": PLUGIN_PREFIX + plugin}
        options = {"deadline_s": deadline, "client": client, "id": task_id}
        return self._submit(spec, durability, options, fields, blobs, timeout)

    def _submit(
        self,
        spec: dict[str, Any],
        durability: Durability,
        options: Mapping[str, Any],
        params: Mapping[str, Scalar],
        blobs: list[_Blob],
        timeout: float | None,
    ) -> Task:
        spec["params"] = params
        spec["durability"] = chosen("durability", durability, get_args(Durability))
        spec |= {name: value for name, value in options.items() if value is not None}
        return Task(
            self._native, self._native.submit(spec, blobs, ACCEPT_TIMEOUT_S if timeout is None else timeout)
        )

    def inpaint(
        self, image: Pixels | bytes, mask: Pixels | bytes, *, timeout: float | None = None, **options: Any
    ) -> Pixels:
        """Submit and wait: ``(H, W, 3)`` u8 RGB. Whatever ends the wait early cancels the task.

        Args:
            image: See :meth:`submit`.
            mask: See :meth:`submit`.
            timeout: Seconds for the result, getting the task on record included; by default the configured
                ``client.timeout_ms``.
            options: All other arguments of :meth:`submit` but ``output``.

        Raises:
            LamaGridError: As :meth:`submit` and :meth:`Task.wait`.
        """
        if "output" in options:
            raise InvalidInputError("output is for files: inpaint_bytes() gives one")
        return self._run(image, mask, timeout, options, Task.wait)

    def inpaint_bytes(
        self,
        image: Pixels | bytes,
        mask: Pixels | bytes,
        *,
        output: OutputFormat = "png",
        timeout: float | None = None,
        **options: Any,
    ) -> bytes:
        """As :meth:`inpaint`, but the result is a file of the format ``output``."""
        return self._run(image, mask, timeout, {"output": output, **options}, Task.wait_bytes)

    def _run(
        self,
        image: Pixels | bytes,
        mask: Pixels | bytes,
        timeout: float | None,
        options: dict[str, Any],
        wait: Callable[[Task, float], Result],
    ) -> Result:
        patience = self._native.timeout_s if timeout is None else timeout
        give_up = time.monotonic() + patience
        task = self.submit(image, mask, timeout=min(patience, ACCEPT_TIMEOUT_S), **options)
        return self._finish(task, lambda task: wait(task, max(0.0, give_up - time.monotonic())))

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
        """A task that was submitted before, perhaps by another process."""
        return Task(self._native, task_id)

    def survey(self, timeout: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """What the grid is made of: ``version``, ``nodes`` and ``queues``."""
        return self._native.survey(timeout)


def _file(name: str, data: Any) -> _Blob:
    if not isinstance(data, bytes):
        raise InvalidInputError(f"{name} is a {type(data).__name__}, but must be the bytes of a file")
    return name, data, None


def _blob(name: str, pixels: Any, channels: int) -> _Blob:
    """One input as the grid takes it, after checks whose texts name the argument."""
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
        raise InvalidInputError(f"{name} has the shape {shape}: it holds no pixel")
    # Row-major, whatever the strides: one copy.
    return name, pixels.tobytes(), (shape[0], shape[1], channels)


def _quality(value: int) -> int:
    if not 1 <= value <= 100:
        raise InvalidInputError(f"quality is {value}, but must be between 1 and 100")
    return value


def _arguments(method: Callable[..., Any]) -> Collection[str]:
    """The names of a method's own keyword arguments, which a misspelt option may mean."""
    return getattr(method, "__kwdefaults__", ())


def _priority(value: int) -> int:
    if not -128 <= value <= 127:
        raise InvalidInputError(f"priority is {value}, but must be between -128 and 127")
    return value
