"""The network's share of a request: the same forward calls, in this process."""

from __future__ import annotations

import importlib
import time
import warnings
from pathlib import Path
from typing import Any

import cv2
import torch

from parity.stock import stock_config


class Forward:
    """The calls that upstream makes of its network for one request, recorded once and made again at will.

    As many threads as torch chooses by itself: as stock does, and a grid's only node.
    """

    def __init__(self, network_file: Path, image: bytes, mask: bytes, strategy: str) -> None:
        with warnings.catch_warnings():  # upstream's, of what it stands on
            warnings.simplefilter("ignore")
            upstream: Any = importlib.import_module("lama_cleaner.model.lama")
            load_img = importlib.import_module("lama_cleaner.helper").load_img
        before, upstream.LAMA_MODEL_URL = upstream.LAMA_MODEL_URL, str(network_file)
        try:
            lama = upstream.LaMa(torch.device("cpu"))
        finally:
            upstream.LAMA_MODEL_URL = before
        self._network = lama.model
        self._calls: list[tuple[torch.Tensor, torch.Tensor]] = []

        def record(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            self._calls.append((image, mask))
            answer: torch.Tensor = self._network(image, mask)
            return answer

        lama.model = record
        pixels, _ = load_img(image)
        hole, _ = load_img(mask, gray=True)
        hole = cv2.threshold(hole, 127, 255, cv2.THRESH_BINARY)[1]
        lama(pixels, hole, stock_config(hd_strategy=strategy))

    @property
    def shapes(self) -> str:
        """The pictures that the network is given, height by width."""
        return ", ".join(f"{image.shape[2]}x{image.shape[3]}" for image, _ in self._calls)

    def seconds(self) -> float:
        """Make the calls once."""
        with torch.no_grad():
            began = time.perf_counter()
            for image, mask in self._calls:
                self._network(image, mask)
            return time.perf_counter() - began
