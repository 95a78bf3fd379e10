"""Every text that names a command, flag, setting or page of ours, against what the programs really take.

R6.3, X11: an error that says what to do is worse than none where that cannot be done. Texts are the string
literals of the sources (help, errors, log lines, docstrings), the README, the pages under docs and the
commented default configuration.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from lamagrid import _native
from lamagrid.pynode.main import main as pynode
from lamagrid.weights.command import main as model

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
NODE = ROOT / "target" / "release" / "lamagrid-node"

FOREIGN = {
    "--bind",  # gunicorn
    "--graceful-timeout",
    "--no-control-socket",
    "--preload",
    "--reuse-port",
    "--threads",
    "--workers",
    "--locked",  # cargo
    "--nocapture",
    "--release",
    "--force-reinstall",  # pip
    "--no-build-isolation",
    "--no-deps",
    "--system-site-packages",  # venv
}
"""Flags of other programs that our texts name."""
HIDDEN = {"--debug", "--dev", "--devi", "--devic"}
"""Flags that Lama Cleaner's parser takes and its help does not show."""
SPEAKERS = {
    "python/lamagrid/launcher/": ("lama-cleaner-grid",),
    "python/lamagrid/web/": ("lama-cleaner-grid",),
    "python/lamagrid/pynode/": ("lamagrid", "pynode"),
    "src/cli/": ("lamagrid",),
    "src/node/": ("lamagrid-node",),
    "src/scheduler/": ("lamagrid",),
}
"""Whose flags a text means that names no program, by where it is."""
INTERNAL = {"--worker-echo", "--lifeline"}
"""Flags that one of our programs gives another."""

FLAG = re.compile(r"(?<![\w/-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
COMMAND = re.compile(
    r"(?<![\w./-])(lamagrid-node|lama-cleaner-grid|lamagrid)(?![\w./-]*[/.]\w|[\w-])((?:[ \t]+[^\s`|#;]+)*)"
)
SECTIONS = ["scheduler", "node", "client", "store", "limits", "retry", "http", "gate", "log", "web"]
KEY = re.compile(rf"(?<![\w./-])((?:{'|'.join(SECTIONS)})(?:\.[a-z][a-z0-9_]*)+)(?![\w(/-]|\.\w)")
NO_KEYS = {"scheduler.example", "scheduler.lamagrid", "scheduler.log", "scheduler.pem", "client.sock"}
"""A host, a file and a name that look like settings."""
ARGUMENT = re.compile(r"\s*--[a-z-]+(?:[ =]\S+)?")
"""A word of a command line that is put together; for which program, it does not say."""
VARIABLE = re.compile(r"\bLAMAGRID_[A-Z0-9_]+\b")
PAGE = re.compile(r"\bdocs/[\w/-]+\.md\b")


@dataclass(frozen=True)
class Text:
    """A text of ours, and where it is."""

    place: str
    words: str


# Flags and commands of the programs.


def _rust_help(*words: str) -> str:
    """The output of the command in Rust, run in this process: it writes past Python's own stdout."""
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            assert _native.main([*words, "--help"]) == 0
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        file.seek(0)
        return file.read().decode()


def _python_help(main: object, *words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])  # type: ignore[operator]
    return out.getvalue()


def _verbs(text: str) -> list[str]:
    """The nouns or verbs that a help lists."""
    found = re.search(r"^(?:Nouns|Verbs|Commands):\n((?:  .*\n)+)", text, re.M)
    return [] if found is None else re.findall(r"^  (\w[\w-]*)", found[1], re.M)


