"""A network of LaMa's architecture and size (Fourier convolutions in a ResNet) with random weights.

    forward(image: f32 1x3xHxW in 0..1, mask: i64 1x1xHxW) -> f32 1x3xHxW

By default as large as big-lama: 64 channels after the first layer, 18 blocks. Needs torch alone.

usage: lama.py OUT [CHANNELS [BLOCKS]]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 64
BLOCKS = 18
HALVINGS = 3
GLOBAL_SHARE = 0.75
"""Of the channels; they go through the Fourier transform, the others through plain convolutions."""


def conv(inputs: int, outputs: int, size: int = 1, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the picture's size (but for its stride), mirrored at the border."""
    mode: Literal["reflect", "zeros"] = "reflect" if size > 1 else "zeros"
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False, padding_mode=mode)


class FourierUnit(nn.Module):
    """A pointwise convolution of the picture's spectrum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels * 2, channels * 2)
        self.norm = nn.BatchNorm2d(channels * 2)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        f: Tensor = torch.fft.rfftn(x, dim=[-2, -1], norm="ortho")
        f = torch.stack([f.real, f.imag], dim=-1).permute(0, 1, 4, 2, 3).contiguous()
        f = F.relu(self.norm(self.conv(f.view(b, -1, h, f.shape[-1]))))
        f = f.view(b, -1, 2, h, f.shape[-1]).permute(0, 1, 3, 4, 2).contiguous()
        both = torch.complex(f[..., 0], f[..., 1])
        back: Tensor = torch.fft.irfftn(both, s=[h, w], dim=[-2, -1], norm="ortho")
        return back


class Spectral(nn.Module):
    """The way from global to global channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.narrow = nn.Sequential(conv(channels, half), nn.BatchNorm2d(half), nn.ReLU())
        self.unit = FourierUnit(half)
        self.widen = conv(half, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        wide: Tensor = self.widen(x + self.unit(x))
        return wide


class Mix(nn.Module):
    """One fast Fourier convolution: local and global channels, each fed from both."""

    def __init__(self, local: int, wide: int) -> None:
        super().__init__()
        self.local_local = conv(local, local, 3)
        self.local_wide = conv(local, wide, 3)
        self.wide_local = conv(wide, local, 3)
        self.wide_wide = Spectral(wide)
        self.norm_local = nn.BatchNorm2d(local)
        self.norm_wide = nn.BatchNorm2d(wide)

    def forward(self, local: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
        return (
            F.relu(self.norm_local(self.local_local(local) + self.wide_local(wide))),
            F.relu(self.norm_wide(self.local_wide(local) + self.wide_wide(wide))),
        )


class Block(nn.Module):
    """Two of them beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = int(channels * GLOBAL_SHARE)
        self.local = channels - wide
        self.first = Mix(self.local, wide)
        self.second = Mix(self.local, wide)

    def forward(self, x: Tensor) -> Tensor:
        local, wide = self.first(x[:, : self.local], x[:, self.local :])
        return x + torch.cat(self.second(local, wide), 1)


class Lama(nn.Module):
    """Down three times, the blocks, up three times."""

    def __init__(self, channels: int = CHANNELS, blocks: int = BLOCKS) -> None:
        super().__init__()
        first = nn.Conv2d(4, channels, 7, bias=False)
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), first, nn.BatchNorm2d(channels), nn.ReLU()]
        for level in range(HALVINGS):
            fine = channels * 2**level
            layers += [conv(fine, fine * 2, 3, 2), nn.BatchNorm2d(fine * 2), nn.ReLU()]
        layers += [Block(channels * 2**HALVINGS) for _ in range(blocks)]
        for level in range(HALVINGS, 0, -1):
            coarse = channels * 2**level
            up = nn.ConvTranspose2d(coarse, coarse // 2, 3, stride=2, padding=1, output_padding=1)
            layers += [up, nn.BatchNorm2d(coarse // 2), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(channels, 3, 7), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        hole = mask.to(image.dtype)
        out: Tensor = self.layers(torch.cat([image * (1 - hole), hole], 1))
        return hole * out + (1 - hole) * image


def write_lama(path: Path, channels: int = CHANNELS, blocks: int = BLOCKS) -> float:
    """Write one as TorchScript; the same weights on each call. Returns its millions of parameters.

    The norms take their statistics from one random picture. With those of a fresh network the signal fades
    from layer to layer and the hole becomes an even grey, which would hide any difference between devices.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = Lama(channels, blocks)
        example = (torch.rand(1, 3, 256, 256), (torch.rand(1, 1, 256, 256) > 0.5).long())
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0  # the statistics become those of this one pass
        network.train()(*example)
        network.eval()
        traced: Any = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
    part = path.with_suffix(".part")
    traced.save(str(part))
    part.replace(path)
    return sum(each.numel() for each in network.parameters()) / 1e6


if __name__ == "__main__":
    print(f"{write_lama(Path(sys.argv[1]), *map(int, sys.argv[2:4])):.1f} M parameters")
