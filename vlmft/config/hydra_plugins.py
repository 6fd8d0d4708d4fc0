"""Our launcher and our sweeper as plugins of Hydra, beside its own and those that the user has installed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Optional

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from vlmft.config.check import import_allowed

PACKAGE = "hydra_plugins.vlmft"
"""Hydra takes plugins of `hydra_plugins` alone. This one is made in memory, so that only vlmft has to be installed."""
PLUGINS = (
    "vlmft.sweep.launcher:ProcessLauncher",
    "vlmft.sweep.launcher:SlurmLauncher",
    "vlmft.sweep.optuna_launcher:OptunaSweeper",
)
CHOICES: dict[tuple[str, str], dict[str, str | None]] = {
    ("hydra/launcher", "processes"): {"_target_": f"{PACKAGE}.ProcessLauncher"},
    ("hydra/launcher", "slurm"): {
        "_target_": f"{PACKAGE}.SlurmLauncher",
        "at_once": "4",  # jobs that are handed to SLURM at a time
        "cpus": None,  # of each job; this and the next ones are srun's
        "gpus": None,
        "partition": None,
        "account": None,
        "time": None,
        "arguments": None,  # others of srun's, with spaces between them
    },
    ("hydra/sweeper", "optuna"): {
        "_target_": f"{PACKAGE}.OptunaSweeper",
        "n_trials": "20",  # in all: of earlier calls and of other processes too
        "seed": None,  # of Optuna's own choices
        "pruning": "true",  # stop a trial whose validation is below the median of the others at that step
        "n_startup_trials": "5",  # trials before the first may be pruned
    },
}


def store_choices() -> None:
    """Makes these choices known to every composition in this process."""
    for (group, name), node in CHOICES.items():
        typed = DictConfig(node, key_type=str, element_type=Optional[str])
        ConfigStore.instance().store(group=group, name=name, node=typed, provider="vlmft")


def register_plugins() -> None:
    """Lets Hydra make them."""
    plugins, package = Plugins.instance(), ModuleType(PACKAGE)  # first the plugins that Hydra finds itself
    sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    sys.modules[PACKAGE] = package
    for target in PLUGINS:
        own = import_allowed("hydra plugin", target)
        plugin = type(own.__name__, (own,), {"__module__": PACKAGE})
        setattr(package, own.__name__, plugin)
        plugins.register(plugin)
