"""Runs a task through one of upstream's own plugins.

Does not: know sessions or ids of tasks. Only one thread may use it at a time.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from lama_cleaner.helper import load_img, numpy_to_bytes, pil_to_bytes
from lama_cleaner.model.utils import set_seed, torch_gc
from lama_cleaner.plugins import (
    AnimeSeg,
    GFPGANPlugin,
    InteractiveSeg,
    MakeGIF,
    RealESRGANUpscaler,
    RemoveBG,
    RestoreFormerPlugin,
)
from PIL import Image

from lamagrid.options import KEEP_ORIENTATION
from lamagrid.pixel_limit import too_large
from lamagrid.pynode.failures import Stopped, TaskFailure, load_failure, run_failure
from lamagrid.pynode.opencv import without_ipp
from lamagrid.pynode.progress import FetchProgress, Progress
from lamagrid.upstream import catalog, patches
from lamagrid.upstream.catalog import PLUGIN_PREFIX, WebFile
from lamagrid.weights.fetch import fetch_missing

PLUGINS: Mapping[str, Any] = {
    each.name: each
    for each in (
        InteractiveSeg,
        RemoveBG,
        AnimeSeg,
        RealESRGANUpscaler,
        GFPGANPlugin,
        RestoreFormerPlugin,
        MakeGIF,
    )
}
"""Upstream's plugins by the names of its page."""

ANSWERS_PNG = (RemoveBG.name, AnimeSeg.name)
SEED = 42
"""Set before each task: GFPGAN draws noise from generators whose state depends on earlier tasks."""
ORIENTATION = 274
"""EXIF's tag."""
EMBEDDINGS = 16
"""Pictures whose embedding InteractiveSeg keeps: 4 MiB each."""


class UpstreamPlugins:
    """Upstream's plugins, each built when a task asks for it, with the options of that task.

    Args:
        devices: The device of each plugin that is served; upstream runs the others on the processor.
        max_pixels: Of one picture; one with more is refused by its header.

    Attributes:
        load_ms: How long building the plugin took for the last task; 0 when it was in memory.
        infer_ms: How long the plugin took for the last task, decoding and encoding included.
    """

    load_ms = 0.0
    infer_ms = 0.0

    def __init__(self, devices: Mapping[str, str], max_pixels: int) -> None:
        without_ipp()
        self.max_pixels = max_pixels
        patches.install(patches.Stage.NODE_IMPORT)
        patches.install(patches.Stage.NODE, self)
        self._devices = devices
        self._built: dict[str, tuple[Mapping[str, Any], Any]] = {}
        self._embeddings = Embeddings(EMBEDDINGS)

    @property
    def loaded(self) -> list[str]:
        """The plugins in memory."""
        return list(self._built)

    def run(
        self,
        name: str,
        params: Mapping[str, Any],
        image: bytes,
        example: bytes | None = None,
        progress: Progress | None = None,
    ) -> bytes:
        """Work on one picture.

        Args:
            name: Upstream's name of the plugin.
            params: The fields of upstream's form that it reads; how it is built: ``interactive_seg_model``,
                ``realesrgan_model``, ``realesrgan_no_half``, ``background`` (whether RealESRGAN makes the
                background of faces); ``quality`` of a lossy answer, and whether its EXIF has the orientation
                of the picture's, as upstream's has (``keep_orientation``).
            image: The picture's file, as it was uploaded.
            example: The file that MakeGIF compares with.
            progress: Called with the progress of the work.

        Returns:
            A file: PNG, GIF or of the picture's format.

        Raises:
            TaskFailure: It cannot be done; the plugin stays usable.

        Source: Lama Cleaner 1.2.5, ``server.run_plugin``.
        """
        began = time.monotonic()
        plugin = self._plugin(name, params, progress or Progress())
        loaded = time.monotonic()
        self.load_ms = (loaded - began) * 1_000
        try:
            for file in (image, example):
                text = None if file is None else too_large(io.BytesIO(file), self.max_pixels)
                if text is not None:
                    raise TaskFailure("invalid_input", f"A picture is refused: {text}")
            rgb, alpha, exif = load_img(image, return_exif=True)
            if not params.get(KEEP_ORIENTATION) and ORIENTATION in exif["exif"]:
                exif["exif"][ORIENTATION] = 1  # its pixels are upright now
            form = {**params, "img_md5": hashlib.md5(image, usedforsecurity=False).hexdigest()}
            set_seed(SEED)
            files = {} if example is None else {"clean_img": io.BytesIO(example)}
            if name == InteractiveSeg.name:
                made = self._embeddings.around(plugin, form["img_md5"], lambda: plugin(rgb, files, form))
            else:
                made = plugin(rgb, files, form)
            if name == MakeGIF.name:
                answer: bytes = made
            elif name == InteractiveSeg.name:
                answer = numpy_to_bytes(made, "png")
            else:
                source = _Source(image, alpha, exif)
                answer = _encoded(name, made, source, int(params.get("quality", 95)))
        except TaskFailure:
            raise
        except Exception as error:
            raise run_failure(error) from error
        finally:
            torch_gc()
        self.infer_ms = (time.monotonic() - loaded) * 1_000
        return answer

    def load(self, name: str, params: Mapping[str, Any]) -> None:
        """Build the plugin as :meth:`run` does for a task of these parameters.

        Raises:
            TaskFailure: It cannot be built.
        """
        self._plugin(name, params, Progress())

    def _plugin(self, name: str, params: Mapping[str, Any], progress: Progress) -> Any:
        if name not in PLUGINS:
            raise TaskFailure("unknown_model", f"Plugin not found: {name}")
        options = {key: params[key] for key in OPTIONS.get(name, ()) if key in params}
        if name in self._built and self._built[name][0] == options:
            return self._built[name][1]
        progress.loading_began()
        self._built.pop(name, None)
        if name == InteractiveSeg.name:
            self._embeddings.clear()
        try:
            fetch_missing(files_of(name, options), progress.fetched)
            plugin = self._build(name, options, progress)
        except (Stopped, TaskFailure):
            raise
        except (Exception, SystemExit) as error:  # upstream exits where a package or a file is missing
            raise load_failure(PLUGIN_PREFIX + name, error, missing_package(name)) from error
        progress.loading_ended()
        self._built[name] = (options, plugin)
        return plugin

    def _build(self, name: str, options: Mapping[str, Any], progress: Progress) -> Any:
        device = self._devices.get(name, "cpu")
        if name == InteractiveSeg.name:
            return InteractiveSeg(options.get("interactive_seg_model", "vit_l"), device)
        if name == RealESRGANUpscaler.name:
            model = options.get("realesrgan_model", "realesr-general-x4v3")
            return RealESRGANUpscaler(model, device, no_half=options.get("realesrgan_no_half", False))
        if name in (GFPGANPlugin.name, RestoreFormerPlugin.name):
            upscaler = None
            if options.get("background"):
                upscaler = self._plugin(RealESRGANUpscaler.name, options, FetchProgress(progress))
            return PLUGINS[name](device, upscaler=upscaler)
        return PLUGINS[name]()


