"""Models and plugins that could not be loaded: loaded again once one of their files has changed.

Does not: report anything; the node's loop does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lamagrid import _native
from lamagrid.upstream.catalog import Source
from lamagrid.weights.fetch import Version, versions


@dataclass
class _FailedLoad:
    sources: Sequence[Source]
    seen: list[Version | None]
    load: Callable[[], None]


class FailedLoads:
    """Models and plugins that failed to load, with the versions of their files at that time."""

    def __init__(self) -> None:
        self._broken: dict[str, _FailedLoad] = {}

    def note(self, name: str, sources: Sequence[Source], load: Callable[[], None]) -> None:
        """Add a model or plugin that could not be loaded; ``load`` tries it again."""
        self._broken[name] = _FailedLoad(sources, versions(sources), load)

    def forget(self, name: str) -> None:
        """Remove a model or plugin that has worked on a task."""
        self._broken.pop(name, None)

    def reload_changed(self) -> bool:
        """Load the models whose files have changed. Returns whether one of them is in memory now."""
        is_any_loaded = False
        for name, broken in list(self._broken.items()):
            now = versions(broken.sources)
            if now == broken.seen:
                continue
            broken.seen = now
            try:
                broken.load()
            except Exception as error:
                _native.log_error(f"{name} has changed files, and still cannot be loaded", str(error), "")
                broken.seen = versions(broken.sources)  # upstream removes a file that it cannot read
            else:
                del self._broken[name]
                is_any_loaded = True
        return is_any_loaded
