"""From a composed config to checked dataclasses: unknown keys, cross-field truths, allowed classes. Imports no torch.

Hydra rejects a plain `model.lora.rr=3` by itself, but lets `+model.lora.rr=3` and `++model.lora.rr=3` through and
`OmegaConf.to_object` then drops them without a word. So the composed values are merged onto a fresh schema here.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmft.config import schema

ALLOWED_PACKAGES = ("vlmft", "vlmft_plugins")
"""A config may name classes of these packages and no others. `vlmft_plugins` is yours: a folder on the Python path."""

Config = TypeVar("Config", schema.TrainConfig, schema.EvaluateConfig, schema.TraceConfig)


class ConfigError(Exception):
    """A user's mistake in the settings: shown as one line, exit code 2."""


def nearest(name: str, legal: Sequence[str]) -> str:
    """ "; did you mean 'x'?" or the legal names, for the end of an error line."""
    close = difflib.get_close_matches(name, legal, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(sorted(legal))}"


def checked(cfg: DictConfig | Mapping[str, Any], schema_class: type[Config]) -> Config:
    """The composed `cfg` as dataclasses.

    Raises:
        ConfigError: a key that the schema does not have, a value of the wrong type, or settings that contradict.
    """
    values = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    assert isinstance(values, dict)
    problems = list(unknown_keys(values, schema_class))
    if problems:
        raise ConfigError("; ".join(problems))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema_class), values)
        config: Config = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    problems = list(contradictions(config))
    if problems:
        raise ConfigError("; ".join(problems))
    return config


def one_line(error: Exception) -> str:
    """OmegaConf's message without its type notes, on one line, led by the full key."""
    key = getattr(error, "full_key", None)
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip() and "_type=" not in line)
    text = text.replace(f"full_key: {key}", "").strip()
    if "Missing mandatory value" in text:
        text = "Expected a value, got none; set it"
    return f"{key}: {text}" if key else text


def _dataclass_in(annotation: Any) -> type | None:
    candidates = [annotation, *typing.get_args(annotation)]
    return next((c for c in candidates if dataclasses.is_dataclass(c) and isinstance(c, type)), None)


def unknown_keys(values: Mapping[str, Any], schema_class: type, prefix: str = "") -> Iterator[str]:
    """A sentence for each key, at any depth, that `schema_class` has no field for."""
    hints = typing.get_type_hints(schema_class)
    for key, value in values.items():
        if key not in hints:
            yield f"{prefix}{key}: no such setting; {nearest(str(key), list(hints))}"
            continue
        inner = _dataclass_in(hints[key])
        if inner is not None and isinstance(value, Mapping):
            yield from unknown_keys(value, inner, f"{prefix}{key}.")


def all_keys(schema_class: type, prefix: str = "") -> Iterator[str]:
    """Every key of a schema, dotted, leaves and groups."""
    for key, annotation in typing.get_type_hints(schema_class).items():
        yield prefix + key
        inner = _dataclass_in(annotation)
        if inner is not None:
            yield from all_keys(inner, f"{prefix}{key}.")


def import_allowed(key: str, target: str) -> Any:
    """The class that `target` ("module.path:ClassName") names, from an allowed package.

    Raises:
        ConfigError: another form, another package, or no such class; `key` is the setting that named it.
    """
    module_name, _, class_name = target.partition(":")
    if not class_name or module_name.split(".")[0] not in ALLOWED_PACKAGES:
        raise ConfigError(
            f"{key}: Expected module.path:ClassName inside {' or '.join(ALLOWED_PACKAGES)}, got {target!r}; "
            "put own classes into a folder vlmft_plugins/ on the Python path"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: {target!r} cannot be imported ({error}); check its spelling") from error
    if not inspect.isclass(found):
        raise ConfigError(f"{key}: Expected a class, got {target!r}")
    return found


def checked_options(data: schema.DataConfig) -> type:
    """The dataset class, after its signature has accepted `data.options`.

    Raises:
        ConfigError: an option that the constructor does not name, or a value of another type than its annotation.
    """
    dataset_class = import_allowed("data.dataset", data.dataset)
    parameters = inspect.signature(dataset_class).parameters
    hints = typing.get_type_hints(dataset_class.__init__)
    legal = [name for name in parameters if name not in ("path", "revision")]
    for key, value in data.options.items():
        if key not in legal:
            raise ConfigError(f"data.options.{key}: {dataset_class.__name__} has no such option; {nearest(key, legal)}")
        if key in hints and not _fits(value, hints[key]):
            raise ConfigError(f"data.options.{key}: Expected {_spelled(hints[key])}, got {value!r}")
    return typing.cast(type, dataset_class)


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin is typing.Literal:
        return value in arguments
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple))
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if arguments:  # a union
        return any(value is None if a is type(None) else _fits(value, a) for a in arguments)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, annotation) and not (annotation is int and isinstance(value, bool))


