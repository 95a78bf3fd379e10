"""The files of models that the configuration describes, in ``[models.NAME]``.

Does not: fetch them; `lamagrid model pull` and the node that serves the model do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lamagrid import _native
from lamagrid.upstream import catalog


@dataclass(frozen=True)
class ConfiguredFile:
    """The file of a model.

    Attributes:
        file: Where it is kept; None for the name of the download in upstream's directory.
        url: Where it is fetched from; None if it is not.
        sha256: Its sum; None if it is not checked.
    """

    file: Path | None
    url: str | None
    sha256: str | None

    def path(self, env: Mapping[str, str]) -> Path:
        """Where it is, or will be."""
        if self.file is not None:
            return self.file
        name = (self.url or "").split("?")[0].split("#")[0].rsplit("/", 1)[-1]
        return catalog.checkpoints(env) / name

    def is_present(self, env: Mapping[str, str]) -> bool:
        """Whether it is on this host."""
        return self.path(env).is_file()


def files() -> dict[str, ConfiguredFile]:
    """By the names of the models.

    Raises:
        ConfigError: The configuration is wrong.
    """
    config = _native.config(None, [])
    values = {row["key"]: row["value"] for row in config["rows"]}
    found = {}
    for name in config["models"]:
        prefix = f"models.{name}." if f"models.{name}.path" in values else f'models."{name}".'
        path, url, sha256 = (_text(values[prefix + key]) for key in ("path", "url", "sha256"))
        found[name] = ConfiguredFile(Path(path) if path else None, url or None, sha256 or None)
    return found


def _text(toml: str) -> str:
    """A string, as the configuration prints it."""
    text: str = json.loads(toml) if toml.startswith('"') else toml.strip("'")
    return text
