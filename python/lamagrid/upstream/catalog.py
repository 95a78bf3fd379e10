"""Which files each of upstream's models and plugins needs, and where upstream looks for them.

Does not: fetch or load anything, or import upstream, which takes seconds. `tests/seam/test_weights.py` holds
this table against upstream's own constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Union

PLUGIN_PREFIX = "plugin/"
"""Tasks and nodes name a plugin by this prefix and its name."""
RELEASES = "https://github.com/Sanster/models/releases/download"
SEGMENT_ANYTHING = "https://dl.fbaipublicfiles.com/segment_anything"
REAL_ESRGAN = "https://github.com/xinntao/Real-ESRGAN/releases/download"
GFPGAN = "https://github.com/TencentARC/GFPGAN/releases/download"
FACEXLIB = "https://github.com/xinntao/facexlib/releases/download"
REMBG = "https://github.com/danielgatis/rembg/releases/download"


class FileSource(NamedTuple):
    """Where a file comes from.

    Attributes:
        url: A URL, or a path.
        md5: Its sum, None if it is not checked.
    """

    url: str
    md5: str | None


@dataclass(frozen=True)
class WebFile:
    """A file that upstream downloads once and keeps.

    Attributes:
        url: Upstream's.
        md5: Upstream's, None where it has none.
        variables: The prefix of upstream's variables ``..._URL`` and ``..._MD5`` for the two, None without
            such variables.
    """

    url: str
    md5: str | None
    variables: str | None = None

    def source(self, env: Mapping[str, str]) -> FileSource:
        """Where the file comes from in an environment.

        The built-in sum belongs to the built-in URL: another URL without a sum of its own is not checked.
        """
        if self.variables is None:
            return FileSource(self.url, self.md5)
        url, md5 = (env.get(f"{self.variables}_{each}") for each in ("URL", "MD5"))
        return FileSource(url or self.url, md5 or (None if url else self.md5))

    def path(self, env: Mapping[str, str]) -> Path:
        """Where upstream looks for it."""
        url, _ = self.source(env)
        if Path(url).exists():
            return Path(url)
        return checkpoints(env) / url.split("?")[0].split("#")[0].rsplit("/", 1)[-1]

    def is_present(self, env: Mapping[str, str]) -> bool:
        """Whether it is on this host."""
        return self.path(env).is_file()


@dataclass(frozen=True)
class HubFolder:
    """A repository in huggingface_hub's cache.

    Attributes:
        repo: Upstream's name of it.
        marker: The file that every copy of it has.
        has_half: Whether upstream takes the revision ``fp16`` on a GPU.
    """

    repo: str
    marker: str = "model_index.json"
    has_half: bool = True

    def path(self, env: Mapping[str, str]) -> Path:
        """Where it is: in a folder of that name, or else in the cache, as diffusers looks for it."""
        if (Path(self.repo) / self.marker).is_file():
            return Path(self.repo).absolute()
        return hub_cache(env) / f"models--{self.repo.replace('/', '--')}"

    def is_present(self, env: Mapping[str, str]) -> bool:
        """Whether a whole copy is on this host."""
        folder = self.path(env)
        if (folder / self.marker).is_file():
            return True
        return any(folder.glob(f"snapshots/*/{self.marker}")) and not any(folder.glob("blobs/*.incomplete"))


Source = Union[WebFile, HubFolder]


def _own(place: str, md5: str, variables: str) -> WebFile:
    return WebFile(f"{RELEASES}/{place}", md5, f"{variables}_MODEL")


_RESNET = WebFile(f"{FACEXLIB}/v0.1.0/detection_Resnet50_Final.pth", None)
_PARSENET = WebFile(f"{FACEXLIB}/v0.2.2/parsing_parsenet.pth", None)

MODELS: Mapping[str, tuple[Source, ...]] = {
    "lama": (_own("add_big_lama/big-lama.pt", "e3aa4aaa15225a33ec84f9f4bc47e500", "LAMA"),),
    "ldm": (
        _own("add_ldm/cond_stage_model_encode.pt", "23239fc9081956a3e70de56472b3f296", "LDM_ENCODE"),
        _own("add_ldm/cond_stage_model_decode.pt", "fe419cd15a750d37a4733589d0d3585c", "LDM_DECODE"),
        _own("add_ldm/diffusion.pt", "b0afda12bf790c03aba2a7431f11d22d", "LDM_DIFFUSION"),
    ),
    "zits": (
        _own("add_zits/zits-wireframe-0717.pt", "a9727c63a8b48b65c905d351b21ce46b", "ZITS_WIRE_FRAME"),
        _own("add_zits/zits-edge-line-0717.pt", "55e31af21ba96bbf0c80603c76ea8c5f", "ZITS_EDGE_LINE"),
        _own(
            "add_zits/zits-structure-upsample-0717.pt",
            "3d88a07211bd41b2ec8cc0d999f29927",
            "ZITS_STRUCTURE_UPSAMPLE",
        ),
        _own("add_zits/zits-inpaint-0717.pt", "9978cc7157dc29699e42308d675b2154", "ZITS_INPAINT"),
    ),
    "mat": (_own("add_mat/Places_512_FullData_G.pth", "8ca927835fa3f5e21d65ffcb165377ed", "MAT"),),
    "fcf": (_own("add_fcf/places_512_G.pth", "3323152bc01bf1c56fd8aba74435a211", "FCF"),),
    "manga": (
        _own("manga/manga_inpaintor.jit", "7d8b269c4613b6b3768af714610da86c", "MANGA_INPAINTOR"),
        _own("manga/erika.jit", "0c926d5a4af8450b0d00bc5b9a095644", "MANGA_LINE"),
    ),
    "cv2": (),
    "sd1.5": (HubFolder("runwayml/stable-diffusion-inpainting"),),
    "anything4": (HubFolder("Sanster/anything-4.0-inpainting"),),
    "realisticVision1.4": (HubFolder("Sanster/Realistic_Vision_V1.4-inpainting"),),
    "sd2": (HubFolder("stabilityai/stable-diffusion-2-inpainting"),),
    "paint_by_example": (HubFolder("Fantasy-Studio/Paint-by-Example", has_half=False),),
    "instruct_pix2pix": (HubFolder("timbrooks/instruct-pix2pix"),),
}
"""By upstream's names of its models."""

