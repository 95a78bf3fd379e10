"""``lamagrid``: the flags of every command before its noun and behind it, also where Python runs it.

R7.4.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamagrid.global_flags import noun_first


def lamagrid(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lamagrid", *words],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("model list", "model list"),
        ("--output json model list", "model --output json list"),
        ("--output=json --data-dir d pynode --model cv2", "pynode --output=json --data-dir d --model cv2"),
        ("--data-dir model model list", "model --data-dir model list"),
        ("--config c", "--config c"),
        ("--help", "--help"),
        ("", ""),
    ],
)
def test_flags_before_the_noun_are_moved_behind_it(line: str, wanted: str) -> None:
    assert noun_first(line.split()) == wanted.split()


def test_global_flags_are_accepted_before_and_after_the_noun(tmp_path: Path) -> None:
    none, config = str(tmp_path / "none"), tmp_path / "c.toml"
    config.write_text("")
    flags = ["--output", "json", "--data-dir", none, f"--config={config}"]
    for words in (
        [*flags, "model", "list"],
        ["model", *flags, "list"],
        ["model", "list", *flags],
        [*flags[:2], "model", *flags[2:4], "list", *flags[4:]],
    ):
        done = lamagrid(*words)
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)
        assert {row["model"] for row in rows} >= {"lama", "cv2"}
        assert {row["nodes"] for row in rows} == {None}  # no scheduler has that directory
    config.write_text("nonsense = 1")
    for line in (
        [*flags[2:], "queue", "show"],
        ["queue", "show", *flags[2:]],
        [*flags[2:], "pynode", "--model", "cv2"],
    ):
        done = lamagrid(*line)
        assert done.returncode == 78, (line, done.stderr)
        assert "nonsense" in done.stderr


def test_a_misspelt_flag_is_refused_with_a_suggestion() -> None:
    for line, meant in (
        ("model pull lama --hlaf", "--half"),
        ("model list --ouput json", "--output"),
        ("pynode --pluggin RemoveBG", "--plugin"),
        ("node list --ouput json", "--output"),
    ):
        done = lamagrid(*line.split())
        assert done.returncode == 2, done.stderr
        assert meant in done.stderr


def test_wrong_values_of_global_flags_exit_with_2() -> None:
    for words in (
        ["--output", "yaml", "model", "list"],
        ["--output", "yaml", "queue", "show"],
        ["model", "list", "--data-dir="],
        ["queue", "show", "--data-dir="],
        ["--data-dir", "d", "model", "list", "--join", "b"],
        ["--data-dir", "d", "pynode", "--join", "b"],
        ["--data-dir", "d", "queue", "show", "--join", "b"],
        ["--data-dir"],
    ):
        assert lamagrid(*words).returncode == 2, words