# The parameters that decide how a plugin is built.
_UPSCALER = ("realesrgan_model", "realesrgan_no_half")
OPTIONS: Mapping[str, tuple[str, ...]] = {
    InteractiveSeg.name: ("interactive_seg_model",),
    RealESRGANUpscaler.name: _UPSCALER,
    GFPGANPlugin.name: ("background", *_UPSCALER),
    RestoreFormerPlugin.name: ("background", *_UPSCALER),
}


NETWORKS: Mapping[str, str] = {
    InteractiveSeg.name: "interactive_seg_model",
    RealESRGANUpscaler.name: "realesrgan_model",
}
"""The parameter that chooses a plugin's network."""


def files_of(name: str, params: Mapping[str, Any]) -> tuple[WebFile, ...]:
    """The files that a plugin needs with these parameters; its own default network is the first."""
    networks = catalog.PLUGINS[name]
    network = params.get(NETWORKS.get(name, ""), next(iter(networks)))
    return networks.get(network, ())


class Embeddings:
    """Caches what InteractiveSeg computed of the last pictures, for people who click by turns.

    Upstream keeps one, in ``predictor`` and ``prev_img_md5``; this sets those two before a call.
    """

    KEYS = ("features", "original_size", "input_size", "is_image_set")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget all, when the network that computed them is unloaded."""
        self._kept.clear()

    def around(self, plugin: Any, key: str, call: Callable[[], Any]) -> Any:
        """Make the call with the embedding of the picture ``key`` set, if it is known."""
        predictor = plugin.predictor
        known = self._kept.get(key)
        if known is not None:
            self._kept.move_to_end(key)
            vars(predictor).update(known)
            plugin.prev_img_md5 = key
        try:
            return call()
        except BaseException:
            plugin.prev_img_md5 = None  # upstream sets this before it has computed the embedding
            raise
        finally:
            if plugin.prev_img_md5 == key and known is None:
                self._kept[key] = {name: getattr(predictor, name) for name in self.KEYS}
                while len(self._kept) > self._limit:
                    self._kept.popitem(last=False)


def missing_package(name: str) -> str | None:
    """The remedy where upstream cannot import a plugin's package; None if it can."""
    patches.install(patches.Stage.NODE_IMPORT)
    if PLUGINS[name].check_dep(None) is None:
        return None
    return "its package is not installed here: pip install 'lamagrid[plugins]'"


@dataclass(frozen=True)
class _Source:
    """The picture that a plugin worked on: its file, and what upstream's `load_img` gives besides pixels."""

    file: bytes
    alpha: Any
    exif: Any


def _encoded(name: str, made: Any, source: _Source, quality: int) -> bytes:
    """The answer's file, as upstream's server makes it."""
    alpha = source.alpha
    if name in ANSWERS_PNG:
        rgb, form = made, "png"
    else:
        rgb = cv2.cvtColor(made, cv2.COLOR_BGR2RGB)
        form = importlib.import_module("imghdr").what("", source.file) or "jpeg"
        if alpha is not None:
            if alpha.shape[:2] != rgb.shape[:2]:
                alpha = cv2.resize(alpha, dsize=(rgb.shape[1], rgb.shape[0]))
            rgb = np.concatenate((rgb, alpha[:, :, np.newaxis]), axis=-1)
    file: bytes = pil_to_bytes(Image.fromarray(rgb), form, quality=quality, exif_infos=source.exif)
    return file
