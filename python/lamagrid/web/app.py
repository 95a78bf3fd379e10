"""Makes the WSGI application: upstream's Flask application with LamaGrid's replacements and routes.

Does not: read flags, start processes or serve; `lamagrid.launcher` does.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import traceback
import warnings
from typing import TYPE_CHECKING

from lamagrid.errors import LamaGridError
from lamagrid.pynode.system_libraries import missing_library
from lamagrid.upstream import enabled_plugins, patches

if TYPE_CHECKING:
    from lamagrid.client import TaskClient
    from lamagrid.settings import Settings
    from lamagrid.upstream.protocol import UpstreamArguments, UpstreamServer
    from lamagrid.web.error_responses import AnswerStyle


class MissingPackageError(LamaGridError):
    """A package or system library is missing; the text says how to install it."""


def import_upstream() -> UpstreamServer:
    """Import upstream's server module, after upstream's parser has set the environment that it reads.

    Raises:
        MissingPackageError: A system library is missing.
    """
    # Hides warnings of torch about upstream's imports. The environment of the nodes was made before.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            server: UpstreamServer = importlib.import_module("lama_cleaner.server")
            return server
    except ImportError as error:
        library = missing_library(error)
        if library is None:
            raise
        raise MissingPackageError(library) from error


def create_app(
    server: UpstreamServer,
    args: UpstreamArguments,
    client: TaskClient,
    settings: Settings,
    style: AnswerStyle,
) -> None:
    """Turn upstream's module into LamaGrid's web server; its ``app`` is the WSGI application.

    Raises:
        MissingPackageError: A package is missing.
    """
    if importlib.util.find_spec("python_multipart") is None:
        raise MissingPackageError(
            "the package python-multipart is missing or too old: pip install 'python-multipart>=0.0.18'"
        )
    # Here, because these import python-multipart.
    from lamagrid.web import error_responses
    from lamagrid.web.bounded_server import raise_descriptor_limit
    from lamagrid.web.browser_tasks import BrowserTasks
    from lamagrid.web.replacements import WebContext
    from lamagrid.web.routes import tasks_page
    from lamagrid.web.same_origin import SameOrigin
    from lamagrid.web.socketio_limits import SessionLimit
    from lamagrid.web.task_ledger import TaskLedger

    browser_tasks = BrowserTasks(server.socketio, client, TaskLedger(settings.data_dir / "web"))
    browser_tasks.take_over()
    same_origin = None
    if style is error_responses.AnswerStyle.READABLE:
        browser_tasks.register(server.app)
        tasks_page.register(server.app, browser_tasks)
        error_responses.register(server.app)
        same_origin = SameOrigin(settings.web, [args.host])
    server.app.teardown_request(_free_pictures)
    context = WebContext(
        server,
        client,
        settings,
        style,
        enabled_plugins.enabled(args),
        browser_tasks,
        SessionLimit(server.socketio.server.eio),
        same_origin,
    )
    raise_descriptor_limit()
    patches.install(patches.Stage.WEB_SERVER, context)


def _free_pictures(error: BaseException | None) -> None:
    """Free the pictures in the frames of a failed request: Flask leaves the error in a cycle with them."""
    if error is not None:
        traceback.clear_frames(error.__traceback__)
