"""Packages work where they are installed: wheel, sdist, node wheel in fresh environments (R8.4, P10.2).

A fresh environment sees torch and Lama Cleaner of ``.venv`` behind its own packages, so that no test
installs gigabytes; it does not see the development install, which is a ``.pth`` file of ``.venv``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stock.models import tiny_lama as make_tiny_lama
from stock.processes import Processes

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MATURIN = BIN / "maturin"
WITHOUT_RUST = "/usr/bin:/bin"
BUILD_S = 600
# The first test builds all three packages, with the compiler: minutes on a slow machine.
pytestmark = pytest.mark.timeout(3 * BUILD_S)

SUBMIT = """
import sys
import numpy
import lamagrid
assert lamagrid.__file__.startswith(sys.argv[2]), lamagrid.__file__
image = numpy.full((24, 40, 3), 7, numpy.uint8)
mask = numpy.zeros((24, 40), numpy.uint8)
mask[8:16, 8:32] = 255
picture = lamagrid.TaskClient(sys.argv[1]).submit(image, mask, model=sys.argv[3]).wait(timeout=60)
assert picture.shape == image.shape, picture.shape
print("picture", picture.shape)
"""


def run(*command: object, cwd: Path = ROOT, **env: str) -> str:
    """Run a command to its end and return its output; its text is in the failure if it fails."""
    done = subprocess.run(
        [os.fspath(part) if isinstance(part, Path) else str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout


def only(folder: Path, pattern: str) -> Path:
    """The one file of a pattern."""
    (found,) = folder.glob(pattern)
    return found


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel, sdist and node wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("dist")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    run(MATURIN, "build", "--release", "--locked", "--out", folder, PATH=path)
    run(MATURIN, "sdist", "--out", folder, PATH=path)
    run(MATURIN, "build", "--release", "--locked", "--out", folder, cwd=ROOT / "src" / "node", PATH=path)
    return folder


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[Path], Path]:
    """``fresh(package)``: the bin folder of a new environment into which one package was installed."""

    def make(package: Path) -> Path:
        venv = tmp_path / "venv"
        run(sys.executable, "-m", "venv", venv)
        python = venv / "bin" / "python"
        site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
        # The sdist is compiled here: its dependencies come from the shared target directory.
        run(
            python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", package,
            PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}",
            CARGO_TARGET_DIR=str(ROOT / "target"),
        )  # fmt: skip
        return venv / "bin"

    return make


def serve(processes: Processes, lamagrid: Path, data_dir: Path) -> None:
    """Start a scheduler with one echo node."""
    processes.start("scheduler", [lamagrid, "scheduler", "--data-dir", data_dir])
    node = ROOT / "target" / "release" / "lamagrid-node"
    processes.start("node", [node, "--data-dir", data_dir, "--backend", "echo", "--model", "echo"])


def check_commands(bin_dir: Path) -> None:
    """Both console scripts show their help."""
    assert "--grid-scheduler" in run(bin_dir / "lama-cleaner-grid", "--help")
    assert "scheduler" in run(bin_dir / "lamagrid", "--help")


def test_the_wheel_holds_both_packages(dist: Path) -> None:
    names = zipfile.ZipFile(only(dist, "lamagrid-*.whl")).namelist()
    for wanted in (
        "lamagrid/__init__.py",
        "lamagrid/py.typed",
        "lamagrid/_native.pyi",
        "lamagrid/demo/demo.pt",
    ):
        assert wanted in names
    assert "lama_cleaner_patch/__init__.py" in names
    assert any(name.startswith("lamagrid/_native.") and name.endswith(".so") for name in names)
    assert [name for name in names if "__pycache__" in name or name.startswith("tests/")] == []


def test_the_node_wheel_holds_both_programs_and_no_libtorch(dist: Path) -> None:
    names = zipfile.ZipFile(only(dist, "lamagrid_node-*.whl")).namelist()
    programs = sorted(Path(name).name for name in names if "/scripts/" in name)
    assert programs == ["lamagrid-node", "lamagrid-torch-worker"]
    assert [name for name in names if "libtorch" in name] == []


def test_develop_install(processes: Processes, tmp_path: Path) -> None:
    check_commands(BIN)
    serve(processes, BIN / "lamagrid", tmp_path / "data")
    print(run(sys.executable, "-c", SUBMIT, tmp_path / "data", str(ROOT / "python"), "echo"))


@pytest.mark.parametrize("package", ["lamagrid-*.whl", "lamagrid-*.tar.gz"])
def test_a_new_environment(
    package: str, dist: Path, fresh: Callable[[Path], Path], processes: Processes, tmp_path: Path
) -> None:
    bin_dir = fresh(only(dist, package))
    check_commands(bin_dir)
    serve(processes, bin_dir / "lamagrid", tmp_path / "data")
    run(bin_dir / "python", "-c", SUBMIT, tmp_path / "data", str(bin_dir.parent), "echo", cwd=tmp_path)


def test_the_node_wheel_serves_without_rust(
    dist: Path, fresh: Callable[[Path], Path], processes: Processes, tmp_path: Path
) -> None:
    bin_dir = fresh(only(dist, "lamagrid_node-*.whl"))
    data_dir = tmp_path / "data"
    model = make_tiny_lama(tmp_path)
    processes.start("scheduler", [BIN / "lamagrid", "scheduler", "--data-dir", data_dir])
    command = [
        bin_dir / "lamagrid-node",
        "--data-dir",
        data_dir,
        "--model",
        f"tiny={model}",
        "--device",
        "cpu",
    ]
    processes.start("node", command, env={"PATH": WITHOUT_RUST})
    run(sys.executable, "-c", SUBMIT, data_dir, str(ROOT / "python"), "tiny", cwd=tmp_path)
