"""The launcher's flags, plan and children, without a grid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grids import procfs
from lamagrid import InvalidInputError, _native
from lamagrid.launcher import flags, process_specs
from lamagrid.launcher.errors import LaunchError
from lamagrid.launcher.listen_address import check_port
from lamagrid.launcher.process_supervisor import (
    BACKOFF_CAP_S,
    ProcessSpec,
    ProcessSupervisor,
    backoff,
)
from lamagrid.launcher.startup import wait_for_nodes

LAUNCHER = Path(sys.executable).parent / "lama-cleaner-grid"


def launcher(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the console script to its end."""
    return subprocess.run(
        [LAUNCHER, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
    )


def test_help_shows_upstreams_flags_and_ours_and_starts_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    done = launcher("--help", env={"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")})
    assert done.returncode == 0
    assert time.monotonic() - began < 5
    for flag in ("--model-dir", "--enable-gfpgan", "--grid-scheduler", "--grid-demo-model", "--grid-nodes"):
        assert flag in done.stdout
    assert not (tmp_path / "data").exists()


def test_a_unix_sockets_path_is_checked_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for wrong, text in (
        ("relative", "write an absolute path"),
        (f"/{'x' * 110}", "at most 107 bytes"),
        ("/no/such/folder/s", "/no/such/folder is no directory"),
        (__file__, "it is no socket"),
    ):
        with pytest.raises(LaunchError, match=text):
            check_port(f"unix://{wrong}", 0)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        with pytest.raises(LaunchError, match="another server listens there"):
            check_port(f"unix://{path}", 8080)
    assert check_port(f"unix://{path}", 8080) == 8080  # what a server left behind is replaced


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--modle", "lama"], "--modle"),
        (["--model", "nonsense"], "nonsense"),
        (["--device", "tpu"], "tpu"),
        (["--port", "x"], "--port"),
        (["--grid-nodse", "1"], "--grid-nodse"),
        (["--grid-nodes", "-1"], "0 to 64"),
        (["--grid-threads", "0"], "1 to 1024"),
        (["--grid-model", "lama"], "NAME=PATH"),
        (["--grid-model", "lama=/no/such/file.pt"], "no such file"),
        (["--grid-python-models", "cv2,nonsense"], "nonsense"),
        (["--grid-scheduler", "/x", "--grid-nodes", "1"], "starts nothing"),
        (["--grid-scheduler", "/x", "--grid-demo-model"], "starts nothing"),
        (["--grid-scheduler", "/x", "--grid-python-models", "cv2"], "starts nothing"),
    ],
)
def test_wrong_flags_are_refused_before_anything_starts(words: list[str], text: str, tmp_path: Path) -> None:
    done = (
        launcher(*words, "--grid-data-dir", str(tmp_path / "grid"))
        if words[0] != "--grid-scheduler"
        else launcher(*words)
    )
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "grid").exists()


