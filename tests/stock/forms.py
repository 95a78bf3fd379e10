"""The form that Lama Cleaner's page sends to ``/inpaint``."""

from __future__ import annotations

from lamagrid.upstream.forms import page_form

# strategy, resize limit, crop trigger, crop margin: the page's defaults per model.
HD_DEFAULTS: dict[str, tuple[str, int, int, int]] = {
    "lama": ("Crop", 2048, 800, 196),
    "ldm": ("Crop", 1080, 1080, 128),
    "zits": ("Crop", 1024, 1024, 128),
    "mat": ("Crop", 1024, 512, 128),
    "manga": ("Crop", 1280, 1024, 196),
    "cv2": ("Resize", 1080, 512, 128),
    "fcf": ("Crop", 512, 512, 128),
}


def stock_form(model: str = "lama", **overrides: object) -> dict[str, str]:
    """All 34 mandatory fields with the page's defaults for a model.

    ``overrides`` replace values; ``None`` leaves a field out; a field that the page does not know is a
    ``KeyError``.
    """
    strategy, limit, trigger, margin = HD_DEFAULTS.get(model, ("Original", 768, 512, 128))
    form = {
        **page_form(),
        "hdStrategy": strategy,
        "hdStrategyCropMargin": str(margin),
        "hdStrategyCropTrigerSize": str(trigger),
        "hdStrategyResizeLimit": str(limit),
    }
    for name, value in overrides.items():
        if name not in form:
            raise KeyError(name)
        if value is None:
            del form[name]
        else:
            form[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return form
