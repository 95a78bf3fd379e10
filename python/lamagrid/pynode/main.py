"""The process of a Python node: takes tasks from its session, one at a time, until it is told to end.

A failed task never ends the node. SIGTERM lets it finish the task it works on for some seconds; then the task
is given back, and another node does it. The same happens at once at a second SIGTERM, and with ``--lifeline``
soon after its stdin closed. SIGHUP ends nothing.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import re
import select
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lamagrid import global_flags
from lamagrid.errors import ConfigError
from lamagrid.options import nearest
from lamagrid.pynode.failed_loads import FailedLoads
from lamagrid.pynode.system_libraries import missing_library
from lamagrid.settings import load_settings
from lamagrid.upstream.catalog import MODELS, PLUGIN_PREFIX, Source, WebFile, is_present
from lamagrid.weights.fetch import name_authorities_for_hub

if TYPE_CHECKING:
    from lamagrid.pynode.models import UpstreamModels
    from lamagrid.pynode.plugins import UpstreamPlugins

POLL_S = 1.0  # how late the end is noticed while no task comes
FINISH_S = 4.0  # for the running task after SIGTERM: service managers kill after ten seconds
ORPHAN_GRACE_S = 3.0  # for the running task once the lifeline is closed
REPEATED_SIGNAL_S = 1.0  # a process group and a parent may send the same signal twice
HANGUP = "SIGHUP: reload is not available yet; restart to apply a changed configuration"
EXIT_CANNOT_START = 1
EXIT_WRONG_FLAGS = 2
EXIT_DEVICE = 69  # the same as of the Rust node
EXIT_CONFIG = 78  # the same as of the other programs of the grid
EXIT_REFUSED = {"invalid_input": 65, "incompatible": 76}
"""By the kind of the refusal; the same as of the Rust node."""


class _WrongFlags(Exception):
    """A flag is wrong; the text names it and the known values."""


@dataclass(frozen=True)
class Serving:
    """The models and plugins that a node runs.

    Attributes:
        models: Runs the models, None if it serves none.
        plugins: Runs the plugins, None if it serves none.
        offers: All that it serves, by the names that tasks use.
        broken: Those that could not be loaded.
    """

    models: UpstreamModels | None
    plugins: UpstreamPlugins | None
    offers: tuple[str, ...]
    broken: FailedLoads = field(default_factory=FailedLoads)

    @property
    def loaded(self) -> list[str]:
        """Those that are in memory."""
        models = self.models.loaded if self.models is not None else []
        plugins = self.plugins.loaded if self.plugins is not None else []
        return models + [PLUGIN_PREFIX + name for name in plugins if PLUGIN_PREFIX + name in self.offers]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a node. Returns the exit status."""
    options = global_flags.parse(_parser(), sys.argv[1:] if argv is None else argv)
    if options.slots != 1:
        print("pynode: --slots can only be 1: upstream's models keep state", file=sys.stderr)
        return EXIT_WRONG_FLAGS
    shutdown = Shutdown()
    shutdown.watch_signals()
    name_authorities_for_hub()
    if options.lifeline:
        shutdown.watch_parent()
    try:
        serving = _serving(options)
    except (_WrongFlags, ConfigError) as error:
        print(f"pynode: {error}", file=sys.stderr)
        return EXIT_WRONG_FLAGS if isinstance(error, _WrongFlags) else EXIT_CONFIG
    except ImportError as error:
        library = missing_library(error)
        hint = library or f"{error}; a Python node needs Lama Cleaner: pip install 'lamagrid[web]'"
        print(f"pynode: cannot start: {hint}", file=sys.stderr)
        return EXIT_CANNOT_START
    return _serve(options, serving, shutdown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lamagrid pynode",
        description="Serve Lama Cleaner's own models and plugins, in Python, to the grid. "
        "Example: lamagrid pynode --model cv2 --model zits --plugin RemoveBG",
        epilog="Exit codes: 0 it left as it was told; 1 it cannot start; 2 the command line is wrong; 65 the "
        "scheduler refuses its certificate, name or models; 69 its GPU is lost; 76 the versions of "
        "the two do not fit; 78 the configuration, a bundle, a capability file or a model's file is wrong.",
    )
    parser.add_argument(
        "--name", default="", help="the node's name (default: the host's name, -python; or the certificate's)"
    )
    parser.add_argument(
        "--model", action="append", dest="models", metavar="NAME", help="a model to serve; may be given again"
    )
    parser.add_argument(
        "--plugin",
        action="append",
        dest="plugins",
        default=[],
        type=_plugin,
        metavar="NAME[=DEVICE]",
        help="a plugin to serve, on the processor if no device is named: RemoveBG, RealESRGAN=cuda; "
        "may be given again",
    )
    parser.add_argument(
        "--device", default="cpu", type=_device, help="cpu, cuda, cuda:1, ... (default: %(default)s)"
    )
    parser.add_argument("--slots", type=int, default=1, help="tasks at the same time; only 1 is possible")
    parser.add_argument(
        "--capabilities",
        type=Path,
        metavar="FILE",
        help="a file of `lamagrid-node capabilities --write FILE`: caps memory, leaves models out, adds "
        "labels",
    )
    parser.add_argument("--lifeline", action="store_true", help="end when stdin closes")
    global_flags.add_to(parser)
    return parser


