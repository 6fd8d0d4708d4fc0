"""Checks before torch is imported, which takes seconds: whether data, model and run are where the settings say.

Nothing is made on the way, so that a mistake leaves no folder and no run of any tracker behind.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

from vlmft.config.chat_schema import ServerConfig
from vlmft.config.check import ConfigError
from vlmft.config.processes import follows
from vlmft.config.schema import DataConfig, EvaluateConfig, ModelConfig, TrainConfig
from vlmft.data.dataset import Dataset
from vlmft.data.make import make_dataset
from vlmft.data.survey.ahead import read_ahead
from vlmft.metrics import metric_named
from vlmft.models.locate import require_model
from vlmft.run.folder import ADAPTER, CONFIG_FILE, read_run


def found_data(config: DataConfig) -> Dataset:
    """The dataset; a local one has been checked to exist.

    Raises:
        ConfigError: no such place or column, an option that the dataset refuses, or no such metric.
    """
    dataset = make_dataset(config)
    if config.metric is not None:
        try:
            metric_named(config.metric)
        except ValueError as error:
            raise ConfigError(f"data.metric: {error}") from error
    if config.path is not None or getattr(dataset, "hub_id", None) is None:
        dataset.index()
    return dataset


def require_training(config: TrainConfig) -> Dataset:
    """Checks that a run can start; returns its dataset.

    Raises:
        ConfigError: as `found_data`, or there is no such model.
    """
    dataset = found_data(config.data)
    require_model(config.model)
    require_servers(config.evaluation.servers)
    if "torch" not in sys.modules:
        if not follows():
            read_ahead(dataset, config.data, config.seed)
        print("loading PyTorch and transformers, which takes longest the first time", flush=True)
    return dataset


def require_evaluation(config: EvaluateConfig) -> Dataset:
    """Checks that an evaluation can start; returns its dataset.

    Raises:
        ConfigError: as `found_data`; or there is no such run, model or adapter.
    """
    _, model, data = settled(config)
    if config.run is not None and not (Path(config.run) / ADAPTER).is_dir():
        raise ConfigError(f"run: there is no folder {ADAPTER!r} in {config.run!r}; did the training end?")
    if config.adapter is not None:
        local_adapter("adapter", config.adapter)
    for name, place in config.adapters.items():
        if not (Path(place).expanduser() / "config.json").is_file():  # else a whole model
            local_adapter(f"adapters.{name}", place)
    require_model(model)
    require_servers(config.evaluation.servers)
    return found_data(data)


def require_servers(servers: Mapping[str, ServerConfig]) -> None:
    """Checks addresses, keys and options; asks nobody, for a server may be started meanwhile.

    Raises:
        ConfigError: as `connected`.
    """
    if servers:
        from vlmft.servers.chat_client import connected  # few runs have one

        for name, config in servers.items():
            connected(name, config)


def settled(config: EvaluateConfig) -> tuple[TrainConfig | None, ModelConfig, DataConfig]:
    """The run that is evaluated, None without one; the model and the data that are meant.

    Raises:
        ConfigError: as `read_run`.
    """
    run = read_run(config.run) if config.run is not None else None
    model = run.model if run is not None else config.model
    data = config.data or (run.data if run is not None else None)
    assert model is not None and data is not None  # guaranteed by checked()
    return run, model, dataclasses.replace(data, options={**data.options, **config.data_options})


def local_adapter(key: str, place: str) -> Path | None:
    """The folder of an adapter or checkpoint on this machine; None for a Hub id.

    Raises:
        ConfigError: there is no such folder, or no adapter in it; `key` is the setting that names it.
    """
    folder = Path(place).expanduser()
    if (folder / CONFIG_FILE).is_file():
        folder = folder / ADAPTER
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("adapter_config.json", "state.json")):
            raise ConfigError(
                f"{key}: Expected a run folder, a checkpoint, a PEFT adapter or a whole model, got {place!r} without "
                "adapter_config.json, state.json or config.json; name the folder itself"
            )
        return folder
    if place.startswith((".", "/", "~")) or place.count("/") != 1:
        raise ConfigError(f"{key}: there is no folder {place!r}; give a folder or a Hub id")
    return None
