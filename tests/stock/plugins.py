"""Small weights for upstream's plugins, under the names and in the layout of the real ones."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

CHECKPOINTS = Path("hub") / "checkpoints"


def _anime_network() -> Any:
    """Of ISNet's signature: (1, 3, 1024, 1024) in 0..1 to (1, 1, 1024, 1024) in 0..1."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1), nn.Sigmoid()
    )


@contextmanager
def small_plugins(torch_home: Path) -> Iterator[None]:
    """Let upstream's InteractiveSeg (``vit_b``) and AnimeSeg be small networks with random weights.

    Upstream's loading and calling code is unchanged; only the number and width of the layers is not that of
    the real networks.
    """
    import torch

    anime: Any = importlib.import_module("lama_cleaner.plugins.anime_seg")
    seg: Any = importlib.import_module("lama_cleaner.plugins.interactive_seg")
    sam: Any = importlib.import_module("lama_cleaner.plugins.segment_anything.build_sam")
    small_sam = partial(
        sam._build_sam,
        encoder_embed_dim=32,
        encoder_depth=2,
        encoder_num_heads=2,
        encoder_global_attn_indexes=[1],
    )
    folder = torch_home / CHECKPOINTS
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.save(small_sam().state_dict(), folder / Path(seg.SEGMENT_ANYTHING_MODELS["vit_b"]["url"]).name)
        torch.save(_anime_network().state_dict(), folder / Path(anime.ANIME_SEG_MODELS["url"]).name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(torch_home))
        patch.setattr(anime, "ISNetDIS", _anime_network)
        patch.setitem(seg.sam_model_registry, "vit_b", small_sam)
        yield
