"""The network for what is measured outside the model: lama's signature, and next to no work."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


class Inverse(nn.Module):
    """The picture's negative: one pass over it, so that its own time hides nothing, and a hole that shows."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """``image`` f32 1x3xHxW in 0..1, ``mask`` i64 1x1xHxW; f32 1x3xHxW."""
        return 1.0 - image


def write_inverse(folder: Path) -> Path:
    """Write it as TorchScript. Returns the file."""
    path = folder / "inverse.pt"
    torch.jit.save(torch.jit.script(Inverse().eval()), str(path))
    return path
