"""One training step beside TRL's SFTTrainer: work, speed and memory, after equal losses.

    pip install 'vlmft[bench]'
    python benchmarks/vs_trl.py                  # three scaled models on one CPU core, some minutes
    python benchmarks/vs_trl.py --device cuda    # the published sizes, random weights, bf16
    python benchmarks/vs_trl.py --quick          # one model, one round
    python benchmarks/vs_trl.py --published --models SmolVLM Qwen2-VL   # FLOPs of one row at the published sizes, fp32

Compared are TRL as it ships, TRL as an expert sets it (no gradient checkpointing, loss on completions alone, sdpa, on
a GPU also workers), and the way of train.py without and with the feature cache: the same weights, adapters, rows in the
same batches, optimiser and schedule. Two epochs: the first is the cold one, the second the warm one. "4 questions" are
the same two epochs over a quarter of the images. `data.group_by_image` has the questions about an image in one
step. Each measurement runs in a process of its own, which inherits the imports and no model; the
contestants take turns. FLOPs are counted in a run apart, which moves losses by rounding.

On a CPU, samples a second are those of processor time in one thread, which other programs move least, and there are no
workers, which would only hide work on another core. On a GPU it is the clock's time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lightning as L
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, PrinterCallback, TrainerCallback

import vlmft
from benchmarks.measuring import clock, flop_counter, in_fresh_process
from benchmarks.scaled_models import REAL, SCALED, save_model, write_rows
from vlmft.config.schema import TrainConfig
from vlmft.models.load import load_source
from vlmft.models.lora import attach
from vlmft.models.processor import load_processor
from vlmft.run.build import build, resolved
from vlmft.run.fit import make_trainer
from vlmft.run.module import make_module
from vlmft.run.quiet import quiet_libraries

VARIANTS = ("TRL as it ships", "TRL tuned", "vlmft, no cache", "vlmft, cache")
REFERENCE, CACHED = VARIANTS[2:]
EPOCHS = 2
LR = 1e-3
TOLERANCE = {"cpu": 1e-5, "cuda": 2e-2}
"""Relative, of a step's loss. In fp32 a sum rounds at 6e-8; kernels and orders of summation differ through two dozen
layers, and AdamW's first steps are as large as the learning rate whatever the gradient's size, so that rounding comes
back enlarged. In bf16 a value has three digits. Another picture moves the loss fifty times as far."""
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121}
"""Dense bf16, by a part of the GPU's name."""


@dataclass(frozen=True)
class Job:
    """One contestant's two epochs."""

    variant: str
    model: Path
    rows: Path
    rows_per_step: int
    lora_rank: int
    device: str = "cpu"
    count: bool = False
    """FLOPs instead of time."""
    order: tuple[tuple[str, ...], ...] = ()
    """For TRL: ids of the rows of each step, as vlmft took them."""


@dataclass
class Measured:
    losses: list[float] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    """Of each step."""
    seconds: list[float] = field(default_factory=list)
    """Of each step, reading and encoding its rows included."""
    order: tuple[tuple[str, ...], ...] = ()
    encoding_seconds: float = 0.0
    """Of all rows of an epoch once more after training, without a step."""
    peak_bytes: int = 0
    """Above what the libraries take; on a GPU, of its memory."""
    image_tokens: int = 0
    image_bytes: int = 0
    """Of one image's stored features, the mean; its tokens likewise."""


class Watch:
    """What a step took, told at its end."""

    def __init__(self, job: Job) -> None:
        self.job, self.found, self.bytes_before = job, Measured(), psutil.Process().memory_info().rss
        self.counter = flop_counter() if job.count else contextlib.nullcontext()

    def start(self) -> None:
        """Of training."""
        self.time, self.flops = clock(self.job.device), 0

    def step(self, loss: float) -> None:
        now = clock(self.job.device)
        self.found.losses.append(loss)
        self.found.seconds.append(now - self.time)
        self.time = now
        if isinstance(self.counter, FlopCounterMode):
            total = self.counter.get_total_flops()
            self.found.flops.append(total - self.flops)
            self.flops = total

    def end(self, batches: Iterator[Any]) -> Measured:
        """Reads the rows once more and reports."""
        if self.job.device == "cpu":
            self.found.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.bytes_before
        else:
            self.found.peak_bytes = torch.cuda.max_memory_allocated()
        before = clock(self.job.device)
        for _ in batches:
            pass
        self.found.encoding_seconds = clock(self.job.device) - before
        return self.found


