"""Which of upstream's plugins its flags enable, and how each is built and answered.

Does not: import a plugin; a node does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamagrid.upstream.protocol import UpstreamArguments

INTERACTIVE_SEG = "InteractiveSeg"
REMOVE_BG = "RemoveBG"
ANIME_SEG = "AnimeSeg"
REALESRGAN = "RealESRGAN"
GFPGAN = "GFPGAN"
RESTOREFORMER = "RestoreFormer"
MAKE_GIF = "MakeGIF"

PACKAGES: Mapping[str, str] = {
    REMOVE_BG: "rembg",
    REALESRGAN: "realesrgan",
    GFPGAN: "gfpgan",
    RESTOREFORMER: "gfpgan",
}
"""Packages that upstream's plugins need in addition to Lama Cleaner, on their node."""
ANSWERS_PNG = (INTERACTIVE_SEG, REMOVE_BG, ANIME_SEG)


@dataclass(frozen=True)
class RemotePlugin:
    """One plugin of upstream that nodes run.

    Attributes:
        name: Upstream's.
        device: Where upstream's flags want it, for a node that is started here.
        options: How it is built, for the node.
    """

    name: str
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)


def enabled(args: UpstreamArguments) -> dict[str, RemotePlugin]:
    """The plugins that upstream's flags enable, in upstream's order."""
    upscaler = {
        "realesrgan_model": _word(args.realesrgan_model),
        "realesrgan_no_half": args.realesrgan_no_half,
    }
    faces = {"background": True, **upscaler} if args.enable_realesrgan else {}
    segments = {"interactive_seg_model": args.interactive_seg_model}
    known = (
        (args.enable_interactive_seg, RemotePlugin(INTERACTIVE_SEG, args.interactive_seg_device, segments)),
        (args.enable_remove_bg, RemotePlugin(REMOVE_BG)),
        (args.enable_anime_seg, RemotePlugin(ANIME_SEG)),
        (args.enable_realesrgan, RemotePlugin(REALESRGAN, args.realesrgan_device, upscaler)),
        (args.enable_gfpgan, RemotePlugin(GFPGAN, args.gfpgan_device, faces)),
        (args.enable_restoreformer, RemotePlugin(RESTOREFORMER, args.restoreformer_device, faces)),
        (args.enable_gif, RemotePlugin(MAKE_GIF)),
    )
    return {plugin.name: plugin for wanted, plugin in known if wanted}


def _word(value: Any) -> str:
    return str(
        getattr(value, "value", value)
    )  # upstream's flag gives a member of an enumeration, or its word
