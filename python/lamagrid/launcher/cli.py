"""``lama-cleaner-grid``: the unchanged server of Lama Cleaner, with scheduler and nodes started beside it.

Takes all of upstream's flags and the ``--grid-*`` ones. Starts nothing before every flag is right and the
port is free; says one line per step; ends everything that it started, in order, when it ends.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from lamagrid import _native
from lamagrid.errors import LamaGridError
from lamagrid.launcher import flags as grid_flags
from lamagrid.launcher import process_specs, upstream_arguments
from lamagrid.launcher.errors import FAILED, OK, LaunchError, print_error
from lamagrid.launcher.listen_address import UNIX, check_port, is_loopback
from lamagrid.launcher.process_supervisor import ProcessSupervisor, say
from lamagrid.launcher.shutdown import Shutdown, Stopped
from lamagrid.launcher.startup import attach, start_nodes, start_scheduler, wait_for_nodes
from lamagrid.settings import Settings, load_settings
from lamagrid.upstream import enabled_plugins
from lamagrid.upstream.protocol import UpstreamArguments
from lamagrid.web import app
from lamagrid.web.error_responses import AnswerStyle

COMMANDS = ("node list", "queue show", "task list")
"""Printed at the start, with the flags for this grid."""


def entry_point() -> None:
    """Replaces ``lama_cleaner.entry_point``: run with the flags of the command line, then exit."""
    main()


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Serve until a signal, then end the process, with status 0 after SIGTERM and SIGINT."""
    words = list(sys.argv[1:] if argv is None else argv)
    children = ProcessSupervisor()
    shutdown = Shutdown(children)
    try:
        with contextlib.suppress(ValueError):  # of a thread that is not the main one: it gets no signals
            shutdown.handle_signals()
        status = _run(words, children)
    except (Stopped, KeyboardInterrupt):
        status = OK
    except SystemExit as end:  # of the parsers, and of Werkzeug's reloader
        status = end.code if isinstance(end.code, int) else OK if end.code is None else print_error(end)
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
        flags = replace(flags, models={**dict.fromkeys(settings.models), **flags.models})
        parsed = upstream_arguments.parse(rest, tuple(flags.models))
        args = parsed.args
        if not has_scheduler:
            upstream_arguments.check_device(parsed.device, visible)
        upstream_arguments.check_python_models(flags.python_models)
        if not has_scheduler:
            upstream_arguments.check_plugins(args)
        args.port = check_port(args.host, args.port)
        # With --debug Werkzeug runs this again in a child, which uses the scheduler that its parent started.
        reloaded = os.environ.get("WERKZEUG_RUN_MAIN") == "true"
        if has_scheduler or reloaded:
            client = attach(settings)
            start = None
        else:
            env = process_specs.child_env(visible)
            gpus = _native.cuda_gpus(visible)
            if flags.capabilities is not None:
                offer = _native.capability_offer(flags.capabilities, visible)
                gpus, flags = offer["gpus"], replace(flags, leave_out=tuple(offer["leave_out"]))
            nodes = process_specs.nodes(flags, args.model, parsed.device, settings.data_dir, env)
            if flags.nodes is not None and parsed.device != "cpu":
                nodes = process_specs.on_gpus(nodes, gpus)
            if enabled := enabled_plugins.enabled(args):
                nodes.append(process_specs.plugin_node(flags, enabled, settings.data_dir, env))
            if args.hf_access_token:
                nodes = [process_specs.with_token(node, args.hf_access_token) for node in nodes]
            client = start_scheduler(children, process_specs.scheduler(settings.data_dir, env), settings)
            start = start_nodes(children, nodes, flags)
        _native.start_logs("web", settings.data_dir)
        server = app.import_upstream()
        if start is not None:
            wait_for_nodes(children, client, nodes, start)
        app.create_app(server, args, client, settings, flags.style)
        _say_addresses(args, settings, flags.style)
        server.main(args)
        return OK
    except (LaunchError, LamaGridError) as error:
        return print_error(error)


def _show_help() -> int:
    """Print upstream's help, then that of the ``--grid-*`` flags."""
    upstream_arguments.print_help()
    print("\n" + grid_flags.parser().format_help().strip())
    return OK


def _say_addresses(args: UpstreamArguments, settings: Settings, style: AnswerStyle) -> None:
    if not is_loopback(args.host):
        say(f"warning: anyone who reaches {args.host} can use this server; it has no passwords")
    if args.host.startswith(UNIX):
        say(f"page: on the socket {args.host.removeprefix(UNIX)}, for a proxy of this host")
    else:
        host = f"[{args.host}]" if ":" in args.host else args.host
        say(f"page: http://{host}:{args.port}")
        if style is AnswerStyle.READABLE:
            say(f"my tasks: http://{host}:{args.port}/grid")
    if settings.join is None:
        where = f" --data-dir {shlex.quote(str(settings.data_dir))}"
        say(f"commands for this grid: {', '.join(f'lamagrid {command}{where}' for command in COMMANDS)}")


if __name__ == "__main__":
    entry_point()
