"""Hydra's own part of a config, closed: a YAML file from elsewhere must not be able to run code.

Before main() starts Hydra calls what `hydra.callbacks.*._target_` and the `()` of a log handler name. A blocklist of
its own stops the best-known callables alone: `pathlib.Path.touch` and `torch.hub.load` go through in 1.3.8. Here these
places are typed, so that such a key is refused at composition. Hydra then opens no log file either. Types let through
an interpolation, which may lead anywhere, and on the command line `++`: whatever was composed is compared with how it
has to be. So is what Hydra would put into the environment, such as a PATH with another `git` in it.

Launcher and sweeper it calls too, and before them whatever a `_target_` at any depth below them names: there only texts
may stand, and only the plugins listed here. Overrides are refused at composition by their type; a mapping from a YAML
file passes that, and is refused before Hydra makes the plugin.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any, Optional

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.conf import HydraConf, JobConf
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vlmft.config.check import ConfigError, import_allowed


@dataclass
class NoKeys:
    """What may not be there at all."""


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


@dataclass
class ClosedJobConf(JobConf):
    """Without variables for the environment, such as LD_PRELOAD or WANDB_BASE_URL."""

    env_set: dict[str, NoKeys] = field(default_factory=dict)  # type: ignore[assignment]
    env_copy: NoKeys = field(default_factory=NoKeys)  # type: ignore[assignment]


NoFolder = Enum("NoFolder", ())  # type: ignore[misc]  # of no members
"""Null alone: Hydra would write config and overrides there, secrets in clear; config.yaml holds them redacted."""

CLOSED_GROUPS = ("hydra_logging", "job_logging", "callbacks")
CLOSED_KEYS = tuple(f"hydra.{key}" for key in (*CLOSED_GROUPS, "output_subdir", "job.env_set", "job.env_copy"))
CLOSED = "closed here: Hydra calls whatever it names, writes settings to it in clear, or sets the environment by it"
"""The end of an error line about one of them."""


def _defaults() -> list[Any]:
    return [entry for entry in HydraConf().defaults if not any(group in entry for group in CLOSED_GROUPS)]


@dataclass
class ClosedHydraConf(HydraConf):
    """`HydraConf` without the places that name something to call."""

    defaults: list[Any] = field(default_factory=_defaults)
    hydra_logging: Logging = field(default_factory=Logging)  # type: ignore[assignment]
    job_logging: Logging = field(default_factory=Logging)  # type: ignore[assignment]
    callbacks: dict[str, NoKeys] = field(default_factory=dict)
    job: ClosedJobConf = field(default_factory=ClosedJobConf)
    output_subdir: Optional[NoFolder] = None  # type: ignore[assignment]
    launcher: dict[str, Optional[str]] = field(default_factory=dict)
    sweeper: dict[str, Optional[str]] = field(default_factory=dict)


PLUGINS = {"processes": "vlmft.sweep.launcher:ProcessLauncher", "optuna": "vlmft.sweep.optuna_launcher:OptunaSweeper"}
PLUGIN_PACKAGE = "hydra_plugins.vlmft"
"""Hydra takes plugins of this package alone. It is made in memory, so that nothing but vlmft has to be installed."""
CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "hydra/launcher": {
        "basic": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
        "processes": {"_target_": f"{PLUGIN_PACKAGE}.ProcessLauncher"},
    },
    "hydra/sweeper": {
        "basic": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "max_batch_size": None},
        "optuna": {
            "_target_": f"{PLUGIN_PACKAGE}.OptunaSweeper",
            "n_trials": "20",  # in all: of earlier calls and of other processes too
            "seed": None,  # of Optuna's own choices
            "pruning": "true",  # stop a trial whose validation is below the median of the others at that step
            "n_startup_trials": "5",  # trials before the first may be pruned
        },
    },
}


class ClosedPlugins(Plugins):
    """Hydra's registry, which makes no plugin but those of `CHOICES`, from nothing but texts."""

    def _instantiate(self, config: DictConfig) -> Plugin:
        known = {node["_target_"]: node for choices in CHOICES.values() for node in choices.values()}
        found = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
        if not isinstance(found, dict) or (target := str(found.get("_target_"))) not in known:
            raise ConfigError(
                f"hydra.launcher, hydra.sweeper: Expected one of {', '.join(known)}, got {found}; {CLOSED}"
            )
        for key, value in found.items():
            full_key = config._get_full_key(key)
            if value is not None and not isinstance(value, str):
                raise ConfigError(f"{full_key}: Expected a plain value, got {value}; {CLOSED}")
            if key not in known[target]:
                raise ConfigError(f"{full_key}: no such setting")
            if key == "max_batch_size" and value is not None:
                raise ConfigError(f"{full_key}: Expected null, got {value}; the jobs of a sweep are ranked as a whole")
        return super()._instantiate(config)


def register_plugins() -> None:
    """Makes our launcher and our sweeper, and no foreign one, known to Hydra in this process."""
    package = ModuleType(PLUGIN_PACKAGE)
    sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    sys.modules[PLUGIN_PACKAGE] = package
    plugins = Plugins.instance()
    plugins.__class__ = ClosedPlugins  # the one there is, with what it has found
    for choice, target in PLUGINS.items():
        own = import_allowed(f"hydra plugin {choice}", target)
        plugin = type(own.__name__, (own,), {"__module__": PLUGIN_PACKAGE})
        setattr(package, own.__name__, plugin)
        plugins.register(plugin)


def is_closed(key: str) -> bool:
    return key.startswith(CLOSED_KEYS)


class ClosedConfigLoader(ConfigLoaderImpl):
    """Hydra's composition, of a run and of each job of a sweep, with the closed places as they have to be."""

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """
        Raises:
            ConfigError: a closed place is not as it has to be.
        """
        composed = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        legal = OmegaConf.to_container(OmegaConf.create({"hydra": ClosedHydraConf()}))
        found = OmegaConf.to_container(composed)
        for key in CLOSED_KEYS:
            if (value := _at(found, key)) != _at(legal, key):
                raise ConfigError(f"{key}: Expected what Hydra starts from, got {value}; {CLOSED}")
        return composed


def _at(values: Any, key: str) -> Any:
    """The value at a dotted key of plain containers; a text, such as an interpolation, has none below it."""
    for name in key.split("."):
        values = values[name] if isinstance(values, dict) and name in values else None
    return values


def close_hydra_section() -> None:
    """Takes the place of Hydra's own schema for `hydra:` in this process."""
    Plugins.instance()  # first, for what Hydra finds there would take the place of ours
    store = ConfigStore.instance()
    store.store(group="hydra", name="config", node=ClosedHydraConf(), provider="vlmft")
    hydra._internal.hydra.ConfigLoaderImpl = ClosedConfigLoader  # type: ignore[attr-defined]
    for group, choices in CHOICES.items():
        for name, node in choices.items():
            typed = DictConfig(node, key_type=str, element_type=Optional[str])
            store.store(group=group, name=name, node=typed, provider="vlmft")
