"""No two source files of the product need each other, except those listed here.

In Rust a child module may use the types of its parents, and a parent may declare its children and re-export
their names. A parent that uses a child which calls the parent is a circle. ``make measure`` prints them all.
"""

from __future__ import annotations

from pathlib import Path

from rules.imports import Graph, RustCrate, circles, python_graph, rust_graph

ROOT = Path(__file__).resolve().parents[2]

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Folder and the files in it that form a circle, and the reason why it stays."""


def test_no_two_source_files_need_each_other() -> None:
    found = {tuple(circle) for graph in (rust_graph(ROOT), python_graph(ROOT)) for circle in circles(graph)}
    allowed = {tuple(f"{folder}/{file}" for file in files.split()) for folder, files in EXCEPTIONS}
    assert sorted(found - allowed) == [], "a circle that is not listed"
    assert sorted(allowed - found) == [], "this circle is gone: take it off the list"


def graph_of(folder: Path, **sources: str) -> Graph:
    """The graph of a crate with these files; ``a__b`` is ``a/b.rs``."""
    for name, source in sources.items():
        path = folder / f"{name.replace('__', '/')}.rs"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    return RustCrate(folder, folder, set()).graph()


def test_calls_between_siblings_and_between_parent_and_child_are_found(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        lib="mod a;\nmod b;\npub use a::{self as x, Made, make};\npub fn call() { b::run() }\n",
        a="use crate::{b::{Item as Other, run}};\npub struct Made(Other);\npub fn make() { run() }\n",
        b="pub struct Item;\npub fn run() { super::call(); crate::make() }\n",
    )
    assert graph == {"lib.rs": {"b.rs"}, "a.rs": {"b.rs"}, "b.rs": {"a.rs", "lib.rs"}}
    assert circles(graph) == [["a.rs", "b.rs", "lib.rs"]]


def test_types_of_a_parent_and_code_for_tests_are_no_circle(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        lib="mod a;\npub struct Whole(pub a::Part);\n",
        a='use super::Whole;\nmod b;\npub struct Part;\nimpl Whole { fn f() { g("crate::call()") } }\n'
        "#[cfg(test)]\nmod tests { use crate::call; }\n",
        a__b="// crate::call()\nuse super::Part;\nimpl Part {}\n",
    )
    assert circles(graph) == []
    assert graph["lib.rs"] == {"a.rs"}


def test_the_path_of_a_visibility_and_an_inline_module_stay_in_their_file(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        lib="mod a;\npub fn call() { a::run() }\n",
        a="pub(in crate::call) fn run() { inner::run() }\n"
        "mod inner { use super::{call, run as go}; pub(in super::super) fn run() { super::deep::run() } }\n"
        "mod deep { pub mod er { pub fn run() { super::super::run() } } }\n",
    )
    assert graph == {"lib.rs": {"a.rs"}, "a.rs": set()}
    graph = graph_of(
        tmp_path,
        lib="mod a;\npub fn call() { a::run() }\n",
        a="mod inner { pub fn run() { super::super::call() } }\n",
    )
    assert circles(graph) == [["a.rs", "lib.rs"]]
