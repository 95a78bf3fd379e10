"""Networks of other signatures than lama's, each with a plain Python script that calls it as upstream would.

The script is upstream's `InpaintModel`, or `FcF` for a network of one size, around a forward pass that is
written as upstream writes its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity.stock import stock_config
from stock.models import saved

Pixels = NDArray[np.uint8]
Forward = Callable[[Any, Any, Any], Any]
"""The network, an image ``(H, W, 3)`` RGB and a mask ``(H, W, 1)`` to an image BGR."""


@dataclass(frozen=True)
class Described:
    """A network.

    Attributes:
        file: Its TorchScript file.
        section: The lines of its ``[models.NAME]`` section, without those that name the file.
        base: The module and the class of upstream's that its script extends.
        forward: The script's forward pass.
        modulo: Sides are padded to a multiple of this; upstream's FcF has its own.
        is_whole: Whether its whole output is pasted.
    """

    file: Path
    section: str
    base: tuple[str, str]
    forward: Forward
    modulo: int = 8
    is_whole: bool = False

    def inpaint(self, image: Pixels, mask: Pixels, **fields: Any) -> Pixels:
        """The script's result, BGR."""
        cv2.ipp.setUseIPP(False)
        module, name = self.base
        base: Any = getattr(importlib.import_module(f"lama_cleaner.model.{module}"), name)
        described = self

        class Script(base):  # type: ignore[misc]
            name = "script"
            if module == "base":
                pad_mod = described.modulo

            def init_model(self, device: Any, **_: Any) -> None:
                self.model = torch.jit.load(str(described.file), device).eval()  # type: ignore[no-untyped-call]

            @staticmethod
            def is_downloaded() -> bool:
                return True

            def forward(self, image: Any, mask: Any, _config: Any) -> Any:
                return described.forward(self.model, image, mask)

            def forward_post_process(self, result: Any, image: Any, mask: Any, _config: Any) -> Any:
                return result, image, np.full_like(mask, 255) if described.is_whole else mask

        script = Script(torch.device("cpu"))
        pixels: Pixels = script(image.copy(), mask.copy(), stock_config(**fields)).astype(np.uint8)
        return pixels


FIXED = ("fcf", "FcF")
"""Upstream's only class for networks of one size, 512 pixels."""


class SmallMigan(nn.Module):
    """As MI-GAN: keep-mask less 0.5 and erased image, in -1..1, 512 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (4, 512, 512)
        filled: Tensor = self.layers(x) * 6.0
        return filled


def migan(folder: Path) -> Described:
    """Write a network of MI-GAN's shape."""

    def forward(network: Any, image: Any, mask: Any) -> Any:
        # Source: IOPaint `model/mi_gan.py`, 1.6; its mask is white above 120, ours above 0, as lama's.
        image, hole = _norm(image) * 2 - 1, _norm((mask > 0) * 255)
        output = network(torch.cat([0.5 - hole, image * (1 - hole)], dim=1))
        output = (output.permute(0, 2, 3, 1) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        return cv2.cvtColor(output[0].numpy(), cv2.COLOR_RGB2BGR)

    section = """
        inputs = ["mask+erased"]
        image_range = "-1..1"
        mask_range = "0.5..-0.5"
        output_range = "-1..1"
        fixed_size = 512
    """
    return Described(saved(SmallMigan, folder / "migan.pt", 3), section, FIXED, forward)


class KeepFirst(nn.Module):
    """A keep-mask of booleans, then the image BGR in 0..255, 512 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, keep: Tensor, image: Tensor) -> Tensor:
        assert keep.dtype == torch.bool
        assert keep.shape[1:] == (1, 512, 512)
        filled: Tensor = self.layer(torch.cat([keep.to(image.dtype) * 255.0, image], 1))
        return filled * 1.5


def keep_first(folder: Path) -> Described:
    """Write a network of 512 pixels that shares nothing with lama's signature."""

    def forward(network: Any, image: Any, mask: Any) -> Any:
        bgr = torch.from_numpy(image[:, :, ::-1].astype(np.float32)).permute(2, 0, 1)[None].contiguous()
        keep = torch.from_numpy(mask[:, :, 0] == 0)[None, None]
        return network(keep, bgr)[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()

    section = """
        inputs = ["mask", "image"]
        image_range = "0..255"
        mask_range = "1..0"
        mask_type = "bool"
        colour = "bgr"
        output_range = "0..255"
        fixed_size = 512
    """
    return Described(saved(KeepFirst, folder / "keep-first.pt", 5), section, FIXED, forward)


class Joined(nn.Module):
    """Image, mask and erased image as one tensor; changes all of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(7, 3, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] % 32 == 0
        assert x.shape[3] % 32 == 0
        filled: Tensor = self.layer(x) + x[:, :3] * 0.5
        return filled


def joined(folder: Path) -> Described:
    """Write a network of any size whose whole output is used."""

    def forward(network: Any, image: Any, mask: Any) -> Any:
        image, hole = _norm(image), _norm((mask > 0) * 255)
        output = network(torch.cat([image, hole * 2 - 1, image * (1 - hole)], dim=1))[0]
        rgb = np.clip(output.permute(1, 2, 0).numpy() * 255, 0, 255).astype("uint8")
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)

    section = """
        inputs = ["image+mask+erased"]
        mask_range = "-1..1"
        pad_modulo = 32
        blend = "all"
    """
    file = saved(Joined, folder / "joined.pt", 9)
    return Described(file, section, ("base", "InpaintModel"), forward, modulo=32, is_whole=True)


def _norm(pixels: Any) -> Tensor:
    """Upstream's conversion to floats in 0..1, as a tensor with a batch."""
    helper = importlib.import_module("lama_cleaner.helper")
    return torch.from_numpy(helper.norm_img(pixels)).unsqueeze(0)
