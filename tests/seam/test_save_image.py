"""No request writes outside of the output directory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grids.pictures import encoded
from lamagrid.web.routes.save_image import SaveImageRoute

PHOTO = encoded(np.full((4, 4, 3), 9, np.uint8))


@pytest.fixture
def page(server_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(server_module, "output_dir", str(tmp_path / "out"))
    views = server_module.app.view_functions
    monkeypatch.setitem(views, "save_image", SaveImageRoute(views["save_image"]))
    return server_module.app.test_client()


def save(page: Any, name: str | None) -> tuple[int, str]:
    form: dict[str, Any] = {"image": (io.BytesIO(PHOTO), "x.png")}
    if name is not None:
        form["filename"] = name
    answer = page.post("/save_image", data=form)
    return answer.status_code, answer.get_data(as_text=True)


def test_a_name_is_saved_as_upstream_does(page: Any, tmp_path: Path) -> None:
    for name in (
        "photo.png",
        "with space.png",
        "..almost.png",
        "über.png",
        "12:30.png",
        "c:x.png",
        "back\\slash.png",
        "..\\x.png",
    ):
        assert save(page, name) == (200, "ok")
        assert (tmp_path / "out" / name).is_file()
    assert save(page, None)[0] == 400


def test_a_file_name_with_a_path_is_refused(page: Any, tmp_path: Path) -> None:
    (tmp_path / "precious.png").write_bytes(b"as it was")
    for name in (
        "../precious.png",
        str(tmp_path / "precious.png"),
        "a/../../precious.png",
        "folder/x.png",
        "..",
        ".",
        "",
        "a\0b.png",
    ):
        status, text = save(page, name)
        assert (status, "a name alone" in text) == (400, True), name
    assert (tmp_path / "precious.png").read_bytes() == b"as it was"
    assert list((tmp_path / "out").iterdir()) == []
