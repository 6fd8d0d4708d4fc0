"""Hydra's own part of a config, closed: a YAML file from elsewhere must not be able to run code.

Before main() starts Hydra calls what `hydra.callbacks.*._target_` and the `()` of a log handler name. A blocklist of
its own stops the best-known callables alone: `pathlib.Path.touch` and `torch.hub.load` go through in 1.3.8. Here these
places are typed, so that such a key is refused at composition. Hydra then opens no log file either.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore


@dataclass
class NoCallback:
    """Has no keys."""


@dataclass
class RootLogger:
    level: str = "WARNING"
    handlers: list[str] = field(default_factory=list)


@dataclass
class Logging:
    """Of Python's logging configuration what cannot name a callable."""

    version: int = 1
    disable_existing_loggers: bool = False
    root: Optional[RootLogger] = field(default_factory=RootLogger)


CLOSED_GROUPS = ("hydra_logging", "job_logging", "callbacks")
CLOSED = "closed here, because Hydra calls whatever it names"
"""The end of an error line about one of them."""


def _defaults() -> list[Any]:
    return [entry for entry in HydraConf().defaults if not any(group in entry for group in CLOSED_GROUPS)]


@dataclass
class ClosedHydraConf(HydraConf):
    """`HydraConf` without the places that name something to call."""

    defaults: list[Any] = field(default_factory=_defaults)
    hydra_logging: Logging = field(default_factory=Logging)  # type: ignore[assignment]
    job_logging: Logging = field(default_factory=Logging)  # type: ignore[assignment]
    callbacks: dict[str, NoCallback] = field(default_factory=dict)


def is_closed(key: str) -> bool:
    return key.startswith(tuple(f"hydra.{group}" for group in CLOSED_GROUPS))


def close_hydra_section() -> None:
    """Takes the place of Hydra's own schema for `hydra:` in this process."""
    ConfigStore.instance().store(group="hydra", name="config", node=ClosedHydraConf(), provider="vlmft")
