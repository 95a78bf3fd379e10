"""Refuses over-large pictures by their header, before upstream decodes them, on web hosts and on nodes.

Does not: judge files that Pillow cannot open; upstream answers those as it always did.
"""

from __future__ import annotations

import warnings
from typing import Any

from PIL import Image


def set_for_pillow(max_pixels: int) -> None:
    """Let Pillow refuse what has more than twice ``max_pixels``, on every route.

    Pillow has a limit of its own, half of ours; up to ours it has no business here.
    """
    Image.MAX_IMAGE_PIXELS = max_pixels


def over(width: int, height: int, max_pixels: int) -> str | None:
    """Why a picture of that size is refused, None if it is not."""
    if width * height <= max_pixels:
        return None
    return (
        f"it has {width} x {height} = {width * height} pixels, at most {max_pixels} are accepted "
        "(limits.max_pixels). Send a smaller one."
    )


def too_large(stream: Any, max_pixels: int) -> str | None:
    """Why the picture in ``stream`` is refused, None if it is not. The stream is at its start afterwards."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(stream) as picture:  # reads the header alone
                width, height = picture.size
    except Image.DecompressionBombError:
        return (
            f"it has far more than the {max_pixels} pixels that are accepted (limits.max_pixels). "
            "Send a smaller one."
        )
    except Exception:  # whatever is wrong with the file, upstream meets it again and answers it
        return None
    finally:
        stream.seek(0)
    return over(width, height, max_pixels)
