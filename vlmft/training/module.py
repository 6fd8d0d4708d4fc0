"""The LightningModule. The optimiser window is the unit of training: its rows may be cut into batches in any way.

It goes with any `lightning.Trainer` and with its own DataModule: `trainer.fit(module, datamodule=data)`.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.config.schema import OptimizationConfig, PartsConfig, Tuning
from vlmft.config.setting_types import chosen_count
from vlmft.models.batches import Padding, by_length
from vlmft.models.family import Family
from vlmft.models.lora import base_of, part_of, trainable, tuned_parts
from vlmft.models.memory import or_none
from vlmft.models.ranks import gathered, n_ranks, rank, undealt
from vlmft.models.sharding import is_sharded
from vlmft.models.shared_images import SharedRow
from vlmft.sample import Batch, EncodedRow
from vlmft.training.answering import Answerer, AnsweringModule
from vlmft.training.loss import summed_cross_entropy
from vlmft.training.memory import memory_metrics
from vlmft.training.optim import make_optimizer, make_schedule, total_steps
from vlmft.training.random_state import random_state, set_random_state
from vlmft.training.ranks import sum_gradients, sum_over_ranks, summed

NOT_FINITE_LIMIT = 3
"""Windows in a row whose loss or gradients are not finite before training stops."""
OVERFLOW_LIMIT = 10
"""The same for gradients of a finite loss under fp16's loss scaling: it begins with a few such and halves its scale."""
SKIPPED_FILE = "skipped_windows.jsonl"
"""In a run folder, a line for each window whose step was not taken: {"step", "reason", "rows"}."""


Row = TypeVar("Row", EncodedRow, SharedRow)


def cut(rows: Sequence[Row], rows_limit: int, tokens_limit: int | None) -> list[list[Row]]:
    """The rows in batches of like length."""
    return by_length(rows, lambda row: row.length, lambda row: row.id, rows_limit, tokens_limit, n_rows_of)


def n_rows_of(row: EncodedRow | SharedRow) -> int:
    return len(row.rows) if isinstance(row, SharedRow) else 1


