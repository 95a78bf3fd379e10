"""The flags that every command of ``lamagrid`` accepts, before and after its noun.

The commands in Rust have the same flags in `src/cli/src/args.rs`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

FLAGS = ("--config", "--data-dir", "--join", "--output")


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the flags. One that is not given is left out of the result, so that a verb's hides no noun's."""
    group = parser.add_argument_group("options of every command", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="read this configuration file instead of $LAMAGRID_CONFIG or the one in its default place",
    )
    group.add_argument(
        "--data-dir",
        type=_not_empty,
        metavar="DIR",
        help="the scheduler's data directory (default: configured)",
    )
    group.add_argument(
        "--join",
        type=Path,
        metavar="BUNDLE",
        help="a file of `lamagrid certs bundle`: the scheduler is on another host, and reached over TLS",
    )
    group.add_argument(
        "--output", choices=("table", "json"), help="text for people, or JSON for programs (default: table)"
    )


def _not_empty(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("a directory's name is not empty")
    return Path(text)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line whose parsers have these flags, and apply ``--config`` to this process.

    Raises:
        SystemExit: Status 2; the text is on stderr.
    """
    nothing = argparse.Namespace(config=None, data_dir=None, join=None, output="table")
    given, unknown = parser.parse_known_args(argv, nothing)
    if unknown:
        from lamagrid.options import nearest  # here, because it is needed for wrong flags only

        hint = nearest(unknown[0].split("=")[0], sorted(_flags_of(parser)))
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if given.data_dir is not None and given.join is not None:
        parser.error("--data-dir is for a scheduler of this host, --join for one of another: leave one out")
    if given.config is not None:
        os.environ["LAMAGRID_CONFIG"] = str(given.config.absolute())
    return given


def _flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """The flags of a parser and of its verbs."""
    found = {flag for action in parser._actions for flag in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(*(_flags_of(verb) for verb in action.choices.values()))
    return found


def noun_first(argv: Sequence[str]) -> list[str]:
    """Move these flags from before the noun to after it."""
    words, at = list(argv), 0
    while at < len(words) and words[at].split("=")[0] in FLAGS:
        at += 1 if "=" in words[at] else 2
    if at >= len(words):
        return words
    return [words[at], *words[:at], *words[at + 1 :]]
