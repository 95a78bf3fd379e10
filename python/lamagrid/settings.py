"""The parts of the configuration that Python programs use."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lamagrid import _native


@dataclass(frozen=True)
class WebSettings:
    """The section ``[web]``: which browsers and proxies the web server trusts.

    Attributes:
        allowed_hosts: Host names that are accepted besides the built-in ones.
        allowed_origins: Origins whose pages may use the server, besides its own.
        trusted_proxies: Addresses and networks whose forwarded headers are trusted.
    """

    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """Values of the layered configuration.

    Attributes:
        data_dir: The scheduler's data directory, absolute.
        join: The bundle by which a scheduler of another host is reached; None for one of this host.
        max_pixels: The largest picture that is accepted.
        timeout_s: How long a caller waits for a result.
        models: The models for whose files the configuration has a section.
        web: Which browsers and proxies the web server trusts.
    """

    data_dir: Path
    join: Path | None
    max_pixels: int
    timeout_s: float
    models: tuple[str, ...] = ()
    web: WebSettings = field(default_factory=WebSettings)


def load_settings(data_dir: Path | None, join: Path | None = None) -> Settings:
    """The configuration of this process; ``data_dir`` and ``join`` are flags, which win.

    A flag that names a data directory means a scheduler of this host.

    Raises:
        ConfigError: The text names the key, the layer and the accepted values.
    """
    flags = [] if data_dir is None else [("data_dir", str(data_dir.absolute()))]
    if join is not None or data_dir is not None:
        flags.append(("client.join", "" if join is None else str(join.absolute())))
    config = _native.config(None, flags)
    bundle = None if config["join"] is None else Path(config["join"])
    web = WebSettings(
        tuple(config["allowed_hosts"]), tuple(config["allowed_origins"]), tuple(config["trusted_proxies"])
    )
    return Settings(
        data_dir=Path(config["data_dir"]),
        join=bundle,
        max_pixels=config["max_pixels"],
        timeout_s=config["timeout_s"],
        models=tuple(config["models"]),
        web=web,
    )
