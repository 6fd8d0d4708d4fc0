"""What settings name by `_target_`, as in Hydra: callbacks, loggers, strategies, profilers.

Only the settings of a run that is started come here, from its command line and conf/. Those of a stored run, which may
be somebody else's, are never made into objects.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf.errors import OmegaConfBaseException

from vlmft.config.check import ConfigError, nearest
from vlmft.config.contradictions import objects_of
from vlmft.config.schema import TrainConfig

Settings = Mapping[str, Any]

INSTEAD = {
    "EMAWeightAveraging": "callbacks=weight_averaging, which leaves the frozen base alone",
    "WeightAveraging": "callbacks=weight_averaging, which leaves the frozen base alone",
    "StochasticWeightAveraging": "callbacks=weight_averaging with callbacks.weight_averaging.decay=null",
    "GradientAccumulationScheduler": "train.rows_per_step, the rows of one optimiser step",
    "BatchSizeFinder": "train.rows_per_batch, which is halved where memory runs out",
    "LearningRateFinder": "a sweep: python train.py -m train.lr=1e-4,3e-4",
}
"""Lightning's callbacks that contradict the optimiser window, and what does that here."""


def require_targets(config: TrainConfig) -> None:
    """Checks that each class exists and takes its arguments, before anything is made.

    Raises:
        ConfigError: it does not; or it is one that contradicts the optimiser window.
    """
    for key, settings in objects_of(config):
        target = target_of(key, settings)
        name = getattr(target, "__name__", "")
        if target.__module__.startswith("lightning.") and name in INSTEAD:
            raise ConfigError(f"{key}: {name} contradicts the window of an optimiser step; take {INSTEAD[name]}")
        parameters = inspect.signature(target).parameters
        if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        for argument in settings:
            if not argument.startswith("_") and argument not in parameters:
                raise ConfigError(f"{key}.{argument}: {name} has no such argument; {nearest(argument, [*parameters])}")


def target_of(key: str, settings: Settings) -> Callable[..., Any]:
    """The class, or the function, that `_target_` names as module.Class or module:Class.

    Raises:
        ConfigError: there is none.
    """
    name = settings["_target_"]
    try:
        target = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_: {name!r} cannot be imported ({error}); check its spelling") from error
    if not callable(target):
        raise ConfigError(f"{key}._target_: Expected a class, got {name!r}, a {type(target).__name__}")
    resolved: Callable[..., Any] = target
    return resolved


def made(key: str, settings: Settings) -> Any:
    """The object, made by Hydra; what its arguments name by `_target_` is made, too.

    Raises:
        ConfigError: its class refuses the arguments.
    """
    target = settings["_target_"].replace(":", ".")
    try:
        return hydra.utils.instantiate({**settings, "_target_": target}, _convert_="all")
    except (InstantiationException, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}: {error.__cause__ or error}") from error
