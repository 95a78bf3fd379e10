"""Makes the Flask classes of the server: bounded forms, uploads in memory, texts that are plain text."""

from __future__ import annotations

import io
import threading
from typing import Any

from lamagrid.web.request_body import BoundedFormParser, max_file_bytes

UPLOADS_BYTES = 512 * 1024 * 1024
"""Uploads of all requests together that are held in memory; Werkzeug puts the others on disk."""


def make_request_class(base: type[Any], max_pixels: int) -> type[Any]:
    """The request class of a server whose pictures have at most ``max_pixels``."""
    parser = type("FormParser", (BoundedFormParser,), {"max_file_bytes": max_file_bytes(max_pixels)})
    return type("GridRequest", (with_uploads_in_memory(base),), {"form_data_parser_class": parser})


def make_response_class(base: type[Any]) -> type[Any]:
    """The response class whose texts are plain text unless the view says otherwise."""
    return type("PlainResponse", (base,), {"default_mimetype": "text/plain"})


class _UploadMemory:
    """Counts the uploads in memory of all requests that are being read or answered."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()  # guards _held
        self._held = 0
        self._limit = limit

    def take(self, size: int) -> bool:
        with self._lock:
            if self._held + size > self._limit:
                return False
            self._held += size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._held -= size


def with_uploads_in_memory(base: type[Any]) -> type[Any]:
    """A request class that keeps uploads in memory instead of temporary files, within `UPLOADS_BYTES`."""
    memory = _UploadMemory(UPLOADS_BYTES)

    class InMemoryRequest(base):  # type: ignore[misc]
        _held_bytes = 0

        def _get_file_stream(
            self,
            total_content_length: int | None,
            content_type: str | None,
            filename: str | None = None,
            content_length: int | None = None,
        ) -> Any:
            # A body holds all its files, so it is counted once.
            if not self._held_bytes and total_content_length and memory.take(total_content_length):
                self._held_bytes = total_content_length
            if self._held_bytes:
                return io.BytesIO()
            return super()._get_file_stream(total_content_length, content_type, filename, content_length)

        def close(self) -> None:
            super().close()
            held, self._held_bytes = self._held_bytes, 0
            memory.give_back(held)

    return InMemoryRequest
