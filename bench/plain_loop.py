"""Upstream's steps for one request, in a plain Python loop: what a program without a grid would do.

Pillow, numpy and the same TorchScript; strategy Original. Left out is what upstream's server does besides and
what would only slow this: the web server, and giving the GPU's memory back after each request.
Pillow is needed for files alone.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

MODULO = 8  # lama's


def inpaint(network: Any, device: str, image: Pixels, hole: Pixels) -> Pixels:
    """``image`` (H, W, 3) RGB and ``hole`` (H, W), 0 or 255; (H, W, 3) RGB.

    Source: Lama Cleaner 1.2.5, ``InpaintModel._pad_forward`` and ``LaMa.forward``.
    """
    height, width = hole.shape
    below, right = -height % MODULO, -width % MODULO
    padded = np.pad(image, ((0, below), (0, right), (0, 0)), mode="symmetric")
    padded_hole = np.pad(hole, ((0, below), (0, right)), mode="symmetric")
    pixels = torch.from_numpy(padded.transpose(2, 0, 1).astype(np.float32) / 255)[None].to(device)
    where = torch.from_numpy((padded_hole[None] > 0) * 1)[None].to(device)
    with torch.no_grad():
        made = network(pixels, where)
    filled = np.clip(made[0].permute(1, 2, 0).cpu().numpy() * 255, 0, 255).astype(np.uint8)
    share = hole[:, :, None] / 255
    blend = filled[:height, :width] * share + image * (1 - share)
    result: Pixels = blend.astype(np.uint8)
    return result


def inpaint_file(network: Any, device: str, image: bytes, mask: bytes) -> bytes:
    """The same from file to file, of the image's format."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(image)) as opened:
        form = opened.format
        upright = ImageOps.exif_transpose(opened) or opened
        pixels = np.asarray(upright.convert("RGB"))
    with Image.open(io.BytesIO(mask)) as opened:
        hole = np.where(np.asarray(opened.convert("L")) > 127, 255, 0).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(inpaint(network, device, pixels, hole)).save(out, form, quality=95)
    return out.getvalue()
