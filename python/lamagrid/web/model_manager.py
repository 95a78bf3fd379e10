"""The face of upstream's ``ModelManager``, with the work done by nodes of the grid.

``server.py`` of Lama Cleaner touches its model through a call, ``name``, ``is_downloaded`` and ``switch``.
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
from typing import TYPE_CHECKING, Any

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
from lamagrid.upstream.catalog import PLUGIN_PREFIX, TORCH_MODELS
from lamagrid.web import pending_requests
from lamagrid.web.client_disconnect import ClientConnection
from lamagrid.web.pending_requests import StoppingError

if TYPE_CHECKING:
    from lama_cleaner.schema import Config

    from lamagrid.web.browser_tasks import BrowserTasks, TaskWatch

TASK_HEADER = "X-Lamagrid-Task"

# Upstream calls its callback for each step of these alone.
STEPPED_MODELS = frozenset([*SD15_MODELS, "sd2"])

# A task whose caller was killed is not worked on for ever; a caller that lives gives up before that.
DEADLINE_BEYOND_S = 10.0
# How often a waiting request looks whether its caller is still there.
LOOK_S = 0.25
# For the result of a task that has ended; the scheduler sends it with the end.
FETCH_LIMIT_S = 30.0

Pixels = NDArray[np.uint8]


STOPPING = "The server is being stopped: send the picture again when it is back."
STOPPING_KEPT = (
    "The server is being stopped: when it is back, the picture is found on its page /grid for a minute."
)


class RemoteModelManager:
    """Stands where upstream's ``ModelManager`` stood.

    Args:
        name: The model that tasks ask for until :meth:`switch`.
        device: Upstream's; nodes have their own devices, so it is only kept.
        client: What connects to the scheduler; by default one for the configured data directory, made at the
            first use.
        timeout_s: How long a call waits for its picture; by default the configured one.
        watch: Called with each task and what it is for, in the thread that waits for it.
        memory: What knows the tasks when this server is started again.
        strict: Whether a call raises ``ValueError`` for a parameter that the model cannot use. Upstream's
            models raise something of this kind, for which its server has no text.
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
        watch: Callable[[Task, str], TaskWatch] | None = None,
        memory: BrowserTasks | None = None,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        self.device = device
        self._strict = strict
        self._watch = watch
        self._memory = memory
        self.kwargs = kwargs
        self._client_lock = threading.Lock()  # guards the making of _client
        self._client = client
        self._timeout_s = timeout_s
        self._check_known(name)
        self.name = name

    def __call__(self, image: Pixels, mask: Pixels, config: Config) -> Pixels:
        """Inpaint on some node, and wait for it.

        Args:
            image: ``(H, W, 3)`` u8 RGB; read only.
            mask: ``(H, W)`` u8, 255 in the hole; read only.
            config: Upstream's parameters; read only.

        Returns:
            ``(H, W, 3)`` u8 **BGR**, as upstream's models give it.

        Raises:
            RuntimeError: Whatever went wrong, in one short text; the classes are those of `lamagrid.errors`.
            ValueError: Where this is strict, a parameter that the model cannot use.
        """
        try:
            return self._run(image, mask, None, config, {}).bgr()
        except InvalidInputError as error:
            if self._strict:
                raise ValueError(str(error)) from error
            raise

    def inpaint_files(
        self, image: bytes, mask: bytes, example: bytes | None, config: Config, output: str, quality: int
    ) -> bytes:
        """As a call, but with files: the node decodes and encodes.

        Args:
            image: A file that nodes promise Pillow's pixels for.
            mask: The same; grey above 127 is the hole.
            example: The same, or None.
            config: Upstream's parameters, without an example picture; read only.
            output: The format of the file that is wanted.
            quality: Of that file, 1 to 100.

        Raises:
            InvalidInputError: A file is broken, or the sizes of image and mask differ.
            RuntimeError: As a call.
        """
        as_upstream = {"output": output, "quality": quality, KEEP_ORIENTATION: True}
        return self._run(image, mask, example, config, as_upstream).encoded()

    def run_plugin(self, name: str, image: bytes, example: bytes | None, params: Mapping[str, Any]) -> bytes:
        """Run one of upstream's plugins on some node, and wait for its file.

        Args:
            name: Upstream's.
            image: A file.
            example: Another one, for MakeGIF.
            params: See :meth:`TaskClient.submit_plugin`.

        Raises:
            RuntimeError: As a call.
        """
        submit = self._grid().submit_plugin
        fields = {**params, KEEP_ORIENTATION: True}
        return self._finish(name, None, submit, name, image, example=example, **fields).encoded()

    def _run(
        self,
        image: Pixels | bytes,
        mask: Pixels | bytes,
        example: Pixels | bytes | None,
        config: Config,
        output: Mapping[str, Any],
    ) -> Outcome:
        # As they are now: a switch that comes while this waits changes nothing here.
        name, options = self.name, dict(self.kwargs)
        params, picture = task_params(name, config, options)
        example = picture if example is None else example
        callback = options.get("callback") if name in STEPPED_MODELS else None
        submit = self._grid().submit
        return self._finish(
            name, callback, submit, image, mask, model=name, example=example, **output, **params
        )

    def _finish(
        self,
        what: str,
        callback: Callable[[int, Any, Any], None] | None,
        submit: Callable[..., Task],
        *inputs: Any,
        **named: Any,
    ) -> Outcome:
        """Submit on behalf of the caller of this thread's request, and wait."""
        timeout_s = self._patience()
        caller = ClientConnection.of_request()
        task_id = new_task_id()
        is_kept = self._memory is not None and self._memory.remember(task_id, what)
        try:
            task = submit(
                *inputs,
                task_id=task_id,
                durability="process",  # the caller holds the picture until the answer and can send it again
                deadline=timeout_s + DEADLINE_BEYOND_S,
                client=caller.client,
                **named,
            )
        except BaseException:
            if self._memory is not None:
                self._memory.forget(task_id)
            raise
        _tell_request(task.id)
        watch = None if self._watch is None else self._watch(task, what)
        seen = 0

        def told(progress: Progress | None) -> None:
            nonlocal seen
            if watch is not None:
                watch.told(progress)
            # Steps done, from 1; upstream counts the step that was done, from 0.
            if callback is None or progress is None or progress.activity != "running":
                return
            if progress.step > seen:
                seen = progress.step
                callback(seen - 1, None, None)

        try:
            with pending_requests.waiting():
                outcome = _await_outcome(task, timeout_s, caller, told, is_kept)
        except StoppingError:
            raise  # the next server goes on with it
        except Exception as error:
            if watch is not None:
                watch.failed(error)
            raise
        if watch is not None:
            watch.ended(outcome)
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

    def _patience(self) -> float:
        if self._timeout_s is None:
            self._timeout_s = load_settings(None).timeout_s
        return self._timeout_s

    def _grid(self) -> TaskClient:
        with self._client_lock:
            if self._client is None:
                self._client = TaskClient()
            return self._client


