"""Lightning's callbacks where a window or an exact resume asks for more than they do."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from vlmft.models.lora import trainable
from vlmft.models.ranks import rank
from vlmft.training.checkpoint import steps_in
from vlmft.training.interruption import StopRequest
from vlmft.training.ranks import asked_anywhere

KEEP = 2
"""Checkpoints that stay beside the best one: the last, and the one before it should the last be damaged."""


class StepCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint: the best by the metric and the last two, as folders `step-0000012`, written once.

    Two of Lightning's own (one for the best, one for the last) would write each best checkpoint twice, count one that a
    full disk did not take as the best, and forget the best when the run folder is moved.

    Args:
        monitor: logged metric of which more is better; None: nothing is validated, the last checkpoint is taken.
        anew: forget which was best when a checkpoint is loaded, because it is another run's.
    """

    FILE_EXTENSION = ""

    def __init__(self, dirpath: Path, monitor: str | None, *, anew: bool = False) -> None:
        super().__init__(dirpath, "step-{step:07d}", monitor=monitor, mode="max", auto_insert_metric_name=False)
        self.anew = anew
        self.is_saved = True
        """Whether the last attempt to save ended well."""
        self.validated_at = -1
        """Optimiser step of the last validation."""

    @property
    def folder(self) -> Path:
        return Path(str(self.dirpath))

    @property
    def best(self) -> str | None:
        """Name of the best checkpoint's folder."""
        return Path(self.best_model_path).name or None

    @property
    def best_value(self) -> float | None:
        return None if self.best_model_score is None else float(self.best_model_score)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_value": self.best_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["best"] is not None and not self.anew:
            self.best_model_path = str(self.folder / state_dict["best"])
            self.best_model_score = torch.tensor(state_dict["best_value"], dtype=torch.float64)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self.validated_at = trainer.global_step
            self.save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.enable_validation and not self._should_skip_saving_checkpoint(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.fast_dev_run and not self.path(trainer).exists():  # type: ignore[attr-defined]  # Lightning's
            self.save(trainer)

    def path(self, trainer: L.Trainer) -> Path:
        return self.folder / f"step-{trainer.global_step:07d}"

    def save(self, trainer: L.Trainer) -> None:
        """Writes this step's folder, updates the best, removes what is neither best nor among the last."""
        path, before = self.path(trainer), (self.best_model_path, self.best_model_score)
        value = trainer.callback_metrics.get(self.monitor or "") if self.validated_at == trainer.global_step else None
        # Nothing is better than NaN: it would stay the best for ever.
        if value is not None and not math.isnan(value) and (self.best_value is None or float(value) > self.best_value):
            self.best_model_path, self.best_model_score = str(path), value.detach().clone()
        self._save_checkpoint(trainer, str(path))
        self.is_saved = path.exists()
        if not self.is_saved:
            self.best_model_path, self.best_model_score = before
            return
        self.last_model_path = str(path)
        for name in steps_in(self.folder)[:-KEEP] if rank() == 0 else ():
            if name != self.best:
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def chosen(self) -> Path | None:
        """The best checkpoint, or the last where nothing was validated; None where that one could not be saved."""
        if self.best is not None:
            return Path(self.best_model_path)
        saved = steps_in(self.folder) if self.is_saved else []
        return self.folder / saved[-1] if saved else None

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """What Lightning's ckpt_path="last" means."""
        return {str(self.folder / name) for name in steps_in(self.folder)[-1:]}


def early_stopping(monitor: str, patience: int) -> EarlyStopping:
    """Lightning's, looked at before the checkpoint of that validation is written, so that it holds the count."""
    return EarlyStopping(monitor, patience=patience, mode="max", check_finite=False, check_on_train_epoch_end=False)


class StopWhenAsked(L.Callback):
    """After SIGTERM or Ctrl-C the window is finished and saved, then training stops, on all ranks after the same one.

    Where validation is due, it is left to the validation to save and to stop: a checkpoint from before it would make
    Lightning leave that validation out when the run goes on.
    """

    def __init__(self, stop: StopRequest, checkpoint: StepCheckpoint) -> None:
        self.stop, self.checkpoint = stop, checkpoint
        self.stopping = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stop.installed:
            self.stop.install()  # Lightning has just taken the signals for itself
        if any(c.stopping_reason != EarlyStoppingReason.NOT_STOPPED for c in _early_stopping(trainer)):
            trainer.should_stop = True  # it had stopped before the process ended; Lightning would train on

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        asked = asked_anywhere(self.stop)
        loop = trainer.fit_loop.epoch_loop
        if loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            return
        if asked and self.checkpoint in trainer.callbacks and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.checkpoint.save(trainer)
        self.stopping = asked  # when Lightning has logged the window

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.stopping:
            self.stop.check()

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if asked_anywhere(self.stop):
            self.stop.check()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stopping = asked_anywhere(self.stop)  # at the next window: the checkpoint is written after this


def _early_stopping(trainer: L.Trainer) -> list[EarlyStopping]:
    return [callback for callback in trainer.early_stopping_callbacks if isinstance(callback, EarlyStopping)]


class WeightAveraging(L.Callback):
    """An average of the trained weights, which is what is validated, kept as the best, and saved as the adapter.

    Lightning's own averages every parameter of the module: it would hold the base twice, and change its quantised
    weights, which are integers.

    Args:
        decay: of an exponential moving average (EMA), in [0, 1); None averages all steps alike (SWA).
        start_step: optimiser step after which the first weights are taken.
    """

    def __init__(self, decay: float | None = 0.999, start_step: int = 0) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"Expected a decay in [0, 1), or null for an average of all steps, got {decay}")
        self.decay, self.start_step = decay, start_step
        self.updated_at = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.trained = trainable(pl_module.model)  # type: ignore[arg-type]  # a VLMModule
        average = None if self.decay is None else get_ema_avg_fn(self.decay)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(torch.nn.ParameterList(self.trained.values()), avg_fn=average)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > max(self.updated_at, self.start_step):
            self.average.update_parameters(torch.nn.ParameterList(self.trained.values()))
            self.updated_at = trainer.global_step

    def averaged(self) -> dict[str, torch.Tensor]:
        """Name of a trained parameter -> its average; before `start_step`, the parameter itself."""
        taken = int(self.average.n_averaged) > 0
        values = self.average.module.parameters() if taken else self.trained.values()
        return {name: value.detach() for name, value in zip(self.trained, values, strict=True)}

    def _swap(self) -> None:
        if int(self.average.n_averaged) > 0:
            for one, other in zip(self.trained.values(), self.average.module.parameters(), strict=True):
                one.data, other.data = other.data, one.data

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for parameter, value in zip(self.trained.values(), list(self.averaged().values()), strict=True):
            parameter.data.copy_(value)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["weights_in_training"], checkpoint["state_dict"] = checkpoint["state_dict"], self.averaged()
        checkpoint["averaged"] = [int(self.average.n_averaged), self.updated_at]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called after the module has been given `state_dict`, the average."""
        n_averaged, self.updated_at = checkpoint["averaged"]
        self.average.n_averaged.fill_(n_averaged)
        for name, value in zip(self.trained, self.average.module.parameters(), strict=True):
            value.data.copy_(checkpoint["state_dict"][name])
        pl_module.load_state_dict(checkpoint["weights_in_training"])