class _PluginDevice(NamedTuple):
    name: str
    device: str


def _plugin(text: str) -> _PluginDevice:
    name, _, device = text.partition("=")
    return _PluginDevice(name, _device(device or "cpu"))


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: write cpu, cuda, cuda:1, ... or mps")
    return text


def _serving(options: argparse.Namespace) -> Serving:
    """Import the models and plugins that the flags name.

    Raises:
        _WrongFlags: Upstream has no such model or plugin, or the package of a plugin is missing.
        ConfigError: The configuration is wrong.
        ImportError: Upstream, or a library that it needs, is missing.
    """
    const = importlib.import_module("lama_cleaner.const")
    devices: dict[str, str] = dict(options.plugins)
    names = options.models or ([] if devices else ["cv2"])
    for name in names:
        if name not in const.AVAILABLE_MODELS:
            raise _unknown("--model", name, const.AVAILABLE_MODELS)
        _check_files(name)
    models, plugins = None, None
    # These imports take seconds and hundreds of megabytes: only needed ones, and after all flags are checked.
    with warnings.catch_warnings():
        # Hides warnings of torch about upstream's imports.
        warnings.simplefilter("ignore", FutureWarning)
        if devices:
            from lamagrid.pynode.plugins import PLUGINS, UpstreamPlugins, missing_package

            for name in devices:
                if name not in PLUGINS:
                    raise _unknown("--plugin", name, PLUGINS)
                missing = missing_package(name)
                if missing is not None:
                    raise _WrongFlags(f"--plugin {name}: {missing}")
            plugins = UpstreamPlugins(devices, load_settings(options.data_dir).max_pixels)
        if names:
            from lamagrid.pynode.models import UpstreamModels

            models = UpstreamModels(options.device, os.environ.get("HF_ACCESS_TOKEN", ""))
    return Serving(models, plugins, (*names, *(PLUGIN_PREFIX + name for name in devices)))


def _unknown(flag: str, name: str, known: Collection[str]) -> _WrongFlags:
    return _WrongFlags(f"{flag} {name}{nearest(name, known)}: Lama Cleaner has {', '.join(known)}")


def _check_files(model: str) -> None:
    """Refuse a model whose file is neither here nor has a URL: it could never be loaded.

    Raises:
        ConfigError: The text names the file and the variable.
    """
    for file in MODELS[model]:
        if isinstance(file, WebFile) and not file.is_present(os.environ):
            url, _ = file.source(os.environ)
            if "://" not in url:
                raise ConfigError(
                    f"--model {model}: there is no file {url}. Put it there, or correct {file.variables}_URL"
                )


