"""The OpenAPI document: served, committed, and true of the options of tasks."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from api.conftest import Grid
from lamagrid.options import MODEL_OPTIONS
from lamagrid.types import TaskOptions

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).resolve().parents[2]
KINDS = {int: "integer", float: "number", bool: "boolean", str: "string"}


def test_the_served_description_is_the_committed_one(grid: Grid) -> None:
    served = httpx.get(f"http://127.0.0.1:{grid.address[1]}/api/openapi.json", trust_env=False).json()
    assert served == json.loads((ROOT / "docs" / "openapi.json").read_text())
    assert served["openapi"].startswith("3.1")


def test_the_options_are_python_s() -> None:
    described = json.loads((ROOT / "docs" / "openapi.json").read_text())
    form = described["components"]["schemas"]["NewTaskForm"]["properties"]
    for name, option in MODEL_OPTIONS.items():
        assert form[name]["type"] == KINDS[option.kind], name
        assert tuple(form[name].get("enum", ())) == tuple(option.choices), name
    ours = set(form) - set(MODEL_OPTIONS) - {"image", "mask"}
    assert ours == set(TaskOptions.names())
