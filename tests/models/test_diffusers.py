"""Lama Cleaner's diffusers models on a Python node, against the same pipelines in this process: same pixels.

Small pipelines with random weights; upstream's own code around them on both sides. R3.1, R8.1, P4.3.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from grids.pictures import hole
from lamagrid import TaskClient
from lamagrid.errors import CancelledError
from lamagrid.pynode.models import OPTION_DEFAULTS, SEEDS
from lamagrid.pynode.opencv import without_ipp
from models.conftest import python_grid
from parity.stock import stock_config
from stock.pipelines import CONTROLNETS, write_pipelines

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),
]  # upstream's, of what it stands on

MODELS = ("sd1.5", "anything4", "realisticVision1.4", "sd2", "paint_by_example", "instruct_pix2pix")
SOFT = np.kron(
    np.random.default_rng(22).integers(0, 256, (8, 10, 3), np.uint8), np.ones((16, 16, 1), np.uint8)
)  # 128 x 160
MASK = hole(128, 160, 40, 50, 40)
ANSWER_S = 240.0
STEPS = {"sd_seed": 7, "sd_steps": 2, "prompt": "a red cat", "hd_strategy": "Original"}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    write_pipelines(folder)
    return folder


@pytest.fixture(scope="module")
def client(pipelines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskClient]:
    """A client of a grid whose one node serves all of them."""
    env = {"HF_HUB_OFFLINE": "1"}
    with python_grid(tmp_path_factory.mktemp("grid"), MODELS, env, pipelines) as made:
        yield made


def stock(pipelines: Path, model: str, fields: dict[str, Any], **options: Any) -> Any:
    """Upstream's answer in this process, BGR."""
    without_ipp()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pipelines)
        patch.setenv("HF_HUB_OFFLINE", "1")
        manager = importlib.import_module("lama_cleaner.model_manager")
        made = manager.ModelManager(model, torch.device("cpu"), **{**OPTION_DEFAULTS, **options})
        importlib.import_module("lama_cleaner.model.utils").set_seed(SEEDS["*"])
        # Some of it loads more when it is called.
        return made(SOFT.copy(), MASK.copy(), stock_config(**fields)).astype(np.uint8)


@pytest.mark.parametrize(
    ("model", "fields", "options"),
    [
        ("sd1.5", STEPS, {}),
        ("sd1.5", {**STEPS, "sd_sampler": "ddim", "sd_match_histograms": True, "sd_mask_blur": 0}, {}),
        ("sd1.5", {**STEPS, "controlnet_conditioning_scale": 0.7}, {"sd_controlnet": True}),
        *(
            ("sd1.5", STEPS, {"sd_controlnet": True, "sd_controlnet_method": method})
            for method in CONTROLNETS[1:]
        ),
        ("anything4", STEPS, {}),
        ("realisticVision1.4", STEPS, {}),
        ("sd2", STEPS, {"disable_nsfw": True}),
        ("instruct_pix2pix", {**STEPS, "p2p_steps": 3}, {}),
    ],
)
def test_a_pipeline_gives_upstreams_pixels_and_reports_its_steps(
    client: TaskClient, pipelines: Path, model: str, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    wanted = stock(pipelines, model, fields, **options)
    task = client.submit(SOFT, MASK, model=model, **fields, **options)
    steps = [progress.step for progress in task.follow(ANSWER_S) if progress.step]
    got = task.wait_bgr(ANSWER_S)
    assert np.array_equal(got, wanted), f"{(got != wanted).mean():.2%} of the samples differ"
    assert not np.array_equal(wanted[:, :, ::-1], SOFT), "nothing was done"
    # Upstream reports no steps of instruct_pix2pix.
    assert (steps == []) if model == "instruct_pix2pix" else (max(steps) == fields["sd_steps"])


def test_an_example_is_painted_as_upstream_does(client: TaskClient, pipelines: Path) -> None:
    example = SOFT[:60, :80]
    fields = {"paint_by_example_seed": 5, "paint_by_example_steps": 2, "hd_strategy": "Original"}
    picture = {"paint_by_example_example_image": Image.fromarray(example)}
    wanted = stock(pipelines, "paint_by_example", {**fields, **picture})
    task = client.submit(SOFT, MASK, model="paint_by_example", example=example, **fields)
    assert np.array_equal(task.wait_bgr(ANSWER_S), wanted)


def test_a_cancel_ends_it_between_two_steps_and_the_next_one_works(client: TaskClient) -> None:
    task = client.submit(SOFT, MASK, model="sd1.5", **{**STEPS, "sd_steps": 500})
    for progress in task.follow(ANSWER_S):
        if progress.step >= 2:
            task.cancel()
    assert progress.status == "cancelled"
    assert progress.step < 500
    with pytest.raises(CancelledError):
        task.wait(ANSWER_S)
    again = client.submit(SOFT, MASK, model="sd1.5", **STEPS)
    assert again.wait(ANSWER_S).shape == SOFT.shape
