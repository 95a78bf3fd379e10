"""Fetches upstream's files as a Rust node does: through proxies, going on with what an ended download left.

Does not: fetch diffusers' folders; their own library does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from lamagrid import _native
from lamagrid.upstream import catalog
from lamagrid.upstream.catalog import Source, WebFile

Told = Callable[[int, "int | None"], None]
"""Told how many bytes of how many are here, also while none come; what it raises ends the fetch."""

Version = tuple[int, int, int]
"""Inode, length and time of the last change."""


def fetch(file: WebFile, told: Told, *, replace: bool = False) -> Path:
    """The file, fetched if it is missing or shall be replaced.

    Raises:
        ModelLoadError: It cannot be had, or is another one than upstream's; the text says what to do.
    """
    url, md5 = file.source(os.environ)
    variables = None if file.variables is None else (f"{file.variables}_URL", f"{file.variables}_MD5")
    checkpoints = catalog.checkpoints(os.environ)
    return Path(_native.fetch_weights(url, md5, checkpoints, variables, told, replace=replace))


def fetch_missing(sources: Iterable[Source], told: Told) -> None:
    """Fetch those that are not here, but for diffusers' folders.

    Raises:
        ModelLoadError: As of :func:`fetch`.
    """
    for source in sources:
        if isinstance(source, WebFile) and not source.is_present(os.environ):
            fetch(source, told)


def name_authorities_for_hub() -> None:
    """Let diffusers' library trust what ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` names."""
    named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    if named:
        os.environ.setdefault("REQUESTS_CA_BUNDLE", named)


def versions(sources: Iterable[Source]) -> list[Version | None]:
    """What tells one version of the files from another, None of each that is missing."""
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