PLUGINS: Mapping[str, Mapping[str, tuple[WebFile, ...]]] = {
    "InteractiveSeg": {
        kind: (WebFile(f"{SEGMENT_ANYTHING}/{name}", md5),)
        for kind, name, md5 in (
            ("vit_l", "sam_vit_l_0b3195.pth", "0b3195507c641ddb6910d2bb5adee89c"),
            ("vit_b", "sam_vit_b_01ec64.pth", "01ec64d29a2fca3f0661936605ae66f8"),
            ("vit_h", "sam_vit_h_4b8939.pth", "4b8939a88964f0f4ff5f5b2642c598a6"),
        )
    },
    "RemoveBG": {"": (WebFile(f"{REMBG}/v0.0.0/u2net.onnx", "60024c5c889badc19c04ad937298a77b"),)},
    "AnimeSeg": {"": (WebFile(f"{RELEASES}/isnetis/isnetis.pth", "5f25479076b73074730ab8de9e8f2051"),)},
    "RealESRGAN": {
        name: (WebFile(f"{REAL_ESRGAN}/{version}/{name}.pth", md5),)
        for name, version, md5 in (
            ("realesr-general-x4v3", "v0.2.5.0", "91a7644643c884ee00737db24e478156"),
            ("RealESRGAN_x4plus", "v0.1.0", "99ec365d4afad750833258a1a24f44ca"),
            ("RealESRGAN_x4plus_anime_6B", "v0.2.2.4", "d58ce384064ec1591c2ea7b79dbf47ba"),
        )
    },
    "GFPGAN": {
        "": (
            WebFile(f"{GFPGAN}/v1.3.0/GFPGANv1.4.pth", "94d735072630ab734561130a47bc44f8"),
            _RESNET,
            _PARSENET,
        )
    },
    "RestoreFormer": {
        "": (
            WebFile(f"{GFPGAN}/v1.3.4/RestoreFormer.pth", "eaeeff6c4a1caa1673977cb374e6f699"),
            _RESNET,
            _PARSENET,
        )
    },
    "MakeGIF": {"": ()},
}
"""By upstream's names of its plugins and, where there is a choice, of their networks, the default first."""

TORCH_MODELS = ("lama", "manga")
"""Models that the node program in Rust runs; it finds their files by itself."""

CONTROLNETS = (
    "control_v11p_sd15_canny",
    "control_v11p_sd15_openpose",
    "control_v11p_sd15_inpaint",
    "control_v11f1p_sd15_depth",
)
"""Repositories that sd1.5, anything4 and realisticVision1.4 need in addition with ControlNet."""


def sources() -> dict[str, tuple[Source, ...]]:
    """All that can be fetched, by the names of the command line: ``lama``, ``plugin/RealESRGAN``,
    ``plugin/RealESRGAN/RealESRGAN_x4plus``, ``control_v11p_sd15_canny``."""
    found: dict[str, tuple[Source, ...]] = dict(MODELS)
    for plugin, networks in PLUGINS.items():
        for number, (network, files) in enumerate(networks.items()):
            found[PLUGIN_PREFIX + plugin + (f"/{network}" if number else "")] = files
    for method in CONTROLNETS:
        found[method] = (HubFolder(f"lllyasviel/{method}", marker="config.json", has_half=False),)
    return found


def is_present(name: str, env: Mapping[str, str]) -> bool:
    """Whether all files of a model, or of a plugin with one of its networks, are on this host."""
    if name.startswith(PLUGIN_PREFIX):
        networks = PLUGINS[name.removeprefix(PLUGIN_PREFIX)].values()
        return any(all(file.is_present(env) for file in files) for files in networks)
    return all(source.is_present(env) for source in MODELS[name])


def checkpoints(env: Mapping[str, str]) -> Path:
    """Upstream's directory: ``CACHE_DIR``, which its server makes ``TORCH_HOME``, then torch's own rules."""
    home = env.get("CACHE_DIR") or env.get("TORCH_HOME") or str(_cache(env) / "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def hub_cache(env: Mapping[str, str]) -> Path:
    """huggingface_hub's directory, by its own rules."""
    whole = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE")
    if whole:
        return Path(whole).expanduser()
    return Path(env.get("HF_HOME") or str(_cache(env) / "huggingface")).expanduser() / "hub"


def _cache(env: Mapping[str, str]) -> Path:
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
