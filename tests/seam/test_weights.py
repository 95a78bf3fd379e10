"""``lamagrid model``: the table against upstream's own constants, the command on files and servers of ours.

R8.4.
"""

from __future__ import annotations

import hashlib
import http.server
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lamagrid.upstream import catalog
from lamagrid.upstream.catalog import HubFolder, WebFile

ROOT = Path(__file__).resolve().parents[2]
CONTENT = os.urandom(100_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


# The table.


def source_of(package: str, *below: str) -> str:
    """The source of a package's modules, or of those in some folders of it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    places = [root / each for each in below] or [root]
    return "\n".join(path.read_text() for place in places for path in sorted(place.rglob("*.py")))


@pytest.mark.filterwarnings("ignore")  # upstream's, of what it stands on
def test_names_urls_and_sums_are_upstreams() -> None:
    const = importlib.import_module("lama_cleaner.const")
    assert set(catalog.MODELS) == set(const.AVAILABLE_MODELS)
    assert list(catalog.CONTROLNETS) == const.SD_CONTROLNET_CHOICES
    modules = [
        importlib.import_module(f"lama_cleaner.model.{name}")
        for name in ("lama", "ldm", "zits", "mat", "fcf", "manga")
    ]
    found = {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if name.endswith(("_URL", "_MD5"))
    }
    ours = {}
    for files in catalog.MODELS.values():
        for file in files:
            if isinstance(file, WebFile):
                ours |= {f"{file.variables}_URL": file.url, f"{file.variables}_MD5": file.md5}
    assert ours == found
    models = source_of("lama_cleaner", "model")
    folders = [source for each in catalog.MODELS.values() for source in each if isinstance(source, HubFolder)]
    assert all(f'"{folder.repo}"' in models for folder in folders)


def test_plugins_are_upstreams() -> None:
    plugins = importlib.import_module("lamagrid.pynode.plugins").PLUGINS
    assert set(catalog.PLUGINS) == set(plugins)
    source = source_of("lama_cleaner", "plugins") + source_of("facexlib") + source_of("rembg")
    for networks in catalog.PLUGINS.values():
        for network, files in networks.items():
            assert network in source
            for file in files:
                assert file.url in source, file.url
                assert file.md5 is None or file.md5 in source


def test_the_rust_node_has_the_same_files() -> None:
    source = (ROOT / "src/weights/src/lib.rs").read_text()
    for name in ("lama", "manga"):
        for file in catalog.MODELS[name]:
            assert isinstance(file, WebFile)
            for text in (file.url, file.md5, f"{file.variables}_URL", f"{file.variables}_MD5"):
                assert f'"{text}"' in source


def test_the_scheduler_knows_which_models_need_a_python_node() -> None:
    """It tells by that which command starts a node for them."""
    source = (ROOT / "src/domain/src/capability.rs").read_text()
    listed = re.search(r"PYTHON_MODELS: \[&str; \d+\] = \[(.*?)\];", source, re.DOTALL)
    assert listed is not None
    assert set(re.findall(r'"([^"]+)"', listed[1])) == set(catalog.MODELS) - {"lama", "manga"}


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({"CACHE_DIR": "/c", "TORCH_HOME": "/t"}, "/c/hub/checkpoints/big-lama.pt"),
        ({"TORCH_HOME": "/t", "XDG_CACHE_HOME": "/x"}, "/t/hub/checkpoints/big-lama.pt"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/torch/hub/checkpoints/big-lama.pt"),
        ({"TORCH_HOME": "/t", "LAMA_MODEL_URL": "http://h/mine.pt?x=1#y"}, "/t/hub/checkpoints/mine.pt"),
        ({"LAMA_MODEL_URL": __file__}, __file__),
    ],
)
def test_files_are_where_upstream_looks(env: Mapping[str, str], wanted: str) -> None:
    file = catalog.MODELS["lama"][0]
    assert str(file.path(env)) == wanted


# The command.


class Files(http.server.BaseHTTPRequestHandler):
    """Serves what its server holds, by path; the hub's headers come along."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        found = self._answer()
        if found is not None:
            self.wfile.write(found)

    def _answer(self) -> bytes | None:
        held: dict[str, bytes] = self.server.held  # type: ignore[attr-defined]
        found = held.get(self.path)
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Length", str(len(found or b"")))
        if found is not None:
            self.send_header("ETag", f'"{hashlib.sha256(found).hexdigest()}"')
            self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()
        return found

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def held() -> Iterator[tuple[dict[str, bytes], str]]:
    """The files of a server, to be filled, and its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        server.held = {}  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.held, f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        server.shutdown()


def model(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lamagrid", "model", *words],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_file_is_pulled_once_and_verified(tmp_path: Path, held: tuple[dict[str, bytes], str]) -> None:
    files, address = held
    files["/lama.pt"] = CONTENT
    env = {"TORCH_HOME": str(tmp_path), "LAMA_MODEL_URL": f"{address}/lama.pt", "LAMA_MODEL_MD5": MD5}
    path = tmp_path / "hub" / "checkpoints" / "lama.pt"
    missing = model("verify", "lama", **env)
    assert (missing.returncode, missing.stdout) == (1, f"lama: {path} is missing: lamagrid model pull lama\n")
    pulled = model("pull", "lama", "cv2", **env)
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.splitlines() == [f"lama: {path} is here now, 97.7 KiB", "cv2: needs no file"]
    assert path.read_bytes() == CONTENT
    files.clear()
    assert model("pull", "lama", **env).stdout == f"lama: {path} is right\n"
    assert model("verify", **env).stdout == f"lama: {path} is right\n"
    checked = json.loads(model("verify", "lama", "--output", "json", **env).stdout)
    assert checked == [{"model": "lama", "path": str(path), "right": True}]
    listed = json.loads(model("list", "--output", "json", "--data-dir", str(tmp_path / "none"), **env).stdout)
    (lama,) = [row for row in listed if row["model"] == "lama"]
    assert lama["nodes"] is None
    assert lama["files"] == [
        {"url": env["LAMA_MODEL_URL"], "md5": MD5, "path": str(path), "present": True, "bytes": 100_000}
    ]
    path.write_bytes(CONTENT[:-1])
    broken = model("verify", **env)
    assert broken.returncode == 1
    assert f"not {MD5}: lamagrid model pull lama fetches it anew" in broken.stdout


def test_a_failed_pull_says_why_and_leaves_nothing(
    tmp_path: Path, held: tuple[dict[str, bytes], str]
) -> None:
    files, address = held
    env = {"TORCH_HOME": str(tmp_path), "LAMA_MODEL_URL": f"{address}/lama.pt", "LAMA_MODEL_MD5": MD5}
    absent = model("pull", "lama", **env)
    assert absent.returncode == 1
    assert "404" in absent.stderr
    assert "point LAMA_MODEL_URL to a file that is here" in absent.stderr
    files["/lama.pt"] = b"another file"
    wrong = model("pull", "lama", **env)
    assert wrong.returncode == 1
    assert f"not {MD5}. Replace the file, or correct LAMA_MODEL_MD5" in wrong.stderr
    assert [path.name for path in (tmp_path / "hub" / "checkpoints").iterdir()] == ["lama.pt.mismatch"]
    unknown = model("pull", "llama")
    assert unknown.returncode == 2
    assert "there is no llama, did you mean lama?; there are lama, ldm," in unknown.stderr


@pytest.mark.filterwarnings("ignore")  # of what diffusers stands on
def test_a_pipeline_is_fetched_from_a_hub_and_verified(
    tmp_path: Path, held: tuple[dict[str, bytes], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    files, address = held
    repo = "runwayml/stable-diffusion-inpainting"
    pipelines = tmp_path_factory.mktemp("pipelines")
    importlib.import_module("stock.pipelines").write_pipelines(pipelines)
    names = [path.relative_to(pipelines / repo) for path in (pipelines / repo).rglob("*") if path.is_file()]
    for name in names:
        files[f"/{repo}/resolve/{'c' * 40}/{name}"] = files[f"/{repo}/resolve/main/{name}"] = (
            pipelines / repo / name
        ).read_bytes()
    siblings = [{"rfilename": str(name)} for name in names]
    about = json.dumps(
        {
            "id": repo,
            "sha": "c" * 40,
            "siblings": siblings,
            "tags": [],
            "private": False,
            "downloads": 0,
            "likes": 0,
        }
    )
    for place in (f"/api/models/{repo}", f"/api/models/{repo}/revision/main"):
        files[place] = about.encode()
    env = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "TORCH_HOME": str(tmp_path),
    }
    pulled = model("pull", "sd1.5", **env)
    assert pulled.returncode == 0, pulled.stderr
    folder = tmp_path / "hub" / "models--runwayml--stable-diffusion-inpainting"
    assert pulled.stdout.splitlines()[-1].startswith(f"sd1.5: {folder} is here now, ")
    assert catalog.is_present("sd1.5", env)
    assert model("verify", "sd1.5", **env).returncode == 0
    blob = max((folder / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    broken = model("verify", "sd1.5", **env)
    assert broken.returncode == 1
    assert f"sd1.5: {blob} has the sum " in broken.stdout
    mended = model("pull", "sd1.5", **env)
    assert mended.returncode == 0, mended.stderr
    assert "in place of a wrong one" in mended.stdout
    assert model("verify", "sd1.5", **env).returncode == 0
