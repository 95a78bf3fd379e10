"""A TorchScript model that takes as long as its picture says."""

from __future__ import annotations

from pathlib import Path

ROUNDS_PER_LEVEL = 8
"""Matrix products per level of the first red sample: about 30 ms on one core of 2020."""


def slow_lama(folder: Path) -> Path:
    """Write a model of lama's signature that works longer the redder the picture's first pixel is.

    The hole becomes mid-grey (127). With 255 it takes some seconds, with 0 next to nothing.
    """
    import torch
    from torch import Tensor, nn

    class SlowLama(nn.Module):
        def __init__(self, rounds: int) -> None:
            super().__init__()
            self.rounds = rounds

        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            hole = mask.to(image.dtype)
            level = int(image[0, 0, 0, 0].item() * 255.0 + 0.5)
            work = torch.full((512, 512), 0.001)
            for _ in range(level * self.rounds):
                work = torch.tanh(work @ work)
            # Zero, but not known to be zero before it is computed.
            return hole * (0.5 + work.sum() * 0.0) + (1 - hole) * image

    path = folder / "slow-lama.pt"
    torch.jit.save(torch.jit.script(SlowLama(ROUNDS_PER_LEVEL).eval()), str(path))
    return path
