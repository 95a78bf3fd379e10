"""``lama-cleaner-grid``: the unchanged server of Lama Cleaner, with scheduler and nodes started beside it.

Takes all of upstream's flags and the ``--grid-*`` ones. Starts nothing before every flag is right and the
port is free; says one line per step; ends everything that it started, in order, when it ends.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import importlib
import importlib.util
import os
import shlex
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lamagrid import _native
from lamagrid.client import TaskClient
from lamagrid.errors import ConfigError, LamaGridError
from lamagrid.launcher import flags as grid_flags
from lamagrid.launcher import process_specs
from lamagrid.launcher.flags import GridFlags
from lamagrid.launcher.gpus import cuda_gpus
from lamagrid.launcher.process_supervisor import ProcessSpec, ProcessSupervisor, StartError, say
from lamagrid.launcher.shutdown import Shutdown, Stopped
from lamagrid.pynode.system_libraries import missing_library
from lamagrid.settings import Settings, load_settings
from lamagrid.upstream import enabled_plugins
from lamagrid.web import pending_requests

if TYPE_CHECKING:
    import argparse

OK = 0
FAILED = 1
WRONG_FLAGS = 2
NEVER_BOOTS = 3  # gunicorn's

SURVEY_EVERY_S = 0.1
SURVEY_LIMIT_S = 1.0
STILL_WAITING_EVERY_S = 10.0
COMMANDS = ("node list", "queue show", "task list")
"""What a visitor wants to know first."""
UNIX = "unix://"  # before the path of a socket, as Werkzeug writes it
UNIX_PATH_BYTES = 107
ATTACH_LIMIT_S = 5.0  # a scheduler that runs answers within milliseconds
OTHER_ENDS_S = 3.0  # a scheduler ends when its launcher was killed


class LaunchError(Exception):
    """The launcher cannot go on; the text says why and what to do."""


def entry_point() -> None:
    """What stands for ``lama_cleaner.entry_point``: run with the flags of the command line, then exit."""
    main()


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Serve until told to end, and end the process: with status 0 after SIGTERM and SIGINT."""
    words = list(sys.argv[1:] if argv is None else argv)
    children = ProcessSupervisor()
    shutdown = Shutdown(children)
    try:
        with contextlib.suppress(ValueError):  # of a thread that is not the main one: it gets no signals
            shutdown.hear_signals()
        status = _run(words, children)
    except (Stopped, KeyboardInterrupt):
        status = OK
    except SystemExit as end:  # of the parsers, and of Werkzeug's reloader
        status = end.code if isinstance(end.code, int) else OK if end.code is None else _fail(end)
    except BaseException:
        traceback.print_exc()
        status = FAILED
    shutdown.end(status)


def _run(words: list[str], children: ProcessSupervisor) -> int:
    flags, rest = grid_flags.split(words)
    if any(word in ("-h", "--help") for word in rest):
        return _show_help()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything imports torch: GPUs are for the nodes
    try:
        settings = load_settings(flags.scheduler or flags.data_dir, flags.join)
        has_scheduler = flags.scheduler is not None or settings.join is not None
        args, device = _parse_upstream(rest, visible, attached=has_scheduler)
        _check_python_models(flags.python_models)
        if not has_scheduler:
            _check_plugins(args)
        args.port = _check_port(args.host, args.port)
        # With --debug Werkzeug runs all of this again in a child, which uses what the first one started.
        reloaded = os.environ.get("WERKZEUG_RUN_MAIN") == "true"
        if has_scheduler or reloaded:
            client = _attach(settings)
            start = None
        else:
            env = process_specs.child_env(visible)
            nodes = process_specs.nodes(flags, args.model, device, settings.data_dir, env)
            if enabled := enabled_plugins.enabled(args):
                nodes.append(process_specs.plugin_node(enabled, settings.data_dir, env))
            if args.hf_access_token:
                nodes = [process_specs.with_token(node, args.hf_access_token) for node in nodes]
            client = _start_scheduler(children, process_specs.scheduler(settings.data_dir, env), settings)
            start = _start_nodes(children, nodes, flags)
        _native.start_logs("web", settings.data_dir)
        server = _import_server()
        if start is not None:
            _wait_for_nodes(children, client, nodes, start)
        return _serve(server, args, client, settings, flags.strict)
    except (LaunchError, StartError, process_specs.ProcessSpecError, ConfigError, LamaGridError) as error:
        return _fail(error)


