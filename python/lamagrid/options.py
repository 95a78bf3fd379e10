"""The options of a task: their names, types and values, and which models read which.

The names are those of Lama Cleaner's ``Config`` and of the arguments that build its models and plugins.
``tests/seam/test_options.py`` holds them against upstream's own.

Does not: import upstream; submit anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lamagrid.errors import InvalidInputError
from lamagrid.upstream.catalog import CONTROLNETS, PLUGINS
from lamagrid.upstream.forms import BOOL, FLOAT, INPAINT_FIELDS, INT, STR, STRATEGIES, Option

INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1
PIXELS_MAX = 2**40
"""Larger margins and limits have the same effect: no picture is as large."""
KEEP_ORIENTATION = "keep_orientation"
"""Keeps the orientation in the EXIF of an encoded result, as upstream does; the pixels are upright anyway."""


CONFIG: Mapping[str, Option] = {name: field.option for name, field in INPAINT_FIELDS.items()}
"""Upstream's ``Config`` without the example picture, which is an input of its own."""

BUILD: Mapping[str, Option] = {
    "sd_controlnet": BOOL,
    "sd_controlnet_method": Option(str, CONTROLNETS),
    "no_half": BOOL,
    "disable_nsfw": BOOL,
    "sd_cpu_textencoder": BOOL,
    "sd_run_local": BOOL,
    "sd_local_model_path": STR,
    "local_files_only": BOOL,
    "cpu_offload": BOOL,
    "enable_xformers": BOOL,
}
"""Upstream's constructor options that change the result of a model. ``hf_access_token`` is not among them: a
secret belongs into the configuration of a node, never into a task."""

_OTHERS: Mapping[str, Option] = {
    KEEP_ORIENTATION: BOOL,
    # For the echo backend, which replaces models in tests.
    "echo_ms": INT,
    "echo_abort": INT,
}
MODEL_OPTIONS: Mapping[str, Option] = {**CONFIG, **BUILD, **_OTHERS}

_UPSCALER = {
    "realesrgan_model": Option(str, tuple(PLUGINS["RealESRGAN"])),
    "realesrgan_no_half": BOOL,
}
_FILE = {"quality": INT, KEEP_ORIENTATION: BOOL}
_FACES = {"background": BOOL, **_UPSCALER, **_FILE}
PLUGIN_OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "InteractiveSeg": {
        "clicks": STR,
        "interactive_seg_model": Option(str, tuple(PLUGINS["InteractiveSeg"])),
        **_FILE,
    },
    "RemoveBG": _FILE,
    "AnimeSeg": _FILE,
    "RealESRGAN": {"upscale": FLOAT, **_UPSCALER, **_FILE},
    "GFPGAN": _FACES,
    "RestoreFormer": _FACES,
    "MakeGIF": _FILE,
}
"""For each plugin: its fields of upstream's form, how it is built, and the form of its answer."""

_CROPER = ("use_croper", "croper_x", "croper_y", "croper_height", "croper_width", "sd_scale")
_DIFFUSION = frozenset(
    [
        *_CROPER,
        "prompt",
        "negative_prompt",
        "sd_mask_blur",
        "sd_steps",
        "sd_guidance_scale",
        "sd_sampler",
        "sd_seed",
        "sd_match_histograms",
    ]
)
_STRATEGY = frozenset(name for name in CONFIG if name.startswith("hd_strategy"))
READ: Mapping[str, frozenset[str]] = {
    "lama": _STRATEGY,
    "ldm": _STRATEGY | {"ldm_steps", "ldm_sampler"},
    "zits": _STRATEGY | {"zits_wireframe"},
    "mat": _STRATEGY,
    "fcf": frozenset(),
    "manga": _STRATEGY,
    "cv2": _STRATEGY | {"cv2_flag", "cv2_radius"},
    "sd1.5": _DIFFUSION,
    "anything4": _DIFFUSION,
    "realisticVision1.4": _DIFFUSION,
    "sd2": _DIFFUSION,
    "paint_by_example": frozenset(
        [
            *_CROPER,
            "paint_by_example_steps",
            "paint_by_example_mask_blur",
            "paint_by_example_seed",
            "paint_by_example_match_histograms",
        ]
    ),
    "instruct_pix2pix": frozenset(
        [
            *_CROPER,
            "prompt",
            "negative_prompt",
            "p2p_steps",
            "p2p_image_guidance_scale",
            "p2p_guidance_scale",
            "sd_seed",
        ]
    ),
}
"""The fields of ``Config`` that each of upstream's models reads."""
_CONTROLNET = frozenset(["controlnet_conditioning_scale", "controlnet_method"])
_OF_STRATEGY: Mapping[str, frozenset[str]] = {
    "Crop": frozenset(["hd_strategy", "hd_strategy_crop_margin", "hd_strategy_crop_trigger_size"]),
    "Resize": frozenset(["hd_strategy", "hd_strategy_resize_limit"]),
    "Original": frozenset(["hd_strategy"]),
}


def read_by(model: str, config: Mapping[str, Any], build: Mapping[str, Any]) -> dict[str, Any]:
    """Select the fields that a model reads, so that an invalid value of another field refuses no task.

    Args:
        model: Upstream's name, or that of a model of lama's signature.
        config: Upstream's fields; an unknown strategy becomes ``Original``, as in upstream.
        build: How the model is built.
    """
    names = READ.get(model, READ["lama"])
    fields = {name: value for name, value in config.items() if name in names}
    if "hd_strategy" in fields:
        if fields["hd_strategy"] not in STRATEGIES:
            fields["hd_strategy"] = "Original"
        wanted = _OF_STRATEGY[fields["hd_strategy"]]
        fields = {name: value for name, value in fields.items() if name not in _STRATEGY or name in wanted}
        for name in wanted - {"hd_strategy"}:
            fields[name] = max(-PIXELS_MAX, min(fields[name], PIXELS_MAX))
    if "use_croper" in fields and not fields["use_croper"]:
        fields = {name: value for name, value in fields.items() if not name.startswith("croper_")}
    if build.get("sd_controlnet"):
        fields |= {name: value for name, value in config.items() if name in _CONTROLNET}
    return fields


def checked(
    values: Mapping[str, Any], options: Mapping[str, Option], others: Collection[str] = ()
) -> dict[str, Any]:
    """Check options and make plain values of numpy's numbers and of enumerations.

    Args:
        values: By name; None is the default.
        options: The known ones.
        others: Names of the caller's other arguments, for the suggestion in the error text.

    Raises:
        InvalidInputError: A name or value is unknown, or of the wrong type; the text suggests the nearest.
    """
    plain = {}
    for name, value in values.items():
        if name not in options:
            raise InvalidInputError(f"there is no option {name}{nearest(name, [*options, *others])}")
        plain[name] = None if value is None else _value(name, _plain(name, value), options[name])
    return plain


def chosen(name: str, value: Any, choices: Iterable[str]) -> str:
    """Check that a value is one of several words.

    Raises:
        InvalidInputError: It is not; the text suggests the nearest one.
    """
    words = tuple(choices)
    if isinstance(value, str) and value in words:
        return value
    raise InvalidInputError(f"{name} is {_shown(value)}{nearest(value, words)}; it may be {', '.join(words)}")


def nearest(word: Any, words: Collection[str]) -> str:
    """The suggestion at the end of an error text: the most similar word, if one is similar."""
    import difflib  # here, because it is needed for misspelt names only

    lower = {each.lower(): each for each in words}
    found = difflib.get_close_matches(str(word).lower(), lower, 1, 0.6)
    return f", did you mean {lower[found[0]]}?" if found else ""


def _plain(name: str, value: Any) -> bool | int | float | str:
    if type(value) in (bool, int, float, str):
        same: bool | int | float | str = value
        return same
    for attribute in ("value", "item"):  # an enumeration's member, a number of numpy
        inner = getattr(value, attribute, None)
        inner = inner() if callable(inner) else inner
        if isinstance(inner, (bool, int, float, str)):
            return inner
    raise InvalidInputError(
        f"{name} is a {type(value).__name__}, but must be a text, a number, a boolean or None"
    )


def _value(name: str, value: bool | int | float | str, option: Option) -> bool | int | float | str:
    if option.choices:
        return chosen(name, value, option.choices)
    kind = type(value)
    if option.kind is float and kind is int:
        return float(value)
    if kind is not option.kind:
        wanted = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
        raise InvalidInputError(f"{name} is {_shown(value)}, but must be {wanted[option.kind]}")
    if kind is int and not INTEGER_MIN <= int(value) <= INTEGER_MAX:
        if name.endswith("_seed"):
            return str(value)  # torch takes seeds of 64 bits without a sign; upstream reads the number again
        raise InvalidInputError(f"{name} is {_shown(value)}, but must be from -2^63 to 2^63 - 1")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
