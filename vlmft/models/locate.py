"""Where a model's files are, told without torch, so that a mistyped path is said at once."""

from __future__ import annotations

import importlib.resources
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from vlmft.config.check import ConfigError
from vlmft.config.schema import ModelConfig


def locate(config: ModelConfig) -> str:
    """`model.path` as transformers takes it: package:NAME becomes the folder inside this package.

    Raises:
        ConfigError: a local-looking path that does not exist, or no package folder of that name.
    """
    if config.path.startswith("package:"):
        name = config.path.removeprefix("package:")
        folder = Path(str(importlib.resources.files("vlmft.models"))) / "weights" / name
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.path: no model {name!r} comes with vlmft; use a folder or a Hub id")
        return str(folder)
    path = Path(config.path).expanduser()
    if path.is_dir():
        return str(path)
    if config.path.startswith((".", "/", "~")):
        raise ConfigError(f"model.path: there is no folder {config.path!r}; give a folder in Hub layout or a Hub id")
    return config.path


def require_model(config: ModelConfig) -> None:
    """Sees that the model's config.json is there; of a Hub id in the cache, else by asking the Hub for it.

    Raises:
        ConfigError: as `locate`, or there is none.
    """
    path = locate(config)
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise ConfigError(f"model.path: Expected a folder with config.json, got {path!r}; name the model's folder")
        return
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    host = str(urlsplit(constants.ENDPOINT).hostname)
    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "" if is_found(host) else f"no network to {host}"
    constants.HF_HUB_OFFLINE = bool(offline)  # else its client would try each file six times, for half a minute
    try:
        if not isinstance(try_to_load_from_cache(path, "config.json", revision=config.revision), str):
            if offline:
                raise FileNotFoundError(f"not in {constants.HF_HUB_CACHE}, and {offline}")
            hf_hub_download(path, "config.json", revision=config.revision)
    except (OSError, ValueError) as error:
        raise cannot_be_read(config, error) from error


def is_found(host: str) -> bool:
    """Whether the name of a server leads to an address; True behind a proxy, which looks it up itself."""
    try:
        return bool(getproxies()) or bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


def cannot_be_read(config: ModelConfig, error: Exception) -> ConfigError:
    return ConfigError(f"model.path: {config.path!r} cannot be read ({first_line(error)}); check id, revision, network")


def first_line(error: Exception) -> str:
    """Of its message, else the name of its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
