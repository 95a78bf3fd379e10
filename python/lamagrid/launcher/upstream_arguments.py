"""Parses and checks upstream's flags with upstream's own parser, in a process that sees no GPU.

Does not: know the ``--grid-*`` flags; `lamagrid.launcher.flags` does.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lamagrid import _native
from lamagrid.launcher.errors import refuse_flags
from lamagrid.launcher.flags import upstream_flag
from lamagrid.upstream import enabled_plugins, patches
from lamagrid.upstream.protocol import UpstreamArguments


@dataclass(frozen=True)
class ParsedArguments:
    """Upstream's flags.

    Attributes:
        args: As upstream's parser gives them, with the device ``cpu``.
        device: The device that was asked for, None if none was; it is for the nodes.
    """

    args: UpstreamArguments
    device: str | None


@dataclass
class CommandLine:
    """The facts about this command line that upstream's parser is told.

    Attributes:
        device: The device that it, or a configuration file, asks for.
        models: Models that upstream does not know.
    """

    device: str | None
    models: Sequence[str] = ()


def parse(rest: list[str], models: Sequence[str] = ()) -> ParsedArguments:
    """Let upstream's own parser judge upstream's flags.

    This process sees no GPU, so upstream would refuse its default ``--device cuda``. It gets ``cpu``, and the
    nodes get the device that was asked for.

    Args:
        rest: Upstream's flags.
        models: Names that ``--model`` accepts besides those of upstream's models.

    Raises:
        SystemExit: Status 2, with upstream's text, for a wrong flag.
    """
    upstream = _parser_module()
    request = CommandLine(upstream_flag(rest, "--device", "--devic", "--devi", "--dev"), models)
    argv, sys.argv = sys.argv, ["lama-cleaner-grid", *rest, "--device", "cpu"]
    try:
        with patches.install(patches.Stage.COMMAND_LINE, request):
            args: UpstreamArguments = upstream.parse_args()
    finally:
        sys.argv = argv  # with --debug Werkzeug runs this command line again
    return ParsedArguments(args, request.device)


def model_choices(upstreams: Sequence[str], command_line: CommandLine) -> list[str]:
    """Replaces upstream's ``AVAILABLE_MODELS`` in its parser: models of the configuration are added."""
    return list(dict.fromkeys([*upstreams, *command_line.models]))


def config_loader(load_config: Callable[[str], Any], request: CommandLine) -> Callable[[str], Any]:
    """Replaces upstream's ``load_config``: keeps the device of the file, and tells upstream ``cpu``."""

    def load(path: str) -> Any:
        config = load_config(path)
        request.device, config.device = config.device, "cpu"
        return config

    return load


def print_help() -> None:
    """Print upstream's help."""
    sys.argv = ["lama-cleaner-grid", "--help"]
    with contextlib.suppress(SystemExit):
        _parser_module().parse_args()


def _parser_module() -> Any:
    # By its full name: the package's attribute `parse_args` is the function.
    try:
        return importlib.import_module("lama_cleaner.parse_args")
    except ModuleNotFoundError as error:
        if error.name != "lama_cleaner":
            raise
        raise SystemExit(
            "lama-cleaner-grid: Lama Cleaner is missing: pip install lama-cleaner==1.2.5"
        ) from error


def check_device(device: str | None, visible: str | None) -> None:
    """Refuse ``--device cuda`` where the nodes that are started here would find no GPU.

    Args:
        visible: ``CUDA_VISIBLE_DEVICES`` for the nodes.

    Raises:
        SystemExit: Status 2; the text is on stderr.
    """
    if device == "cuda" and not _native.cuda_gpus(visible):
        raise refuse_flags(
            "--device cuda: this host has no NVIDIA GPU that may be used "
            "(CUDA_VISIBLE_DEVICES, driver); leave --device out or say --device cpu"
        )


def check_python_models(names: Sequence[str]) -> None:
    """Refuse unknown models of the Python node, which would be started three times before it is given up.

    Raises:
        SystemExit: Status 2; the text is on stderr.
    """
    const = importlib.import_module("lama_cleaner.const")
    for name in names:
        if name not in const.AVAILABLE_MODELS:
            raise refuse_flags(
                f"--grid-python-models {name}: Lama Cleaner has {', '.join(const.AVAILABLE_MODELS)}"
            )


def check_plugins(args: UpstreamArguments) -> None:
    """Refuse a plugin whose package is missing, before its node is started.

    Raises:
        SystemExit: Status 2; the text is on stderr.
    """
    for name in enabled_plugins.enabled(args):
        package = enabled_plugins.PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise refuse_flags(
                f"the plugin {name} needs the package {package}, which is not "
                "installed here: pip install 'lamagrid[plugins]'"
            )
