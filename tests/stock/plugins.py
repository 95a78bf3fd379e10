"""Small weights for upstream's plugins, under the names and in the layout of the real ones."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHECKPOINTS = Path("hub") / "checkpoints"
COMPACT = {"num_in_ch": 3, "num_out_ch": 3, "upscale": 4, "act_type": "prelu"}
BLOCKS = {"num_in_ch": 3, "num_out_ch": 3, "scale": 4}
FACE_PX = 200
"""A picture whose sides are at least that has one face, as far as the small detector sees."""


def _anime_network() -> Any:
    """Of ISNet's signature: (1, 3, 1024, 1024) in 0..1 to (1, 1, 1024, 1024) in 0..1."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1), nn.Sigmoid()
    )


def _face_detector(network_name: str, half: bool, device: Any) -> Any:
    """Of facexlib's RetinaFace's signature: one face, at a place in the file; none in a small one."""
    import torch
    from torch import nn

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean_tensor = torch.zeros(1)
            left_eye, right_eye, nose = (0.42, 0.44), (0.58, 0.45), (0.5, 0.53)
            mouth = ((0.43, 0.61), (0.56, 0.61))
            points = torch.tensor([left_eye, right_eye, nose, *mouth])
            self.points = nn.Parameter(points + 0.01 * torch.rand(points.shape))

        def detect_faces(self, image: Any, conf_threshold: float) -> Any:
            height, width = image.shape[:2]
            if min(height, width) < FACE_PX:
                return np.zeros((0, 15), np.float32)
            assert conf_threshold < 0.99
            points = self.points.numpy(force=True) * (width, height)
            return np.array([[0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height, 0.99, *points.flat]])

    assert (network_name, half) == ("resnet50", False)
    return Detector()


def _face_parser(in_size: int, out_size: int, parsing_ch: int) -> Any:
    """Of facexlib's ParseNet's signature: (1, 3, 512, 512) in -1..1 to each pixel's class."""
    from torch import nn

    class Parser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classes = nn.Conv2d(3, parsing_ch, 9, padding=4)

        def forward(self, image: Any) -> Any:
            return self.classes(image), image

    assert (in_size, out_size) == (512, 512)
    return Parser()


def _face_network(draws: bool) -> Any:
    """Of GFPGANv1Clean's and RestoreFormer's signature: (1, 3, 512, 512) in -1..1, BGR faces, to the same."""
    import torch
    from torch import nn

    class Restorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(3, 6, 5, padding=2), nn.Tanh(), nn.Conv2d(6, 3, 3, padding=1)
            )

        def forward(self, image: Any, return_rgb: bool, weight: float) -> Any:
            assert (return_rgb, weight) == (False, 0.5)
            made = image + self.layers(image)
            return made + 0.1 * torch.randn_like(made) if draws else made, None

    return Restorer()


def write_salient_network(path: Path) -> None:
    """Of U-2-Net's signature, in ONNX: (1, 3, 320, 320), normalised, to (1, 1, 320, 320) in 0..1."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    weights = np.random.default_rng(3).normal(0, 0.3, (1, 3, 5, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["input.1", "weights"], ["level"], pads=[2, 2, 2, 2]),
        helper.make_node("Sigmoid", ["level"], ["salient"]),
    ]
    shapes = {"input.1": (1, 3, 320, 320), "salient": (1, 1, 320, 320)}
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()
    )
    graph = helper.make_graph(nodes, "u2net", [given], [made], [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    checker.check_model(model)
    save(model, str(path))


def _narrow(network: Any, **sizes: int) -> tuple[Any, str, Any]:
    """That a class makes networks of these sizes whatever it is asked for."""
    real = network.__init__
    return network, "__init__", lambda self, **asked: real(self, **{**asked, **sizes})


@contextmanager
def small_plugins(torch_home: Path) -> Iterator[None]:
    """Let upstream's plugins (InteractiveSeg as ``vit_b``) be small networks with random weights.

    Upstream's loading and calling code is unchanged, and that of rembg, realesrgan, gfpgan and facexlib;
    only the networks are not the real ones: fewer and narrower layers, or others of the same signature.
    """
    import torch

    from lamagrid.upstream import patches

    patches.install(patches.Stage.NODE_IMPORT)
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
    with warnings.catch_warnings():  # theirs, of what they stand on
        warnings.simplefilter("ignore")
        gfpganer: Any = importlib.import_module("lama_cleaner.plugins.gfpganer")
        restoreformer: Any = importlib.import_module("gfpgan.archs.restoreformer_arch")
        detection: Any = importlib.import_module("facexlib.detection")
        parsing: Any = importlib.import_module("facexlib.parsing")
        importlib.import_module("rembg")
        compact: Any = importlib.import_module("realesrgan.archs.srvgg_arch").SRVGGNetCompact
        blocks: Any = importlib.import_module("basicsr.archs.rrdbnet_arch").RRDBNet
    folder = torch_home / CHECKPOINTS
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(torch_home))
        patch.setattr(anime, "ISNetDIS", _anime_network)
        patch.setitem(seg.sam_model_registry, "vit_b", small_sam)
        patch.setattr(*_narrow(compact, num_feat=8, num_conv=2))
        patch.setattr(*_narrow(blocks, num_feat=8, num_block=1, num_grow_ch=4))
        patch.setattr(detection, "RetinaFace", _face_detector)
        patch.setattr(parsing, "ParseNet", _face_parser)
        patch.setattr(gfpganer, "GFPGANv1Clean", lambda **_: _face_network(True))
        patch.setattr(restoreformer, "RestoreFormer", lambda: _face_network(False))
        patch.setenv("MODEL_CHECKSUM_DISABLED", "1")  # rembg's own switch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            torch.save(
                small_sam().state_dict(), folder / Path(seg.SEGMENT_ANYTHING_MODELS["vit_b"]["url"]).name
            )
            torch.save(_anime_network().state_dict(), folder / Path(anime.ANIME_SEG_MODELS["url"]).name)
            torch.save({"params": compact(**COMPACT).state_dict()}, folder / "realesr-general-x4v3.pth")
            torch.save({"params_ema": blocks(**BLOCKS).state_dict()}, folder / "RealESRGAN_x4plus.pth")
            detector = {
                f"module.{name}": value
                for name, value in _face_detector("resnet50", False, "cpu").state_dict().items()
            }
            torch.save(detector, folder / "detection_Resnet50_Final.pth")
            torch.save(_face_parser(512, 512, 19).state_dict(), folder / "parsing_parsenet.pth")
            torch.save({"params_ema": _face_network(True).state_dict()}, folder / "GFPGANv1.4.pth")
            torch.save({"params": _face_network(False).state_dict()}, folder / "RestoreFormer.pth")
        write_salient_network(folder / "u2net.onnx")
        yield