class VLMModule(AnsweringModule):
    """A (quantised) VLM with adapters, trained on windows of encoded rows.

    `answerer` generates the answers that validation and test score; without one, validation is the loss alone.
    `skipped_file` names the rows of windows whose step was not taken.
    """

    def __init__(
        self,
        family: Family,
        model: torch.nn.Module,
        parts: PartsConfig,
        config: OptimizationConfig,
        lr: float,
        answerer: Answerer | None = None,
        skipped_file: Path | None = None,
    ) -> None:
        super().__init__(answerer)
        self.automatic_optimization = False
        self.strict_loading = False
        self.family, self.model, self.config, self.lr = family, model, config, lr
        self.total_steps = 0
        """Optimiser steps that the learning rate's schedule runs over; known when training starts."""
        self.vision_grad = {"vision", "connector"} - set(tuned_parts(parts, Tuning.frozen)) != set()
        self.frozen_parts = set(tuned_parts(parts, Tuning.frozen))
        self.rows_per_batch = config.rows_per_batch or config.rows_per_step
        self.tokens_per_batch = chosen_count(config.tokens_per_batch)
        """This and the one before are halved where memory runs out."""
        self.padding = Padding()
        """Of the batches that this rank's rows were cut into last."""
        self.sharded = is_sharded(model)
        self.skipped_file = skipped_file
        self.validation_ids: list[list[str]] = []
        """By batch."""
        self.validation_loss, self.validation_tokens = torch.zeros(()), 0
        self.window_end = time.perf_counter()
        self.gradient_norm = float("nan")
        self.window_rows = 0
        self.window_ids: list[str] = []
        """Of this rank's rows."""
        self.window_loss = float("nan")
        self.loss_of_window = torch.tensor(float("nan"))
        """The same, on the device."""
        self.batch_ids: tuple[str, ...] = ()
        """Rows of the batch that went into the model last."""
        self.steps = 0
        """Optimiser steps that changed weights."""
        self.skipped_windows = 0
        self.not_finite = 0
        """Windows in a row whose loss or gradients were not finite."""
        self.overflows = 0
        """Windows in a row that overflowed under loss scaling."""
        self.random: dict[str, Any] | None = None
        """Random state of a resumed checkpoint until the first window begins."""

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model with adapters inside it."""
        return base_of(self.model)  # type: ignore[arg-type]

    def training_mode(self) -> None:
        """Dropout on where something is trained; frozen vision and connector stay in eval mode."""
        self.train()
        for name, module in self.base.named_modules():
            # One by one: module.eval() would also silence a trained connector that lives inside a frozen tower.
            if name and part_of(name) in self.frozen_parts - {"language"}:
                module.training = False

    def cpu(self) -> VLMModule:
        """Nothing. Lightning calls this when training ends, and evaluation goes on with the model where it is."""
        return self

    def on_train_start(self) -> None:
        self.training_mode()
        self.window_end = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        names = ("steps", "skipped_windows", "not_finite", "overflows")
        checkpoint["counts"] = {name: getattr(self, name) for name in names}
        checkpoint["random"] = gathered(random_state())
        checkpoint["limits"] = gathered([self.rows_per_batch, self.tokens_per_batch])
        checkpoint["limits_set"] = [self.config.rows_per_batch, self.config.tokens_per_batch]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, count in checkpoint["counts"].items():
            setattr(self, name, count)
        if len(checkpoint["random"]) != n_ranks():  # by other ranks, of which each had random numbers of its own
            return
        self.random = checkpoint["random"][rank()]
        if checkpoint["limits_set"] == [self.config.rows_per_batch, self.config.tokens_per_batch]:
            self.rows_per_batch, self.tokens_per_batch = checkpoint["limits"][rank()]  # else the settings are newer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.random is not None:  # not earlier: making loaders and iterators draws random numbers, too
            set_random_state(self.random)
            self.random = None

    def batches(self, rows: Sequence[EncodedRow]) -> list[Batch]:
        """The window in batches within `rows_per_batch` and `tokens_per_batch`, rows of like length together. Rows
        with the same images are one row where the family can do that."""
        limits, together = (self.rows_per_batch, self.tokens_per_batch), list[SharedRow]()
        if self.config.share_images and not self.vision_grad:
            most_tokens = self.tokens_per_batch or sys.maxsize
            rows, together = self.family.share(rows, self.base, self.rows_per_batch, most_tokens)
        parts, shared_parts = cut(rows, *limits), cut(together, *limits)
        self.padding = Padding()
        lengths = [[row.length for row in part] for part in parts]
        for batch in lengths + [[row.length for row in part] for part in shared_parts]:
            self.padding.add(batch)
        batches = [self.family.collate(part, "right", self.base) for part in parts]
        return batches + [self.family.collate_shared(part, self.base) for part in shared_parts]

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        """Summed cross-entropy over the supervised tokens of a batch: scalar fp32."""
        # Found on the host: a device would have to say how many there are.
        keep, targets = batch.keep, batch.targets.to(self.device)
        batch = batch.to(self.device)
        features = self.family.image_features(
            self.base, batch.images, grad=self.vision_grad and torch.is_grad_enabled()
        )
        logits = self.family.forward(self.base, batch, features, keep)
        return summed_cross_entropy(logits, targets)

    def window_backward(self, rows: Sequence[EncodedRow]) -> torch.Tensor:
        """Adds the gradient of the window's mean loss to the parameters; returns that loss, a scalar.

        Each batch's sum is divided by the whole window's token count, over all ranks, so cutting changes nothing but
        rounding.
        """
        (n_tokens,) = summed([sum(row.n_supervised for row in rows)], self.device)
        total = self.within_memory(rows, lambda batch: self._backward(batch, n_tokens))
        sum_gradients(self.model)
        return sum_over_ranks(total / n_tokens)

    def _backward(self, batch: Batch, n_tokens: float) -> torch.Tensor:
        loss = self.loss_sum(batch)
        self.manual_backward(loss / n_tokens)
        return loss.detach()

    def within_memory(self, rows: Sequence[EncodedRow], work: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        """Sum of `work` over the rows' batches.

        Where memory runs out, gradients are dropped and all is done again from the same random state in batches half
        as large; the smaller size stays for the rest of the run, and for what resumes it. Not so in a sharded model.

        Raises:
            ConfigError: there is no memory for one row.
        """
        if self.sharded:  # the other ranks could not do their part again
            return self._total(rows, work)
        state = random_state()
        while (total := or_none(lambda: self._total(rows, work))) is None:
            self.zero_grad(set_to_none=True)
            self._halve(rows)
            set_random_state(state)
        return total

    def _total(self, rows: Sequence[EncodedRow], work: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        total = torch.zeros((), dtype=exact, device=self.device)
        batches = self.batches(rows)
        # Before the first call of a layer, which needs all ranks as much as this does.
        counts, first_rows = (gathered(len(batches)), gathered(rows[:1])) if self.sharded else ([0], [])
        for batch in batches:
            self.batch_ids = batch.row_ids
            total += work(batch)
        if (n_missing := max(counts) - len(batches)) > 0:
            self._keep_up(n_missing, [row for first in first_rows for row in first][:1])
        return total

    def _keep_up(self, n_calls: int, rows: Sequence[EncodedRow]) -> None:
        """Calls a sharded model as often as the rank with the most batches does: each call needs all ranks. Adds zeros
        to gradients and moves no random numbers."""
        state = random_state()
        for _ in range(n_calls):
            loss = self.loss_sum(self.family.collate(rows, "right", self.base))
            if loss.requires_grad:
                self.manual_backward(0.0 * loss)
        set_random_state(state)

    def _halve(self, rows: Sequence[EncodedRow]) -> None:
        largest = max(len(batch.row_ids) for batch in self.batches(rows))
        if largest == 1:
            length = next(row.length for row in rows if row.id in self.batch_ids)
            raise ConfigError(
                f"row {self.batch_ids[0]}: Expected memory for one row of {length} tokens, ran out; set "
                "train.gradient_checkpointing=true, a lower model.max_length_tokens, or take a larger device"
            )
        self.rows_per_batch = largest // 2
        self.tokens_per_batch = max(1, self.tokens_per_batch // 2) if self.tokens_per_batch else None
        tokens = f" and {self.tokens_per_batch} tokens" if self.tokens_per_batch else ""
        print(
            f"out of memory with {largest} rows at once; the window is done again, and from here on at most "
            f"{self.rows_per_batch} rows{tokens} go together (train.rows_per_batch says so from the start)",
            file=sys.stderr,
        )

    def training_step(self, rows: list[EncodedRow], index: int) -> None:
        waited = time.perf_counter() - self.window_end
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        optimizer.zero_grad(set_to_none=True)
        rates = {f"train/lr{f'_{i}' if i else ''}": g["lr"] for i, g in enumerate(optimizer.param_groups)}
        counts = [len(rows), sum(row.n_supervised for row in rows), sum(row.length for row in rows)]
        n_rows, n_supervised, n_tokens = summed(counts, self.device)
        self.window_rows, self.window_ids = int(n_rows), [row.id for row in rows]
        self.loss_of_window = self.window_backward(rows) if n_rows else self._empty_backward()
        optimizer.step()
        schedule.step()  # type: ignore[union-attr, call-arg]
        seconds = time.perf_counter() - self.window_end
        self.window_end = time.perf_counter()
        self.log("train/loss", self.window_loss, batch_size=self.window_rows, prog_bar=True)
        logged = {
            "train/gradient_norm": self.gradient_norm,
            **rates,
            "train/rows_per_second": n_rows / seconds,
            "train/tokens_per_second": n_tokens / seconds,
            "train/supervised_tokens_per_second": n_supervised / seconds,
            "train/data_wait_share": max(0.0, waited) / seconds,
            "train/padding_share": self.padding.share,
            **memory_metrics(self.device),
        }
        self.log_dict(logged, batch_size=self.window_rows)
        if self.rows_per_batch < (self.config.rows_per_batch or self.config.rows_per_step):
            self.log("train/rows_per_batch", float(self.rows_per_batch), batch_size=self.window_rows)

    def _empty_backward(self) -> torch.Tensor:
        """For a window whose rows were all bad: gradients of zero, because fp16's loss scaling asks for some."""
        self.manual_backward(0.0 * next(iter(trainable(self.model).values())).sum())
        return torch.tensor(float("nan"), device=self.device)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips to `max_gradient_norm`; a window without rows, finite loss or finite gradients changes nothing.

        Lightning calls this with unscaled gradients in every precision; unscaling them here would be the second time.

        Raises:
            ConfigError: one window after the other has no finite loss or gradient.
        """
        limit = self.config.max_gradient_norm or float("inf")
        stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(stepped, limit)
        # The one time in a window that this program waits for the device. The library waits in each forward pass, too,
        # where it compares the numbers of image tokens and features.
        self.window_loss, self.gradient_norm = torch.stack([self.loss_of_window, norm.to(self.loss_of_window)]).tolist()
        finite_loss = math.isfinite(self.window_loss)
        if finite_loss and math.isfinite(self.gradient_norm):
            self.not_finite = self.overflows = 0
            self.steps += 1
            return
        optimizer.zero_grad(set_to_none=True)  # without gradients, the step that follows changes nothing
        if not self.window_rows:
            self._skip("none of its rows can be used")
        elif finite_loss and getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            self.overflows += 1
            self._skip("its gradients overflowed, and the loss scale is halved")
        else:
            self.not_finite += 1
            self._skip(f"its {'gradients are' if finite_loss else 'loss is'} not finite")
        if self.not_finite >= NOT_FINITE_LIMIT or self.overflows >= OVERFLOW_LIMIT:
            raise ConfigError(
                f"train.lr: loss or gradients of {max(self.not_finite, self.overflows)} windows in a row were not "
                f"finite, up to window {self.trainer.global_step + 1}; {SKIPPED_FILE} names their rows; lower "
                f"train.lr={self.lr:g}, or raise trainer.precision"
            )

    def _skip(self, reason: str) -> None:
        """Counts and names a window whose step is not taken."""
        self.skipped_windows += 1
        step, ids = self.trainer.global_step, undealt(gathered(self.window_ids))
        if rank():
            return
        named = f"its rows are {', '.join(ids)}" if self.skipped_file is None else f"{SKIPPED_FILE} names its rows"
        print(f"window {step + 1} is left out: {reason}; {named}", file=sys.stderr)
        if self.skipped_file is None:
            return
        with contextlib.suppress(OSError), self.skipped_file.open("a", encoding="utf-8") as stream:  # a full disk
            stream.write(json.dumps({"step": step, "reason": reason, "rows": ids}, ensure_ascii=False) + "\n")

    def on_validation_epoch_start(self) -> None:
        self.validation_ids, self.validation_loss, self.validation_tokens = [], torch.zeros(()), 0

    def validation_step(self, rows: list[EncodedRow], index: int) -> None:
        self.validation_ids.append([row.id for row in rows])
        self.validation_loss = self.within_memory(rows, self.loss_sum) + self.validation_loss
        self.validation_tokens += sum(row.n_supervised for row in rows)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking or not self.validation_ids:
            return
        loss, n_tokens = summed([float(self.validation_loss), self.validation_tokens], self.device)
        if not n_tokens:
            raise ConfigError("data: no row of the validation split can be used; bad_rows.jsonl says why")
        by_batch = zip(*gathered(self.validation_ids), strict=True)
        scores = self.generated_scores([i for hands in by_batch for i in undealt(hands)])
        self.log_dict({"val/loss": loss / n_tokens, **scores})

    def on_validation_end(self) -> None:
        self.window_end = time.perf_counter()  # after the checkpoint, so that neither counts as waiting for data

    def configure_optimizers(self) -> Any:
        self.total_steps = total_steps(self.trainer, self.data.n_windows)
        optimizer = make_optimizer(trainable(self.model), self.config, self.lr)
        return [optimizer], [{"scheduler": make_schedule(optimizer, self.config, self.total_steps), "interval": "step"}]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch's signature
        """Trained parameters alone: a checkpoint never holds the base."""
        return {name: parameter.detach() for name, parameter in trainable(self.model).items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Copies trained parameters back in.

        Raises:
            RuntimeError: names or shapes differ from what is trained here.
        """
        mine = trainable(self.model)
        odd = sorted(mine.keys() ^ state.keys())
        # copy_ would spread a matrix of rank 1 over one of rank 16 without an error
        odd += [name for name in mine.keys() & state.keys() if mine[name].shape != state[name].shape]
        if odd:
            raise RuntimeError(
                f"Expected the checkpoint of the same trained parameters, but {len(odd)} differ: {odd[:3]}"
            )
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(state[name])
        return torch.nn.modules.module._IncompatibleKeys([], [])