def _serve(options: argparse.Namespace, serving: Serving, shutdown: Shutdown) -> int:
    from lamagrid import _native
    from lamagrid.errors import LamaGridError

    try:
        name = options.name or _own_name(options.join)
        _native.start_logs(f"pynode-{name}", options.data_dir)
        missing = [offer for offer in serving.offers if not is_present(offer, os.environ)]
        session = _native.NodeSession(
            {
                "data_dir": options.data_dir,
                "name": name,
                "kind": "python",
                "device": options.device,
                "models": serving.offers,
                "slots": options.slots,
                "missing": missing,
                "join": options.join,
                "capabilities": options.capabilities,
                "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "cuda_device_order": os.environ.get("CUDA_DEVICE_ORDER"),
            }
        )
    except LamaGridError as error:
        print(f"pynode: {error}", file=sys.stderr)
        return EXIT_CONFIG
    shutdown.session = session
    draining = False
    while True:
        if shutdown.requested.is_set() and not draining:
            draining = True
            session.drain()
        try:
            job = session.next_job(POLL_S)
        except LamaGridError as error:
            print(f"pynode: the scheduler refuses this node: {error}", file=sys.stderr)
            return EXIT_REFUSED.get(error.kind, EXIT_CANNOT_START)
        threads = session.take_threads()
        if threads is not None:
            _set_threads(threads)
        if job is not None:
            work(job, serving)
            session.set_loaded(serving.loaded)
        elif serving.broken.reload_changed():
            # Reports that it works again: until then, the scheduler sends it no tasks.
            session.set_loaded(serving.loaded)
        elif session.closed:
            if session.lost is not None:
                print(f"pynode: its GPU is lost: {session.lost}", file=sys.stderr)
                return EXIT_DEVICE
            return 0


def _set_threads(count: int) -> None:
    """Let torch use this number of threads; 0 for the number that it chose itself."""
    import torch

    own = _own_threads()
    torch.set_num_threads(count or own)


@cache
def _own_threads() -> int:
    """The number of threads that torch chose: called before the first change."""
    import torch

    return torch.get_num_threads()


def _own_name(bundle: Path | None) -> str:
    from lamagrid import _native

    return f"{socket.gethostname()}-python" if bundle is None else _native.bundle_name(bundle)


def work(job: Any, serving: Serving) -> None:
    """Work on one task and report its outcome."""
    from lamagrid import _native
    from lamagrid.pynode.failures import Stopped, TaskFailure

    def log(error: BaseException) -> None:
        _native.log_error("task failed", f"{type(error).__name__}: {error}", traceback.format_exc())

    try:
        name: str = job.spec["model"]
        if name.startswith(PLUGIN_PREFIX):
            finish = _run_plugin(job, name.removeprefix(PLUGIN_PREFIX), serving.plugins)
        else:
            finish = _run_model(job, name, serving.models)
    except Stopped:
        job.fail("cancelled", "Cancelled while it was running")
    except TaskFailure as failure:
        log(failure)
        if failure.kind == "model_load":
            serving.broken.note(name, _sources(name, job.spec["params"]), _loader(serving, job.spec))
        job.fail(failure.kind, failure.message)
    except MemoryError as error:
        log(error)
        job.fail("out_of_memory", "The node's host has no memory left")
    except Exception as error:
        log(error)
        job.fail("internal", f"{type(error).__name__}: {error}"[:500])
    else:
        serving.broken.forget(name)
        finish()


def _sources(name: str, params: Mapping[str, Any]) -> Sequence[Source]:
    """The files that a task's model or plugin is loaded from."""
    if not name.startswith(PLUGIN_PREFIX):
        return MODELS.get(name, ())
    from lamagrid.pynode.plugins import files_of

    return files_of(name.removeprefix(PLUGIN_PREFIX), params)


