"""Switches off libraries' routine messages, so that a run's output can be read."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import transformers
from omegaconf import OmegaConf

from vlmft.config.check import ConfigError
from vlmft.config.processes import RANK_NAMES
from vlmft.config.schema import TrainConfig
from vlmft.config.secrets import redacted
from vlmft.config.trainer_schema import TrainerConfig
from vlmft.run.folder import plain
from vlmft.training.ranks import n_processes

NOISY = ("lightning.pytorch", "lightning.fabric", "bitsandbytes", "kernels", "httpx", "huggingface_hub")


def quiet_libraries() -> None:
    """Errors are still shown. Called by the entries, never on import."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    if sys.stderr.isatty():  # a bar for weights that take long
        transformers.utils.logging.set_tqdm_hook(lambda bar, args, given: bar(*args, **given, delay=3, leave=False))
    else:
        transformers.utils.logging.disable_progress_bar()
    # Named one by one: each warns of what is intended (frozen parts in eval mode) or of what that library must fix.
    for message in (
        ".*in eval mode at the start of training.*",
        ".*does not have many workers.*",
        ".*The .srun. command is available.*",
        ".*is_gradient_checkpointing. is deprecated.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*base_model_name_or_path. was renamed.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*Could not find a config file in.*",
        ".*Detected call of .lr_scheduler.step\\(\\). before.*",  # fp16's loss scaling left the first step out
        ".*recommended to use .self.log.*sync_dist=True.*",  # what is logged is a sum over ranks already
        ".*Checkpoint directory .* exists and is not empty.*",  # a run that goes on
        ".*your dataloader is not resumable.*",  # it is, by its sampler: vlmft/data/datamodule.py
    ):
        warnings.filterwarnings("ignore", message=message)


def apply_extras(config: TrainConfig) -> None:
    """What `extras` asks for, before a run begins."""
    if config.extras.ignore_warnings:
        warnings.filterwarnings("ignore")
    if config.extras.print_config:
        print(OmegaConf.to_yaml(OmegaConf.create(redacted(plain(config)))), end="")


def quiet_follower(trainer: TrainerConfig) -> None:
    """For a rank other than 0: nothing more of what this process prints is shown, but for errors.

    Raises:
        ConfigError: one process was asked for.
    """
    if n_processes(trainer) == 1:
        raise ConfigError(
            "trainer.devices: Expected the number of processes that were started, got 1 in one of a higher rank; set "
            f"it, or unset {', '.join(RANK_NAMES)}"
        )
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the rest of this process
