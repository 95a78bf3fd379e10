"""The Python node's work on one task, without a session."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grids.pictures import hole
from lamagrid.pynode.failures import Stopped
from lamagrid.pynode.main import Serving, main, work
from lamagrid.pynode.models import UpstreamModels
from lamagrid.pynode.system_libraries import missing_library
from parity.stock import stock_inpaint

PHOTO = np.random.default_rng(9).integers(0, 256, (120, 90, 3), np.uint8)
MASK = hole(120, 90, 30, 40, 20)


class FakeJob:
    """A task as a session gives it."""

    def __init__(self, model: str, **params: object) -> None:
        self._pictures = {"image": PHOTO, "mask": MASK[:, :, np.newaxis]}
        self.spec = {"model": model, "params": params}
        self.outcome: Any = None
        self.activities: list[str] = []

    def take(self, role: str) -> tuple[bytearray, tuple[int, ...]] | None:
        picture = self._pictures.pop(role, None)
        return None if picture is None else (bytearray(picture.tobytes()), picture.shape)

    def loading(self) -> bool:
        self.activities.append("loading")
        return True

    def step(self, i: int, n: int) -> bool:
        self.activities.append("running")
        return True

    def finish(self, data: bytes, shape: tuple[int, int], load_ms: float, infer_ms: float) -> None:
        assert load_ms >= 0
        assert infer_ms > 0
        assert self.outcome is None
        self.outcome = np.frombuffer(data, np.uint8).reshape(*shape, 3)

    def fail(self, kind: str, message: str) -> None:
        assert self.outcome is None
        self.outcome = (kind, message)


@pytest.fixture(scope="module")
def models() -> UpstreamModels:
    """Upstream's models on the processor."""
    return UpstreamModels("cpu")


def outcome(models: Any, model: str, **params: object) -> Any:
    job = FakeJob(model, **params)
    work(job, Serving(models, None, ("cv2",)))
    return job.outcome


def test_loading_is_reported_before_the_first_task_of_a_model() -> None:
    models = UpstreamModels("cpu")
    jobs = [FakeJob("cv2"), FakeJob("cv2")]
    for job in jobs:
        work(job, Serving(models, None, ("cv2",)))
    assert [job.activities for job in jobs] == [["loading", "running"], []]


@pytest.mark.parametrize("strategy", ["Original", "Resize", "Crop"])
def test_a_task_gives_upstreams_pixels(models: UpstreamModels, strategy: str) -> None:
    params = {
        "hd_strategy": strategy,
        "hd_strategy_crop_trigger_size": 50,
        "hd_strategy_crop_margin": 8,
        "hd_strategy_resize_limit": 50,
        "cv2_flag": "INPAINT_TELEA",
        "cv2_radius": 5,
    }
    assert np.array_equal(outcome(models, "cv2", **params), stock_inpaint(None, PHOTO, MASK, params, "cv2"))


