"""Replaces upstream's ``ModelManager``: each call is a task, and nodes of the grid work on it.

``server.py`` of Lama Cleaner uses its model through a call, ``name``, ``is_downloaded`` and ``switch``.
Upstream keeps decoding and encoding: arrays go to the grid and one array comes back.

Does not: load a model; import torch, diffusers or upstream's model code; connect before it is first used.
Who calls it: upstream's server, or any program that swaps its import of ``ModelManager`` for this one.
"""

from __future__ import annotations

import contextlib
import enum
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from lama_cleaner.const import AVAILABLE_MODELS, SD15_MODELS
from numpy.typing import NDArray

from lamagrid.client import TERMINAL, Outcome, Progress, Task, TaskClient, new_task_id
from lamagrid.errors import (
    CancelledError,
    DisconnectedError,
    InvalidInputError,
    LamaGridError,
    UnknownModelError,
    WaitTimeoutError,
)
from lamagrid.options import BUILD, KEEP_ORIENTATION, read_by
from lamagrid.settings import load_settings
from lamagrid.types import PluginOptions, TaskOptions
from lamagrid.upstream.catalog import PLUGIN_PREFIX, TORCH_MODELS
from lamagrid.web import pending_requests
from lamagrid.web.client_disconnect import ClientConnection
from lamagrid.web.error_responses import AnswerStyle
from lamagrid.web.pending_requests import StoppingError

if TYPE_CHECKING:
    from lamagrid.types import GridStatus, ModelOffer
    from lamagrid.upstream.protocol import UpstreamConfig
    from lamagrid.web.browser_tasks import BrowserTasks, TaskWatch

TASK_HEADER = "X-Lamagrid-Task"

# Upstream calls its callback for each step of these alone.
STEPPED_MODELS = frozenset([*SD15_MODELS, "sd2"])

# Bounds the task of a caller that was killed; a living caller times out earlier.
DEADLINE_BEYOND_S = 10.0
# How often a waiting request checks its connection.
POLL_S = 0.25
# For fetching the result of a task that has ended.
FETCH_LIMIT_S = 30.0

Pixels = NDArray[np.uint8]
StepCallback = Callable[[int, Any, Any], None]
"""Upstream's: the step, the time step and the latents."""
Options = TypeVar("Options", TaskOptions, PluginOptions)

STOPPING = "The server is being stopped: send the picture again when it is back."
STOPPING_KEPT = (
    "The server is being stopped: when it is back, the picture is found on its page /grid for a minute."
)


@dataclass(frozen=True)
class WebTasks:
    """The parts of a web server that its manager uses.

    Attributes:
        browser_tasks: Tracks the tasks and their browsers.
        style: With upstream's, a call raises ``ValueError`` for a parameter that the model cannot use, as
            upstream's models do.
    """

    browser_tasks: BrowserTasks
    style: AnswerStyle


@dataclass(frozen=True)
class InputFiles:
    """The files of a request.

    Attributes:
        image: A file that nodes decode as Pillow does.
        mask: The same; grey above 127 is the hole.
        example: The same, for paint by example; or any file, for a plugin that takes two.
    """

    image: bytes
    mask: bytes = b""
    example: bytes | None = None


@dataclass(frozen=True)
class OutputFile:
    """The file that is wanted.

    Attributes:
        format: As upstream names it.
        quality: 1 to 100.
    """

    format: str
    quality: int


