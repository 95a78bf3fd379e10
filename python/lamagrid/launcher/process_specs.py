"""Decides which programs the launcher starts, with which arguments and environment.

Does not: start a program; it only reads the file system.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lamagrid.launcher.errors import LaunchError
from lamagrid.launcher.flags import GridFlags
from lamagrid.launcher.process_supervisor import ProcessSpec
from lamagrid.upstream.catalog import TORCH_MODELS, is_present
from lamagrid.upstream.enabled_plugins import RemotePlugin

NODE_PROGRAM = "lamagrid-node"
DEMO_MODEL = Path(__file__).parent.parent / "demo" / "demo.pt"


@dataclass(frozen=True)
class NodeSpec:
    """A node to start.

    Attributes:
        name: Its name in the grid.
        models: The models or plugins that it serves.
        threads: Its processor threads, None for the configured number.
        program: How it is started.
    """

    name: str
    models: tuple[str, ...]
    threads: int | None
    program: ProcessSpec


def scheduler(data_dir: Path, env: Mapping[str, str]) -> ProcessSpec:
    """The scheduler of this host."""
    return ProcessSpec("scheduler", (*_lamagrid("scheduler", data_dir),), env)


def nodes(
    flags: GridFlags, model: str, device: str | None, data_dir: Path, env: Mapping[str, str]
) -> list[NodeSpec]:
    """The nodes of this host.

    Args:
        model: The model that the server starts with; some node serves it.
        device: Upstream's ``--device``, None if it was not given.

    Raises:
        LaunchError: The model needs the node program, which is not installed, or the capability file leaves
            it out.
    """
    if model in flags.leave_out:
        raise LaunchError(
            f"{flags.capabilities} leaves {model} out, and the server starts with it: remove it from "
            "`leave_out`, or choose another --model"
        )
    files = {name: file for name, file in flags.models.items() if name not in flags.leave_out}
    if flags.demo_model and "lama" not in flags.leave_out:
        files["lama"] = DEMO_MODEL
    python_models = tuple(name for name in flags.python_models if name not in flags.leave_out)
    own = [name for name in TORCH_MODELS if name not in (*python_models, *flags.leave_out)]
    torch_models = tuple(dict.fromkeys([*files, *own]))
    if model in torch_models:  # the first one is loaded at once
        torch_models = tuple(dict.fromkeys([model, *torch_models]))
    if model not in torch_models and model not in python_models:
        python_models = (*python_models, model)
    count = flags.nodes
    if count is None:
        # Upstream loads no model that was not asked for; lama comes along if its weights are here already.
        useful = model in torch_models or files or ("lama" in torch_models and is_present("lama", env))
        count = 1 if useful else 0
    if count == 0 and model not in python_models:
        raise LaunchError(
            f"--grid-nodes 0 leaves no node that serves {model}: add --grid-python-models cv2,{model}"
        )
    capped = [] if flags.capabilities is None else ["--capabilities", str(flags.capabilities)]
    planned = []
    if count > 0 and torch_models:
        command = node_command(flags.node_command)
        wanted = [name if files.get(name) is None else f"{name}={files[name]}" for name in torch_models]
        threads = flags.threads
        if threads is None and count > 1 and device == "cpu":
            threads = max(1, (os.cpu_count() or 1) // count)
        for number in range(count):
            name = f"torch-{number}"
            arguments = [str(command), "--data-dir", str(data_dir), "--lifeline", "--name", name]
            for each in wanted:
                arguments += ["--model", each]
            if device in ("cpu", "cuda"):
                arguments += ["--device", device]
            if threads is not None:
                arguments += ["--threads", str(threads)]
            arguments += capped
            planned.append(
                NodeSpec(
                    name, torch_models, threads, ProcessSpec(f"node {name}", arguments, env, may_leave=True)
                )
            )
    if python_models:
        name = "python-0"
        arguments = [*_lamagrid("pynode", data_dir), "--name", name]
        for each in python_models:
            arguments += ["--model", each]
        if device is not None:
            arguments += ["--device", device]
        arguments += capped
        planned.append(
            NodeSpec(name, python_models, None, ProcessSpec(f"node {name}", arguments, env, may_leave=True))
        )
    return planned


def on_gpus(planned: Sequence[NodeSpec], gpus: Sequence[str]) -> list[NodeSpec]:
    """The same nodes, where each torch node sees one GPU: they take turns.

    Args:
        gpus: The UUIDs of the GPUs that the nodes may use.
    """
    if not gpus:
        return list(planned)
    turn = itertools.cycle(gpus)

    def on_next(node: NodeSpec) -> NodeSpec:
        if not node.name.startswith("torch-"):
            return node
        env = {**node.program.env, "CUDA_VISIBLE_DEVICES": next(turn)}
        return replace(node, program=replace(node.program, env=env))

    return [on_next(node) for node in planned]


def plugin_node(
    flags: GridFlags, plugins: Mapping[str, RemotePlugin], data_dir: Path, env: Mapping[str, str]
) -> NodeSpec:
    """The node of this host that runs plugins, apart from the models: a click does not wait for a picture."""
    name = "plugins-0"
    arguments = [*_lamagrid("pynode", data_dir), "--name", name]
    for plugin in plugins.values():
        arguments += ["--plugin", f"{plugin.name}={plugin.device}"]
    if flags.capabilities is not None:
        arguments += ["--capabilities", str(flags.capabilities)]
    return NodeSpec(name, tuple(plugins), None, ProcessSpec(f"node {name}", arguments, env, may_leave=True))


def with_token(node: NodeSpec, hf_access_token: str) -> NodeSpec:
    """The same node with upstream's token for downloads, if it is one in Python.

    In its environment, because all users of the host can read a command line, and tasks are on disk.
    """
    if not node.name.startswith("python"):
        return node
    env = {**node.program.env, "HF_ACCESS_TOKEN": hf_access_token}
    return replace(node, program=replace(node.program, env=env))


def node_command(given: Path | None) -> Path:
    """The node program: the given one, else beside this Python, on PATH, or in a development checkout.

    Raises:
        LaunchError: It is not installed.
    """
    if given is not None:
        if not os.access(given, os.X_OK):
            raise LaunchError(f"--grid-node-command {given}: there is no such program")
        return given.absolute()
    beside = Path(sys.executable).parent / NODE_PROGRAM
    if beside.is_file():
        return beside
    on_path = shutil.which(NODE_PROGRAM)
    if on_path is not None:
        return Path(on_path)
    built = Path(__file__).resolve().parents[3] / "target" / "release" / NODE_PROGRAM
    if built.is_file():
        return built
    raise LaunchError(
        f"the program {NODE_PROGRAM} is not installed: `pip install --no-build-isolation ./src/node` in a "
        "clone of LamaGrid (`make build` for development), or let the Python node serve lama: "
        "--grid-nodes 0 --grid-python-models cv2,lama"
    )


def child_env(cuda_visible_devices: str | None) -> dict[str, str]:
    """The environment of the children: this process's, with the GPUs as they were before they were hidden."""
    env = dict(os.environ)
    env.pop("CUDA_VISIBLE_DEVICES", None)
    if cuda_visible_devices is not None:
        env["CUDA_VISIBLE_DEVICES"] = cuda_visible_devices
    # The node looks for libtorch where `python3` has it: in this environment, even if it is not activated.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    if env.get("CACHE_DIR"):
        env["TORCH_HOME"] = env["CACHE_DIR"]  # as upstream's server does for the models in its own process
    return env


def _lamagrid(verb: str, data_dir: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "lamagrid", verb, "--data-dir", str(data_dir), "--lifeline")