def test_a_failure_is_reported_and_the_next_task_works(
    models: UpstreamModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6.3: each with its text and its stack in the node's log."""
    logged: list[tuple[str, str, str]] = []
    monkeypatch.setattr("lamagrid._native.log_error", lambda *line: logged.append(line))
    good = outcome(models, "cv2")
    assert outcome(models, "nonsense") == ("unknown_model", "Not supported model: nonsense")
    assert outcome(models, "plugin/RemoveBG") == ("unknown_model", "this node does not serve RemoveBG")
    assert outcome(models, "cv2", cv2_flag="x")[0] == "invalid_input"
    assert outcome(models, "cv2", sd_steps="x")[0] == "invalid_input"
    assert outcome(models, "cv2", nobody_knows=1) == ("invalid_input", "Unknown parameter: nobody_knows")

    def answers_with(error: BaseException) -> tuple[str, str]:
        def forward(*_: object) -> None:
            raise error

        outcome(models, "cv2")
        with monkeypatch.context() as patch:
            patch.setattr("lama_cleaner.model.opencv2.OpenCV2.forward", forward)
            failure: tuple[str, str] = outcome(models, "cv2")
        assert np.array_equal(outcome(models, "cv2"), good)
        return failure

    assert answers_with(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"))[0] == "out_of_memory"
    assert answers_with(MemoryError())[0] == "out_of_memory"
    assert answers_with(RuntimeError("the kernel failed")) == ("inference", "the kernel failed")
    assert answers_with(Stopped())[0] == "cancelled"
    assert answers_with(RuntimeError("x" * 9999))[1] == "x" * 500
    assert len(logged) == 9  # all but the one that was stopped
    assert {message for message, _, _ in logged} == {"task failed"}
    assert all(stack.startswith("Traceback") and text in stack for _, text, stack in logged[-1:])
    assert any("the kernel failed" in text and "in forward" in stack for _, text, stack in logged)


def test_broken_weights_fail_the_task_and_not_the_node(
    models: UpstreamModels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lama.pt").write_bytes(b"broken")
    monkeypatch.setenv("LAMA_MODEL_URL", str(tmp_path / "lama.pt"))

    def exits(*_: object, **__: object) -> None:
        raise SystemExit(-1)  # upstream's answer to a wrong hash

    monkeypatch.setattr("lama_cleaner.model.lama.load_jit_model", exits)
    kind, message = outcome(models, "lama")
    assert kind == "model_load"
    assert message.startswith("lama cannot be loaded: its weights are missing or broken")
    assert "`lamagrid model verify lama` says whether its files are whole" in message
    assert isinstance(outcome(models, "cv2"), np.ndarray)


def test_a_model_that_failed_to_load_is_reloaded_when_its_file_changes(
    models: UpstreamModels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """P4.4: the node says then that it works, and gets tasks again at once."""
    file = tmp_path / "lama.pt"
    file.write_bytes(b"broken")
    monkeypatch.setenv("LAMA_MODEL_URL", str(file))
    loads: list[bytes] = []

    def load(*_: object, **__: object) -> Any:
        loads.append(file.read_bytes())
        if loads[-1] != b"whole":
            raise RuntimeError("PytorchStreamReader failed")
        return torch.nn.Identity()

    monkeypatch.setattr("lama_cleaner.model.lama.load_jit_model", load)
    serving = Serving(models, None, ("lama",))
    job = FakeJob("lama")
    work(job, serving)
    assert job.outcome[0] == "model_load"
    assert not serving.broken.reload_changed()
    file.write_bytes(b"still broken")
    assert not serving.broken.reload_changed()
    assert not serving.broken.reload_changed()
    file.write_bytes(b"whole")
    assert serving.broken.reload_changed()
    assert serving.loaded == ["lama"]
    assert not serving.broken.reload_changed()
    assert loads == [b"broken", b"still broken", b"whole"]


def test_a_file_that_cannot_be_fetched_refuses_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("ZITS_INPAINT_MODEL_URL", str(tmp_path / "none.pt"))
    assert main(["--model", "zits"]) == 78
    reported = capsys.readouterr().err
    assert f"--model zits: there is no file {tmp_path / 'none.pt'}" in reported
    assert "ZITS_INPAINT_MODEL_URL" in reported


def test_a_missing_system_library_is_named_with_its_package() -> None:
    def hint(text: str) -> str | None:
        return missing_library(ImportError(text))

    lost = "cannot open shared object file: No such file or directory"
    assert "apt-get install libgl1 " in (hint(f"libGL.so.1: {lost}") or "")
    assert "apt-get install libglib2.0-0 " in (hint(f"libgthread-2.0.so.0: {lost}") or "")
    assert "libfoo.so.3" in (hint(f"libfoo.so.3: {lost}") or "")
    assert hint("No module named 'cv2'") is None


def test_a_plugin_whose_package_is_missing_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    assert main(["--plugin", "RemoveBG"]) == 2
    assert "pip install 'lamagrid[plugins]'" in capsys.readouterr().err


def test_wrong_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "zit"]) == 2
    assert main(["--plugin", "removebg"]) == 2
    reported = capsys.readouterr().err
    assert "did you mean zits?" in reported
    assert "did you mean RemoveBG?" in reported
    for wrong in (["--device", "gpu"], ["--plugin", "RealESRGAN=cuba"]):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 2
    assert main(["--slots", "2"]) == 2
    assert main(["--model", "nonsense"]) == 2
    assert main(["--plugin", "nonsense"]) == 2
    with pytest.raises(SystemExit) as ended:
        main(["--modle", "x"])
    assert ended.value.code == 2
