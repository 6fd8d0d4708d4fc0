"""Progress: rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

SECONDS_BETWEEN_LINES = 5.0


def progress_bar() -> ProgressBar:
    return RichProgressBar(leave=True) if sys.stdout.isatty() else PlainLines()


class PlainLines(ProgressBar):
    """A line every few seconds and one for each validation: readable in a log file."""

    def __init__(self) -> None:
        super().__init__()
        self.started = self.last = time.monotonic()

    def disable(self) -> None:
        """Lightning's way to silence ranks above zero."""
        self.last = float("inf")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = self.last = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        metrics = trainer.callback_metrics
        print(
            f"epoch {trainer.current_epoch + 1}  window {trainer.global_step}/{pl_module.total_steps}  "
            f"loss {metrics['train/loss']:.4f}  {metrics['train/rows_per_second']:.0f} rows/s  "
            f"{now - self.started:.0f} s",
            flush=True,
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        values = [f"{n} {float(v):.4f}" for n, v in trainer.callback_metrics.items() if n.startswith("val/")]
        print(f"validation at window {trainer.global_step}: " + "  ".join(values), flush=True)
