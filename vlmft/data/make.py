"""From settings to a dataset, without torch."""

from __future__ import annotations

import inspect

from vlmft.config.check import ConfigError, checked_options
from vlmft.config.schema import DataConfig
from vlmft.data.dataset import Dataset
from vlmft.data.sources.archives import as_folder


def make_dataset(config: DataConfig) -> Dataset:
    """The dataset that the config names, its options checked against its signature.

    Raises:
        ConfigError: also for a value that the dataset itself refuses, and a path that it does not take.
    """
    dataset_class = checked_options(config)
    arguments = dict(config.options)
    takes = inspect.signature(dataset_class).parameters
    for name in ("path", "revision"):
        value = getattr(config, name)
        if value is not None and name not in takes:
            raise ConfigError(f"data.{name}: {dataset_class.__name__} is generated and takes none; leave it out")
        if name in takes:
            arguments[name] = as_folder(value) if name == "path" and value is not None else value
    try:
        return dataset_class(**arguments)  # type: ignore[no-any-return]
    except ValueError as error:
        raise ConfigError(f"data.options: {error}") from error