@cache
def commands() -> Mapping[tuple[str, ...], set[str]]:
    """The flags of each command, by its words."""
    tree: dict[tuple[str, ...], set[str]] = {}

    def walk(*words: str) -> None:
        text = _rust_help(*words)
        tree[("lamagrid", *words)] = set(FLAG.findall(text))
        for verb in _verbs(text):
            if verb != "help":
                walk(*words, verb)

    walk()
    tree["lamagrid", "pynode"] = set(FLAG.findall(_python_help(pynode)))
    text = _python_help(model)
    tree["lamagrid", "model"] = set(FLAG.findall(text))
    for verb in re.findall(r"^    ([a-z]+)  ", text, re.M):
        tree["lamagrid", "model", verb] = set(FLAG.findall(_python_help(model, verb)))
    for program in (NODE, BIN / "lama-cleaner-grid"):
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=120, check=True)
        tree[(program.name,)] = set(FLAG.findall(done.stdout))
        for verb in _verbs(done.stdout):
            shown = subprocess.run([program, verb, "--help"], capture_output=True, text=True, timeout=120)
            tree[(program.name, verb)] = set(FLAG.findall(shown.stdout))
    everywhere = tree[("lamagrid",)]
    for command in tree:
        if command[0] == "lamagrid" and command[1:2] not in (("pynode",), ("model",)):
            tree[command] |= everywhere
    return tree


@cache
def keys() -> set[str]:
    """All settings."""
    return {row["key"] for row in _native.config()["rows"]}


# Faults of a text.


def wrong_in(text: Text) -> Iterator[str]:
    """Names in a text that do not exist."""
    rest = text.words
    for found in COMMAND.finditer(text.words):
        fault = _wrong_command(found[1], found[2])
        if fault is not None:
            yield f"{text.place}: `{found[0].strip()}`: {fault}"
        rest = rest.replace(found[0], " ")
    speaker = next((words for place, words in SPEAKERS.items() if text.place.startswith(place)), ())
    if ARGUMENT.fullmatch(text.words):
        speaker = ()
    spoken = (flags for words, flags in commands().items() if words[: len(speaker)] == speaker)
    known = set().union(*spoken) | FOREIGN | INTERNAL | HIDDEN
    for match in FLAG.finditer(rest):
        flag = match[0]
        is_prefix = rest[match.end() : match.end() + 1] == "-"  # as in --grid-*
        if flag not in known and not (is_prefix and any(each.startswith(f"{flag}-") for each in known)):
            yield f"{text.place}: {' '.join(speaker) or 'every program of ours'} lacks the flag {flag}"
    for key in KEY.findall(text.words):
        if key not in NO_KEYS and not any(name == key or name.startswith(key + ".") for name in keys()):
            yield f"{text.place}: there is no setting {key}"
    for variable in VARIABLE.findall(text.words):
        if variable.startswith("LAMAGRID__"):
            key = variable.removeprefix("LAMAGRID__").lower().replace("__", ".")
            if key and key != "section.key" and key not in keys():
                yield f"{text.place}: there is no setting {key}, so no variable {variable}"
    for page in PAGE.findall(text.words):
        if not (ROOT / page).is_file():
            yield f"{text.place}: there is no page {page}"


def _wrong_command(program: str, rest: str) -> str | None:
    words = []
    for word in rest.split():
        if word.startswith("("):
            break  # prose goes on behind the command
        words.append(word.strip("'\"()[]{}<>,:."))
        if word[-1] in "),:.":
            break
    command: tuple[str, ...] = (program,)
    while words and (*command, words[0]) in commands():
        command = (*command, words.pop(0))
    has_verbs = any(each[: len(command)] == command and len(each) > len(command) for each in commands())
    if has_verbs and words and re.fullmatch(r"[a-z]+", words[0]) and len(command) > 1:
        return f"{' '.join(command)} has no verb {words[0]}"
    given = {flag for word in words for flag in FLAG.findall(word.split("=")[0])}
    unknown = given - commands()[command] - INTERNAL
    if unknown:
        return f"{' '.join(command)} has no flag {', '.join(sorted(unknown))}"
    return None


# The texts.


