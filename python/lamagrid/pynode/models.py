"""Runs a task through upstream's own ``ModelManager``.

Does not: know sessions or ids of tasks. Only one thread may use it at a time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lama_cleaner.const import AVAILABLE_MODELS
from lama_cleaner.model.utils import set_seed, torch_gc
from lama_cleaner.model_manager import ModelManager
from lama_cleaner.schema import Config
from numpy.typing import NDArray
from PIL import Image

from lamagrid.options import BUILD, KEEP_ORIENTATION
from lamagrid.pynode.failures import Stopped, TaskFailure, load_failure, message, run_failure
from lamagrid.pynode.opencv import without_ipp
from lamagrid.pynode.progress import Progress
from lamagrid.upstream import catalog
from lamagrid.upstream.forms import INPAINT_FIELDS
from lamagrid.weights.fetch import fetch_missing

Pixels = NDArray[np.uint8]

# Some models draw from generators that the whole process shares (ldm its first noise, mat its dropout): their
# answers would depend on the tasks before. So each task starts from a seed, upstream's for that model.
SEEDS: Mapping[str, int] = {"ldm": 42, "manga": 42, "mat": 240, "fcf": 0, "*": 42}

# Upstream's constructors read some of these without a default.
OPTION_DEFAULTS: Mapping[str, Any] = {
    "sd_controlnet": False,
    "sd_controlnet_method": "control_v11p_sd15_canny",
    "hf_access_token": "",
    "disable_nsfw": False,
    "sd_cpu_textencoder": False,
    "sd_run_local": False,
    "sd_local_model_path": None,
    "local_files_only": False,
    "cpu_offload": False,
    "enable_xformers": False,
    "no_half": False,
}


@dataclass(frozen=True)
class Pictures:
    """The inputs of a task.

    Attributes:
        image: ``(H, W, 3)`` u8 RGB; some models write into it.
        mask: ``(H, W)`` u8, 255 in the hole.
        example: ``(h, w, 3)`` u8 RGB, for paint by example.
    """

    image: Pixels
    mask: Pixels
    example: Pixels | None = None


class UpstreamModels:
    """One model of upstream in memory at a time, built when a task asks for it.

    Args:
        device: As torch names it: ``cpu``, ``cuda``, ``cuda:1``.
        hf_access_token: Upstream's option for models behind a login; it belongs to the node, not to tasks.

    Attributes:
        load_ms: How long building the model took for the last task; 0 when it was in memory.
        infer_ms: How long upstream's model took for the last task, its pixel work included.
    """

    load_ms = 0.0
    infer_ms = 0.0

    def __init__(self, device: str, hf_access_token: str = "") -> None:
        without_ipp()
        self._device = torch.device(device)
        self._token = hf_access_token
        self._manager: Any = None
        self._built: tuple[str, tuple[tuple[str, Any], ...]] | None = None
        self._progress = Progress()
        self._steps = 0

    @property
    def loaded(self) -> list[str]:
        """The model in memory, if there is one."""
        return [self._built[0]] if self._built is not None else []

    def run(
        self,
        model: str,
        params: Mapping[str, Any],
        pictures: Pictures,
        progress: Progress,
    ) -> Pixels:
        """Inpaint.

        Args:
            model: Upstream's name.
            params: Fields of upstream's ``Config``, and options of its models.
            pictures: Its inputs.
            progress: Called with the progress of the work.

        Returns:
            ``(H, W, 3)`` u8 BGR, cast as upstream's server casts.

        Raises:
            TaskFailure: It cannot be done; the model stays usable.
            Stopped: ``progress`` asked for it.
        """
        options = {key: value for key, value in params.items() if key in BUILD}
        # The orientation matters to the encoder of the answer only.
        others = BUILD.keys() | {KEEP_ORIENTATION}
        config = _config({key: value for key, value in params.items() if key not in others}, pictures.example)
        began = time.monotonic()
        manager = self._manager_for(model, options, progress)
        loaded = time.monotonic()
        self.load_ms = (loaded - began) * 1_000
        self._progress, self._steps = progress, config.sd_steps
        set_seed(SEEDS.get(model, SEEDS["*"]))
        try:
            result = manager(pictures.image, pictures.mask, config)
            self.infer_ms = (time.monotonic() - loaded) * 1_000
            # Truncates and wraps like upstream's server; the Resize strategy does give values outside u8.
            with np.errstate(invalid="ignore"):
                pixels: Pixels = np.ascontiguousarray(result.astype(np.uint8))
            return pixels
        except (Stopped, TaskFailure):
            raise
        except SystemExit as error:  # upstream's answer to a broken weights file, here of ControlNet
            raise self._load_failure(model, error) from error
        except Exception as error:
            if not hasattr(
                manager, "model"
            ):  # upstream dropped it for another controlnet method, then failed
                self._manager, self._built = None, None
            raise run_failure(error) from error
        finally:
            self._progress = Progress()
            torch_gc()

    def load(self, model: str, params: Mapping[str, Any]) -> None:
        """Build the model as :meth:`run` does for a task of these parameters.

        Raises:
            TaskFailure: It cannot be built.
        """
        options = {key: value for key, value in params.items() if key in BUILD}
        self._manager_for(model, options, Progress())

    def _manager_for(self, model: str, options: Mapping[str, Any], progress: Progress) -> Any:
        # The ControlNet method needs no new model: upstream changes it within a request.
        wanted = (model, tuple(sorted((k, v) for k, v in options.items() if k != "sd_controlnet_method")))
        if self._built == wanted:
            return self._manager
        if model not in AVAILABLE_MODELS:
            raise TaskFailure("unknown_model", f"Not supported model: {model}")
        progress.loading_began()
        # Unload it first: two models may not fit into the memory of the device.
        self._manager, self._built = None, None
        gc.collect()
        torch_gc()
        try:
            fetch_missing(catalog.MODELS.get(model, ()), progress.fetched)
            self._manager = ModelManager(
                name=model,
                device=self._device,
                callback=self._on_step,
                **{**OPTION_DEFAULTS, "hf_access_token": self._token, **options},
            )
        except NotImplementedError as error:
            raise TaskFailure("unknown_model", message(error)) from error
        except Stopped:
            raise
        except (Exception, SystemExit) as error:
            raise self._load_failure(model, error) from error
        progress.loading_ended()
        self._built = wanted
        return self._manager

    def _load_failure(self, model: str, error: BaseException) -> TaskFailure:
        self._manager, self._built = None, None
        return load_failure(model, error)

    def _on_step(self, i: int, _t: Any, _latents: Any) -> None:
        if not self._progress.step(i + 1, self._steps):
            raise Stopped


def _config(fields: Mapping[str, Any], example: Pixels | None) -> Any:
    """Upstream's ``Config`` of a task; its required fields have the page's defaults for lama."""
    unknown = sorted(set(fields) - set(Config.__fields__))
    if unknown:
        raise TaskFailure("invalid_input", f"Unknown parameter: {', '.join(unknown)}")
    required = [name for name, field in Config.__fields__.items() if field.required]
    whole: dict[str, Any] = {**{name: INPAINT_FIELDS[name].default for name in required}, **fields}
    if example is not None:
        whole["paint_by_example_example_image"] = Image.fromarray(example)
    try:
        return Config(**whole)
    except ValueError as error:  # pydantic's ValidationError is one
        raise TaskFailure("invalid_input", message(error)) from error
