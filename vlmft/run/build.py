"""The only place where the packages meet: settings in; model, data and their connections out."""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlmft.config.check import ConfigError
from vlmft.config.evaluation_schema import EvaluationConfig
from vlmft.config.processes import local_rank
from vlmft.config.schema import (
    CacheConfig,
    DataConfig,
    ModelConfig,
    OptimizationConfig,
    OptimizerName,
    QuantizationMode,
    TrainConfig,
)
from vlmft.config.setting_types import AUTO, chosen_count
from vlmft.config.trainer_schema import TrainerConfig
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.dataset import Dataset
from vlmft.data.ledger import Ledger
from vlmft.data.make import read_shots
from vlmft.evaluation.predict import Answerer
from vlmft.evaluation.rows import EvaluationRows
from vlmft.models import lora
from vlmft.models.compiled import compile_language
from vlmft.models.family import make_family
from vlmft.models.feature_cache import is_frozen
from vlmft.models.load import computes_in_bf16, load_model, load_source
from vlmft.models.loaded import LoadedModel
from vlmft.models.memory_check import require_training, require_weights, tokens_to_answer
from vlmft.models.sharding import shard
from vlmft.report.console import say
from vlmft.run.features import feature_cache
from vlmft.run.folder import begun
from vlmft.run.start import found_data
from vlmft.run.threads import choose_threads, cores
from vlmft.sample import BadRowError, EncodedRow, Sample, Split
from vlmft.training.ranks import is_shared_out, start_ranks

LENGTHS_LOOKED_AT = 16
"""Training rows that are encoded to find a long one."""
MOST_WORKERS = 4
"""Beside a GPU, unless data.workers says how many."""
FORKS = multiprocessing.get_all_start_methods()[0] == "fork"
"""Whether workers share this process's memory, as on Linux."""
BASELINE_ROWS = 2_000
"""At most so many training rows are read for the baselines."""
LONGEST_ENCODED = 8
"""Rows of a split that are encoded where data.max_new_tokens is 0."""


@dataclass(frozen=True)
class Inferred:
    """A setting that the user left open, its inferred value, and the reason."""

    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Plan:
    """What a run is going to do: settings with every value resolved."""

    config: TrainConfig
    inferred: tuple[Inferred, ...]


@dataclass
class Built(LoadedModel):
    """What a run works with: a model, and the rows that it is trained and evaluated on."""

    data: VLMDataModule
    tokens_per_batch: int | None = None
    """`train.tokens_per_batch`, of which `auto` has become a number."""
    checkpointing: bool = False
    """`train.gradient_checkpointing`, of which null has become a choice."""

    def answerer(self, evaluation: EvaluationConfig, poll: Callable[[], None] = lambda: None) -> Answerer:
        """Generation with this model, whatever adapter state it is in; `poll` is called before each batch."""
        data = self.data
        refuse, workers = data.ledger.refuse, data.config.workers or 0
        limits, tokens = (evaluation.rows_per_batch, data.max_new_tokens), chosen_count(evaluation.tokens_per_batch)
        return Answerer(self.family, self.base, *limits, refuse, workers, poll, tokens_per_batch=tokens)

    def rows(self, split: Split, settings: EvaluationConfig, most: int | None = None) -> EvaluationRows:
        """The rows of a split that are asked, or the first of them."""
        data, ids = self.data, self.data.ids[split][:most]
        return EvaluationRows(
            split,
            ids,
            data.samples(ids),
            data.metric_name,
            data.with_answer,
            data.ids["train"],
            data.sample,
            functools.partial(read_shots, Path(str(settings.few_shot.file)), settings.few_shot.k),
            functools.partial(data.some_samples, "train", BASELINE_ROWS),
            data.seed,
            data.dataset.answer_schema(),
        )


def pick_device(trainer: TrainerConfig) -> torch.device:
    """The device that `trainer.accelerator` means here.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    asked = {"gpu": "cuda"}.get(trainer.accelerator, trainer.accelerator)
    if asked == "auto":
        asked = next(kind for kind, there in kinds.items() if there)
    if not kinds.get(asked, False):
        raise ConfigError(
            f"trainer.accelerator: Expected auto, cpu, gpu or mps that is there, got {trainer.accelerator!r}"
        )
    there = torch.cuda.device_count() if asked == "cuda" else trainer.devices
    if trainer.devices > there:
        raise ConfigError(f"trainer.devices: Expected at most the {there} GPUs that are here, got {trainer.devices}")
    return torch.device(asked, local_rank()) if asked == "cuda" else torch.device(asked)


def pick_workers(data: DataConfig, device: torch.device, model: ModelConfig, trainer: TrainerConfig) -> DataConfig:
    """With the number of workers that was asked for, or that feeds the device; on a CPU one, where the model says that
    it does not need all cores, and a worker need not load it anew."""
    taken = (model.default_threads or cores()) * trainer.devices
    found = min(MOST_WORKERS, cores() - 1) if device.type == "cuda" else int(FORKS and taken < cores())
    return data if data.workers is not None else replace(data, workers=found)


def pick_precision(trainer: TrainerConfig, device: torch.device) -> str:
    """Lightning's precision: what was asked for, or the best that the device computes in."""
    if trainer.precision != "auto":
        return trainer.precision
    if device.type != "cuda":
        return "32-true"
    return "bf16-mixed" if computes_in_bf16() else "16-mixed"