def test_a_plugin_whose_package_is_missing_is_refused_before_anything_starts(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['realesrgan'] = None; from lamagrid.launcher.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden, "--enable-realesrgan", "--grid-data-dir", tmp_path / "grid"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "RealESRGAN needs the package realesrgan" in done.stderr
    assert "pip install 'lamagrid[plugins]'" in done.stderr
    assert not (tmp_path / "grid").exists()


def test_cuda_is_refused_without_a_gpu() -> None:
    done = launcher("--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    assert "no NVIDIA GPU" in done.stderr


def test_a_port_in_use_is_reported_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = launcher("--port", str(port), "--grid-data-dir", str(tmp_path / "grid"))
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1" in done.stderr
    assert "--port" in done.stderr
    assert not (tmp_path / "grid").exists()


def test_a_foreign_address_is_reported_before_anything_starts(tmp_path: Path) -> None:
    done = launcher("--host", "192.0.2.1", "--grid-data-dir", str(tmp_path / "grid"))
    assert done.returncode == 1
    assert "--host 192.0.2.1: this host has no such address" in done.stderr
    assert not (tmp_path / "grid").exists()


def split(*words: str) -> tuple[flags.GridFlags, list[str]]:
    return flags.split(words)


def test_upstreams_flags_are_passed_on_unchanged() -> None:
    words = ["--model", "cv2", "--gui-size", "1", "2", "--no-half", "--port=9", "--input", "a b"]
    seen, rest = split(*words[:4], "--grid-nodes", "2", *words[4:], "--grid-demo-model")
    assert rest == words
    assert seen.nodes == 2
    assert seen.demo_model
    assert seen.python_models == ("cv2",)
    for given in (
        ["--device", "cuda"],
        ["--device=cuda"],
        ["--dev", "cuda"],
        ["--device", "cpu", "--device", "cuda"],
    ):
        assert (
            flags.upstream_flag([*given, "--model", "cv2"], "--device", "--devic", "--devi", "--dev")
            == "cuda"
        )
    assert flags.upstream_flag(["--model", "cv2"], "--device") is None


@pytest.fixture
def node_program(tmp_path: Path) -> Path:
    """Something that may be executed."""
    program = tmp_path / "lamagrid-node"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def planned(node_program: Path, model: str, *words: str, device: str | None = None) -> dict[str, list[str]]:
    """The arguments of each planned node by its name, from the name of the first model on."""
    seen, _ = split("--grid-node-command", str(node_program), *words)
    nodes = process_specs.nodes(seen, model, device, Path("/d"), {"XDG_CACHE_HOME": "/nowhere"})
    return {node.name: list(node.program.command) for node in nodes}


def models_of(command: list[str]) -> list[str]:
    return [command[at + 1] for at, word in enumerate(command) if word == "--model"]


def test_the_model_decides_which_nodes_are_started(node_program: Path) -> None:
    nodes = planned(node_program, "lama")
    assert {name: models_of(command) for name, command in nodes.items()} == {
        "torch-0": ["lama", "manga"],
        "python-0": ["cv2"],
    }
    assert models_of(planned(node_program, "manga")["torch-0"]) == ["manga", "lama"]
    # cv2 alone needs no libtorch; mat is upstream's to run.
    assert set(planned(node_program, "cv2")) == {"python-0"}
    assert models_of(planned(node_program, "mat")["python-0"]) == ["cv2", "mat"]
    nodes = planned(node_program, "manga", "--grid-python-models", "cv2,manga,lama")
    assert {name: models_of(command) for name, command in nodes.items()} == {
        "python-0": ["cv2", "manga", "lama"]
    }
    nodes = planned(node_program, "lama", "--grid-nodes", "0", "--grid-python-models", "cv2,lama")
    assert {name: models_of(command) for name, command in nodes.items()} == {"python-0": ["cv2", "lama"]}
    with pytest.raises(LaunchError, match="no node that serves lama"):
        planned(node_program, "lama", "--grid-nodes", "0")


def test_nodes_get_threads_device_and_files(node_program: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    file.touch()
    nodes = planned(
        node_program,
        "lama",
        "--grid-nodes",
        "2",
        "--grid-threads",
        "3",
        "--grid-model",
        f"mine={file}",
        device="cpu",
    )
    assert set(nodes) == {"torch-0", "torch-1", "python-0"}
    assert models_of(nodes["torch-1"]) == ["lama", f"mine={file}", "manga"]
    assert " --threads 3" in " ".join(nodes["torch-1"])
    assert " --device cpu" in " ".join(nodes["torch-1"])
    assert all("--lifeline" in command for command in nodes.values())
    demo = planned(node_program, "lama", "--grid-demo-model", "--grid-python-models", "")
    assert models_of(demo["torch-0"]) == [f"lama={process_specs.DEMO_MODEL}", "manga"]
    assert process_specs.DEMO_MODEL.is_file()
    assert set(demo) == {"torch-0"}


def test_models_of_the_configuration_are_served_by_the_torch_node(node_program: Path) -> None:
    seen, _ = split("--grid-node-command", str(node_program), "--grid-python-models", "")
    seen = replace(seen, models={"migan": None, "mine": Path("/m.pt")})
    (node,) = process_specs.nodes(seen, "migan", None, Path("/d"), {"XDG_CACHE_HOME": "/nowhere"})
    assert models_of(list(node.program.command)) == ["migan", "mine=/m.pt", "lama", "manga"]


def test_a_capability_file_is_for_all_nodes_and_leaves_models_out(node_program: Path, tmp_path: Path) -> None:
    file = tmp_path / "capabilities.toml"
    file.write_text("leave_out = ['manga', 'cv2']\n")
    words = ("--grid-node-command", str(node_program), "--grid-capabilities", str(file))
    seen, _ = split(*words, "--grid-python-models", "cv2,zits")
    offer = _native.capability_offer(file)
    assert offer["leave_out"] == ["manga", "cv2"]
    left = replace(seen, leave_out=tuple(offer["leave_out"]))
    env = {"XDG_CACHE_HOME": "/nowhere"}
    nodes = process_specs.nodes(left, "lama", None, Path("/d"), env)
    commands = {node.name: list(node.program.command) for node in nodes}
    assert {name: models_of(command) for name, command in commands.items()} == {
        "torch-0": ["lama"],
        "python-0": ["zits"],
    }
    assert all(command[-2:] == ["--capabilities", str(file)] for command in commands.values())
    with pytest.raises(LaunchError, match="leaves manga out"):
        process_specs.nodes(left, "manga", None, Path("/d"), env)
    file.write_text("leave_out = 1\n")
    with pytest.raises(InvalidInputError, match="leave_out"):
        _native.capability_offer(file)


def test_nodes_are_spread_over_the_gpus(node_program: Path) -> None:
    def spread(gpus: list[str]) -> list[str | None]:
        seen, _ = split("--grid-node-command", str(node_program), "--grid-nodes", "3")
        env = {"XDG_CACHE_HOME": "/nowhere", "CUDA_VISIBLE_DEVICES": "all"}
        nodes = process_specs.nodes(seen, "lama", None, Path("/d"), env)
        return [each.program.env["CUDA_VISIBLE_DEVICES"] for each in process_specs.on_gpus(nodes, gpus)]

    assert spread(["GPU-a", "GPU-b"]) == ["GPU-a", "GPU-b", "GPU-a", "all"]  # the last one is in Python
    assert spread([]) == ["all"] * 4


def test_a_node_with_several_gpus_is_ready_with_its_first_one(
    node_program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, _ = split("--grid-node-command", str(node_program), "--grid-nodes", "11")
    planned = process_specs.nodes(seen, "lama", None, Path("/d"), {"XDG_CACHE_HOME": "/nowhere"})
    nodes = [each for each in planned if each.name in ("torch-1", "torch-10")]
    ready: list[str] = []

    class Children(list[SimpleNamespace]):
        def check(self) -> None:
            pass

    def survey(_: float) -> dict[str, Any]:
        # The second node registers later than the first one.
        names = ["torch-1-2"] if not ready else ["torch-10", "torch-1-0"]
        models = [{"model": "lama", "loaded": True}]
        info = {"device": "cuda:2", "gpu": "A100", "kind": "torch", "models": models, "withheld": []}
        return {"nodes": [{"info": {**info, "name": name}} for name in names]}

    def child(node: process_specs.NodeSpec) -> SimpleNamespace:
        return SimpleNamespace(program=node.program, set_ready=lambda: ready.append(node.name))

    children: Any = Children(map(child, nodes))
    client: Any = SimpleNamespace(survey=survey)
    wait_for_nodes(children, client, nodes, time.monotonic())
    assert ready == ["torch-1", "torch-10"]
    assert "node torch-1 ready: lama, manga on cuda:2 (A100)" in capsys.readouterr().out


def test_a_token_reaches_only_the_environment_of_the_python_node(node_program: Path) -> None:
    seen, _ = split("--grid-node-command", str(node_program))
    nodes = process_specs.nodes(seen, "lama", None, Path("/d"), {"XDG_CACHE_HOME": "/nowhere"})
    reported = [process_specs.with_token(node, "secret") for node in nodes]
    assert "secret" not in " ".join(word for node in reported for word in node.program.command)
    assert [node.name for node in reported if "secret" in node.program.env.values()] == ["python-0"]


def test_a_missing_node_program_is_reported_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(LaunchError, match="no such program"):
        process_specs.node_command(tmp_path / "nothing")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(process_specs, "__file__", str(tmp_path / "a" / "b" / "c" / "d.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"pip install --no-build-isolation \./src/node"):
        process_specs.node_command(None)


def test_children_see_the_gpus_that_the_web_process_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("CACHE_DIR", "/weights")
    assert "CUDA_VISIBLE_DEVICES" not in process_specs.child_env(None)
    assert process_specs.child_env("1,0")["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert process_specs.child_env(None)["TORCH_HOME"] == "/weights"


# Child processes.


def program(code: str, *words: str) -> ProcessSpec:
    """A Python program."""
    return ProcessSpec("test", [sys.executable, "-c", code, *words], dict(os.environ))


@pytest.fixture
def children() -> Iterator[ProcessSupervisor]:
    """A supervisor whose children are gone after the test."""
    owner = ProcessSupervisor()
    yield owner
    owner.stop()


def until(predicate: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a true value."""
    end = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_the_backoff_doubles_is_capped_and_jittered() -> None:
    assert [backoff(n, lambda: 0.0) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert backoff(50, lambda: 0.0) == BACKOFF_CAP_S
    assert backoff(1, lambda: 1.0) == 0.25


def test_a_child_that_dies_is_restarted(
    children: ProcessSupervisor, capfd: pytest.CaptureFixture[str]
) -> None:
    child = children.start(program("import time; time.sleep(60)"))
    until(lambda: child.pid)
    child.set_ready()
    first = child.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: child.pid != first and procfs.started_at(child.pid))
    children.check()
    assert "test ended (signal SIGKILL): starting it again in" in capfd.readouterr().out


def test_a_child_that_never_becomes_ready_is_given_up_with_its_output(children: ProcessSupervisor) -> None:
    child = children.start(program("import sys; print('one'); sys.exit('the data directory is in use')"))

    def given_up() -> bool:
        try:
            child.check()
        except LaunchError:
            return True
        return False

    until(given_up)
    with pytest.raises(
        LaunchError, match=r"(?s)test did not start: exit status 1.*  \| the data directory is in use"
    ):
        children.check()


def test_a_missing_program_is_given_up(children: ProcessSupervisor) -> None:
    child = children.start(ProcessSpec("test", ["/no/such/program"], {}))
    with pytest.raises(LaunchError, match="cannot run /no/such/program: No such file"):
        until(lambda: child.check())


def test_sigterm_comes_before_sigkill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lamagrid.launcher.process_supervisor.NODES_GRACE_S", 0.3)
    monkeypatch.setattr("lamagrid.launcher.process_supervisor.STOP_LIMIT_S", 0.5)
    owner = ProcessSupervisor()
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('on', flush=True); time.sleep(60)"
    )
    child = owner.start(program(stubborn))
    until(lambda: "on" in child._tail)
    pid = child.pid
    owner.stop()
    assert procfs.started_at(pid) is None
    monkeypatch.undo()
    owner = ProcessSupervisor()
    polite = owner.start(
        program(
            "import signal, sys, time, pathlib\n"
            "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).touch(), sys.exit()))\n"
            "print('on', flush=True); time.sleep(60)",
            str(tmp_path / "said goodbye"),
        )
    )
    until(lambda: "on" in polite._tail)
    owner.stop()
    assert (tmp_path / "said goodbye").exists()


def test_a_slow_node_leaves_the_scheduler_its_own_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A node that has to be killed takes no time away from the scheduler, which is told to end after it."""
    monkeypatch.setattr("lamagrid.launcher.process_supervisor.NODES_GRACE_S", 0.3)
    slow = (
        "import signal, sys, time, pathlib\n"
        "def end(*_):\n"
        "    time.sleep(float(sys.argv[2]))\n"
        "    pathlib.Path(sys.argv[1]).touch()\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('on', flush=True); time.sleep(60)"
    )
    owner = ProcessSupervisor()
    first, second = (
        owner.start(program(slow, str(tmp_path / name), seconds))
        for name, seconds in (("first", "0.5"), ("second", "60"))
    )
    until(lambda: "on" in first._tail and "on" in second._tail)
    began = time.monotonic()
    owner.stop()
    assert time.monotonic() - began < 8
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_nothing_is_restarted_during_a_stop(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A scheduler that ends by itself while the nodes have their time, as when a terminal ends them all."""
    owner = ProcessSupervisor()
    first = owner.start(program("import time; time.sleep(60)"))
    slow = (
        "import os, signal, sys, time\n"
        "def end(*_):\n"
        "    os.kill(int(sys.argv[1]), signal.SIGKILL)\n"
        "    time.sleep(2)\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('on', flush=True); time.sleep(60)"
    )
    until(lambda: first.pid)
    first.set_ready()
    second = owner.start(program(slow, str(first.pid)))
    until(lambda: "on" in second._tail)
    owner.stop()
    late = owner.start(program("import time; time.sleep(60)"))
    late._thread.join(10)
    assert (first.pid, second.pid, late.pid) == (0, 0, 0)
    assert "start" not in capfd.readouterr().out


def test_a_closed_stdout_does_not_end_the_supervision() -> None:
    code = (
        "import os, signal, sys, time\n"
        "from lamagrid.launcher.process_supervisor import ProcessSupervisor, ProcessSpec\n"
        "owner = ProcessSupervisor()\n"
        "child = owner.start(ProcessSpec('a', [sys.executable, '-c', 'import sys; sys.stdin.read()'], {}))\n"
        "while not child.pid: time.sleep(0.01)\n"
        "child.set_ready()\n"
        "first = child.pid\n"
        "print(first, flush=True)\n"
        "sys.stdin.readline()\n"
        "os.kill(first, signal.SIGKILL)\n"
        "end = time.monotonic() + 10\n"
        "while child.pid in (0, first) and time.monotonic() < end: time.sleep(0.02)\n"
        "again = child.pid not in (0, first)\n"
        "owner.stop()\n"
        "os._exit(0 if again else 3)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline().strip().isdigit()
    holder.stdout.close()
    with holder.stdin as go:
        go.write(b"\n")
    assert holder.wait(20) == 0


def test_a_child_started_during_a_shutdown_receives_sigterm() -> None:
    """A signal that the launcher ignores while it ends is not ignored by a child that it starts then."""
    code = (
        "import signal, subprocess, sys\n"
        "from lamagrid.launcher.process_supervisor import ProcessSupervisor\n"
        "from lamagrid.launcher.shutdown import Shutdown\n"
        "Shutdown(ProcessSupervisor()).handle_signals()\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "child.terminate()\n"
        "try:\n"
        "    status = child.wait(5)\n"
        "except subprocess.TimeoutExpired:\n"
        "    child.kill()\n"
        "    status = 0\n"
        "sys.exit(0 if status == -signal.SIGTERM else 3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


STOPPED = """
import os, signal, sys, threading, time
from lamagrid.launcher.process_supervisor import ProcessSupervisor, ProcessSpec
from lamagrid.launcher.shutdown import Shutdown
children = ProcessSupervisor()
shutdown = Shutdown(children)
shutdown.handle_signals()
waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
child = children.start(ProcessSpec("a", waits, dict(os.environ)))
while not child.pid: time.sleep(0.01)
class Swallows:
    def __del__(self):
        print(child.pid, flush=True)
        time.sleep(20)
def main():
%s
    time.sleep(20)
try:
    main()
except BaseException:
    shutdown.end(0)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "moment",
    [
        "print(child.pid, flush=True)",
        "Swallows()",
        "print(child.pid, flush=True)\ntry: time.sleep(20)\nexcept BaseException: pass",
    ],
    ids=["plain", "in a finalizer", "caught"],
)
def test_a_signal_ends_the_launcher_at_any_moment(number: signal.Signals, moment: str) -> None:
    """An exception alone would be swallowed where Python runs a finalizer, or by a bare except."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED % textwrap.indent(moment, "    ")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGHUP)
    assert b"SIGHUP" in process.stdout.readline()
    process.send_signal(number)
    assert process.wait(8) == 0
    process.stdout.close()
    assert procfs.started_at(child) is None


def test_children_end_when_their_parent_is_gone() -> None:
    """Two children: neither holds the other's pipe, so both see the end of a holder that was killed."""
    code = (
        "import sys, time\n"
        "from lamagrid.launcher.process_supervisor import ProcessSupervisor, ProcessSpec\n"
        "owner = ProcessSupervisor()\n"
        "for name in 'ab':\n"
        "    owner.start(ProcessSpec(name, [sys.executable, '-c', 'import sys; sys.stdin.read()'], {}))\n"
        "while not all(child.pid for child in owner): time.sleep(0.01)\n"
        "print(*[child.pid for child in owner], flush=True)\n"
        "time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        pids = [int(word) for word in holder.stdout.readline().split()]
        assert len(pids) == 2
        assert all(procfs.started_at(pid) for pid in pids)
    finally:
        holder.kill()
        holder.communicate()
    until(lambda: not any(procfs.started_at(pid) for pid in pids), 5.0)
