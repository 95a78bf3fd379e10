"""The table of options against upstream's own code; what is misspelt; what a model does not read."""

from __future__ import annotations

import enum
import importlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamagrid.errors import InvalidInputError
from lamagrid.options import (
    BUILD,
    CONFIG,
    INTEGER_MAX,
    MODEL_OPTIONS,
    PIXELS_MAX,
    PLUGIN_OPTIONS,
    READ,
    checked,
    chosen,
    read_by,
)
from lamagrid.upstream import catalog

MODULES: Mapping[str, tuple[str, ...]] = {
    "lama": ("lama", "base"),
    "ldm": ("ldm", "base"),
    "zits": ("zits", "base"),
    "mat": ("mat", "base"),
    "fcf": ("fcf",),
    "manga": ("manga", "base"),
    "cv2": ("opencv2", "base"),
    "sd1.5": ("sd", "base"),
    "anything4": ("sd", "base"),
    "realisticVision1.4": ("sd", "base"),
    "sd2": ("sd", "base"),
    "paint_by_example": ("paint_by_example", "base"),
    "instruct_pix2pix": ("instruct_pix2pix", "base"),
}
"""Upstream's modules in which each model reads its parameters."""


def source(name: str) -> str:
    spec = importlib.util.find_spec("lama_cleaner")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]) / "model" / f"{name}.py").read_text()


def read_in(text: str) -> set[str]:
    text = re.sub(r"#.*", "", text)
    assigned = set(re.findall(r"config\.(\w+) = ", text))
    return set(re.findall(r"config\.(\w+)", text)) & set(CONFIG) - assigned


@pytest.mark.filterwarnings("ignore")  # upstream's, of what it stands on
def test_the_fields_types_and_words_are_upstreams() -> None:
    schema = importlib.import_module("lama_cleaner.schema")
    fields = {name: field for name, field in schema.Config.__fields__.items()}
    fields.pop("paint_by_example_example_image")
    assert {name: field.outer_type_ for name, field in fields.items()} == {
        name: option.kind for name, option in CONFIG.items()
    }

    def words(choices: type[enum.Enum]) -> set[str]:
        return {str(each.value) for each in choices}

    assert set(CONFIG["hd_strategy"].choices) == words(schema.HDStrategy)
    assert set(CONFIG["ldm_sampler"].choices) == words(schema.LDMSampler)
    assert set(CONFIG["sd_sampler"].choices) == words(schema.SDSampler)
    flags = set(re.findall(r'"(INPAINT_\w+)": cv2', source("opencv2")))
    assert set(CONFIG["cv2_flag"].choices) == flags
    models = importlib.import_module("lamagrid.pynode.models")
    assert set(models.OPTION_DEFAULTS) - {"hf_access_token"} == set(BUILD)
    plugins = importlib.import_module("lamagrid.pynode.plugins")
    assert set(PLUGIN_OPTIONS) == set(plugins.PLUGINS)
    for name, options in plugins.OPTIONS.items():
        assert set(options) <= set(PLUGIN_OPTIONS[name])


def test_what_each_model_reads_is_what_upstreams_code_reads() -> None:
    assert set(READ) == set(MODULES) == set(catalog.MODELS)
    plain, diffusion = source("base").split("    def _apply_cropper")
    for model, modules in MODULES.items():
        is_diffusion = any(name.startswith(("sd", "croper")) for name in READ[model])
        base = diffusion if is_diffusion else plain
        found = read_in("".join(base if name == "base" else source(name) for name in modules))
        assert found == READ[model], model
    of_controlnet = read_in(source("controlnet")) - READ["sd1.5"]
    given = {name: 1 for name in CONFIG}
    read = set(read_by("sd1.5", given, {"sd_controlnet": True}))
    assert of_controlnet <= read
    assert read - set(read_by("sd1.5", given, {})) == {"controlnet_conditioning_scale", "controlnet_method"}


