"""Makes the WSGI application for a production server such as gunicorn.

``gunicorn --workers 1 --threads 120 "lama_cleaner_patch:application('--grid-scheduler', 'DIR')"``. One
process has the Socket.IO connections of all browsers. Each waiting request and each WebSocket has a thread.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from lamagrid import _native
from lamagrid.errors import LamaGridError
from lamagrid.launcher import flags as grid_flags
from lamagrid.launcher import upstream_arguments
from lamagrid.launcher.errors import OK, LaunchError, print_error
from lamagrid.launcher.startup import attach
from lamagrid.settings import load_settings
from lamagrid.upstream import patches
from lamagrid.web import app, pending_requests

NEVER_BOOTS = 3  # gunicorn's status for a worker that it does not start again


def application(*words: str) -> Any:
    """Upstream's Flask application, for a production server, with a scheduler that runs already.

    Args:
        words: The flags of ``lama-cleaner-grid``, ``--grid-scheduler DIR`` or ``--grid-join BUNDLE`` among
            them.

    Raises:
        SystemExit: It cannot serve; the text is on stderr. gunicorn does not try such a worker again.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything imports torch: GPUs are for the nodes
    atexit.register(_leave_fork, os.getpid())  # before torch registers anything: called after that
    try:
        flags, rest = grid_flags.split(words)
        settings = load_settings(flags.scheduler, flags.join)
        if flags.scheduler is None and settings.join is None:
            raise LaunchError(
                "a production server's processes start no nodes: start `lamagrid scheduler` and nodes beside "
                "it, and name the scheduler's data directory by --grid-scheduler, or one of another host by "
                "--grid-join"
            )
        args = upstream_arguments.parse(rest, settings.models).args
        client = attach(settings)
        _native.start_logs("web", settings.data_dir)
        server = app.import_upstream()
        app.create_app(server, args, client, settings, flags.style)
    except (LaunchError, LamaGridError) as error:
        print_error(error)
        raise SystemExit(NEVER_BOOTS) from error
    except SystemExit as error:  # of the two parsers
        raise SystemExit(NEVER_BOOTS) from error
    # A worker that ends waits for its threads, which wait for tasks: they are answered first. Python's own
    # pools of threads end by the same list, whose last entry is called first.
    threading._register_atexit(pending_requests.stop)  # type: ignore[attr-defined]
    with patches.install(patches.Stage.WSGI_START):
        server.main(args)
    return server.app


def run_nothing(_original: object, _context: object) -> Callable[..., None]:
    """Replaces ``socketio.run``, by which upstream's main would serve."""
    return lambda *_, **__: None


def _leave_fork(loaded_by: int) -> None:
    """End a process that was forked after torch was loaded, as by ``gunicorn --preload``.

    A normal exit would abort: torch's destructors join threads that only the parent has.
    """
    if os.getpid() != loaded_by:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(OK)
