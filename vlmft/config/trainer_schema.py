"""Settings that go to Lightning: the Trainer's arguments under their own names, loggers, and what is around a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Optional, Union

from vlmft.config.setting_types import Constraint, Count, CountOrAll, CountOrUnlimited, CountOrZero, Positive, one_of


def _batches(value: float) -> bool:
    return 0 <= value <= 1 or (math.isfinite(value) and value >= 1 and value == int(value))


def _time(value: Any) -> bool:
    return isinstance(value, Mapping) or re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(value)) is not None


def _name_or_target(*names: str) -> Constraint:
    listed = ", ".join(names)
    return Constraint(
        f"{listed} or a mapping with _target_", lambda value: value in names or isinstance(value, Mapping)
    )


Accelerator = Annotated[str, one_of("auto", "cpu", "gpu", "cuda", "mps")]
# bf16-true and 16-true are left out: updates of a small learning rate round away in 16-bit adapters.
Precision = Annotated[str, one_of("auto", "32-true", "bf16-mixed", "16-mixed")]
WandbMode = Annotated[str, one_of("auto", "online", "offline")]
# As in Lightning, the type tells a count (1: one batch) from a share (1.0: all).
Batches = Annotated[Union[int, float], Constraint("0, a share up to 1.0 or a count >= 1", _batches)]
SomeBatches = Annotated[
    Union[int, float], Constraint("a share up to 1.0 or a count >= 1", lambda x: x != 0 and _batches(x))
]
Batch = Annotated[Union[bool, int], Constraint("true, false or a count of batches", lambda n: n >= 0)]


@dataclass
class TrainerConfig:
    """Every argument of `lightning.Trainer` under its own name, but those of synonyms.yaml: another setting takes
    their place.

    A batch of the Trainer is a window here: the rows of one optimiser step.
    """

    accelerator: Accelerator = "auto"
    """auto: the GPU where there is one, else the CPU."""
    strategy: Annotated[Any, _name_or_target("auto", "ddp", "fsdp")] = "auto"
    """auto and ddp: one process a device, gradients summed once a window; fsdp: the frozen layers of the language part
    are shared out among them, too, for a model that does not fit on one. A strategy of your own: `_target_`."""
    devices: Count = 1
    """Devices of each node; which ones, CUDA_VISIBLE_DEVICES says."""
    num_nodes: Count = 1
    """Machines; `trainer.devices` counts those of each."""
    precision: Precision = "auto"
    """auto: bf16-mixed where the GPU has it, 16-mixed on older GPUs, 32-true on CPU. Adapters stay in fp32."""
    max_epochs: Optional[CountOrUnlimited] = None
    """null: data.default_epochs."""
    min_epochs: Optional[Count] = None
    """No early stop before so many passes over the training rows."""
    max_steps: CountOrUnlimited = -1
    """Optimiser steps; -1: no limit but epochs."""
    min_steps: Optional[Count] = None
    """No early stop before so many optimiser steps."""
    max_time: Annotated[Any, Constraint("a time as DD:HH:MM:SS or a mapping such as {hours: 2}", _time)] = None
    """Training ends after it: DD:HH:MM:SS, or a mapping such as {hours: 2}. The learning rate's course is that of
    max_epochs and max_steps."""
    limit_train_batches: Optional[SomeBatches] = None
    """Windows an epoch: a count (10) or a share (0.5)."""
    limit_val_batches: Optional[Batches] = None
    """Validation batches: a count, a share, or 0 for no validation."""
    limit_test_batches: Optional[SomeBatches] = None
    """Batches of evaluation.rows_per_batch test rows: a count or a share; sets data.limit_test."""
    limit_predict_batches: Optional[Batches] = None
    """Of Trainer.predict in a notebook; evaluation goes by limit_test_batches."""
    overfit_batches: Batches = 0
    """So many windows, or such a share of the rows, are trained on again and again: can the model learn them at all?
    Sets data.limit_train and data.limit_val."""
    val_check_interval: Optional[SomeBatches] = None
    """Validate every so many windows (10) or every such share of an epoch (0.5); null: once an epoch."""
    check_val_every_n_epoch: Count = 1
    """Validate after every so many epochs."""
    num_sanity_val_steps: CountOrAll = 0
    """Validation batches before the first step; -1: all of them."""
    log_every_n_steps: Count = 10
    """Optimiser steps between two lines of metrics.jsonl and of the loggers."""
    fast_dev_run: Batch = False
    """One window (or so many), as many validation batches and sixteen test rows: does everything work?"""
    enable_checkpointing: bool = True
    """Without, nothing can be resumed, and the adapter is that of the last window."""
    enable_progress_bar: bool = True
    """The bar that is drawn while a run trains."""
    enable_model_summary: bool = False
    """Lightning's table of layers; callbacks=model_summary says how deep."""
    deterministic: bool = True
    """Warns where an operation has no deterministic form."""
    benchmark: Optional[bool] = None
    """cuDNN's search for the fastest convolution: quicker where images have one size, and not repeatable."""
    inference_mode: bool = True
    """Validate and test under torch.inference_mode; false: under no_grad."""
    profiler: Annotated[Any, _name_or_target("simple", "advanced", "pytorch")] = None
    """What takes how long, in the run folder: simple, advanced, pytorch, or a mapping with `_target_`."""
    detect_anomaly: bool = False
    """Stop at the operation whose gradient is not finite, and name it: slow, for debugging."""
    barebones: bool = False
    """Training alone, without checkpoints, loggers, progress and validation: how fast is the loop itself?"""
    plugins: list[Any] = field(default_factory=list)
    """Mappings with `_target_`, such as a cluster environment."""
    sync_batchnorm: bool = False
    """One batch norm over all devices, for a model that has such layers."""
    reload_dataloaders_every_n_epochs: CountOrZero = 0
    """Make the loaders anew every so many epochs; 0: never."""
    enable_autolog_hparams: bool = True
    """Hand the settings to the loggers."""
    memory_gib: Optional[Positive] = None
    """Not Lightning's: GiB that a device may use; null: what is free. Estimated to need more, a run stops at once."""
    threads: Optional[Count] = None
    """Not Lightning's: CPU threads that compute; null: as many as there are free cores, or OMP_NUM_THREADS."""