def application(*words: str) -> Any:
    """Upstream's Flask application, for a production server, with a scheduler that runs already.

    ``gunicorn --workers 1 --threads 120 "lama_cleaner_patch:application('--grid-scheduler', 'DIR')"``. One
    process has all browsers' connections of Socket.IO; a request that waits has a thread, as has a WebSocket.

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
        args, _ = _parse_upstream(rest, None, attached=True)
        client = _attach(settings)
        _native.start_logs("web", settings.data_dir)
        server = _import_server()
        _prepare(server, args, client, settings, flags.strict)
    except (LaunchError, ConfigError, LamaGridError) as error:
        _fail(error)
        raise SystemExit(NEVER_BOOTS) from error
    except SystemExit as error:  # of the two parsers
        raise SystemExit(NEVER_BOOTS) from error
    # A worker that ends waits for its threads, which wait for tasks: they are answered first. Python's own
    # pools of threads end by the same list, whose last entry is called first.
    threading._register_atexit(pending_requests.stop)  # type: ignore[attr-defined]
    # Upstream's main sets what its routes use, and then serves.
    run, server.socketio.run = server.socketio.run, lambda *_, **__: None
    try:
        server.main(args)
    finally:
        server.socketio.run = run
    return server.app


def _leave_fork(loaded_by: int) -> None:
    """End a process that was forked after torch was loaded, as by ``gunicorn --preload``.

    A normal exit would abort: torch's destructors join threads that only the parent has.
    """
    if os.getpid() != loaded_by:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(OK)


def _fail(error: BaseException) -> int:
    print(f"lama-cleaner-grid: {error}", file=sys.stderr, flush=True)
    return FAILED


def _show_help() -> int:
    """Upstream's help, which says what it always said, then ours."""
    sys.argv = ["lama-cleaner-grid", "--help"]
    with contextlib.suppress(SystemExit):
        _upstream_parser().parse_args()
    print("\n" + grid_flags.parser().format_help().strip())
    return OK


def _upstream_parser() -> Any:
    # By its full name: the package's attribute `parse_args` is the function.
    try:
        return importlib.import_module("lama_cleaner.parse_args")
    except ModuleNotFoundError as error:
        if error.name != "lama_cleaner":
            raise
        raise SystemExit(
            "lama-cleaner-grid: Lama Cleaner is missing: pip install lama-cleaner==1.2.5"
        ) from error


def _parse_upstream(
    rest: list[str], visible: str | None, attached: bool
) -> tuple[argparse.Namespace, str | None]:
    """Let upstream's own parser judge upstream's flags.

    This process shows no GPU, for which upstream would refuse its default ``--device cuda``. So it is told
    ``cpu``, and the nodes are told what was asked for.

    Returns:
        Upstream's arguments, and the device that was asked for (None if none was).

    Raises:
        SystemExit: Status 2, with upstream's text, for a wrong flag.
    """
    upstream = _upstream_parser()
    device = grid_flags.upstream_flag(rest, "--device", "--devic", "--devi", "--dev")
    load_config = upstream.load_config

    def load_config_for_cpu(path: str) -> Any:
        nonlocal device
        config = load_config(path)
        device, config.device = config.device, "cpu"
        return config

    argv, sys.argv = sys.argv, ["lama-cleaner-grid", *rest, "--device", "cpu"]
    upstream.load_config = load_config_for_cpu
    try:
        args: argparse.Namespace = upstream.parse_args()
    finally:
        upstream.load_config = load_config
        sys.argv = argv  # with --debug Werkzeug runs this command line again
    if device == "cuda" and not attached and cuda_gpus(visible) == 0:
        print(
            "lama-cleaner-grid: error: --device cuda: this host has no NVIDIA GPU that may be used "
            "(CUDA_VISIBLE_DEVICES, driver); leave --device out or say --device cpu",
            file=sys.stderr,
        )
        raise SystemExit(WRONG_FLAGS)
    return args, device


def _check_python_models(names: Sequence[str]) -> None:
    """Refuse at once what the Python node would refuse; it would be started three times for that.

    Raises:
        SystemExit: Status 2; the text is on stderr.
    """
    const = importlib.import_module("lama_cleaner.const")
    unknown = [name for name in names if name not in const.AVAILABLE_MODELS]
    if unknown:
        print(
            f"lama-cleaner-grid: error: --grid-python-models {unknown[0]}: "
            f"Lama Cleaner has {', '.join(const.AVAILABLE_MODELS)}",
            file=sys.stderr,
        )
        raise SystemExit(WRONG_FLAGS)


