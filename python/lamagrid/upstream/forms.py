"""The fields of upstream's forms, and of its ``Config``: names, types, words and defaults, in one table.

Does not: import upstream. `tests/seam/test_options.py` compares the table with upstream's own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lamagrid.upstream.catalog import CONTROLNETS


@dataclass(frozen=True)
class Option:
    """The values that a field accepts.

    Attributes:
        kind: Their type.
        choices: All of them, where they are words.
    """

    kind: type
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class FormField:
    """A mandatory field of ``/inpaint``.

    Attributes:
        form: Its name in the form.
        option: The values of the field of ``Config`` that it becomes.
        default: The value that upstream's page sends for lama.
    """

    form: str
    option: Option
    default: str


INT, FLOAT, BOOL, STR = Option(int), Option(float), Option(bool), Option(str)
STRATEGIES = ("Original", "Resize", "Crop")
SAMPLERS = ("ddim", "pndm", "k_lms", "k_euler", "k_euler_a", "dpm++", "uni_pc")

INPAINT_FIELDS: Mapping[str, FormField] = {
    "ldm_steps": FormField("ldmSteps", INT, "25"),
    "ldm_sampler": FormField("ldmSampler", Option(str, ("ddim", "plms")), "plms"),
    "hd_strategy": FormField("hdStrategy", Option(str, STRATEGIES), "Crop"),
    "zits_wireframe": FormField("zitsWireframe", BOOL, "true"),
    "hd_strategy_crop_margin": FormField("hdStrategyCropMargin", INT, "196"),
    "hd_strategy_crop_trigger_size": FormField("hdStrategyCropTrigerSize", INT, "800"),
    "hd_strategy_resize_limit": FormField("hdStrategyResizeLimit", INT, "2048"),
    "prompt": FormField("prompt", STR, ""),
    "negative_prompt": FormField("negativePrompt", STR, ""),
    "use_croper": FormField("useCroper", BOOL, "false"),
    "croper_x": FormField("croperX", INT, "0"),
    "croper_y": FormField("croperY", INT, "0"),
    "croper_height": FormField("croperHeight", INT, "512"),
    "croper_width": FormField("croperWidth", INT, "512"),
    "sd_scale": FormField("sdScale", FLOAT, "1"),
    "sd_mask_blur": FormField("sdMaskBlur", INT, "5"),
    "sd_strength": FormField("sdStrength", FLOAT, "0.75"),
    "sd_steps": FormField("sdSteps", INT, "50"),
    "sd_guidance_scale": FormField("sdGuidanceScale", FLOAT, "7.5"),
    "sd_sampler": FormField("sdSampler", Option(str, SAMPLERS), "uni_pc"),
    "sd_seed": FormField("sdSeed", INT, "-1"),
    "sd_match_histograms": FormField("sdMatchHistograms", BOOL, "false"),
    "cv2_flag": FormField("cv2Flag", Option(str, ("INPAINT_NS", "INPAINT_TELEA")), "INPAINT_NS"),
    "cv2_radius": FormField("cv2Radius", INT, "5"),
    "paint_by_example_steps": FormField("paintByExampleSteps", INT, "50"),
    "paint_by_example_guidance_scale": FormField("paintByExampleGuidanceScale", FLOAT, "7.5"),
    "paint_by_example_mask_blur": FormField("paintByExampleMaskBlur", INT, "5"),
    "paint_by_example_seed": FormField("paintByExampleSeed", INT, "-1"),
    "paint_by_example_match_histograms": FormField("paintByExampleMatchHistograms", BOOL, "false"),
    "p2p_steps": FormField("p2pSteps", INT, "50"),
    "p2p_image_guidance_scale": FormField("p2pImageGuidanceScale", FLOAT, "1.5"),
    "p2p_guidance_scale": FormField("p2pGuidanceScale", FLOAT, "7.5"),
    "controlnet_conditioning_scale": FormField("controlnet_conditioning_scale", FLOAT, "0.4"),
    "controlnet_method": FormField("controlnet_method", Option(str, CONTROLNETS), "control_v11p_sd15_canny"),
}
"""By the names of ``Config``: all of it but the example picture, which is a file of its own."""

PLUGIN_FIELDS: Mapping[str, tuple[str, ...]] = {"InteractiveSeg": ("clicks",), "RealESRGAN": ("upscale",)}
"""Fields of ``/run_plugin`` that a plugin cannot do without."""


def page_form() -> dict[str, str]:
    """The form that upstream's page sends for lama."""
    return {field.form: field.default for field in INPAINT_FIELDS.values()}