class RemoteModelManager:
    """Upstream's ``ModelManager`` for the grid.

    Args:
        name: The model that tasks ask for until :meth:`switch`.
        device: Upstream's; nodes have their own devices, so it is only kept.
        client: Connects to the scheduler; by default one for the configured data directory, made at the
            first use.
        timeout_s: How long a call waits for its picture; by default the configured one.
        web: The web server, if it runs in one.
        kwargs: Upstream's options; ``callback(i, t, latents)`` is called for each step of a diffusion model,
            with ``t`` and ``latents`` None: they stay on the node.

    Raises:
        NotImplementedError: Neither upstream nor a live node knows the model.
    """

    def __init__(
        self,
        name: str,
        device: Any,
        client: TaskClient | None = None,
        timeout_s: float | None = None,
        web: WebTasks | None = None,
        **kwargs: Any,
    ) -> None:
        self.device = device
        self.kwargs = kwargs
        self._web = web
        self._client_lock = threading.Lock()  # guards the making of _client
        self._client = client
        self._timeout_s = timeout_s
        self._check_known(name)
        self.name = name

    def __call__(self, image: Pixels, mask: Pixels, config: UpstreamConfig) -> Pixels:
        """Inpaint on some node, and wait for it.

        Args:
            image: ``(H, W, 3)`` u8 RGB; read only.
            mask: ``(H, W)`` u8, 255 in the hole; read only.
            config: Upstream's parameters; read only.

        Returns:
            ``(H, W, 3)`` u8 **BGR**, as upstream's models give it.

        Raises:
            RuntimeError: It failed; the text is short, the classes are those of `lamagrid.errors`.
            ValueError: Where errors are answered as upstream does, a parameter that the model cannot use.
        """
        request = self._request(config)
        try:
            return self._run(request, image, mask, request.options).bgr()
        except InvalidInputError as error:
            if self._web is not None and self._web.style is AnswerStyle.UPSTREAM:
                raise ValueError(str(error)) from error
            raise

    def inpaint_files(self, files: InputFiles, config: UpstreamConfig, output: OutputFile) -> bytes:
        """As a call, but with files: the node decodes and encodes.

        Args:
            files: Of the request.
            config: Upstream's parameters, without an example picture; read only.
            output: The file that is wanted.

        Raises:
            InvalidInputError: A file is broken, or the sizes of image and mask differ.
            RuntimeError: As a call.
        """
        request = self._request(config)
        options = request.options.with_keywords(
            {"output": output.format, "quality": output.quality, KEEP_ORIENTATION: True}
        )
        if files.example is not None:
            options = replace(options, example=files.example)
        return self._run(request, files.image, files.mask, options).encoded()

    def run_plugin(self, name: str, files: InputFiles, params: Mapping[str, Any]) -> bytes:
        """Run one of upstream's plugins on some node, and wait for its file.

        Args:
            name: Upstream's.
            files: The image, and MakeGIF's other one as the example.
            params: See :class:`PluginOptions`.

        Raises:
            RuntimeError: As a call.
        """
        options = PluginOptions(example=files.example, params={**params, KEEP_ORIENTATION: True})
        submit = self._grid().submit_plugin
        return self._finish(name, None, options, lambda options: submit(name, files.image, options)).encoded()

    def _request(self, config: UpstreamConfig) -> _Request:
        # Copies, so that a switch during the wait does not change this request.
        kwargs = dict(self.kwargs)
        callback = kwargs.get("callback") if self.name in STEPPED_MODELS else None
        return _Request(callback, task_options(self.name, config, kwargs))

    def _run(
        self, request: _Request, image: Pixels | bytes, mask: Pixels | bytes, options: TaskOptions
    ) -> Outcome:
        submit = self._grid().submit
        return self._finish(
            options.model, request.callback, options, lambda options: submit(image, mask, options)
        )

    def _finish(
        self,
        what: str,
        callback: StepCallback | None,
        options: Options,
        submit: Callable[[Options], Task],
    ) -> Outcome:
        """Submit on behalf of the client of this thread's request, and wait."""
        timeout_s = self._timeout()
        connection = ClientConnection.of_request()
        task_id = new_task_id()
        browser_tasks = None if self._web is None else self._web.browser_tasks
        is_kept = browser_tasks is not None and browser_tasks.remember(task_id, what)
        options = replace(
            options,
            task_id=task_id,
            durability="process",  # the caller holds the picture until the answer and can send it again
            deadline=timeout_s + DEADLINE_BEYOND_S,
            client=connection.client,
        )
        try:
            task = submit(options)
        except BaseException:
            if browser_tasks is not None:
                browser_tasks.forget(task_id)
            raise
        _add_task_header(task.id)
        watch = None if browser_tasks is None else browser_tasks.watch(task, what)
        at_shutdown = AtShutdown.KEEP if is_kept else AtShutdown.CANCEL
        waiting = _Waiting(task, connection, watch, callback, at_shutdown)
        try:
            with pending_requests.waiting():
                outcome = waiting.wait(timeout_s)
        except StoppingError:
            raise  # the next server takes the task over
        except Exception as error:
            if watch is not None:
                watch.failed(error)
            raise
        if watch is not None:
            watch.completed(outcome)
        return outcome

    def is_downloaded(self, name: str) -> bool:
        """Whether some live node has the model's files, so that a request is answered without a download.

        Raises:
            NotImplementedError: Neither upstream nor a live node knows the model.
        """
        try:
            offers = _live_offers(self._grid().survey())
        except LamaGridError:
            offers = []
        if name not in AVAILABLE_MODELS and all(offer["model"] != name for offer in offers):
            raise _not_supported(name)
        return any(offer["model"] == name and offer["present"] for offer in offers)

    def switch(self, new_name: str, **_: Any) -> None:
        """Let the tasks from now on ask for another model.

        Raises:
            NotImplementedError: Neither upstream nor a live node knows the model; the current one stays.
            RuntimeError: No live node serves the model; the current one stays.
        """
        if new_name == self.name:
            return
        self._check_known(new_name)
        served = self._survey()
        if new_name not in served:
            raise UnknownModelError(
                f"No live node serves {new_name}; {self.name} stays. {_serve_hint(new_name)} "
                f"Served now: {', '.join(sorted(served)) or 'nothing'}."
            )
        self.name = new_name

    def _check_known(self, name: str) -> None:
        if name not in AVAILABLE_MODELS and name not in self._served():
            raise _not_supported(name)

    def _served(self) -> set[str]:
        """The models of all live nodes; nothing if the scheduler cannot be asked."""
        try:
            return self._survey()
        except LamaGridError:
            return set()

    def _survey(self) -> set[str]:
        return served_models(self._grid().survey())

    def _timeout(self) -> float:
        if self._timeout_s is None:
            self._timeout_s = load_settings(None).timeout_s
        return self._timeout_s

    def _grid(self) -> TaskClient:
        with self._client_lock:
            if self._client is None:
                self._client = TaskClient()
            return self._client