def _spelled(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def contradictions(config: schema.TrainConfig | schema.EvaluateConfig) -> Iterator[str]:
    """The cross-field truths, all in one place: a sentence for each that does not hold."""
    if isinstance(config, schema.EvaluateConfig):
        yield from _evaluation_contradictions(config)
        return
    yield from _data_contradictions(config.data)
    yield from _model_contradictions(config.model)
    yield from _training_contradictions(config)


def _evaluation_contradictions(config: schema.EvaluateConfig) -> Iterator[str]:
    if config.run is not None and (config.model is not None or config.data is not None):
        yield "run: Expected run= alone, got model= or data= beside it; a run brings its own model and data"
    if config.run is None and (config.model is None or config.data is None):
        yield "run: Expected run=<run folder>, or model= and data= for an untuned model"
    if config.split not in ("train", "val", "test"):
        yield f"split: Expected train, val or test, got {config.split!r}"
    if config.data is not None:
        yield from _data_contradictions(config.data)
    if config.model is not None:
        yield from _model_contradictions(config.model)


def _data_contradictions(data: schema.DataConfig) -> Iterator[str]:
    for name in ("limit_train", "limit_val", "limit_test", "max_new_tokens"):
        value = getattr(data, name)
        if value is not None and value < 1:
            yield f"data.{name}: Expected null or a whole number >= 1, got {value}"
    if data.path is not None and not Path(data.path).expanduser().exists():
        yield f"data.path: there is no file or folder {data.path!r}; check the path, or leave it out to load from the Hub"
    if data.default_epochs < 1:
        yield f"data.default_epochs: Expected a whole number >= 1, got {data.default_epochs}"
    if data.workers < 0:
        yield f"data.workers: Expected a whole number >= 0, got {data.workers}"
    if not 0 <= data.bad_row_ceiling <= 1:
        yield f"data.bad_row_ceiling: Expected a share between 0 and 1, got {data.bad_row_ceiling}"


def _model_contradictions(model: schema.ModelConfig) -> Iterator[str]:
    tunings = {f"model.train.{part}": getattr(model.train, part) for part in ("language", "connector", "vision")}
    quantized = model.quantization.mode != schema.QuantizationMode.none
    if model.train.language == schema.Tuning.full and quantized:
        yield (
            "model.train.language: full training needs weights that are not quantised, "
            f"got model.quantization.mode={model.quantization.mode.name}; set it to none, or train=lora"
        )
    if model.init == schema.Init.random and quantized and schema.Tuning.full in tunings.values():
        yield "model.init: random weights are trained in full; set model.quantization.mode=none"
    if model.lora.r < 1:
        yield f"model.lora.r: Expected a rank >= 1, got {model.lora.r}"
    if not 0 <= model.lora.dropout < 1:
        yield f"model.lora.dropout: Expected a probability in [0, 1), got {model.lora.dropout}"
    if not model.lora.target_modules and schema.Tuning.lora in tunings.values():
        yield "model.lora.target_modules: Expected at least one layer name, got none"


def _training_contradictions(config: schema.TrainConfig) -> Iterator[str]:
    train, trainer = config.train, config.trainer
    if all(getattr(config.model.train, part) == schema.Tuning.frozen for part in ("language", "connector", "vision")):
        yield "model.train: Expected lora or full for at least one part, got frozen for all; there is nothing to train"
    if train.rows_per_step < 1:
        yield f"train.rows_per_step: Expected a whole number >= 1, got {train.rows_per_step}"
    if train.rows_per_batch is not None and not train.rows_per_batch >= 1:
        yield f"train.rows_per_batch: Expected null or a whole number >= 1, got {train.rows_per_batch}"
    if train.tokens_per_batch is not None and train.tokens_per_batch < 1:
        yield f"train.tokens_per_batch: Expected null or a whole number >= 1, got {train.tokens_per_batch}"
    if train.lr is not None and not (math.isfinite(train.lr) and train.lr > 0):
        yield f"train.lr: Expected a number > 0, got {train.lr}"
    if not 0 <= train.warmup_ratio < 1:
        yield f"train.warmup_ratio: Expected a share in [0, 1), got {train.warmup_ratio}"
    if train.max_gradient_norm < 0:
        yield f"train.max_gradient_norm: Expected a number >= 0, got {train.max_gradient_norm}"
    if trainer.precision not in PRECISIONS:
        yield f"trainer.precision: Expected one of {', '.join(PRECISIONS)}, got {trainer.precision!r}"
    if trainer.devices != 1:
        yield f"trainer.devices: Expected 1, got {trainer.devices}; training on several devices is not built yet"
    for name in ("limit_train_batches", "limit_val_batches", "val_check_interval"):
        value = getattr(trainer, name)
        if value is not None and value < 0:
            yield f"trainer.{name}: Expected null or a number >= 0, got {value}"
    if train.early_stopping_patience is not None and trainer.limit_val_batches == 0:
        yield "train.early_stopping_patience: needs validation, got trainer.limit_val_batches=0; set one of the two"


PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
"""bf16-true and 16-true are left out: updates of a small learning rate round away in 16-bit adapters."""
