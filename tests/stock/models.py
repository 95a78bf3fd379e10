"""Small models for the suites."""

from __future__ import annotations

from pathlib import Path


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

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyLama().eval()
    path = folder / f"tiny-lama-{seed}.pt"
    torch.jit.save(torch.jit.script(model), str(path))
    return path
