"""A folder of small models in the places of the real ones, for whole servers."""

from __future__ import annotations

from pathlib import Path

from stock.models import tiny_lama
from stock.networks import write_scripted
from stock.pipelines import write_pipelines
from stock.plugins import CHECKPOINTS, write_salient_network


def small_models(folder: Path) -> dict[str, str]:
    """Write lama, manga, the diffusers pipelines and RemoveBG's network below a folder.

    Returns:
        The environment in which upstream and nodes find them, if their working directory is the folder.
    """
    checkpoints = folder / "torch" / CHECKPOINTS
    checkpoints.mkdir(parents=True)
    write_salient_network(checkpoints / "u2net.onnx")
    write_pipelines(folder)
    return {
        **write_scripted(folder, "MANGA"),
        "LAMA_MODEL_URL": str(tiny_lama(folder)),
        "TORCH_HOME": str(folder / "torch"),
        "MODEL_CHECKSUM_DISABLED": "1",  # rembg's own switch
        "HF_HUB_OFFLINE": "1",
    }