def refuse_what_it_cannot(config: TrainConfig, device: torch.device) -> None:
    """
    Raises:
        ConfigError: a precision or an optimiser that this kind of device does not have.
    """
    precision = config.trainer.precision
    if precision == "bf16-mixed" and device.type == "cuda" and not computes_in_bf16():
        raise ConfigError("trainer.precision: this GPU has no bf16, got bf16-mixed; set auto or 16-mixed")
    if precision == "16-mixed" and device.type == "cpu":  # Lightning would take bf16 instead
        raise ConfigError("trainer.precision: CPUs have no fp16 training, got 16-mixed; set auto or bf16-mixed")
    eight_bit = config.train.optimizer in (OptimizerName.adamw_8bit, OptimizerName.paged_adamw_8bit)
    if eight_bit and device.type == "mps":
        raise ConfigError(
            f"train.optimizer: bitsandbytes has none for Apple's GPUs, got {config.train.optimizer.name}; set adamw, "
            "or trainer.accelerator=cpu"
        )


def build(
    model_config: ModelConfig,
    data_config: DataConfig,
    trainer: TrainerConfig,
    *,
    seed: int,
    train: OptimizationConfig | None = None,
    resumes: bool = False,
    dataset: Dataset | None = None,
    ledger: Ledger | None = None,
    adapters: bool = True,
    cache: CacheConfig | None = None,
) -> Built:
    """Model on its device, adapters on it, data connected to the family's encoder, and features where `cache` says so.

    Raises:
        ConfigError: something cannot be had, or is estimated not to fit: `train` is what it is to be trained with. A
            run that `resumes` is warned alone, for its settings cannot be changed any more.
    """
    device = pick_device(trainer)
    data_config = pick_workers(data_config, device, model_config, trainer)
    dataset = dataset or found_data(data_config)
    ledger = ledger or Ledger(None, data_config.on_bad_row, data_config.bad_row_ceiling)
    source, hf_config = load_source(model_config)
    family = make_family(model_config, source, hf_config)
    family.allow(dataset.allow_tokens)
    rows_per_step = train.rows_per_step if train is not None else 1
    data = VLMDataModule(dataset, data_config, family.encode, ledger, rows_per_step, seed, family.encode_prompt)
    if data_config.max_new_tokens == 0:
        data.config = replace(data_config, max_new_tokens=tokens_for_answers(data))
        say(f"  data.max_new_tokens = {data.config.max_new_tokens}  (a quarter more than the longest reference)")
    tokens, checkpointing = None, False
    if train is None:
        require_weights(model_config, hf_config, device, trainer)
    else:
        longest = longest_row(data)
        fit = require_training(model_config, source, hf_config, longest, device, trainer, train, may_refuse=not resumes)
        tokens, checkpointing = fit.tokens_per_batch, fit.checkpointing
        say(f"  memory: {fit.words}")
    whole_elsewhere = is_shared_out(trainer) and model_config.quantization.mode == QuantizationMode.none
    place = torch.device("cpu") if whole_elsewhere else device
    base = load_model(model_config, source, hf_config, device, seed, place)
    model = lora.attach(base, model_config, seed) if adapters else base
    if checkpointing:
        lora.checkpoint_language(base)
    if train is not None and train.compile:
        compile_language(base)
    family.cache = feature_cache(base, family, cache) if cache is not None else None
    if FORKS and device.type == "cpu" and torch.get_num_threads() == 1 and is_frozen(base):
        family.seeing = base  # workers have one thread, too: the same bits
    return Built(model_config, source, family, model, device, seed, data, tokens, checkpointing)


def share_out(built: Built, trainer: TrainerConfig) -> None:
    """Shards the language part's frozen layers where `trainer.strategy` says so, once all adapters are on the model."""
    if is_shared_out(trainer):
        start_ranks(trainer, built.device)
        shard(built.base, built.device)


def with_chosen_tokens(config: TrainConfig, built: Built) -> TrainConfig:
    """The settings with what `tokens_per_batch=auto` has become."""
    train = replace(config.train, tokens_per_batch=built.tokens_per_batch)
    return replace(config, train=train, evaluation=evaluation_with_tokens(config.evaluation, built, config.trainer))


def evaluation_with_tokens(evaluation: EvaluationConfig, built: Built, trainer: TrainerConfig) -> EvaluationConfig:
    """The same of an evaluation."""
    if evaluation.tokens_per_batch != AUTO:
        return evaluation
    return replace(evaluation, tokens_per_batch=tokens_to_answer(built.base, trainer))


