"""What a person looks at while a model trains: a bar on a terminal, a line now and then elsewhere; and some answers."""

from __future__ import annotations

import statistics
import textwrap
from collections import deque
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar

from vlmft.config.progress import Progress, duration
from vlmft.models.batches import Padding
from vlmft.training.module import VLMModule
from vlmft.training.tracking import Wandb

SMOOTHED_WINDOWS = 20
"""Loss and speed are means over the last so many windows."""
SECONDS_BETWEEN_LINES = 10.0
LONGEST_TEXT = 80
"""Characters of a question, a reference or an answer that are shown."""


class Windows(Progress):
    """The windows of a fit; `sentence` is what is known of it now."""

    def __init__(self, trainer: L.Trainer, total: int, monitor: str | None) -> None:
        super().__init__("windows", total, 0.0, SECONDS_BETWEEN_LINES)
        self.trainer, self.monitor, self.done = trainer, monitor, trainer.global_step
        self.recent: deque[tuple[float, int, float]] = deque(maxlen=SMOOTHED_WINDOWS)
        """Loss, rows and rows a second of each."""
        self.last: float | None = None
        best = getattr(trainer.checkpoint_callback, "best_model_score", None)
        self.best = float(best) if best is not None else None
        """Validation metric of the last and of the best checkpoint."""

    def sentence(self) -> str:
        trainer, parts = self.trainer, [f"window {self.done:,} of {self.total:,}"]
        if (trainer.max_epochs or 0) > 1:
            parts[0] += f" (epoch {min(trainer.current_epoch + 1, trainer.max_epochs or 0)} of {trainer.max_epochs})"
        if self.recent:
            losses, rows, rates = zip(*self.recent, strict=True)
            seconds = sum(n / rate for n, rate in zip(rows, rates, strict=True))
            lr = float(trainer.callback_metrics["train/lr"])
            parts += [f"loss {statistics.fmean(losses):.4f}", f"lr {lr:.2g}", f"{sum(rows) / seconds:.0f} rows/s"]
            if self.done < self.total:
                parts.append(f"{duration((self.total - self.done) * seconds / len(rows))} left")
        if self.monitor is not None and self.best is not None:
            last = f"{percent(self.last)}, " if self.last is not None else ""
            parts.append(f"val {named(self.monitor)} {last}best {percent(self.best)}")
        if (device := trainer.strategy.root_device).type == "cuda":
            used, there = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
            parts.append(f"GPU {used / 2**30:.1f} of {there / 2**30:.0f} GiB")
        return ", ".join(parts)


def named(metric: str) -> str:
    return metric.rpartition("/")[2]


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


class TrainingProgress(ProgressBar):
    """Windows, loss, learning rate, speed, time left, the last and the best validation, memory on a GPU.

    Args:
        monitor: logged metric by which the best checkpoint is chosen.
    """

    def __init__(self, monitor: str | None) -> None:
        super().__init__()
        self.monitor = monitor
        self.windows: Windows | None = None
        self.silent = False
        self.padding = Padding()

    def disable(self) -> None:
        """Lightning's way to silence ranks above zero."""
        self.silent = True

    def on_train_start(self, trainer: L.Trainer, pl_module: VLMModule) -> None:  # type: ignore[override]
        if not self.silent:
            self.windows = Windows(trainer, pl_module.total_steps, self.monitor)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: VLMModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.windows is None:
            return
        self.padding.include(pl_module.padding)
        if pl_module.window_rows:
            rate = float(trainer.callback_metrics["train/rows_per_second"])
            self.windows.recent.append((pl_module.window_loss, pl_module.window_rows, rate))
        self.windows.advance(trainer.global_step - self.windows.done)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or self.silent:
            return
        metrics = trainer.callback_metrics
        parts = [f"loss {float(metrics['val/loss']):.4f}"] if "val/loss" in metrics else []
        if self.monitor in metrics:
            value = float(metrics[self.monitor])
            parts.append(f"{named(self.monitor)} {percent(value)}")
            if self.windows is not None:
                self.windows.last, best = value, self.windows.best
                self.windows.best = value if best is None else max(value, best)
        print(f"validation after window {trainer.global_step:,}: {', '.join(parts)}", flush=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.windows is not None:
            self.windows.show()  # of a short fit, too
            print(f"padding was {percent(self.padding.share)} of the tokens that the language part was trained on")
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.windows is not None:
            self.windows.close()
            self.windows = None


class ShowSamples(L.Callback):
    """Prints the answers to the first `n` validation rows after each validation, and logs them to W&B."""

    def __init__(self, n: int) -> None:
        self.n = n

    def on_validation_end(self, trainer: L.Trainer, pl_module: VLMModule) -> None:  # type: ignore[override]
        rows = [] if trainer.sanity_checking or not trainer.is_global_zero else pl_module.answered[: self.n]
        for row in rows:
            _, *texts = row
            question, references, answer = (textwrap.shorten(text, LONGEST_TEXT, placeholder=" ...") for text in texts)
            print(f"  {question!r} -> {answer!r} (reference {references!r})", flush=True)
        for logger in trainer.loggers if rows else ():
            if isinstance(logger, Wandb):
                logger.log_table("val/samples", ("id", "question", "references", "answer"), rows, own_row=False)