def _loader(serving: Serving, spec: Mapping[str, Any]) -> Callable[[], None]:
    """A function that loads a task's model or plugin."""
    name, params = spec["model"], spec["params"]
    if name.startswith(PLUGIN_PREFIX):
        plugins, plugin = serving.plugins, name.removeprefix(PLUGIN_PREFIX)
        return lambda: None if plugins is None else plugins.load(plugin, params)
    models = serving.models
    return lambda: None if models is None else models.load(name, params)


def _not_served(name: str) -> Exception:
    from lamagrid.pynode.failures import TaskFailure

    return TaskFailure("unknown_model", f"this node does not serve {name}")


def _run_model(job: Any, name: str, models: UpstreamModels | None) -> Callable[[], None]:
    """Inpaint. Returns the function that reports the picture."""
    if models is None:
        raise _not_served(name)
    from lamagrid.pynode.models import Pictures
    from lamagrid.pynode.progress import JobProgress

    image, mask, example = (_pixels(job, role) for role in ("image", "mask", "example"))
    params = job.spec["params"]
    pictures = Pictures(image, mask[:, :, 0], example)
    result = models.run(name, params, pictures, JobProgress(job))
    height, width = result.shape[:2]
    return lambda: job.finish(result.tobytes(), (height, width), models.load_ms, models.infer_ms)


def _run_plugin(job: Any, name: str, plugins: UpstreamPlugins | None) -> Callable[[], None]:
    """Run a plugin. Returns the function that reports its file."""
    if plugins is None:
        raise _not_served(name)
    from lamagrid.pynode.progress import JobProgress

    image, example = job.take_file("image"), job.take_file("example")
    file = plugins.run(name, job.spec["params"], image, example, JobProgress(job))
    return lambda: job.finish_file(file, plugins.load_ms, plugins.infer_ms)


def _pixels(job: Any, role: str) -> Any:
    """The picture of a role, ``(H, W, C)`` u8, writable; None if the task has none."""
    taken = job.take(role)
    if taken is None:
        return None
    data, shape = taken
    return np.frombuffer(data, np.uint8).reshape(shape)


class Shutdown:
    """Ends the process on signals and when its parent is gone, after a grace for the running task.

    Python calls a signal handler only between two steps of the main thread, which a forward pass blocks. So
    the interpreter writes the number of the signal into a socket, which a thread reads.

    Attributes:
        requested: Set once the node shall take no more tasks.
        session: Closed before the process ends, which gives the running task back; None before it is made.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.session: Any = None

    def watch_signals(self) -> None:
        """Handle SIGTERM, SIGINT and SIGHUP from now on."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _ignore_signal)

        def watch() -> None:
            _ = writer  # held open
            asked_at = end_at = math.inf
            while True:
                wait_s = max(0.0, end_at - time.monotonic())
                ready, _, _ = select.select([reader], [], [], None if end_at == math.inf else wait_s)
                if not ready:
                    self.end_now()
                for number in reader.recv(64):
                    if number == signal.SIGHUP:
                        print(f"pynode: {HANGUP}", file=sys.stderr, flush=True)
                    elif asked_at == math.inf:
                        asked_at = time.monotonic()
                        end_at = asked_at + FINISH_S
                        self.requested.set()
                    elif time.monotonic() - asked_at >= REPEATED_SIGNAL_S:
                        self.end_now()

        threading.Thread(target=watch, name="signals", daemon=True).start()

    def watch_parent(self) -> None:
        """End when stdin closes, which means that the parent process is gone."""

        def watch() -> None:
            while os.read(0, 4096):
                pass
            self.requested.set()
            threading.Event().wait(ORPHAN_GRACE_S)
            self.end_now()

        threading.Thread(target=watch, name="lifeline", daemon=True).start()

    def end_now(self) -> None:
        """Give the running task back and end the process: a forward pass cannot be stopped."""
        if self.session is not None:
            self.session.close()
        os._exit(0)


def _ignore_signal(_number: int, _frame: Any) -> None:
    """Replace the default action of a signal; the thread of `Shutdown` handles it."""


if __name__ == "__main__":
    sys.exit(main())
