"""Files and folders that the pages name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
PLACE = re.compile(r"`((?:src|python|tests|docs|bench|tools|fuzz|lama_cleaner_patch|\.github)/[\w./*-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_folders_that_a_page_names_exist(page: Path) -> None:
    named = set(PLACE.findall(page.read_text()))
    assert sorted(place for place in named if not any(ROOT.glob(place.rstrip("/")))) == []