def _python_texts(path: Path) -> Iterator[Text]:
    tree = ast.parse(path.read_text())
    inside = {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        words = None
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            words = "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            words = node.value
        if words is not None:
            line = getattr(node, "lineno", 0)
            yield Text(f"{path.relative_to(ROOT)}:{line}", words)


RUST_STRING = re.compile(r'r#"(.*?)"#|"((?:[^"\\]|\\.)*)"', re.S)


def _rust_texts(path: Path) -> Iterator[Text]:
    source = path.read_text()
    source = source.split("#[cfg(test)]")[0]
    for found in RUST_STRING.finditer(source):
        words = re.sub(r"\\\n\s*", "", found[1] or found[2] or "").replace("\\n", "\n").replace('\\"', '"')
        yield Text(f"{path.relative_to(ROOT)}:{source.count(chr(10), 0, found.start()) + 1}", words)
    if path.name in ("args.rs", "flags.rs"):  # what clap shows
        for number, line in enumerate(source.splitlines(), 1):
            if line.strip().startswith("///"):
                yield Text(f"{path.relative_to(ROOT)}:{number}", line.strip()[3:])


def texts() -> Iterator[Text]:
    """All texts of the product."""
    for folder in ("python", "lama_cleaner_patch"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from _python_texts(path)
    for path in sorted((ROOT / "src").rglob("*.rs")):
        parts = path.relative_to(ROOT).parts
        if "tests" not in parts and "examples" not in parts and not path.name.endswith("_tests.rs"):
            yield from _rust_texts(path)
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for path in (*pages, ROOT / "src/config/src/default.toml"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield Text(f"{path.relative_to(ROOT)}:{number}", line)


def test_what_texts_name_is_there() -> None:
    wrong = [fault for text in texts() for fault in wrong_in(text)]
    assert wrong == [], "\n".join(wrong)


def test_there_are_texts_of_each_kind() -> None:
    found = list(texts())
    for place, words in (
        ("python/lamagrid/launcher/startup.py", "--grid-scheduler"),
        ("src/client/src/endpoint.rs", "lamagrid scheduler --data-dir"),
        ("src/cli/src/args.rs", "lamagrid certs bundle"),
        ("README.md", "lamagrid doctor --join"),
        ("docs/security.md", "limits."),
    ):
        assert any(text.place.startswith(place) and words in text.words for text in found), (place, words)


@pytest.mark.parametrize(
    "words",
    [
        "start it with `lamagrid schedule --data-dir X`: lamagrid node lsit",
        "lamagrid node list --grid-data-dir X",
        "choose another with --date-dir",
        "lama-cleaner-grid --data-dir X --model lama",
        "lamagrid-node --modle lama",
        "lamagrid model fetch lama",
        "lamagrid pynode --slots 2 --nodes 3",
        "see limits.max_pixel in the configuration",
        "set `node.thread`",
        "LAMAGRID__NODE__THREAD=4",
        "docs/compatibilty.md says why",
        "lamagrid certs isue --role node",
    ],
)
def test_a_wrong_text_is_found(words: str) -> None:
    assert list(wrong_in(Text("here", words))) != []


def test_a_flag_of_another_program_is_found() -> None:
    """The launcher's refusal named the scheduler's flag, which the launcher does not take."""
    words = "choose another directory with --data-dir"
    assert list(wrong_in(Text("src/scheduler/src/runtime/mod.rs:73", words))) == []
    assert list(wrong_in(Text("python/lamagrid/launcher/cli.py:300", words))) != []


@pytest.mark.parametrize(
    "words",
    [
        "start it with: lamagrid scheduler --data-dir {}",
        "run `lamagrid certs init`",
        "`lamagrid-node --model {}`, or the server with `--grid-python-models cv2,{}`",
        "lamagrid.TaskClient, client.submit(image), the log of lamagrid is lamagrid.log",
        "limits.max_pixels, queues.gpu.max_tasks and [models.mine]; LAMAGRID__NODE__THREADS=4",
        "import lamagrid  # and use it",
    ],
)
def test_a_right_text_is_not(words: str) -> None:
    assert list(wrong_in(Text("here", words))) == []
