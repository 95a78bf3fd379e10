"""The table of replacements, installed: it replaces what it lists, and nothing else of upstream changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamagrid.launcher import upstream_arguments
from lamagrid.upstream.patches import PATCHES, Place, Stage, install

SNAPSHOT = '''
import argparse, importlib, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from lamagrid.launcher.upstream_arguments import parse
from lamagrid.settings import Settings
from lamagrid.web.app import create_app, import_upstream
from lamagrid.web.error_responses import AnswerStyle
import lamagrid.web.replacements

FOREIGN = ("lama_cleaner", "flask", "flask_socketio", "flask_cors", "werkzeug", "engineio", "socketio",
           "simple_websocket", "python_multipart", "PIL", "cv2", "jinja2")
args = parse(["--model", "lama"]).args
server = import_upstream()

def places():
    """Every attribute of upstream's modules, classes and objects, and each entry of their tables."""
    found = {}
    for name, module in list(sys.modules.items()):
        if module is not None and name.split(".")[0] in FOREIGN:
            for key, value in list(vars(module).items()):
                found[f"{name}:{key}"] = value
                if isinstance(value, type) and value.__module__ == name:
                    for inner, part in list(vars(value).items()):
                        found[f"{name}:{key}.{inner}"] = part
    for path in ("app", "socketio", "socketio.server", "socketio.server.eio"):
        thing = server
        for part in path.split("."):
            thing = getattr(thing, part)
        for key in dir(type(thing)):
            if not key.startswith("__"):
                found[f"lama_cleaner.server:{path}.{key}"] = vars(type(thing)).get(key)
        for key, value in list(vars(thing).items()):
            found[f"lama_cleaner.server:{path}.{key}"] = value
    for key, value in list(server.app.view_functions.items()):
        found[f"lama_cleaner.server:app.view_functions[{key}]"] = value
    return found

before = places()
settings = Settings(Path(sys.argv[1]), None, 100_000, 1.0)
create_app(server, args, object(), settings, AnswerStyle[sys.argv[2]])
exec(sys.argv[3])
after = places()
changed = {name for name, value in before.items() if after.get(name) is not value}
for name in changed:
    if name.rpartition(".")[0] not in changed:  # not the parts of a class that was replaced
        print("replaced", name)
'''


def replaced(folder: Path, style: str, after: str = "") -> set[str]:
    """The places of upstream that a start of the web server changes."""
    command = [sys.executable, "-c", SNAPSHOT, str(folder), style, after]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ})
    assert done.returncode == 0, done.stderr
    lines = (line.split() for line in done.stdout.splitlines())
    return {words[1] for words in lines if words[:1] == ["replaced"]}


TABLE = {patch.target for patch in PATCHES if patch.stage is Stage.WEB_SERVER}


def test_a_start_replaces_what_the_table_lists_and_nothing_else(tmp_path: Path) -> None:
    assert replaced(tmp_path, "READABLE") == TABLE
    assert replaced(tmp_path, "UPSTREAM") == TABLE - {"lama_cleaner.server:socketio.emit"}


def test_a_replacement_elsewhere_is_found(tmp_path: Path) -> None:
    elsewhere = (
        "server.get_image_ext = len; server.app.view_functions['index'] = len; "
        "type(server.app).run = len; server.socketio.on = len"
    )
    assert replaced(tmp_path, "READABLE", elsewhere) - TABLE == {
        "lama_cleaner.server:get_image_ext",
        "lama_cleaner.server:app.view_functions[index]",
        "lama_cleaner.server:app.run",
        "flask.app:Flask.run",
        "lama_cleaner.server:socketio.on",
    }


def test_a_stage_is_undone_when_it_is_closed() -> None:
    place = Place.of("lama_cleaner.parse_args:load_config")
    before = place.get()
    with install(Stage.COMMAND_LINE, upstream_arguments.CommandLine(None)):
        assert place.get() is not before
    assert place.get() is before


def test_the_device_of_a_configuration_file_is_for_the_nodes(tmp_path: Path) -> None:
    """Upstream's parser refuses cuda in a process that sees no GPU."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"device": "cuda", "model": "lama"}))
    parsed = upstream_arguments.parse(["--load-installer-config", "--installer-config", str(file)])
    assert (parsed.args.device, parsed.device) == ("cpu", "cuda")


def test_a_model_of_the_configuration_may_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert upstream_arguments.parse(["--model", "migan"], ["migan"]).args.model == "migan"
    with pytest.raises(SystemExit):
        upstream_arguments.parse(["--model", "migan"])
    assert "invalid choice: 'migan'" in capsys.readouterr().err
