"""What programs in Python take from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lamagrid import _native


@dataclass(frozen=True)
class Settings:
    """Values of the layered configuration.

    Attributes:
        data_dir: The scheduler's data directory, absolute.
        max_pixels: The largest picture that is accepted.
        timeout_s: How long a caller waits for a result.
    """

    data_dir: Path
    max_pixels: int
    timeout_s: float


def load_settings(data_dir: Path | None) -> Settings:
    """The configuration of this process; ``data_dir`` is the flag's value, which wins.

    Raises:
        ConfigError: The text names the key, the layer and what is wanted.
    """
    flags = [] if data_dir is None else [("data_dir", str(data_dir.absolute()))]
    config = _native.config(None, flags)
    return Settings(Path(config["data_dir"]), config["max_pixels"], config["timeout_s"])
