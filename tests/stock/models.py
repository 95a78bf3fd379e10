"""Small models for the suites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def saved(network: Callable[[], nn.Module], path: Path, seed: int) -> Path:
    """Write a network with random weights of a seed, as TorchScript."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network().eval()
    torch.jit.save(torch.jit.script(model), str(path))
    return path


def tiny_lama(folder: Path, seed: int = 7) -> Path:
    """Write a TorchScript model of lama's signature: random convolutions that leave 0..1 at times."""
    import torch
    from torch import Tensor, nn

    class TinyLama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(4, 8, 5, padding=2),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, 3, 3, padding=1),
            )

        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            hole = mask.to(image.dtype)
            out = self.layers(torch.cat([image * (1 - hole), hole], 1))
            mixed: Tensor = hole * (out * 16.0 + 0.5) + (1 - hole) * image
            return mixed

    return saved(TinyLama, folder / f"tiny-lama-{seed}.pt", seed)


def wild_lama(folder: Path, seed: int = 11) -> Path:
    """Write a TorchScript model of lama's signature that does what lama should not.

    The first red sample of what it is given says how (level modulo 4): 0, random convolutions; 1, the same
    far outside 0..1; 2, nothing but black, white and beyond; 3, the picture upside down. It changes what
    lies outside the hole too.
    """
    import torch
    from torch import Tensor, nn

    class WildLama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(4, 8, 5, padding=2),
                nn.ReLU(),
                nn.Conv2d(8, 3, 3, padding=1),
            )

        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            hole = mask.to(image.dtype)
            out = self.layers(torch.cat([image * (1 - hole), hole], 1))
            manner = int(image[0, 0, 0, 0].item() * 255.0 + 0.5) % 4
            if manner == 0:
                return hole * (out * 8.0 + 0.5) + (1 - hole) * image
            if manner == 1:
                return out * 300.0 - 1.0
            if manner == 2:
                return torch.sign(out) * 2.0 - 0.5
            return torch.flip(image, [2, 3]) * 1.004 - 0.002

    return saved(WildLama, folder / f"wild-lama-{seed}.pt", seed)


def heavy_lama(path: Path, mib: int, level: int) -> Path:
    """Write a model of lama's signature with weights of this size, which fills holes with a level."""
    import torch
    from torch import Tensor, nn

    class HeavyLama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((mib << 18,), (level + 0.5) / 255.0), requires_grad=False)

        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            hole = mask.to(image.dtype)
            return hole * self.weight[0] + (1 - hole) * image

    torch.jit.save(torch.jit.script(HeavyLama().eval()), str(path))
    return path
