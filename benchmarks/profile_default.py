"""Where does the time of training go?

    python benchmarks/profile_default.py [key=value ...]

Trains 16 windows of the default job, or of other settings, with an empty feature cache, and prints what each stage
takes of a window, without the stages inside it. `--epochs 2` shows what stored features save. Seconds are the process's
on a CPU, so that other work on the machine hardly moves them.
"""

from __future__ import annotations

import argparse
import functools
import os
import runpy
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (
    "trainer.enable_progress_bar=false data.limit_val=16 data.limit_test=8 preflight=false test=false logger=none "
    "logger.samples=0"
).split()


class Stages:
    """Seconds of CPU and calls by stage, while it is on; what a stage inside another takes counts there alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.entered: list[str] = []
        self.since, self.on = 0.0, False

    def _switch(self) -> None:
        now = time.process_time()
        if self.on and self.entered:
            self.seconds[self.entered[-1]] += now - self.since
        self.since = now

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            self._switch()
            self.entered.append(stage)
            self.calls[stage] += self.on
            try:
                return function(*arguments, **named)
            finally:
                self._switch()
                self.entered.pop()

        return wrapper

    def time(self, owner: Any, name: str, stage: str) -> None:
        """From now on, `owner.name` is timed."""
        setattr(owner, name, self.timed(stage, getattr(owner, name)))


def time_stages(stages: Stages) -> None:
    import bitsandbytes.functional
    import torch
    from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
    from lightning.pytorch.loops.fit_loop import _FitLoop
    from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
    from transformers.image_processing_backends import PilBackend
    from transformers.models.idefics3 import modeling_idefics3

    import vlmft.sample
    from vlmft.data.datasets import scenes, shapes
    from vlmft.models import feature_cache, feature_files, generic, processor_calls
    from vlmft.training import callbacks, module

    drawing = stages.timed("scene: drawing", scenes.render)
    for where in (scenes, shapes):
        where.render = drawing  # type: ignore[assignment]
    for owner, name, stage in (
        (shapes.Shapes, "read", "scene: placing"),
        (vlmft.sample, "pixels_sha256", "hash of the pixels"),
        (PilBackend, "preprocess", "image processor"),
        (processor_calls.ProcessorCalls, "_template", "chat template"),
        (processor_calls.ProcessorCalls, "_process", "processor but for images, tokenizer"),
        (generic.GenericFamily, "encode", "encoding, the rest"),
        (modeling_idefics3.Idefics3VisionTransformer, "forward", "vision tower"),
        (modeling_idefics3.Idefics3Connector, "forward", "connector"),
        (generic.GenericFamily, "image_features", "around the vision tower"),
        (feature_cache.FeatureCache, "put", "storing features"),
        (feature_files.FeatureFiles, "flush", "storing features"),
        (generic.GenericFamily, "collate", "collating"),
        (generic.GenericFamily, "share", "collating"),
        (generic.GenericFamily, "forward", "language, forward"),
        (module.VLMModule, "manual_backward", "language, backward"),
        (module.VLMModule, "on_before_optimizer_step", "clipping"),
        (torch.optim.AdamW, "step", "optimiser"),
        (module.VLMModule, "log_dict", "logging"),
        (_LoggerConnector, "log_metrics", "logging"),
        (_EvaluationLoop, "run", "validation (16 rows), its own part"),
        (callbacks.StepCheckpoint, "save", "checkpoints"),
        (bitsandbytes.functional, "dequantize_4bit", "unpacking 4-bit weights"),
        (torch.ops.bitsandbytes.dequantize_4bit, "default", "unpacking 4-bit weights"),
        (torch.ops.bitsandbytes.dequantize_blockwise, "default", "unpacking 4-bit weights"),
        (_FitLoop, "advance", "Lightning's loop"),
    ):
        stages.time(owner, name, stage)
    advance = _FitLoop.advance

    def switched_on(loop: Any) -> None:
        stages.on = True
        advance(loop)
        stages.on = False

    _FitLoop.advance = switched_on  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=16, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=1)
    arguments, settings = parser.parse_known_args()
    stages, windows = Stages(), arguments.windows * arguments.epochs
    with tempfile.TemporaryDirectory() as folder:
        sizes = [f"data.options.train_rows={8 * arguments.windows}", f"trainer.max_epochs={arguments.epochs}"]
        folders = [f"output_root={folder}", f"cache.folder={folder}/features"]
        sys.argv = ["train.py", *SETTINGS, *sizes, *folders, *settings]
        sys.path.insert(0, str(ROOT))
        time_stages(stages)
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    print(f"| {windows} windows of 8 rows, {arguments.epochs} epochs | CPU ms a window | calls |\n|---|---|---|")
    for stage, seconds in stages.seconds.most_common():
        print(f"| {stage} | {1000 * seconds / windows:.1f} | {stages.calls[stage] / windows:.1f} |")
    print(f"| in all | {1000 * sum(stages.seconds.values()) / windows:.0f} | |")


if __name__ == "__main__":
    main()
