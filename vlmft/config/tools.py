"""Composing a config for the small tools, which are no Hydra apps of their own."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from vlmft.config.check import Config, checked
from vlmft.config.entry import conf_dir, forced


def compose_tool(name: str, schema_class: type[Config], overrides: Sequence[str]) -> Config:
    """conf/<name>.yaml with overrides, checked against its schema.

    Raises:
        ConfigError: as `checked`; what Hydra itself refuses comes as its own exception.
    """
    ConfigStore.instance().store(name=f"{name}_schema", node=schema_class)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return checked(compose(name, [forced(override) for override in overrides]), schema_class)