def config_of(job: Job) -> TrainConfig:
    """What `python train.py` would be given."""
    cached = job.variant.endswith(", cache")
    return vlmft.compose(
        "model=auto",
        f"model.path={job.model}",
        "model.quantization.mode=none",
        "data=columns",
        f"data.path={job.rows}",
        "data.val_rows=0",
        "data.test_rows=0",
        "data.group_by_image=true",
        f"data.workers={0 if job.device == 'cpu' else 4}",
        f"model.lora.r={job.lora_rank}",
        f"train.rows_per_step={job.rows_per_step}",
        f"train.lr={LR}",
        "train.warmup_ratio=0",
        f"trainer={'cpu' if job.device == 'cpu' else 'gpu'}",
        f"trainer.max_epochs={EPOCHS}",
        "trainer.enable_checkpointing=false",
        "trainer.enable_progress_bar=false",
        "logger=none",
        f"cache.enabled={str(cached).lower()}",
    )


class LightningWatch(L.Callback):
    def __init__(self, watch: Watch) -> None:
        self.watch, self.order = watch, list[tuple[str, ...]]()

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.watch.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        self.watch.step(module.window_loss)
        self.order.append(tuple(module.window_ids))


def run_vlmft(job: Job) -> Measured:
    """As train.py trains, without validation and checkpoints."""
    quiet_libraries()
    watch = Watch(job)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.environ["VLMFT_CACHE"] = folder
        config = resolved(config_of(job)).config
        built = build(
            config.model, config.data, config.trainer, seed=config.seed, train=config.train, cache=config.cache
        )
        module, seen = make_module(built, config), LightningWatch(watch)
        trainer = make_trainer(config, Path(folder), [], None, [seen])
        with built.family.cache or contextlib.nullcontext():
            with watch.counter:
                trainer.fit(module, datamodule=built.data)
            watch.found.order = tuple(seen.order)
            if built.family.cache is not None and (entries := list(built.family.cache.memory.values())):
                watch.found.image_tokens = round(statistics.mean(entry.feature.shape[0] for entry in entries))
                watch.found.image_bytes = round(statistics.mean(entry.n_bytes for entry in entries))
            return watch.end(module.batches(rows) for rows in built.data.train_dataloader())


class TransformersWatch(TrainerCallback):  # type: ignore[misc]
    def __init__(self, watch: Watch) -> None:
        self.watch, self.losses = watch, list[torch.Tensor]()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.watch.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.watch.step(float(self.losses[-1]))


