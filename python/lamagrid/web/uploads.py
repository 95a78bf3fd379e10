"""Reads uploaded files."""

from __future__ import annotations

import io
from typing import IO


def content(stream: IO[bytes]) -> bytes:
    """All bytes of an upload, without a copy if it is in memory."""
    return stream.getvalue() if isinstance(stream, io.BytesIO) else stream.read()