def served_models(survey: GridStatus) -> set[str]:
    """The names of the models that some live node of a survey takes tasks for."""
    return {offer["model"] for offer in _live_offers(survey)}


def _live_offers(survey: GridStatus) -> list[ModelOffer]:
    nodes = (node for node in survey["nodes"] if node["state"] in ("ready", "busy", "suspect"))
    return [offer for node in nodes for offer in node["info"]["models"]]


def _not_supported(name: str) -> NotImplementedError:
    """Of upstream's class and text: its server catches it, and says that the model is not implemented."""
    return NotImplementedError(f"Not supported model: {name}")


@dataclass(frozen=True)
class _Request:
    """One call: the model, its parameters, and the callback for its steps."""

    callback: StepCallback | None
    options: TaskOptions


def task_options(model: str, config: UpstreamConfig, kwargs: Mapping[str, Any]) -> TaskOptions:
    """Upstream's ``Config`` and constructor options as the options of a task.

    Values that the model does not read, and absent ones, are left out: the node's ``Config`` has defaults.
    """
    values: dict[str, Any] = {}
    example: Pixels | None = None
    for key in config.__fields__:
        value = getattr(config, key)
        if key == "paint_by_example_example_image":
            if value is not None:
                example = np.asarray(value.convert("RGB"))
        elif value is not None:
            values[key] = value.value if isinstance(value, enum.Enum) else value
    build = {key: kwargs[key] for key in BUILD if kwargs.get(key)}
    return TaskOptions(model=model, example=example, params={**read_by(model, values, build), **build})


class AtShutdown(enum.Enum):
    """Whether a task is cancelled when its web server ends."""

    KEEP = "its browser finds it again on the page /grid"
    CANCEL = "no browser could find it"


