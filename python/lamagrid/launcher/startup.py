"""Starts scheduler and nodes, or finds a scheduler that runs, and says one line per step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from lamagrid import _native
from lamagrid.client import TaskClient
from lamagrid.errors import LamaGridError
from lamagrid.launcher.errors import LaunchError
from lamagrid.launcher.flags import GridFlags
from lamagrid.launcher.process_specs import NodeSpec
from lamagrid.launcher.process_supervisor import ProcessSpec, ProcessSupervisor, say
from lamagrid.settings import Settings
from lamagrid.types import NodeInfo, NodeStatus

SURVEY_EVERY_S = 0.1
SURVEY_LIMIT_S = 1.0
STILL_WAITING_EVERY_S = 10.0
ATTACH_LIMIT_S = 5.0  # a scheduler that runs answers within milliseconds
OTHER_ENDS_S = 3.0  # a scheduler ends when its launcher was killed


def _client(settings: Settings) -> TaskClient:
    return TaskClient(settings.data_dir) if settings.join is None else TaskClient(join=settings.join)


def attach(settings: Settings) -> TaskClient:
    """Connect to a scheduler that runs already.

    Raises:
        LaunchError: None answers.
        LamaGridError: The scheduler of another host cannot be reached.
    """
    client = _client(settings)
    end = time.monotonic() + ATTACH_LIMIT_S
    while not _answers(client):
        if time.monotonic() >= end:
            if settings.join is not None:
                client.survey(SURVEY_LIMIT_S)  # says why
            pid = _native.running_scheduler(settings.data_dir)
            if pid is not None:
                raise LaunchError(
                    f"the scheduler of {settings.data_dir} (pid {pid}) does not answer: "
                    f"`lamagrid doctor --data-dir {settings.data_dir}` says more"
                )
            raise LaunchError(
                f"no scheduler answers on {settings.data_dir}: start it with "
                f"`lamagrid scheduler --data-dir {settings.data_dir}`"
            )
        time.sleep(SURVEY_EVERY_S)
    where = settings.data_dir if settings.join is None else client.address
    say(f"scheduler: using the one that runs on {where}")
    return client


def start_scheduler(children: ProcessSupervisor, program: ProcessSpec, settings: Settings) -> TaskClient:
    """Start the scheduler of this host, and wait until it answers.

    Raises:
        LaunchError: It does not start, or another one has its data directory.
    """
    # One whose launcher was killed a moment ago ends by itself.
    end = time.monotonic() + OTHER_ENDS_S
    while (pid := _native.running_scheduler(settings.data_dir)) is not None:
        if time.monotonic() >= end:
            raise _taken(settings, pid)
        time.sleep(SURVEY_EVERY_S)
    say(f"scheduler: starting on {settings.data_dir}")
    child = children.start(program)
    client = _client(settings)
    began = reported_at = time.monotonic()
    # Another scheduler of this directory would answer, too; ours ends then.
    while not (
        child.pid and str(child.pid) == _native.running_scheduler(settings.data_dir) and _answers(client)
    ):
        other = _native.running_scheduler(settings.data_dir)
        if child.pid == 0 and other is not None:
            raise _taken(settings, other)
        children.check()
        now = time.monotonic()
        if now - reported_at >= STILL_WAITING_EVERY_S:
            reported_at = now
            say(f"scheduler: no answer yet after {now - began:.0f} s")
        time.sleep(SURVEY_EVERY_S)
    child.set_ready()
    say(f"scheduler ready (pid {child.pid})")
    return client


def _taken(settings: Settings, pid: str) -> LaunchError:
    return LaunchError(
        f"another scheduler (pid {pid}) runs on {settings.data_dir}: serve its grid by --grid-scheduler "
        f"{settings.data_dir}, end it, or choose another directory by --grid-data-dir"
    )


def _answers(client: TaskClient) -> bool:
    try:
        client.survey(SURVEY_LIMIT_S)
    except LamaGridError:
        return False
    return True


def start_nodes(children: ProcessSupervisor, nodes: Sequence[NodeSpec], flags: GridFlags) -> float:
    """Start the nodes of this host. Returns when, in monotonic seconds."""
    if flags.demo_model:
        say("demo model: lama is the packaged demo, without trained weights (--grid-demo-model)")
    for name, path in flags.models.items():
        say(f"model {name}: {path or 'the file of the configuration'}")
    for node in nodes:
        say(f"node {node.name}: starting, for {', '.join(node.models)}")
        children.start(node.program)
    return time.monotonic()


def wait_for_nodes(
    children: ProcessSupervisor, client: TaskClient, nodes: Sequence[NodeSpec], began: float
) -> None:
    """Wait until each node is registered, for as long as it lives: it may have weights to fetch."""
    waiting = {node.name: node for node in nodes}
    by_program = {child.program.name: child for child in children}
    reported_at = began
    while waiting:
        children.check()
        live: list[NodeStatus] = []
        with contextlib.suppress(LamaGridError):
            live = client.survey(SURVEY_LIMIT_S)["nodes"]
        for status in live:
            name = status["info"]["name"]
            # A node with several GPUs registers each one under its own name and a number.
            node = next((each for each in waiting.values() if f"{name}-".startswith(f"{each.name}-")), None)
            if node is not None and _is_verified(status["info"], node.models[0]):
                del waiting[node.name]
                by_program[node.program.name].set_ready()
                say(f"node {node.name} ready: {', '.join(node.models)} on {_where(status['info'], node)}")
                _warn_unloaded(status["info"])
        now = time.monotonic()
        if waiting and now - reported_at >= STILL_WAITING_EVERY_S:
            reported_at = now
            say(f"still waiting for node {', '.join(waiting)} after {now - began:.0f} s")
        if waiting:
            time.sleep(SURVEY_EVERY_S)


def _is_verified(info: NodeInfo, first: str) -> bool:
    """Whether a node has told if it serves its first model: a torch node verifies the file before."""
    told = {each["model"] for each in (*info["models"], *info["withheld"])}
    return info["kind"] != "torch" or first in told


def _warn_unloaded(info: NodeInfo) -> None:
    """Say which models a node withholds, and that a torch node has no file of its first model yet."""
    for withheld in info["withheld"]:
        say(f"warning: node {info['name']} does not serve {withheld['model']}: {withheld['reason']}")
    for first in info["models"][:1]:
        if info["kind"] == "torch" and not (first["loaded"] or first["present"]):
            say(
                f"warning: node {info['name']} could not load {first['model']}; its own line says why. "
                "It tries again with each request, which fails until that is mended."
            )


def _where(info: NodeInfo, node: NodeSpec) -> str:
    device: str = info["device"]
    if device != "cpu":
        return f"{device} ({info['gpu']})" if info.get("gpu") else device
    return f"cpu, {node.threads} threads" if node.threads else "cpu"
