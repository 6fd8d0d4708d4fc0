"""Does it fit? Told before weights are downloaded or loaded, with what would fit."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.config.schema import ModelConfig, OptimizationConfig, OptimizerName, QuantizationConfig, QuantizationMode
from vlmft.config.setting_types import AUTO, chosen_count
from vlmft.config.trainer_schema import TrainerConfig
from vlmft.models.family import make_family
from vlmft.models.load import Source, storage_dtype
from vlmft.models.memory_estimate import Anatomy, MemoryEstimate, Training, answering_bytes
from vlmft.models.shared_images import attention_of
from vlmft.sample import BadRowError, EncodedRow, Sample

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
VISUAL_TOKENS = (2048, 1024, 512, 256, 128, 64)
"""Limits of an image's tokens that are tried."""
GIB = 1 << 30
FILLED = 0.8
"""Of the free memory, what `auto` plans with: estimates are up to a quarter off (docs/models.md)."""


@dataclass(frozen=True)
class Fit:
    """How training goes into the memory."""

    words: str
    """The estimate, for batches of the longest row."""
    tokens_per_batch: int | None
    """`train.tokens_per_batch`, of which `auto` has become what fits."""
    checkpointing: bool
    """`train.gradient_checkpointing`, of which null has become a choice."""


@dataclass(frozen=True)
class Way:
    """A way to load and train the model."""

    quantization: QuantizationConfig
    training: Training
    changes: tuple[str, ...] = ()
    """The settings that differ from the run's, as one writes them."""

    def but(self, change: str, training: Training) -> Way:
        """This way with another setting, in words and in effect."""
        return Way(self.quantization, training, (*self.changes, change))

    def with_rows(self, rows: int) -> Way:
        """This way with so many rows at once."""
        return replace(self, training=replace(self.training, rows=rows))


def free_bytes(device: torch.device, trainer: TrainerConfig) -> int:
    """Memory that this process may use on the device; processes on one CPU share it."""
    if trainer.memory_gib is not None:
        return int(trainer.memory_gib * GIB)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        free = min(free, int(CGROUP_LIMIT.read_text()) - psutil.Process().memory_info().rss)
    return free // trainer.devices


def shares_of(trainer: TrainerConfig) -> int:
    """Among how many devices the language part's frozen layers are shared out."""
    return trainer.devices * trainer.num_nodes if trainer.strategy == "fsdp" else 1


def require_weights(config: ModelConfig, model_config: Any, device: torch.device, trainer: TrainerConfig) -> None:
    """For a model that answers and is not trained.

    Raises:
        ConfigError: its weights do not fit.
    """
    anatomy = Anatomy(config, model_config, adapters=False, shares=shares_of(trainer))
    dtype = storage_dtype(device)
    free = free_bytes(device, trainer)
    needed = anatomy.estimate(config.quantization, dtype).total
    if needed > free:
        nf4 = anatomy.estimate(QuantizationConfig(), dtype).total
        raise ConfigError(
            f"memory: Expected about {gib(needed)} for the weights, got {gib(free)} free on {device}; take a larger "
            f"device or a smaller model (with model.quantization.mode=nf4 this one takes {gib(nf4)}); if that is "
            "wrong, trainer.memory_gib says how much there is"
        )


def tokens_to_answer(model: PreTrainedModel, trainer: TrainerConfig) -> int:
    """How many tokens of a batch, padding and new ones included, are estimated to fit beside the loaded model."""
    free = FILLED * free_bytes(model.device, trainer)
    eager, text = attention_of(model) == "eager", model.config.get_text_config()
    return max(1, int(free / answering_bytes(text, model.dtype.itemsize, eager=eager)))