@dataclass
class _Waiting:
    """A request that waits for its task.

    Attributes:
        task: The task.
        connection: Of the client that waits for the answer.
        watch: Gets the events, and None after a while without one.
        callback: Gets the steps.
        at_shutdown: Whether the task is cancelled when this server ends.
    """

    task: Task
    connection: ClientConnection
    watch: TaskWatch | None
    callback: StepCallback | None
    at_shutdown: AtShutdown
    steps: int = 0

    def wait(self, timeout_s: float) -> Outcome:
        """Wait for the picture, then release it. A wait that ends early cancels the task."""
        try:
            outcome = self._outcome(timeout_s)
        except BaseException as error:
            is_useless = isinstance(error, (DisconnectedError, WaitTimeoutError))
            if isinstance(error, StoppingError):
                is_useless = self.at_shutdown is AtShutdown.CANCEL
            if is_useless or not isinstance(error, LamaGridError):
                _cancel(self.task)
            raise
        with contextlib.suppress(LamaGridError):  # the picture is here; retention ends in any case
            self.task.release()
        return outcome

    def _outcome(self, timeout_s: float) -> Outcome:
        deadline = time.monotonic() + timeout_s
        events = self.task.events()
        while True:
            began = time.monotonic()
            poll_s = min(POLL_S, max(0.0, deadline - began))
            try:
                progress = events.next(poll_s)
                self._check_connection()
                has_ended = progress is not None and progress.status in TERMINAL
                if pending_requests.is_stopping() and not has_ended:
                    text = STOPPING_KEPT if self.at_shutdown is AtShutdown.KEEP else STOPPING
                    raise StoppingError(text, task_id=self.task.id)
                self._tell(progress)
                if has_ended:
                    return self.task.outcome(FETCH_LIMIT_S)
            except DisconnectedError:
                self._check_connection()
                now = time.monotonic()
                # A scheduler that is away comes back: look again. An error at once is the task's failure.
                if now >= deadline or now - began < poll_s / 2:
                    raise
                events = self.task.events()
            if time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    f"Timed out after {timeout_s:g} s: the picture was not ready, and the task was "
                    "cancelled. Send it again, or let people wait for longer (client.timeout_ms).",
                    task_id=self.task.id,
                )

    def _tell(self, progress: Progress | None) -> None:
        if self.watch is not None:
            self.watch.on_event(progress)
        # The grid counts steps done, from 1; upstream the step that was done, from 0.
        if self.callback is None or progress is None or progress.activity != "running":
            return
        if progress.step > self.steps:
            self.steps = progress.step
            self.callback(self.steps - 1, None, None)

    def _check_connection(self) -> None:
        """Cancel the task if its client has disconnected.

        Raises:
            CancelledError: It has.
        """
        if self.connection.is_lost():
            _cancel(self.task)
            raise CancelledError(
                f"The browser went away while it waited: task {self.task.id} was cancelled.",
                task_id=self.task.id,
            )


def _cancel(task: Task) -> None:
    """Cancel a task whose result is not needed; an error here would hide why."""
    with contextlib.suppress(LamaGridError):
        task.cancel()


def _add_task_header(task_id: str) -> None:
    """Add the task's id to the answer of the HTTP request that this thread serves, if it serves one."""
    flask = sys.modules.get("flask")  # not imported by programs that use only the model manager
    if flask is None or not flask.has_request_context():
        return

    def add_header(response: Any) -> Any:
        response.headers[TASK_HEADER] = task_id
        return response

    flask.after_this_request(add_header)


def _serve_hint(name: str) -> str:
    if name.startswith(PLUGIN_PREFIX):
        return f"Start a node with `lamagrid pynode --plugin {name.removeprefix(PLUGIN_PREFIX)}`."
    if name in TORCH_MODELS:
        return f"Start a node with `lamagrid-node --model {name}`."
    if name not in AVAILABLE_MODELS:
        return f"Start a node with `lamagrid-node --model {name}=FILE`."
    flag = f"--grid-python-models cv2,{name}"
    return f"Start one with `lamagrid pynode --model {name}`, or the server with `{flag}`."
