"""Lama Cleaner's own result, in this process."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@lru_cache(maxsize=4)
def stock_manager(name: str, model_path: Path | None) -> Any:
    """Lama Cleaner's ``ModelManager`` on the CPU; ``model_path`` is the TorchScript file for lama."""
    import cv2
    import torch

    cv2.ipp.setUseIPP(False)  # closed code whose resize differs in the last bit; see the imaging crate
    if model_path is not None:
        # A missing or broken file would be downloaded or deleted by Lama Cleaner: look before.
        if not model_path.is_file():
            raise FileNotFoundError(model_path)
        torch.jit.load(str(model_path), map_location="cpu")  # type: ignore[no-untyped-call]
    manager = importlib.import_module("lama_cleaner.model_manager")
    lama: Any = importlib.import_module("lama_cleaner.model.lama")
    before = lama.LAMA_MODEL_URL
    # The module reads the variable once, when it is imported, which may have happened.
    lama.LAMA_MODEL_URL = before if model_path is None else os.fspath(model_path)
    try:
        return manager.ModelManager(name, torch.device("cpu"))
    finally:
        lama.LAMA_MODEL_URL = before


def stock_config(**fields: Any) -> Any:
    """Lama Cleaner's ``Config``; the fields without a default get the page's for lama."""
    schema = importlib.import_module("lama_cleaner.schema")
    defaults: dict[str, Any] = {
        "ldm_steps": 25,
        "hd_strategy": "Crop",
        "hd_strategy_crop_margin": 196,
        "hd_strategy_crop_trigger_size": 800,
        "hd_strategy_resize_limit": 2048,
    }
    return schema.Config(**{**defaults, **fields})


def stock_inpaint(
    model_path: Path | None, image_rgb: Pixels, mask: Pixels, config: Mapping[str, Any], model: str = "lama"
) -> Pixels:
    """BGR pixels as Lama Cleaner's server would encode them.

    ``model_path`` is the TorchScript file for lama; ``None`` for models without a file (``cv2``).
    The input is copied: the Crop strategy writes into the picture that it is given.
    """
    result = stock_manager(model, model_path)(image_rgb.copy(), mask.copy(), stock_config(**config))
    pixels: Pixels = result.astype(np.uint8)
    return pixels
