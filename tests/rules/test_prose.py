"""Wording that a reader has to puzzle out stays out of comments, texts and pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from rules.prose import PUZZLES, findings, rust_texts

ROOT = Path(__file__).resolve().parents[2]


def test_no_wording_of_the_list_is_left() -> None:
    assert [str(each) for each in findings(ROOT)] == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Where nobody waits for it.", "nobody, somebody, whoever"),
        ("Nothing came for so long.", "so long, so many"),
        ("A name is none.", "is none"),
        ("It ends. What stands first is dropped.", "What as a noun"),
    ],
)
def test_each_kind_of_wording_is_found(text: str, kind: str) -> None:
    assert [name for name, puzzle in PUZZLES.items() if puzzle.search(text)] == [kind]


@pytest.mark.parametrize(
    "text", ["What does it cost?", "So many that it fails.", "Where it is None.", "None is left."]
)
def test_plain_wording_is_not(text: str) -> None:
    assert [name for name, puzzle in PUZZLES.items() if puzzle.search(text)] == []


def test_comments_on_lines_that_follow_each_other_are_one_text() -> None:
    source = '/// One sentence\n/// of two lines.\n\nfn f() { g("a text") } // last\n'
    assert {text for _, text in rust_texts(source) if text} == {
        "One sentence\nof two lines.",
        "a text",
        "last",
    }
