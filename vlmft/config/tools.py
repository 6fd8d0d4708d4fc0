"""Composing a config without a Hydra app: for the small tools and for notebooks."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from vlmft.config.check import Config, ConfigError, checked, schema_node
from vlmft.config.entry import advice_for_other_tools_names, conf_dir, explained, forced
from vlmft.config.schema import TrainConfig


def compose_tool(name: str, schema_class: type[Config], overrides: Sequence[str]) -> Config:
    """conf/<name>.yaml with overrides, checked against its schema.

    Raises:
        ConfigError: as `checked`; what Hydra itself refuses comes as its own exception.
    """
    ConfigStore.instance().store(name=f"{name}_schema", node=schema_node(schema_class))  # type: ignore[arg-type]
    with (
        initialize_config_dir(str(conf_dir()), version_base="1.3"),
        advice_for_other_tools_names(overrides, schema_class),
    ):
        return checked(compose(name, [*map(forced, overrides)]), schema_class)


def compose_train(overrides: Sequence[str]) -> TrainConfig:
    """What train.py gets from these arguments; raises ConfigError, also for what Hydra itself refuses."""
    try:
        # Hydra's own launcher: that of sweeps is known only to the entries, and nothing is launched here.
        return compose_tool("train", TrainConfig, ["hydra/launcher=basic", *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explained(error)) from error
