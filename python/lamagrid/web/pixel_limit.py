"""Refuses over-large pictures by their header, before upstream decodes them.

Does not: judge files that Pillow cannot open; upstream answers those as it always did.
"""

from __future__ import annotations

from typing import Any

from PIL import Image


def register(app: Any, max_pixels: int) -> None:
    """Let ``app`` answer ``POST /inpaint`` with 413 where a picture has more than ``max_pixels``."""
    from flask import request

    # Pillow has a limit of its own, half of ours; up to ours it has no business here, beyond twice ours it
    # guards the other routes.
    Image.MAX_IMAGE_PIXELS = max_pixels

    def refuse_large_pictures() -> tuple[str, int] | None:
        if request.method != "POST" or request.path != "/inpaint":
            return None
        for field in ("image", "mask", "paintByExampleImage"):
            upload = request.files.get(field)
            if upload is None:
                continue
            text = too_large(upload.stream, max_pixels)
            if text is not None:
                return f"The {field} is too large: {text}", 413
        return None

    app.before_request(refuse_large_pictures)


def too_large(stream: Any, max_pixels: int) -> str | None:
    """Why the picture in ``stream`` is refused, None if it is not. The stream is at its start afterwards."""
    try:
        with Image.open(stream) as picture:  # reads the header alone
            width, height = picture.size
    except Image.DecompressionBombError:
        return f"it has far more than the {max_pixels} pixels that are accepted. Send a smaller one."
    except Exception:  # whatever is wrong with the file, upstream meets it again and answers it
        return None
    finally:
        stream.seek(0)
    if width * height <= max_pixels:
        return None
    return (
        f"it has {width} x {height} = {width * height} pixels, at most {max_pixels} are accepted "
        "(limits.max_pixels). Send a smaller one."
    )