def rows_at_once(train: OptimizationConfig, length: int, devices: int = 1) -> int:
    """Of so many tokens each, that go through the model together on each device; `auto` is no limit here."""
    rows = min(train.rows_per_batch or train.rows_per_step, math.ceil(train.rows_per_step / devices))
    tokens = tokens_limit(train)
    return min(rows, max(1, tokens // length)) if tokens is not None else rows


def tokens_limit(train: OptimizationConfig) -> int | None:
    """`train.tokens_per_batch` where it is a number."""
    return None if train.tokens_per_batch == AUTO else chosen_count(train.tokens_per_batch)


def require_training(
    config: ModelConfig,
    source: Source,
    model_config: Any,
    longest: tuple[EncodedRow, Sample] | None,
    device: torch.device,
    trainer: TrainerConfig,
    train: OptimizationConfig,
    *,
    may_refuse: bool = True,
) -> Fit:
    """The estimate for batches of the `longest` row, and what the settings that it decides on have become.

    With a warning where it is too much and not `may_refuse`, or where halving batches helps.

    Raises:
        ConfigError: it does not fit; names what would.
    """
    if longest is None:  # the ledger will say why
        require_weights(config, model_config, device, trainer)
        return Fit("not estimated, for no row could be read", tokens_limit(train), bool(train.gradient_checkpointing))
    row, sample = longest
    training = Training(
        row,
        rows_at_once(train, row.length, trainer.devices),
        train.optimizer,
        mixed=trainer.precision.endswith("mixed"),
        checkpointing=bool(train.gradient_checkpointing),
        keeps_pages=device.type == "cpu" and not train.gradient_checkpointing,
    )
    way, anatomy = Way(config.quantization, training), Anatomy(config, model_config, shares=shares_of(trainer))
    free = free_bytes(device, trainer)

    def estimated(way: Way) -> MemoryEstimate:
        return anatomy.estimate(way.quantization, storage_dtype(device), way.training)

    @functools.cache
    def smaller(most: int) -> EncodedRow | None:
        """The same row with fewer tokens an image, where the model can do that."""
        with contextlib.suppress(ConfigError, BadRowError):
            limited = replace(config, max_visual_tokens_per_image=most)
            return make_family(limited, source, model_config).encode(sample)
        return None

    may_checkpoint = anatomy.can_checkpoint and shares_of(trainer) == 1  # sharing ranks call layers equally often
    way, chosen = decided(way, train, lambda other: estimated(other).total, free, may_checkpoint=may_checkpoint)
    needed, training = estimated(way), way.training
    tokens = training.rows * row.length if train.tokens_per_batch == AUTO else tokens_limit(train)
    if needed.total <= free:
        each = f" on each of {shares} devices" if (shares := shares_of(trainer)) > 1 else ""
        words = f"about {in_words(needed, training)}{each}, of {gib(free)} free on {device}{chosen}"
        return Fit(words, tokens, training.checkpointing)
    fitting = what_fits(way, settings(anatomy, smaller), lambda other: estimated(other).total, free)
    halves = device.type == "cuda" and estimated(way.with_rows(1)).total <= free
    if not may_refuse or halves:
        ways = f"; so that it fits at once: {'; '.join(fitting)}" if fitting else ""
        words = f"about {in_words(needed, training)}{chosen}, more than the {gib(free)} free on {device}{ways}"
        return Fit(words, tokens, training.checkpointing)
    advice = "what would fit: " + "; ".join(fitting)
    if not fitting:
        largest = anatomy.parameters * free / needed.total
        advice = f"no setting would do: take a larger device, or a model of about {largest / 1e6:,.1f} M parameters"
    raise ConfigError(
        f"memory: Expected about {in_words(needed, training)}{chosen}, got {gib(free)} free on {device}; {advice}; if "
        "that is wrong, trainer.memory_gib says how much there is"
    )


def decided(
    way: Way, train: OptimizationConfig, bytes_of: Callable[[Way], int], free: int, *, may_checkpoint: bool
) -> tuple[Way, str]:
    """The way with what settings that were left open become, and a remark: checkpointing where not one row fits without
    it, and as many rows at once as fit with a margin."""
    remark = ""
    if train.gradient_checkpointing is None and may_checkpoint and bytes_of(way.with_rows(1)) > free:
        way = replace(way, training=checkpointed(way.training))
        remark = ", with train.gradient_checkpointing=true, as no row fits without"
    if train.tokens_per_batch == AUTO:
        fits = (n for n in range(way.training.rows, 1, -1) if bytes_of(way.with_rows(n)) <= FILLED * free)
        way = way.with_rows(next(fits, 1))
    return way, remark


def checkpointed(training: Training) -> Training:
    """The same with activations that are computed again."""
    return replace(training, checkpointing=True, keeps_pages=False)


Setting = Callable[[Way], Sequence[Way]]
"""A way -> ways that differ from it in one setting and take less memory, the mildest first."""


def settings(anatomy: Anatomy, smaller: Callable[[int], EncodedRow | None]) -> list[Setting]:
    """`smaller` encodes the row with fewer tokens an image."""

    def fewer_rows(way: Way) -> list[Way]:
        rows = way.training.rows
        fewer = [rows >> shift for shift in range(1, rows.bit_length())]
        return [way.but(f"train.rows_per_batch={count}", replace(way.training, rows=count)) for count in fewer]

    def checkpointing(way: Way) -> list[Way]:
        if way.training.checkpointing or not anatomy.can_checkpoint:
            return []
        return [way.but("train.gradient_checkpointing=true", checkpointed(way.training))]

    def four_bit(way: Way) -> list[Way]:
        if way.quantization.mode in (QuantizationMode.nf4, QuantizationMode.fp4) or "language" in anatomy.full:
            return []
        nf4 = replace(way.quantization, mode=QuantizationMode.nf4)
        return [replace(way.but("model.quantization.mode=nf4", way.training), quantization=nf4)]

    def eight_bit_moments(way: Way) -> list[Way]:
        if not anatomy.full or way.training.optimizer != OptimizerName.adamw:
            return []
        return [way.but("train.optimizer=adamw_8bit", replace(way.training, optimizer=OptimizerName.adamw_8bit))]

    def fewer_visual_tokens(way: Way) -> list[Way]:
        found = [(most, row) for most in VISUAL_TOKENS if (row := smaller(most)) is not None]
        return [
            way.but(f"model.max_visual_tokens_per_image={most}", replace(way.training, row=row))
            for most, row in found
            if row.length < way.training.row.length
        ]

    return [fewer_rows, checkpointing, four_bit, eight_bit_moments, fewer_visual_tokens]


def what_fits(way: Way, found: Sequence[Setting], bytes_of: Callable[[Way], int], free: int) -> list[str]:
    """The mildest value of each setting with which alone it fits; where there is none, all settings together."""
    fitting, together = [], way
    for setting in found:
        fitting += [other for other in setting(way) if bytes_of(other) <= free][:1]
        together = ([together, *setting(together)])[-1]
    if not fitting and bytes_of(together) <= free:
        fitting = [together]
    return [f"{' with '.join(other.changes)} ({gib(bytes_of(other))})" for other in fitting]


def in_words(needed: MemoryEstimate, training: Training) -> str:
    parts = f"weights {gib(needed.weights)}, trained {gib(needed.trained)}"
    at_once = f"{training.rows} row{'s' * (training.rows > 1)} of {training.row.length:,} tokens"
    return f"{gib(needed.total)} ({parts}, {at_once} {gib(needed.activations)})"


def gib(n_bytes: float) -> str:
    return f"{n_bytes / GIB:.2f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / (1 << 20):.0f} MiB"