def served_models(survey: Mapping[str, Any]) -> set[str]:
    """The names of the models that some live node of a survey takes tasks for."""
    return {offer["model"] for offer in _live_offers(survey)}


def _live_offers(survey: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    nodes = (node for node in survey["nodes"] if node["state"] in ("ready", "busy", "suspect"))
    return [offer for node in nodes for offer in node["info"]["models"]]


def _not_supported(name: str) -> NotImplementedError:
    """Of upstream's class and text: its server catches it, and says that the model is not implemented."""
    return NotImplementedError(f"Not supported model: {name}")


def task_params(
    model: str, config: Config, options: Mapping[str, Any]
) -> tuple[dict[str, Any], Pixels | None]:
    """Upstream's ``Config`` and constructor options as the parameters of a task.

    What the model does not read, and absent values, are left out: the node's ``Config`` has defaults.

    Returns:
        Scalars by upstream's names, and the example picture ``(h, w, 3)`` u8 RGB if there is one.
    """
    fields: dict[str, Any] = {}
    example: Pixels | None = None
    for key in config.__fields__:
        value = getattr(config, key)
        if key == "paint_by_example_example_image":
            if value is not None:
                example = np.asarray(value.convert("RGB"))
        elif value is not None:
            fields[key] = value.value if isinstance(value, enum.Enum) else value
    build = {key: options[key] for key in BUILD if options.get(key)}
    return {**read_by(model, fields, build), **build}, example


def _await_outcome(
    task: Task,
    timeout_s: float,
    caller: ClientConnection,
    told: Callable[[Progress | None], None],
    is_kept: bool = False,
) -> Outcome:
    """Wait for the picture, and say that it may go then. A wait that ends early cancels the task.

    Args:
        told: Called with each thing that happens, and with None when nothing did for a while.
        is_kept: Whether the task goes on when this server ends.
    """
    give_up = time.monotonic() + timeout_s
    events = task.events()
    try:
        while True:
            began = time.monotonic()
            look_s = min(LOOK_S, max(0.0, give_up - began))
            try:
                progress = events.next(look_s)
                _check_caller(task, caller)
                if pending_requests.is_stopping() and (progress is None or progress.status not in TERMINAL):
                    raise StoppingError(STOPPING_KEPT if is_kept else STOPPING, task_id=task.id)
                told(progress)
                if progress is not None and progress.status in TERMINAL:
                    outcome = task.outcome(FETCH_LIMIT_S)
                    break
            except DisconnectedError:
                _check_caller(task, caller)
                now = time.monotonic()
                # One look of many: who is away comes back. What came at once is the task's failure.
                if now >= give_up or now - began < look_s / 2:
                    raise
                events = task.events()
            if time.monotonic() >= give_up:
                raise WaitTimeoutError(
                    f"Timed out after {timeout_s:g} s: the picture was not ready, and the task was "
                    "cancelled. Send it again, or let people wait for longer (client.timeout_ms).",
                    task_id=task.id,
                )
    except BaseException as error:
        gives_up = isinstance(error, (DisconnectedError, WaitTimeoutError))
        if isinstance(error, StoppingError):
            gives_up = not is_kept
        if gives_up or not isinstance(error, LamaGridError):
            _cancel(task)
        raise
    with contextlib.suppress(LamaGridError):  # the picture is here; retention ends in any case
        task.release()
    return outcome


def _check_caller(task: Task, caller: ClientConnection) -> None:
    """Cancel a task whose caller has left.

    Raises:
        CancelledError: It has.
    """
    if caller.has_left():
        _cancel(task)
        raise CancelledError(
            f"The browser went away while it waited: task {task.id} was cancelled.", task_id=task.id
        )


def _cancel(task: Task) -> None:
    """Take back a task that nobody waits for any more; the reason for that is what the caller is told."""
    with contextlib.suppress(LamaGridError):
        task.cancel()


def _tell_request(task_id: str) -> None:
    """Put the task's id on the answer of the HTTP request that this thread serves, if it serves one."""
    flask = sys.modules.get("flask")  # a program without it gets by without it
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
