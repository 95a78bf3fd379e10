"""Parses the ``--grid-*`` flags of ``lama-cleaner-grid``.

Does not: change or check upstream's own flags; upstream's parser does.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lamagrid.options import nearest
from lamagrid.web.error_responses import AnswerStyle

DEFAULT_PYTHON_MODELS = "cv2"


@dataclass(frozen=True)
class GridFlags:
    """The values of the ``--grid-*`` flags.

    Attributes:
        scheduler: Data directory of a scheduler that runs already; nothing is started then.
        join: Bundle for the scheduler of another host; nothing is started then, either.
        data_dir: Data directory of the scheduler that is started; None is the configured one.
        nodes: How many torch nodes to start; None if it was not given.
        threads: Processor threads per torch node; None is the configured number.
        demo_model: Whether the packaged demo model takes lama's name.
        models: TorchScript files by model name; None for a file that the configuration names.
        python_models: The models of the Python node.
        node_command: Path of the node program; None to look for it.
        capabilities: Capability file of all nodes; None for all of the hardware.
        leave_out: The models that the capability file leaves out.
        style: How errors are answered.
    """

    scheduler: Path | None
    join: Path | None
    data_dir: Path | None
    nodes: int | None
    threads: int | None
    demo_model: bool
    models: Mapping[str, Path | None]
    python_models: tuple[str, ...]
    node_command: Path | None
    capabilities: Path | None
    style: AnswerStyle
    leave_out: tuple[str, ...] = ()


class SplitFlags(NamedTuple):
    """A command line, taken apart.

    Attributes:
        grid: The ``--grid-*`` flags.
        rest: All others, in their order; they are upstream's.
    """

    grid: GridFlags
    rest: list[str]


def parser() -> argparse.ArgumentParser:
    """The parser of the ``--grid-*`` flags, without ``--help``."""
    grid = argparse.ArgumentParser(
        prog="lama-cleaner-grid", add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS
    )
    group = grid.add_argument_group("grid")
    group.add_argument(
        "--grid-scheduler",
        type=Path,
        metavar="DIR",
        help="use the scheduler that runs on this data directory; start nothing",
    )
    group.add_argument(
        "--grid-join",
        type=Path,
        metavar="BUNDLE",
        help="use the scheduler of another host, by a file of `lamagrid certs bundle` for the role client; "
        "start nothing (default: client.join of the configuration)",
    )
    group.add_argument(
        "--grid-data-dir",
        type=Path,
        metavar="DIR",
        help="where the scheduler that is started keeps its tasks (default: data_dir of the configuration)",
    )
    group.add_argument(
        "--grid-nodes",
        type=_count,
        metavar="N",
        help="how many torch nodes to start, spread over the GPUs, one GPU each (default: 1 on every GPU, "
        "or 0 when no model needs one)",
    )
    group.add_argument(
        "--grid-threads",
        type=_positive,
        metavar="N",
        help="processor threads per torch node (default: node.threads of the configuration)",
    )
    group.add_argument(
        "--grid-demo-model",
        action="store_true",
        help="serve the packaged demo model, which has no trained weights, under the name lama",
    )
    group.add_argument(
        "--grid-model",
        type=_named_file,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="serve this TorchScript file under this name, of lama's signature or that of its [models.NAME] "
        "section; may be given again; models with a file in the configuration are served without it",
    )
    group.add_argument(
        "--grid-python-models",
        type=_names,
        metavar="NAME,...",
        help=f"models that the Python node serves, empty for none (default: {DEFAULT_PYTHON_MODELS})",
    )
    group.add_argument(
        "--grid-node-command",
        type=Path,
        metavar="PATH",
        help="the node program (default: lamagrid-node beside this Python, then on PATH)",
    )
    group.add_argument(
        "--grid-capabilities",
        type=Path,
        metavar="FILE",
        help="a file of `lamagrid-node capabilities --write FILE`, which all nodes are started with: caps "
        "memory, leaves models and GPUs out, adds labels (docs/nodes.md)",
    )
    group.add_argument(
        "--grid-strict",
        action="store_true",
        help="reproduce upstream's error responses exactly: HTML pages, generic messages "
        "(docs/compatibility.md)",
    )
    return grid


def split(argv: Sequence[str]) -> SplitFlags:
    """Separate the ``--grid-*`` flags from all others.

    Raises:
        SystemExit: Status 2, for a wrong ``--grid-*`` flag; the text is on stderr.
    """
    grid = parser()
    seen, rest = grid.parse_known_args(list(argv))
    for word in rest:
        if word.startswith("--grid-"):
            flag = word.split("=")[0]
            known = [each for action in grid._actions for each in action.option_strings]
            hint = nearest(flag, known)
            grid.error(f"unknown flag {flag}{hint}; `lama-cleaner-grid --help` lists all")
    if seen.grid_scheduler is not None and seen.grid_join is not None:
        grid.error("--grid-scheduler is for one of this host, --grid-join for one of another: leave one out")
    if seen.grid_scheduler is not None or seen.grid_join is not None:
        given = "--grid-scheduler" if seen.grid_join is None else "--grid-join"
        for flag in ("data_dir", "nodes", "threads", "python_models", "node_command", "capabilities"):
            if getattr(seen, f"grid_{flag}") is not None:
                grid.error(f"{given} starts nothing: leave --grid-{flag.replace('_', '-')} out")
        if seen.grid_demo_model or seen.grid_model:
            grid.error(f"{given} starts nothing: give the model file to the node that serves it")
    python_models: tuple[str, ...] | None = seen.grid_python_models
    models: dict[str, Path] = {}
    for name, path in seen.grid_model:
        if models.setdefault(name, path) != path:
            grid.error(f"--grid-model names {name} twice")
        if not path.is_file():
            grid.error(f"--grid-model {name}={path}: there is no such file")
    if seen.grid_demo_model and "lama" in models:
        grid.error("--grid-demo-model and --grid-model lama=... both want the name lama: leave one out")
    flags = GridFlags(
        scheduler=seen.grid_scheduler,
        join=seen.grid_join,
        data_dir=seen.grid_data_dir,
        nodes=seen.grid_nodes,
        threads=seen.grid_threads,
        demo_model=seen.grid_demo_model,
        models=models,
        python_models=_names(DEFAULT_PYTHON_MODELS) if python_models is None else python_models,
        node_command=seen.grid_node_command,
        capabilities=seen.grid_capabilities,
        style=AnswerStyle.UPSTREAM if seen.grid_strict else AnswerStyle.READABLE,
    )
    return SplitFlags(flags, rest)


def upstream_flag(argv: Sequence[str], *names: str) -> str | None:
    """The value that upstream's parser will take for one of its flags; None if it is not given.

    ``names`` are the flag and those of its abbreviations that upstream's parser takes.
    """
    probe = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    probe.add_argument(*names, dest="value", nargs="?")
    value: str | None = probe.parse_known_args(list(argv))[0].value
    return value


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 64:
        raise argparse.ArgumentTypeError("must be 0 to 64")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1024:
        raise argparse.ArgumentTypeError("must be 1 to 1024")
    return number


class _NamedFile(NamedTuple):
    name: str
    path: Path


def _named_file(text: str) -> _NamedFile:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"must be NAME=PATH, not {text!r}")
    return _NamedFile(name, Path(path).absolute())


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
