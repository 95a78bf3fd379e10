"""Replaces parts of Lama Cleaner and of the libraries it stands on: one table, and nothing else does.

Each row names its target as ``module:attribute.attribute[key]``. A function makes the replacement from the
original and the context of the stage. It is named as in an entry point, and imported when the stage is
installed: the process of a node loads no web code.

Does not: extend Flask or Socket.IO through their own interfaces (routes, handlers, hooks);
`lamagrid.web.app` does.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import pkgutil
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

SERVER = "lama_cleaner.server"
MISSING = object()
"""The original of a target that does not exist yet."""

_STEP = re.compile(r"\.?(\w+)|\[([\w.]+)\]")


class Stage(enum.Enum):
    """When a row is installed."""

    COMMAND_LINE = "while upstream's parser runs; undone afterwards"
    WEB_SERVER = "before the web server starts"
    WSGI_START = "while upstream's main runs in a production server's process; undone afterwards"
    NODE_IMPORT = "before a node imports the packages of plugins"
    NODE = "before a node runs plugins"


@dataclass(frozen=True)
class Patch:
    """One replacement.

    Attributes:
        stage: When it is installed.
        target: Where, as ``module:path``.
        replacement: The function that makes it, as ``module:function``.
        reason: Why upstream's own does not do.
        test: The test that fails without it, from the folder ``tests``.
    """

    stage: Stage
    target: str
    replacement: str
    reason: str
    test: str


PATCHES = (
    Patch(
        Stage.COMMAND_LINE,
        "lama_cleaner.parse_args:AVAILABLE_MODELS",
        "lamagrid.launcher.upstream_arguments:model_choices",
        "Upstream's --model names its own models only; nodes serve those of the configuration, too.",
        "seam/test_patches.py::test_a_model_of_the_configuration_may_be_named",
    ),
    Patch(
        Stage.COMMAND_LINE,
        "lama_cleaner.parse_args:load_config",
        "lamagrid.launcher.upstream_arguments:config_loader",
        "A configuration file may ask for cuda, which upstream refuses in a process that sees no GPU.",
        "seam/test_patches.py::test_the_device_of_a_configuration_file_is_for_the_nodes",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:ModelManager",
        "lamagrid.web.replacements:model_manager",
        "Models run on nodes.",
        "seam/test_facts.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:build_plugins",
        "lamagrid.web.replacements:build_plugins",
        "Plugins run on nodes: the web process loads no weights.",
        "seam/test_plugins.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:app.view_functions[process]",
        "lamagrid.web.replacements:inpaint_view",
        "Nodes decode and encode the uploaded files.",
        "seam/test_inpaint_route.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:app.view_functions[run_plugin]",
        "lamagrid.web.replacements:plugin_view",
        "The work of a plugin is a task of the grid.",
        "seam/test_plugins.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:app.view_functions[save_image]",
        "lamagrid.web.replacements:save_image_view",
        "Upstream joins the name that a client sent to its folder: a name with slashes leads out of it.",
        "seam/test_save_image.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:app.view_functions[media_thumbnail_file]",
        "lamagrid.web.replacements:thumbnail_view",
        "Upstream makes thumbnails of any size that a client names, in memory.",
        "hostile/test_web_door.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:app.request_class",
        "lamagrid.web.replacements:request_class",
        "Werkzeug 2.2.2 parses forms in quadratic time, and puts each upload on disk.",
        "seam/test_request_filter.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:app.response_class",
        "lamagrid.web.replacements:response_class",
        "Upstream's error texts repeat what they were sent: as HTML they would run scripts.",
        "contract/test_front_door.py::test_a_name_that_is_a_script_is_text",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:app.wsgi_app",
        "lamagrid.web.replacements:wsgi_app",
        "Requests of other sites, of unknown host names and with too large bodies are refused first.",
        "seam/test_request_filter.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:socketio.emit",
        "lamagrid.web.replacements:emit",
        "Upstream sends the progress of each request to all browsers.",
        "seam/test_browser_tasks.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:socketio.server.async_handlers",
        "lamagrid.web.socketio_limits:async_handlers",
        "Each event of a client would have a thread of its own.",
        "hostile/test_web_door.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:socketio.server.eio.max_http_buffer_size",
        "lamagrid.web.socketio_limits:max_http_buffer_size",
        "Engine.IO accepts messages of 1 MB; the page sends none above a few bytes.",
        "hostile/test_web_door.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:socketio.server.eio._async",
        "lamagrid.web.socketio_limits:async_driver",
        "Engine.IO keeps any number of messages for a client that does not read, and from one that floods.",
        "hostile/test_web_door.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        f"{SERVER}:socketio.server.eio.generate_id",
        "lamagrid.web.replacements:generate_id",
        "Engine.IO accepts any number of sessions from one client.",
        "seam/test_request_filter.py::test_jsonp_is_refused_and_sessions_are_limited",
    ),
    Patch(
        Stage.WEB_SERVER,
        "werkzeug.serving:ThreadedWSGIServer",
        "lamagrid.web.replacements:wsgi_server",
        "Werkzeug's server starts a thread for each connection and waits for its bytes without limit.",
        "seam/test_bounded_server.py",
    ),
    Patch(
        Stage.WEB_SERVER,
        "PIL.Image:MAX_IMAGE_PIXELS",
        "lamagrid.pixel_limit:pillow_limit",
        "Pillow's limit is not the configured one.",
        "seam/test_pixel_limit.py",
    ),
    Patch(
        Stage.WSGI_START,
        f"{SERVER}:socketio.run",
        "lamagrid.launcher.wsgi:run_nothing",
        "Upstream's main sets what its routes use and then serves; a production server serves itself.",
        "e2e/test_production.py",
    ),
    Patch(
        Stage.NODE_IMPORT,
        "sys:modules[torchvision.transforms.functional_tensor]",
        "lamagrid.pynode.functional_tensor:functional_tensor",
        "basicsr 1.4 imports this module, which torchvision 0.17 removed.",
        "seam/test_plugins.py::test_a_face_is_restored_the_same_way_twice",
    ),
    Patch(
        Stage.NODE,
        "PIL.Image:MAX_IMAGE_PIXELS",
        "lamagrid.pixel_limit:pillow_limit",
        "Pillow's limit is not the configured one.",
        "seam/test_plugins.py::test_large_pictures_are_refused_by_their_header",
    ),
)


def install(stage: Stage, context: Any = None) -> contextlib.ExitStack:
    """Install all rows of a stage, in the order of the table.

    Args:
        stage: Which ones.
        context: The argument of their functions.

    Returns:
        Puts the originals back when it is closed; a stage that is for good leaves it open.
    """
    undo = contextlib.ExitStack()
    for patch in PATCHES:
        if patch.stage is stage:
            place = Place.of(patch.target)
            original = place.get()
            replacement = pkgutil.resolve_name(patch.replacement)(original, context)
            if replacement is not original:
                place.set(replacement)
                undo.callback(place.set, original)
    return undo


@dataclass(frozen=True)
class Place:
    """An attribute, or an entry of a mapping, that a row replaces.

    Attributes:
        owner: The object or mapping.
        name: The attribute or key.
    """

    owner: Any
    name: str

    @classmethod
    def of(cls, target: str) -> Place:
        """The place that a target names."""
        module, _, path = target.partition(":")
        place: Place | None = None
        for attribute, key in _STEP.findall(path):
            owner = importlib.import_module(module) if place is None else place.get()
            place = MappingPlace(owner, key) if key else cls(owner, attribute)
        assert place is not None, target
        return place

    def get(self) -> Any:
        """The present value, or `MISSING`."""
        return getattr(self.owner, self.name, MISSING)

    def set(self, value: Any) -> None:
        """Replace the value; `MISSING` removes it."""
        if value is MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)


class MappingPlace(Place):
    """An entry of a mapping."""

    owner: MutableMapping[str, Any]

    def get(self) -> Any:
        """The present value, or `MISSING`."""
        return self.owner.get(self.name, MISSING)

    def set(self, value: Any) -> None:
        """Replace the value; `MISSING` removes it."""
        if value is MISSING:
            self.owner.pop(self.name, None)
        else:
            self.owner[self.name] = value