def tokens_for_answers(data: VLMDataModule) -> int:
    """A quarter more than the longest reference, in tokens, of those with the most characters among some rows of each
    split; raises ConfigError where no row can be read."""
    most = 0
    for split in data.ids:
        texts = [(max(sample.references, key=len), sample) for sample in data.some_samples(split, BASELINE_ROWS)]
        for text, sample in sorted(texts, key=lambda pair: -len(pair[0]))[:LONGEST_ENCODED]:
            row = data.encode(replace(sample, answer=text))
            most = max(most, int(row.supervised.sum()) if isinstance(row, EncodedRow) else 0)
    if not most:
        raise ConfigError("data.max_new_tokens: Expected rows whose references can be measured, got none; set a number")
    return math.ceil(1.25 * most)


def longest_row(data: VLMDataModule) -> tuple[EncodedRow, Sample] | None:
    """Of some rows of the training split, without bad ones."""
    ids: Sequence[str] = data.ids["train"]
    encoded_rows = []
    for row_id in ids[:: max(1, len(ids) // LENGTHS_LOOKED_AT)][:LENGTHS_LOOKED_AT]:
        with contextlib.suppress(BadRowError):
            sample = data.sample(row_id)
            row = data.encode(sample)
            if isinstance(row, EncodedRow):
                encoded_rows.append((row, sample))
    return max(encoded_rows, key=lambda pair: pair[0].length) if encoded_rows else None


def peak_lr(config: TrainConfig) -> float:
    """What is set, or the model's own in the multiple that the data ask for."""
    own = config.model.default_lr * config.data.default_lr_factor
    return config.train.lr if config.train.lr is not None else own


def resolved(config: TrainConfig) -> Plan:
    """The settings with what the user left open, and what each of these became and why. `config` stays as it is.

    Raises:
        ConfigError: a device, precision or optimiser that this machine does not have.
    """
    train, trainer, inferred = config.train, config.trainer, list[Inferred]()
    if train.lr is None:
        train = replace(train, lr=peak_lr(config))
        factor = config.data.default_lr_factor
        times = f", {factor:g} times for {config.data.name}" if factor != 1 else ""
        inferred.append(Inferred("train.lr", train.lr, f"model.default_lr of {config.model.name}{times}"))
    if config.data.streaming and trainer.val_check_interval is None and trainer.max_steps > 0:
        interval = max(1, trainer.max_steps // 10)
        trainer = replace(trainer, val_check_interval=interval)
        inferred.append(Inferred("trainer.val_check_interval", interval, "a tenth of trainer.max_steps"))
    if trainer.max_epochs is None:
        by_steps = trainer.max_steps >= 0
        trainer = replace(trainer, max_epochs=-1 if by_steps else config.data.default_epochs)
        origin = "trainer.max_steps is set" if by_steps else "data.default_epochs"
        inferred.append(Inferred("trainer.max_epochs", trainer.max_epochs, origin))
    if train.rows_per_batch is None:
        train = replace(train, rows_per_batch=train.rows_per_step)
        inferred.append(Inferred("train.rows_per_batch", train.rows_per_batch, "train.rows_per_step"))
    device = pick_device(trainer)
    inferred.append(Inferred("device", str(device), f"trainer.accelerator={trainer.accelerator}"))
    if trainer.precision == "auto":
        trainer = replace(trainer, precision=pick_precision(trainer, device))
        inferred.append(Inferred("trainer.precision", trainer.precision, f"what {device.type} computes in"))
    if config.data.workers is None and (data := pick_workers(config.data, device, config.model, trainer)).workers:
        config = replace(config, data=data)
        inferred.append(Inferred("data.workers", data.workers, f"so that the {device.type} does not wait for rows"))
    config = replace(config, train=train, trainer=trainer)
    before = begun(config)
    if before is not None:
        config = _as_begun(config, before)
    if trainer.threads is None:
        stored = before.trainer.threads if before is not None else None
        threads, origin = choose_threads(trainer.devices, stored, config.model.default_threads)
        config = replace(config, trainer=replace(trainer, threads=threads))
        inferred.append(Inferred("trainer.threads", threads, origin))
    refuse_what_it_cannot(config, device)
    return Plan(config, tuple(inferred))


def _as_begun(config: TrainConfig, before: TrainConfig) -> TrainConfig:
    """The settings with what `tokens_per_batch=auto` was when this run began: another number rounds otherwise."""
    if config.train.tokens_per_batch == AUTO:
        config = replace(config, train=replace(config.train, tokens_per_batch=before.train.tokens_per_batch))
    if config.evaluation.tokens_per_batch == AUTO:
        tokens = before.evaluation.tokens_per_batch
        config = replace(config, evaluation=replace(config.evaluation, tokens_per_batch=tokens))
    return config