@dataclass
class LoggerConfig:
    """Where metrics go beside metrics.jsonl."""

    wandb: bool = False
    """Log to Weights & Biases; offline where no key or no network is found. metrics.jsonl is written in any case."""
    lightning: dict[str, Any] = field(default_factory=dict)
    """Name -> a Lightning logger, as a mapping with `_target_` and its arguments; logger=[csv,tensorboard] takes those
    of conf/logger/. Its `save_dir`, unless
    it is set, is a folder of its name in the run folder."""
    project: str = "vlmft"
    """W&B project."""
    entity: Optional[str] = None
    """W&B user or team; null: the key's own."""
    mode: WandbMode = "auto"
    """auto | online | offline: auto is online only where an API key is found."""
    group: Optional[str] = None
    """Runs that W&B shows together; null: the run's name, so that a run and its evaluations are."""
    tags: list[str] = field(default_factory=list)
    """Of the run in W&B; logger=wandb takes `tags`."""
    samples: CountOrZero = 2
    """Answers to the first validation rows, shown after each validation in the terminal and in W&B; 0: none."""
    table_rows: CountOrZero = 32
    """First test rows that go to W&B with image, answers and scores; 0: none."""
    log_adapter: bool = False
    """Upload the adapter to W&B."""
    init_timeout_seconds: Positive = 20.0
    """How long a start waits for W&B before it logs offline."""
    finish_timeout_seconds: Positive = 120.0
    """How long a finished run waits for W&B's uploads; what is not sent by then stays in the run folder."""


@dataclass
class ExtrasConfig:
    """What is around a run and changes nothing of it."""

    print_config: bool = False
    """Print all settings at the start."""
    ignore_warnings: bool = False
    """Hide Python's warnings; the library warnings that mean nothing here are hidden in any case."""