def run_trl(job: Job) -> Measured:
    """SFTTrainer over the rows of both epochs in the order that is given: it keeps nothing of an image, so that two
    epochs and one of twice the rows are the same work."""
    import datasets
    from trl import SFTTrainer

    quiet_libraries()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    watch = TransformersWatch(Watch(job))

    class Trainer(SFTTrainer):  # type: ignore[misc]
        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            found = super().compute_loss(*arguments, **named)
            watch.losses.append((found[0] if isinstance(found, tuple) else found).detach())
            return found

    with tempfile.TemporaryDirectory() as folder:
        config = config_of(job)
        source, hf_config = load_source(config.model)
        model = AutoModelForImageTextToText.from_pretrained(job.model, dtype="auto").to(job.device)
        trainer = Trainer(
            model=attach(model.requires_grad_(False), config.model, config.seed),
            args=trl_settings(job, folder),
            train_dataset=trl_rows(job),
            processing_class=load_processor(source, hf_config.model_type),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        with watch.watch.counter:
            trainer.train()
        half = len(trainer.train_dataset) // EPOCHS
        return watch.watch.end(_first(iter(trainer.get_train_dataloader()), -(-half // job.rows_per_step)))


def _first(batches: Iterator[Any], most: int) -> Iterator[Any]:
    yield from (batch for batch, _ in zip(batches, range(most), strict=False))


def trl_settings(job: Job, folder: str) -> Any:
    """SFTConfig's defaults but for what both share, and what an expert would change."""
    from trl import SFTConfig

    on_cpu = job.device == "cpu"
    tuned = {"gradient_checkpointing": False, "completion_only_loss": True, "max_length": None}
    tuned |= {} if on_cpu else {"dataloader_num_workers": 4, "dataloader_persistent_workers": True}
    return SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=job.rows_per_step,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=LR,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=1.0,
        use_cpu=on_cpu,
        bf16=not on_cpu,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **(tuned if job.variant == "TRL tuned" else {}),
    )


def trl_rows(job: Job) -> Any:
    """The same files as TRL's documentation has them: prompt, completion, images, which are read when a row is."""
    import datasets

    lines = (job.rows / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = []
    for row_id in (row_id for step in job.order for row_id in step):
        row = json.loads(lines[int(row_id.rpartition("/")[2])])
        rows.append(
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": row["answer"]}],
                "images": [str(job.rows / row["image"])],
            }
        )
    return datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))


def run(job: Job) -> Measured:
    """The two epochs, in this process."""
    torch.set_num_threads(1 if job.device == "cpu" else torch.get_num_threads())
    return run_trl(job) if job.variant.startswith("TRL") else run_vlmft(job)


def fresh(job: Job) -> Measured:
    """`run` in a process of its own."""
    return in_fresh_process(run, job, ("benchmarks.vs_trl", "trl.trainer.sft_trainer", "vlmft.run.train"))


@dataclass(frozen=True)
class Contest:
    """All that was measured of one model and one set of rows: variant -> runs."""

    counted: dict[str, Measured]
    timed: dict[str, list[Measured]]

    def flops(self, variant: str, epoch: int) -> float:
        """Mean of a step of an epoch."""
        return statistics.mean(_epoch(self.counted[variant].flops, epoch))

    def seconds(self, variant: str, epoch: int) -> float:
        """Median over the rounds, of a whole epoch."""
        return statistics.median(sum(_epoch(run.seconds, epoch)) for run in self.timed[variant])

    def rows(self) -> int:
        return sum(len(step) for step in _epoch(next(iter(self.timed.values()))[0].order, 0))

    def difference(self, variant: str) -> float:
        """Largest relative difference of a step's loss to that of vlmft without a cache."""
        expected = self.timed[REFERENCE][0].losses
        found = (run.losses for run in self.timed[variant])
        return max(abs(a - b) / abs(b) for losses in found for a, b in zip(losses, expected, strict=True))


def _epoch(of_steps: Sequence[Any], epoch: int) -> Sequence[Any]:
    half = len(of_steps) // EPOCHS
    return of_steps[epoch * half : (epoch + 1) * half]


def counted_steps(job: Job, variants: Sequence[str]) -> dict[str, Measured]:
    """FLOPs of each variant. The reference comes first and gives the order of rows."""
    counted = {REFERENCE: fresh(replace(job, count=True))}
    order = counted[REFERENCE].order
    a_step_each = tuple(_epoch(order, epoch)[0] for epoch in range(EPOCHS))  # all steps of TRL are alike
    for variant in variants:
        if variant != REFERENCE:
            print(f"  {job.model.name}, {job.rows.name}, FLOPs: {variant}", file=sys.stderr, flush=True)
            rows = a_step_each if variant.startswith("TRL") else ()
            counted[variant] = fresh(replace(job, variant=variant, count=True, order=rows))
    return counted


def contest(job: Job, variants: Sequence[str], rounds: int) -> Contest:
    """FLOPs of each variant, then losses and times in turns."""
    counted = counted_steps(job, variants)
    job = replace(job, order=counted[REFERENCE].order)
    timed: dict[str, list[Measured]] = {variant: [] for variant in (REFERENCE, *variants)}
    for number, variant in ((n, v) for n in range(rounds) for v in variants):
        print(f"  {job.model.name}, {job.rows.name}, round {number + 1}: {variant}", file=sys.stderr, flush=True)
        timed[variant].append(fresh(replace(job, variant=variant)))
    return Contest(counted, timed)


def require_equal(found: Contest, name: str, device: str) -> None:
    """Prints each variant's losses against the reference's; ends the program where they are not the same training."""
    print(f"{name}: losses of vlmft {', '.join(f'{loss:.6f}' for loss in found.timed[REFERENCE][0].losses)}")
    for variant in found.timed:
        print(f"  {variant}: differs by at most {found.difference(variant):.1e} (of {TOLERANCE[device]:.0e} allowed)")
    odd = [variant for variant in found.timed if not found.difference(variant) <= TOLERANCE[device]]
    if odd:
        sys.exit(f"{name}: losses of {', '.join(odd)} differ; speeds of two different trainings cannot be compared")


def line(name: str, variant: str, one: Contest, four: Contest | None, device: str) -> str:
    """A row of the table."""
    n_rows = one.rows()
    giga = "{:,.1f}" if device == "cpu" else "{:,.0f}"
    cells = [name, variant]
    for found in (one, *([four] if four is not None else [])):
        cells.append(" / ".join(giga.format(found.flops(variant, epoch) / 1e9) for epoch in range(EPOCHS)))
    for found in (one, *([four] if four is not None else [])):
        cells.append(" / ".join(f"{n_rows / found.seconds(variant, epoch):.2f}" for epoch in range(EPOCHS)))
    warm, runs = EPOCHS - 1, one.timed[variant]
    cells.append(f"{1e3 * statistics.median(run.encoding_seconds for run in runs) / n_rows:.0f}")
    cells.append(f"{statistics.median(run.peak_bytes for run in runs) / 2**30:.2f}")
    if device == "cuda":
        rate = one.flops(variant, warm) / (one.seconds(variant, warm) / len(_epoch(runs[0].losses, warm)))
        peak = next((peak for part, peak in PEAK_TFLOPS.items() if part in torch.cuda.get_device_name()), None)
        cells.append(f"{rate / 1e12:.0f}" + (f" ({rate / 1e12 / peak:.0%})" if peak is not None else ""))
    return "| " + " | ".join(cells) + " |"


def compared(name: str, found: Contest, questions: int) -> list[str]:
    """Rows of the second table: how many times less vlmft with its cache takes, cold and warm."""
    what = "" if questions == 1 else f", {questions} questions"
    lines = []
    for epoch, when in enumerate(("cold", "warm")):
        cells = [name, when + what]
        for other in VARIANTS[:2]:
            work = found.flops(other, epoch) / found.flops(CACHED, epoch)
            rate = found.seconds(other, epoch) / found.seconds(CACHED, epoch)
            cells += [f"{work:.1f}", f"{rate:.1f} ({rate / work:.2f})"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


COMPARED = (
    "| vlmft with its cache takes less by | | FLOPs, of TRL as it ships | time (share of what FLOPs promise) "
    "| FLOPs, of TRL tuned | time (the same) |\n|---|---|---|---|---|---|"
)


def header(has_four: bool, device: str) -> str:
    cells = ["model", "", "GFLOP a step, cold / warm", *(["the same, 4 questions"] if has_four else [])]
    cells += ["samples/s, cold / warm", *(["the same, 4 questions"] if has_four else [])]
    cells += [
        "encoding, ms a row",
        "peak memory, GiB",
        *(["TFLOP/s warm (of the GPU's peak)"] if device == "cuda" else []),
    ]
    return "| " + " | ".join(cells) + " |\n" + "|---" * len(cells) + "|"


def published(names: Sequence[str], variants: Sequence[str], folder: Path) -> list[str]:
    """Rows of a table: FLOPs of a step of one row at the published sizes, where nothing is scaled, and of four rows
    about one image, which are four times one row for TRL. A step takes minutes on a CPU, so that times are not
    measured; ends the program where losses differ."""
    lines = [
        "| published size | | GFLOP of a row, cold / warm | times vlmft with its cache | the same, 4 questions |",
        "|---" * 5 + "|",
    ]
    write_rows(folder / "rows", 1, 1)
    write_rows(folder / "four rows", 1, 4)
    for name in names:
        save_model(REAL[name], folder / name, "cpu")
        job = Job(REFERENCE, folder / name, folder / "rows", 1, REAL[name].lora_rank)
        found = counted_steps(job, variants)
        together = counted_steps(replace(job, rows=folder / "four rows", rows_per_step=4), (CACHED,))
        expected, ours, four = found[REFERENCE].losses, found[CACHED].flops, together[CACHED].flops
        for variant, measured in found.items():
            far = max(abs(a - b) / abs(b) for a, b in zip(measured.losses, expected, strict=True))
            if not far <= TOLERANCE["cpu"]:
                sys.exit(f"{name}: losses of {variant} differ by {far:.1e}: it is another training")
            giga = " / ".join(f"{n / 1e9:,.0f}" for n in measured.flops)
            more = " / ".join(f"{n / mine:.1f}" for n, mine in zip(measured.flops, ours, strict=True))
            of_four = " / ".join(f"{4 * n / mine:.1f}" for n, mine in zip(measured.flops, four, strict=True))
            lines.append(f"| {name} | {variant} | {giga} | {more} | {of_four if variant.startswith('TRL') else ''} |")
        shutil.rmtree(folder / name)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="*", choices=tuple(SCALED), default=tuple(SCALED))
    parser.add_argument("--rounds", type=int, help="2 on a CPU, 1 on a GPU")
    parser.add_argument("--minutes", type=float, help="no model is begun after so many; 6 on a GPU")
    parser.add_argument("--quick", action="store_true", help="the first model, one round, without 4 questions")
    parser.add_argument("--published", action="store_true", help="FLOPs at the published sizes, on a CPU")
    asked = settled(parser.parse_args())
    quiet_libraries()
    on_cpu = asked.device == "cpu"
    has_trl = find_spec("trl") is not None
    if not has_trl:
        print("trl is not installed (pip install 'vlmft[bench]'): vlmft alone is measured", file=sys.stderr)
    variants = [variant for variant in VARIANTS if has_trl or not variant.startswith("TRL")]
    if asked.published:
        with tempfile.TemporaryDirectory() as folder:
            print("\n".join([versions(has_trl), "", *published(asked.models, variants, Path(folder))]))
        return
    per_step, steps = (4, 2) if on_cpu else (8, 10)
    lines, second = [header(not asked.quick, asked.device)], [COMPARED]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = {k: Path(folder) / f"{k} questions an image" for k in ((1,) if asked.quick else (1, 4))}
        for questions, place in rows.items():
            write_rows(place, per_step * steps // questions, questions)
        for name in asked.models:
            if time.monotonic() - begun > 60 * asked.minutes:
                print(f"{name} is left out: {asked.minutes:g} minutes are over", file=sys.stderr)
                continue
            model, scaled = Path(folder) / name, (SCALED if on_cpu else REAL)[name]
            save_model(scaled, model, asked.device)
            found = {}
            for questions, place in rows.items():
                job = Job(REFERENCE, model, place, per_step, scaled.lora_rank, asked.device)
                found[questions] = contest(job, variants, asked.rounds)
                require_equal(found[questions], f"{name}, {place.name}", asked.device)
                second += compared(name, found[questions], questions) if has_trl else []
            lines += [line(name, variant, found[1], found.get(4), asked.device) for variant in variants]
            shutil.rmtree(model)
    told = f"{per_step} rows a step, {steps} steps an epoch, rounds: {asked.rounds}"
    print(f"\n{told}; {versions(has_trl)}\n\n" + "\n".join([*lines, "", *(second if has_trl else [])]))


def settled(asked: argparse.Namespace) -> argparse.Namespace:
    """The command's arguments with what a device is given where they say nothing."""
    on_cpu = asked.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        sys.exit("--device cuda: Expected a GPU that torch can use, got none; take --device cpu")
    asked.rounds = 1 if asked.quick else asked.rounds or (2 if on_cpu else 1)
    asked.minutes = asked.minutes or (float("inf") if on_cpu else 6)
    asked.models = asked.models[:1] if asked.quick else asked.models
    return asked


def versions(has_trl: bool) -> str:
    names = ("torch", "transformers", "peft", "lightning", *(("trl",) if has_trl else ()))
    return ", ".join(f"{name} {version(name)}" for name in names)


if __name__ == "__main__":
    main()
