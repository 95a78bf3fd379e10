"""Small diffusers pipelines with random weights, in folders of the names that Lama Cleaner asks for.

A process whose working directory is their parent loads them instead of asking a hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SEED = 13
INPAINTING = (
    "runwayml/stable-diffusion-inpainting",
    "Sanster/anything-4.0-inpainting",
    "Sanster/Realistic_Vision_V1.4-inpainting",
    "stabilityai/stable-diffusion-2-inpainting",
)
"""One pipeline under the names of sd1.5, anything4, realisticVision1.4 and sd2."""
CONTROLNETS = ("control_v11p_sd15_canny", "control_v11p_sd15_inpaint", "control_v11f1p_sd15_depth")
WIDTHS = (16, 32)
BLOCKS: dict[str, Any] = {
    "block_out_channels": WIDTHS,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
}


def write_pipelines(folder: Path) -> None:
    """Write all of them below a folder."""
    from diffusers import (
        ControlNetModel,
        StableDiffusionInpaintPipeline,
        StableDiffusionInstructPix2PixPipeline,
        StableDiffusionPipeline,
    )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        tokenizer, encoder = _text(folder)
        common = {
            "vae": _vae(),
            "text_encoder": encoder,
            "tokenizer": tokenizer,
            "scheduler": _scheduler(),
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
        StableDiffusionInpaintPipeline(unet=_unet(9), **common).save_pretrained(folder / INPAINTING[0])
        for name in INPAINTING[1:]:
            link = folder / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(folder / INPAINTING[0])
        StableDiffusionInstructPix2PixPipeline(unet=_unet(8), **common).save_pretrained(
            folder / "timbrooks" / "instruct-pix2pix"
        )
        # The base of the method for inpainting.
        StableDiffusionPipeline(unet=_unet(4), **common).save_pretrained(
            folder / "runwayml" / "stable-diffusion-v1-5"
        )
        control = ControlNetModel(in_channels=4, cross_attention_dim=32, **BLOCKS)
        for method in CONTROLNETS:
            control.save_pretrained(folder / "lllyasviel" / method)
        _depth_estimator(folder / "Intel" / "dpt-large")
        _paint_by_example(folder / "Fantasy-Studio" / "Paint-by-Example")


def _unet(channels: int, width: int = 32) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64,
        in_channels=channels,
        out_channels=4,
        cross_attention_dim=width,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **BLOCKS,
    )


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )


def _scheduler() -> Any:
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
    )


def _text(folder: Path) -> tuple[Any, Any]:
    """A tokenizer of single letters, and an encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: at for at, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    return tokenizer, CLIPTextModel(config).eval()


def _depth_estimator(path: Path) -> None:
    """The model that transformers' ``depth-estimation`` loads where none is named."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    DPTForDepthEstimation(config).eval().save_pretrained(path)
    DPTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(path)


def _paint_by_example(path: Path) -> None:
    from diffusers import PaintByExamplePipeline
    from diffusers.pipelines.paint_by_example.image_encoder import PaintByExampleImageEncoder
    from transformers import CLIPImageProcessor, CLIPVisionConfig

    width = 768  # what the encoder gives, whatever its configuration says
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=5,
        image_size=32,
        patch_size=8,
        projection_dim=32,
    )
    PaintByExamplePipeline(
        vae=_vae(),
        image_encoder=PaintByExampleImageEncoder(config, proj_size=width).eval(),
        unet=_unet(9, width),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        requires_safety_checker=False,
    ).save_pretrained(path)