def _check_plugins(args: argparse.Namespace) -> None:
    """Refuse at once a plugin whose package the node that is started here would miss.

    Raises:
        SystemExit: Status 2; the text is on stderr.
    """
    for name in enabled_plugins.enabled(args):
        package = enabled_plugins.PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            print(
                f"lama-cleaner-grid: error: the plugin {name} needs the package {package}, which is not "
                "installed here: pip install 'lamagrid[plugins]'",
                file=sys.stderr,
            )
            raise SystemExit(WRONG_FLAGS)


def _check_port(host: str, port: int) -> int:
    """The port to serve on: ``port``, or a free one for 0.

    Raises:
        LaunchError: Nothing can listen there; the text says what to do.
    """
    if os.environ.get("WERKZEUG_RUN_MAIN") == "true":
        return port  # the socket is inherited
    if host.startswith(UNIX):
        _check_socket(Path(host.removeprefix(UNIX)))
        return port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            probe.bind(address)
            probe.listen(1)
            free: int = probe.getsockname()[1]
            return free
    except OverflowError as error:
        raise LaunchError(f"--port {port}: a port is a number up to 65535") from error
    except OSError as error:
        if isinstance(error, socket.gaierror):
            hint = f"--host {host}: {error.strerror}"
        elif error.errno == errno.EADDRNOTAVAIL:
            hint = f"--host {host}: this host has no such address; 127.0.0.1 is for itself, 0.0.0.0 for all"
        elif isinstance(error, PermissionError):
            hint = f"port {port} may only be used by root: choose one from 1024 on with --port"
        else:
            hint = (
                f"port {port} on {host} cannot be used: {error.strerror}. Stop the program that uses it, "
                f"or choose another with --port"
            )
        raise LaunchError(hint) from error


def _check_socket(path: Path) -> None:
    """Check that a Unix socket can be made at a path; one that no server listens on any more is replaced.

    Raises:
        LaunchError: It cannot; the text says what to do.
    """
    flag = f"--host {UNIX}{path}"
    if not path.is_absolute() or len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise LaunchError(f"{flag}: write an absolute path of at most {UNIX_PATH_BYTES} bytes")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise LaunchError(f"{flag}: {path.parent} is no directory that may be written to")
    if path.exists() and not path.is_socket():
        raise LaunchError(f"{flag}: there is a file of that name, and it is no socket")
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.settimeout(ATTACH_LIMIT_S)
        probe.connect(str(path))
        raise LaunchError(f"{flag}: another server listens there; stop it, or choose another path")


def _client(settings: Settings) -> TaskClient:
    return TaskClient(settings.data_dir) if settings.join is None else TaskClient(join=settings.join)


def _attach(settings: Settings) -> TaskClient:
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


def _start_scheduler(children: ProcessSupervisor, program: ProcessSpec, settings: Settings) -> TaskClient:
    # One whose launcher was killed a moment ago ends by itself.
    end = time.monotonic() + OTHER_ENDS_S
    while (pid := _native.running_scheduler(settings.data_dir)) is not None:
        if time.monotonic() >= end:
            raise _taken(settings, pid)
        time.sleep(SURVEY_EVERY_S)
    say(f"scheduler: starting on {settings.data_dir}")
    child = children.start(program)
    client = _client(settings)
    began = told = time.monotonic()
    # Another scheduler of this directory would answer, too; ours ends then.
    while not (
        child.pid and str(child.pid) == _native.running_scheduler(settings.data_dir) and _answers(client)
    ):
        other = _native.running_scheduler(settings.data_dir)
        if child.pid == 0 and other is not None:
            raise _taken(settings, other)
        children.check()
        now = time.monotonic()
        if now - told >= STILL_WAITING_EVERY_S:
            told = now
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


def _start_nodes(
    children: ProcessSupervisor, nodes: Sequence[process_specs.NodeSpec], flags: GridFlags
) -> float:
    if flags.demo_model:
        say("demo model: lama is the packaged demo, without trained weights (--grid-demo-model)")
    for name, path in flags.models.items():
        say(f"model {name}: {path}")
    for node in nodes:
        say(f"node {node.name}: starting, for {', '.join(node.models)}")
        children.start(node.program)
    return time.monotonic()