@pytest.mark.parametrize("model", [*READ, "mine"])
@pytest.mark.parametrize("strategy", ["Crop", "Resize", "Original", "crop", "x" * 9_000])
def test_invalid_values_of_unread_options_refuse_no_task(model: str, strategy: str) -> None:
    absurd: dict[type, Any] = {int: 10**40, float: float("nan"), bool: True, str: "x" * 9_000}
    config = {name: absurd[option.kind] for name, option in CONFIG.items()}
    config["hd_strategy"] = strategy
    read = READ.get(model, READ["lama"])
    for name in read:
        if not name.startswith("hd_strategy"):
            config[name] = CONFIG[name].choices[0] if CONFIG[name].choices else CONFIG[name].kind(1)
    sent = checked(read_by(model, config, {}), MODEL_OPTIONS)
    assert set(sent) <= read
    assert sent.get("hd_strategy", "Original") in ("Crop", "Resize", "Original")
    if "hd_strategy" in read and strategy == "Crop":
        assert sent["hd_strategy_crop_margin"] == PIXELS_MAX


def test_an_unsigned_64_bit_seed_is_sent_as_text() -> None:
    """Torch takes it, and upstream makes a number of it again."""
    seed = {"sd_seed": 2**64 - 1}
    assert checked(seed, MODEL_OPTIONS) == {"sd_seed": str(2**64 - 1)}
    config = importlib.import_module("lama_cleaner.schema").Config
    needed = {"ldm_steps": 1, "hd_strategy": "Crop", "hd_strategy_crop_margin": 1}
    needed |= {"hd_strategy_crop_trigger_size": 1, "hd_strategy_resize_limit": 1}
    assert config(**needed, **checked(seed, MODEL_OPTIONS)).sd_seed == 2**64 - 1
    with pytest.raises(InvalidInputError, match=r"ldm_steps is .*from -2\^63"):
        checked({"ldm_steps": INTEGER_MAX + 1}, MODEL_OPTIONS)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("hd_stratgy", "Crop", "there is no option hd_stratgy, did you mean hd_strategy?"),
        (
            "hd_strategy",
            "resize",
            "hd_strategy is 'resize', did you mean Resize?; it may be Original, Resize",
        ),
        ("hd_strategy", "Tile", "hd_strategy is 'Tile'"),
        ("HD_STRATEGY", "Crop", "did you mean hd_strategy?"),
        ("sd_sampler", "ddin", "did you mean ddim?"),
        ("cv2_flag", "NS", "it may be INPAINT_NS, INPAINT_TELEA"),
        ("cv2_radius", 4.5, "cv2_radius is 4.5, but must be a whole number"),
        ("cv2_radius", "4", "cv2_radius is '4', but must be a whole number"),
        ("cv2_radius", True, "must be a whole number"),
        ("use_croper", 1, "must be True or False"),
        ("sd_scale", "1", "must be a number"),
        ("prompt", 7, "must be a text"),
        ("prompt", object(), "prompt is a object"),
        ("prioritty", 1, "did you mean priority?"),
        ("nothing_like_that", 1, "there is no option nothing_like_that$"),
        ("controlnet_method", "control_v11p_sd15_cany", "did you mean control_v11p_sd15_canny?"),
    ],
)
def test_misspelt_names_and_values_are_refused_with_a_suggestion(name: str, value: object, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text.replace("?", r"\?")):
        checked({name: value}, MODEL_OPTIONS, ["priority"])


def test_numpy_numbers_enumerations_and_none_are_accepted() -> None:
    strategy = importlib.import_module("lama_cleaner.schema").HDStrategy.RESIZE
    given = {
        "hd_strategy": strategy,
        "cv2_radius": np.int64(3),
        "sd_scale": np.float32(0.5),
        "sd_guidance_scale": 7,
        "zits_wireframe": np.bool_(True),
        "prompt": None,
    }
    plain = checked(given, MODEL_OPTIONS)
    assert plain == {
        "hd_strategy": "Resize",
        "cv2_radius": 3,
        "sd_scale": 0.5,
        "sd_guidance_scale": 7.0,
        "zits_wireframe": True,
        "prompt": None,
    }
    assert type(plain["sd_guidance_scale"]) is float


def test_chosen_accepts_only_the_listed_words() -> None:
    assert chosen("output", "png", ("png", "jpeg")) == "png"
    with pytest.raises(InvalidInputError, match=r"output is 'jpg', did you mean jpeg\?; it may be png, jpeg"):
        chosen("output", "jpg", ("png", "jpeg"))
    with pytest.raises(InvalidInputError, match="output is 7; it may be"):
        chosen("output", 7, ("png", "jpeg"))
