"""The process of a Python node: takes tasks from its session, one at a time, until it is told to end.

A failed task never ends the node. SIGTERM lets it finish the task it works on; with ``--lifeline`` it ends
within seconds when its stdin closes.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamagrid.pynode.libraries import missing_library

if TYPE_CHECKING:
    from lamagrid.pynode.models import UpstreamModels

POLL_S = 1.0  # how late the wish to end is noticed while no task comes
DRAIN_LIMIT_S = 60.0  # to deliver the last result, if the scheduler is away just then
ORPHAN_GRACE_S = 3.0  # to finish the running task once nobody holds the lifeline
EXIT_CANNOT_START = 1
EXIT_WRONG_FLAGS = 2
EXIT_CONFIG = 78  # as the other programs of the grid say it


def main(argv: Sequence[str] | None = None) -> int:
    """Run a node. Returns the exit status."""
    options = _parser().parse_args(argv)
    if options.slots != 1:
        print("pynode: --slots can only be 1: upstream's models keep state", file=sys.stderr)
        return EXIT_WRONG_FLAGS
    ending = threading.Event()
    _watch_signals(ending)
    if options.lifeline:
        _watch_lifeline(ending)
    try:
        from lama_cleaner.const import AVAILABLE_MODELS

        unknown = [name for name in options.models or [] if name not in AVAILABLE_MODELS]
        if unknown:
            known = ", ".join(AVAILABLE_MODELS)
            print(f"pynode: --model {unknown[0]}: Lama Cleaner has {known}", file=sys.stderr)
            return EXIT_WRONG_FLAGS
        # Seconds and hundreds of megabytes: only once the flags are right.
        with warnings.catch_warnings():
            # What upstream's imports make torch say is of no use to whoever runs the node.
            warnings.simplefilter("ignore", FutureWarning)
            from lamagrid.pynode.models import UpstreamModels
    except ImportError as error:
        library = missing_library(error)
        hint = library or f"{error}; a Python node needs Lama Cleaner: pip install 'lamagrid[web]'"
        print(f"pynode: cannot start: {hint}", file=sys.stderr)
        return EXIT_CANNOT_START
    models = UpstreamModels(options.device, os.environ.get("HF_ACCESS_TOKEN", ""))
    return _serve(options, models, ending)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lamagrid pynode", description="Serve Lama Cleaner's own models, in Python, to the grid."
    )
    parser.add_argument("--data-dir", type=Path, help="the scheduler's data directory (default: configured)")
    parser.add_argument("--name", default="", help="the node's name (default: the host's name, -python)")
    parser.add_argument(
        "--model", action="append", dest="models", metavar="NAME", help="a model to serve; may be given again"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=1, help="tasks at the same time; only 1 is possible")
    parser.add_argument("--lifeline", action="store_true", help="end when stdin closes")
    return parser


def _serve(options: argparse.Namespace, models: UpstreamModels, ending: threading.Event) -> int:
    from lamagrid import _native
    from lamagrid.errors import LamaGridError

    name = options.name or f"{socket.gethostname()}-python"
    offered = options.models or ["cv2"]
    try:
        _native.start_logs(f"pynode-{name}", options.data_dir)
        session = _native.NodeSession(
            options.data_dir, name, "python", options.device, offered, options.slots
        )
    except LamaGridError as error:
        print(f"pynode: {error}", file=sys.stderr)
        return EXIT_CONFIG
    draining = False
    give_up = math.inf
    while True:
        if ending.is_set() and not draining:
            draining = True
            give_up = time.monotonic() + DRAIN_LIMIT_S
            session.drain()
        try:
            job = session.next_job(POLL_S)
        except LamaGridError as error:
            print(f"pynode: the scheduler refuses this node: {error}", file=sys.stderr)
            return EXIT_CANNOT_START
        if job is not None:
            work(job, models)
            session.set_loaded(models.loaded)
        elif session.closed or time.monotonic() >= give_up:
            return 0


def work(job: Any, models: UpstreamModels) -> None:
    """Do one task and report its outcome, whatever it is."""
    from lamagrid import _native
    from lamagrid.pynode.models import Stopped, TaskFailure

    def log(error: BaseException) -> None:
        _native.log_error("task failed", f"{type(error).__name__}: {error}", traceback.format_exc())

    try:
        spec = job.spec
        image, mask, example = (_pixels(job, role) for role in ("image", "mask", "example"))
        result = models.run(spec["model"], spec["params"], image, mask[:, :, 0], example, job.step)
    except Stopped:
        job.fail("cancelled", "Cancelled while it was running")
    except TaskFailure as failure:
        log(failure)
        job.fail(failure.kind, failure.message)
    except MemoryError as error:
        log(error)
        job.fail("out_of_memory", "The node's host has no memory left")
    except Exception as error:
        log(error)
        job.fail("internal", f"{type(error).__name__}: {error}"[:500])
    else:
        height, width = result.shape[:2]
        job.finish(result.tobytes(), height, width, models.load_ms, models.infer_ms)


def _pixels(job: Any, role: str) -> Any:
    """The picture of a role, ``(H, W, C)`` u8, None if there is none. It may be written to; upstream does."""
    taken = job.take(role)
    if taken is None:
        return None
    data, shape = taken
    return np.frombuffer(data, np.uint8).reshape(shape)


def _watch_signals(ending: threading.Event) -> None:
    def end(_number: int, _frame: Any) -> None:
        ending.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)


def _watch_lifeline(ending: threading.Event) -> None:
    """End when stdin closes: whoever started this node is gone."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        ending.set()
        # A forward pass cannot be stopped from here; the scheduler hands the task to another node.
        threading.Event().wait(ORPHAN_GRACE_S)
        os._exit(0)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