def _wait_for_nodes(
    children: ProcessSupervisor, client: TaskClient, nodes: Sequence[process_specs.NodeSpec], began: float
) -> None:
    """Wait until each node is registered, for as long as it lives: it may have weights to fetch."""
    waiting = {node.name: node for node in nodes}
    by_program = {child.program.name: child for child in children}
    told = began
    while waiting:
        children.check()
        live: list[Any] = []
        with contextlib.suppress(LamaGridError):
            live = client.survey(SURVEY_LIMIT_S)["nodes"]
        for status in live:
            node = waiting.pop(status["info"]["name"], None)
            if node is not None:
                by_program[node.program.name].set_ready()
                say(f"node {node.name} ready: {', '.join(node.models)} on {_where(status['info'], node)}")
                _warn_unloaded(status["info"])
        now = time.monotonic()
        if waiting and now - told >= STILL_WAITING_EVERY_S:
            told = now
            say(f"still waiting for node {', '.join(waiting)} after {now - began:.0f} s")
        if waiting:
            time.sleep(SURVEY_EVERY_S)


def _warn_unloaded(info: Any) -> None:
    """Say that a torch node could not load its first model, which it tried before it registered."""
    first = info["models"][0]
    if info["kind"] == "torch" and not first["loaded"]:
        say(
            f"warning: node {info['name']} could not load {first['model']}; its own line says why. "
            "It tries again with each request, which fails until that is mended."
        )


def _where(info: Any, node: process_specs.NodeSpec) -> str:
    device: str = info["device"]
    if device != "cpu":
        return f"{device} ({info['gpu']})" if info.get("gpu") else device
    return f"cpu, {node.threads} threads" if node.threads else "cpu"


def _import_server() -> Any:
    """Upstream's server module; only now, when upstream's parser has set the environment that it reads."""
    # What upstream's imports make torch say is of no use to whoever runs the server. The nodes' environment
    # was made before.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return importlib.import_module("lama_cleaner.server")
    except ImportError as error:
        library = missing_library(error)
        if library is None:
            raise
        raise LaunchError(library) from error


def _prepare(
    server: Any, args: argparse.Namespace, client: TaskClient, settings: Settings, strict: bool
) -> None:
    """Put our routes and our stand-in for the models into upstream's module.

    Raises:
        LaunchError: A package is missing; the text says how to install it.
    """
    if importlib.util.find_spec("python_multipart") is None:
        raise LaunchError(
            "the package python-multipart is missing or too old: pip install 'python-multipart>=0.0.18'"
        )
    from lamagrid.web import bounded_server as bounded_server
    from lamagrid.web import error_responses, request_filter
    from lamagrid.web.browser_tasks import BrowserTasks
    from lamagrid.web.forwarded_headers import ForwardedHeaders
    from lamagrid.web.model_manager import RemoteModelManager
    from lamagrid.web.routes import inpaint, plugin, save_image, tasks_page, thumbnail
    from lamagrid.web.same_origin import SameOrigin
    from lamagrid.web.task_ledger import TaskLedger

    browsers = BrowserTasks(server.socketio, client, TaskLedger(settings.data_dir / "web"))
    browsers.take_over()
    if not strict:
        browsers.register(server.app)
        tasks_page.register(server.app, browsers)
        error_responses.register(server.app)
    server.ModelManager = functools.partial(
        RemoteModelManager,
        client=client,
        timeout_s=settings.timeout_s,
        watch=browsers.watch,
        memory=browsers,
        strict=strict,
    )
    inpaint.register(server, settings.max_pixels)
    rules = None if strict else SameOrigin(settings.web, [args.host])
    request_filter.install(server, settings.web, settings.max_pixels, rules)
    bounded_server.install(ForwardedHeaders(settings.web.trusted_proxies))
    save_image.register(server.app)
    thumbnail.register(server.app)
    plugin.register(server, enabled_plugins.enabled(args), settings.max_pixels, strict)


def _serve(
    server: Any, args: argparse.Namespace, client: TaskClient, settings: Settings, strict: bool
) -> int:
    _prepare(server, args, client, settings, strict)
    if not _is_loopback(args.host):
        say(f"warning: everybody who reaches {args.host} can use this server; it has no passwords")
    if args.host.startswith(UNIX):
        say(f"page: on the socket {args.host.removeprefix(UNIX)}, for a proxy of this host")
    else:
        host = f"[{args.host}]" if ":" in args.host else args.host
        say(f"page: http://{host}:{args.port}")
        if not strict:
            say(f"my tasks: http://{host}:{args.port}/grid")
    if settings.join is None:
        where = f" --data-dir {shlex.quote(str(settings.data_dir))}"
        say(f"commands for this grid: {', '.join(f'lamagrid {command}{where}' for command in COMMANDS)}")
    server.main(args)
    return OK


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith(("127.", UNIX))


if __name__ == "__main__":
    entry_point()
