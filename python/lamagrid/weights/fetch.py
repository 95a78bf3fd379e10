"""Fetches upstream's files and those of the configuration as a Rust node does.

Goes through proxies, and resumes interrupted downloads.

Does not: fetch diffusers' folders; diffusers does.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from lamagrid import _native
from lamagrid.upstream import catalog
from lamagrid.upstream.catalog import Source, WebFile
from lamagrid.weights.configured import ConfiguredFile

OnProgress = Callable[[int, "int | None"], None]
"""Called with the bytes received and the total, also while none arrive; an exception ends the fetch."""

Version = tuple[int, int, int]
"""Inode, length and time of the last change."""


class Existing(enum.Enum):
    """How a fetch treats an existing file."""

    KEEP = "returns it"
    REPLACE = "fetches it anew"


def fetch(file: WebFile, on_progress: OnProgress, existing: Existing = Existing.KEEP) -> Path:
    """Fetch a file.

    Raises:
        ModelLoadError: It cannot be fetched, or differs from upstream's; the text says what to do.
    """
    url, md5 = file.source(os.environ)
    wanted: _native._WeightsFile = {
        "url": url,
        "md5": md5,
        "checkpoints": catalog.checkpoints(os.environ),
        "path": None,
        "sha256": None,
        "variables": None if file.variables is None else (f"{file.variables}_URL", f"{file.variables}_MD5"),
    }
    return Path(_native.fetch_weights(wanted, on_progress, replace=existing is Existing.REPLACE))


def fetch_configured(
    file: ConfiguredFile, on_progress: OnProgress, existing: Existing = Existing.KEEP
) -> Path:
    """Fetch the file of a model of the configuration, which names a URL.

    Raises:
        ModelLoadError: It cannot be fetched, or has another sum; the text says what to do.
    """
    wanted: _native._WeightsFile = {
        "url": file.url or "",
        "md5": None,
        "checkpoints": catalog.checkpoints(os.environ),
        "path": file.path(os.environ),
        "sha256": file.sha256,
        "variables": None,
    }
    return Path(_native.fetch_weights(wanted, on_progress, replace=existing is Existing.REPLACE))


def fetch_missing(sources: Iterable[Source], on_progress: OnProgress) -> None:
    """Fetch the missing ones, except diffusers' folders.

    Raises:
        ModelLoadError: As of :func:`fetch`.
    """
    for source in sources:
        if isinstance(source, WebFile) and not source.is_present(os.environ):
            fetch(source, on_progress)


def name_authorities_for_hub() -> None:
    """Make diffusers' library trust the authorities of ``SSL_CERT_FILE`` or ``SSL_CERT_DIR``."""
    named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    if named:
        os.environ.setdefault("REQUESTS_CA_BUNDLE", named)


def versions(sources: Iterable[Source]) -> list[Version | None]:
    """The versions of the files, to detect a change; None for a missing one."""
    return [_version(place) for source in sources for place in _places(source)]


def _places(source: Source) -> tuple[Path, ...]:
    path = source.path(os.environ)
    return (path,) if isinstance(source, WebFile) else (path, path / "blobs")


def _version(path: Path) -> Version | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns
