"""Upstream's own server in this process, answering as stock does."""

from __future__ import annotations

import importlib
import io
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.stock import stock_manager

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class StockAnswer:
    """Stock's answer, and how it came to it.

    Attributes:
        status: HTTP status.
        headers: By lower-case name.
        body: The file, or the text.
        pixels: The encoded picture: ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA; None without a picture.
        failed_in_model: Whether the model, the strategy around it included, raised something.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    pixels: Pixels | None
    failed_in_model: bool


class StockPage:
    """Posts requests to the unchanged server code, with two places watched. Threads may share it."""

    def __init__(self, model_path: Path) -> None:
        self._server: Any = importlib.import_module("lama_cleaner.server")
        self._seen = threading.local()
        manager = stock_manager("lama", model_path)
        encode = self._server.pil_to_bytes

        def watched_model(image: Any, mask: Any, config: Any) -> Any:
            self._seen.failed = True
            result = manager(image, mask, config)
            self._seen.failed = False
            return result

        def watched_encode(picture: Any, *args: Any, **kwargs: Any) -> Any:
            self._seen.pixels = np.array(picture)
            return encode(picture, *args, **kwargs)

        self._server.model = watched_model
        self._server.pil_to_bytes = watched_encode
        self._encode = encode

    def close(self) -> None:
        """Leave the module as it was."""
        self._server.pil_to_bytes = self._encode
        self._server.model = None

    def inpaint(self, image: bytes | None, mask: bytes | None, form: dict[str, str]) -> StockAnswer:
        """POST /inpaint; a part that is None is left out."""
        self._seen.failed, self._seen.pixels = False, None
        body: dict[str, Any] = dict(form)
        for name, part in (("image", image), ("mask", mask)):
            if part is not None:
                body[name] = (io.BytesIO(part), name)
        if image is None and mask is None:
            body["nothing"] = (io.BytesIO(b""), "x")
        with self._server.app.test_client() as page:
            answer = page.post("/inpaint", data=body, content_type="multipart/form-data")
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return StockAnswer(answer.status_code, headers, answer.data, self._seen.pixels, self._seen.failed)
