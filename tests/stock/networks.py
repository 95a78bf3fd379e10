"""Files with random weights for Lama Cleaner's models, of the real ones' signature and layout.

Models that upstream loads from TorchScript are small networks here. Those that it builds from a class and a
state dictionary (mat, fcf) are that class, whole.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping

SEED = 11
MODULES = ("manga", "ldm", "zits", "mat", "fcf")
"""The modules of ``lama_cleaner.model`` whose constants name the files."""


class MangaLine(nn.Module):
    """Grey 1x1xHxW in 0..255 to lines."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, grey: Tensor) -> Tensor:
        return self.layer(grey) * 1.5


class MangaInpaintor(nn.Module):
    """Grey, lines, mask, noise and ones to grey; leaves -1..1 at times, which wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(5, 1, 5, padding=2)

    def forward(self, grey: Tensor, lines: Tensor, mask: Tensor, noise: Tensor, ones: Tensor) -> Tensor:
        return self.layer(torch.cat([grey, lines, mask, noise, ones], 1)) * 2.0


class LdmEncode(nn.Module):
    """1x3xHxW to 1x3x(H/4)x(W/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 4, stride=4)

    def forward(self, picture: Tensor) -> Tensor:
        return self.layer(picture)


class LdmDiffusion(nn.Module):
    """A noisy 1x3, the time 1x256 and the condition 1x4 to the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(256, 3)
        self.layer = nn.Conv2d(7, 3, 3, padding=1)

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        return torch.tanh(self.layer(torch.cat([noisy, condition], 1)) + self.time(time)[:, :, None, None])


class LdmDecode(nn.Module):
    """1x3xhxw to 1x3x4hx4w."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(3, 3, 4, stride=4)

    def forward(self, samples: Tensor) -> Tensor:
        return self.layer(samples)


class ZitsWireframe(nn.Module):
    """A picture to lines with their scores, of which one is sure and one is not."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        end = 0.5 + torch.sigmoid(images.mean()) * 0.4
        lines = torch.stack([torch.stack([end * 0.1, end * 0.2, end, end * 0.9])] * 2)
        return {
            "num_proposals": torch.tensor(2),
            "lines_pred": lines,
            "lines_score": torch.tensor([0.99, 0.1]),
        }


class ZitsEdgeLine(nn.Module):
    """Picture, edges, lines and mask of 256x256 to the logits of edges and lines."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, img: Tensor, edge: Tensor, line: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        both = self.layer(torch.cat([img, edge.to(img.dtype), line.to(img.dtype), masks], 1))
        return both[:, :1], both[:, 1:]


class ZitsUpsample(nn.Module):
    """Twice as large."""

    def forward(self, structure: Tensor) -> Tensor:
        return F.interpolate(structure, scale_factor=2.0, mode="nearest")


class ZitsInpaint(nn.Module):
    """Everything that upstream prepares to a picture; leaves 0..1 at times, which wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(6, 3, 5, padding=2)

    def forward(
        self, images: Tensor, masks: Tensor, edge: Tensor, line: Tensor, rel_pos: Tensor, direct: Tensor
    ) -> Tensor:
        where = rel_pos.to(images.dtype).mean() * 0.001 + direct.to(images.dtype).mean() * 0.01
        return self.layer(torch.cat([images, masks, edge, line], 1)) + 0.5 + where


SCRIPTED: dict[str, Callable[[], nn.Module]] = {
    "MANGA_LINE": MangaLine,
    "MANGA_INPAINTOR": MangaInpaintor,
    "LDM_ENCODE": LdmEncode,
    "LDM_DIFFUSION": LdmDiffusion,
    "LDM_DECODE": LdmDecode,
    "ZITS_WIRE_FRAME": ZitsWireframe,
    "ZITS_EDGE_LINE": ZitsEdgeLine,
    "ZITS_STRUCTURE_UPSAMPLE": ZitsUpsample,
    "ZITS_INPAINT": ZitsInpaint,
}


def write_scripted(folder: Path, model: str = "") -> dict[str, str]:
    """Write those that are TorchScript, or one model's. Returns what makes upstream load them."""
    env = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for name, network in SCRIPTED.items():
            if name.startswith(model):
                path = folder / f"{name.lower()}.pt"
                torch.jit.save(torch.jit.script(network().eval()), str(path))  # type: ignore[no-untyped-call]
                env[f"{name}_MODEL_URL"] = str(path)
    return env


def write_networks(folder: Path) -> dict[str, str]:
    """Write all of them. Returns the environment that makes upstream load them."""
    env = write_scripted(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for name in ("mat", "fcf"):
            path = folder / f"{name}.pth"
            torch.save(_class_of(name).state_dict(), path)
            env[f"{name.upper()}_MODEL_URL"] = str(path)
    return env


def point_upstream_at(env: Mapping[str, str], patch: Any) -> None:
    """The same for upstream's code in this process, which reads its environment once."""
    for name in MODULES:
        module = importlib.import_module(f"lama_cleaner.model.{name}")
        for variable, path in env.items():
            if hasattr(module, variable):
                patch.setattr(module, variable, path)


def _class_of(name: str) -> Any:
    """The network as upstream's ``init_model`` builds it, caught before it loads a file."""
    module: Any = importlib.import_module(f"lama_cleaner.model.{name}")
    built: list[Any] = []

    class Caught(Exception):
        pass

    def catch(network: Any, *_: Any) -> None:
        built.append(network)
        raise Caught

    load, module.load_model = module.load_model, catch
    try:
        getattr(module, {"mat": "MAT", "fcf": "FcF"}[name])(torch.device("cpu"))
    except Caught:
        pass
    finally:
        module.load_model = load
    return built[0]
