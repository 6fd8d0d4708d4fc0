"""How costs grow with rows, images, tokens an image, and processes: set-up, memory, time of a window, stored features.

    python benchmarks/scaling.py rows --form messages            # 1e3 to 1e6 rows over 2,000 images
    python benchmarks/scaling.py rows --form stream         # parquet with images, data.streaming=true (1e6: 13 GB)
    python benchmarks/scaling.py images                          # 100 to 10,000 images below 10,000 rows
    python benchmarks/scaling.py tokens                          # an image of 40 to 580 tokens, cold and warm
    python benchmarks/scaling.py ranks                           # one and two processes (gloo) on the same windows

Each line is measured in a process of its own. `rows` and `images` write a JSON Lines file over JPEG files and set it up
several times, with an empty cache folder at first. Set-up is what a run does from its first import to its first window:
reading the index, taking val and test from train by content, checking that no image is in two splits, counting the
card. `tokens` trains the scaled Qwen2-VL of scaled_models.py for a cold and a warm epoch on images of 800x557 that its
processor cuts down; `ranks` is `python train.py` with `model=tiny`. All compute in one thread a process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
WINDOWS, ROWS_PER_STEP, IMAGE_SIZE = 200, 16, (336, 252)
PATCHES = (160, 640, 2320)
"""Of an image at most, four to a token."""
RUN = (
    "model=tiny trainer=cpu trainer.threads=1 data.options.train_rows=64 data.limit_val=8 data.limit_test=8 test=false "
    "preflight=false logger=none train.rows_per_step=16 trainer.max_epochs=2 trainer.log_every_n_steps=1 name=run"
).split()


def write_images(folder: Path, n_images: int) -> None:
    chance = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for number in range(n_images):
        small = chance.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        picture = PIL.Image.fromarray(small).resize(IMAGE_SIZE, PIL.Image.Resampling.BICUBIC)
        picture.save(folder / "images" / f"{number:05d}.jpg", quality=90)


def row(form: str, number: int, n_images: int) -> dict[str, Any]:
    image, question = f"images/{number % n_images:05d}.jpg", f"What stands in row {number} of this chart, and why?"
    answer = f"It is {number % 977} of {number % 31}."
    if form == "columns":
        return {"image": image, "question": question, "answer": answer}
    asked, said = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    return {"messages": [asked, said], "images": [image]}


def write_rows(file: Path, form: str, n_rows: int, n_images: int) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for number in range(n_rows):
            stream.write(json.dumps(row(form, number, n_images)) + "\n")


def write_parquet(file: Path, n_rows: int, n_images: int) -> None:
    """Rows with their images, in groups of 1,000, never all in memory."""
    import datasets

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(n_rows):
            made = row("columns", number, n_images)
            # A few bytes behind the picture's end, which readers ignore: the same picture is stored anew in each row.
            stored = (file.parent / made["image"]).read_bytes() + number.to_bytes(8, "big")
            yield {**made, "image": {"bytes": stored, "path": None}}

    types = {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    cache = file.parent / "arrow"
    made = datasets.Dataset.from_generator(rows, features=datasets.Features(types), cache_dir=str(cache))
    made.to_parquet(str(file), batch_size=1_000)
    shutil.rmtree(cache)


def set_up(form: str, file: Path) -> dict[str, Any]:
    """In a process of its own: seconds of each stage, then of a window."""
    begun = time.monotonic()
    from vlmft.config.schema import DataConfig, OnBadRow
    from vlmft.data.datamodule import VLMDataModule
    from vlmft.data.ledger import Ledger
    from vlmft.data.make import make_dataset
    from vlmft.data.survey.survey import survey_splits

    imported, cpu = time.monotonic(), time.process_time()
    kinds = {"messages": "vlmft.data.datasets.messages:Messages"}
    kind, streaming = kinds.get(form, "vlmft.data.datasets.columns:Columns"), form == "stream"
    config = DataConfig(name=form, dataset=kind, path=str(file), streaming=streaming)
    ledger = Ledger(None, OnBadRow["raise"], 0.01)
    data = VLMDataModule(make_dataset(config), config, _decoded, ledger, ROWS_PER_STEP, seed=0)  # type: ignore[arg-type]
    survey = survey_splits(data)
    ready, cpu = time.monotonic(), time.process_time() - cpu
    memory = peak_bytes()
    loader = iter(data.train_dataloader())
    windows = []
    for _ in range(WINDOWS if streaming else min(WINDOWS, len(data.ids["train"]) // ROWS_PER_STEP)):
        start = time.process_time()
        next(loader)
        windows.append(time.process_time() - start)
    return {
        "rows": {split: len(ids) for split, ids in data.ids.items()},
        "import_seconds": imported - begun,
        "setup_seconds": ready - imported,
        "setup_cpu_seconds": cpu,
        "peak_bytes": memory,
        "window_ms": 1000 * float(np.median(windows)),
        "cards": {split: repr(card) for split, card in survey.cards.items()},
        "few_ids": [data.ids["test"][i] for i in (0, 1, -1)],
    }


def _decoded(sample: Any) -> Any:
    return [image.pixels.shape for image in sample.prompt.images]


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def start(form: str, file: Path, cache: Path) -> dict[str, Any]:
    environment = {**os.environ, "VLMFT_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "rows", "--form", form, "--child", str(file)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def large_sets(form: str, sizes: Sequence[tuple[int, int]], starts: int) -> None:
    """A line for each start with so many (rows, images)."""
    print(
        "| rows | images | start | set-up, s of CPU | rows/s | peak, GiB | window of 16 rows, ms of CPU | cache, MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_images(folder, max(images for _, images in sizes))
        stamps = time.time_ns() - 3_600_000_000_000  # an hour old: what was changed just now is not remembered
        for file in (folder / "images").iterdir():
            os.utime(file, ns=(stamps, stamps))
        for n_rows, n_images in sizes:
            suffix = "parquet" if form == "stream" else "jsonl"
            rows, cache = folder / f"{n_rows}-{n_images}.{suffix}", folder / f"cache-{n_rows}-{n_images}"
            (write_parquet if form == "stream" else partial(write_rows, form=form))(
                rows, n_rows=n_rows, n_images=n_images
            )
            os.utime(rows, ns=(stamps, stamps))
            for number in range(1, starts + 1):
                found = start(form, rows, cache)
                print(
                    f"| {n_rows:,} | {n_images:,} | {number} | {found['setup_cpu_seconds']:.2f} | "
                    f"{n_rows / found['setup_cpu_seconds']:,.0f} | {found['peak_bytes'] / 2**30:.2f} | "
                    f"{found['window_ms']:.1f} | {folder_bytes(cache) / 2**20:.1f} |",
                    flush=True,
                )
            print(f"{found['rows']} {found['few_ids']} {found['cards']['train']}", file=sys.stderr)


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def tokens() -> None:
    """A line for each limit of patches."""
    from benchmarks.scaled_models import SCALED, Scaled, save_model
    from benchmarks.scaled_models import write_rows as write_questions
    from benchmarks.vs_trl import CACHED, Job, fresh

    def cut_down(patches: int) -> Scaled:
        scaled = SCALED["Qwen2-VL"]
        name, settings = scaled.tiny.image_processor
        size = {**settings["size"], "longest_edge": patches * 14 * 14}
        return replace(scaled, tiny=replace(scaled.tiny, image_processor=(name, {**settings, "size": size})))

    print("| tokens | GFLOP a step, cold / warm | ms a row, cold / warm | peak, GiB | features of an image, KiB |")
    print("|---|---|---|---|---|")
    for patches in PATCHES:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            save_model(cut_down(patches), folder / "model", "cpu")
            write_questions(folder / "rows", 8, 1)
            job = Job(CACHED, folder / "model", folder / "rows", 4, 4)
            counted, timed = fresh(replace(job, count=True)), fresh(job)
        flops = " / ".join(f"{counted.flops[step] / 1e9:,.1f}" for step in (1, 3))  # the last of each epoch
        cold, warm = sum(timed.seconds[:2]) / 8, sum(timed.seconds[2:]) / 8
        print(
            f"| {timed.image_tokens} | {flops} | {1e3 * cold:,.0f} / {1e3 * warm:,.0f} | "
            f"{timed.peak_bytes / 2**30:.2f} | {timed.image_bytes / 2**10:,.0f} |",
            flush=True,
        )


def ranks(numbers: Sequence[int]) -> None:
    """A line for each number of processes."""
    head = "| processes | s in all | ms a window, first / second epoch | largest process, GiB | images | times made | "
    print(f"{head}stored, MiB |\n{'|---' * 7}|")
    for number in numbers:
        with tempfile.TemporaryDirectory() as place:
            found = ranked(number, Path(place))
        windows = " / ".join(f"{ms:.0f}" for ms in found["window_ms"])
        print(
            f"| {number} | {found['seconds']:.1f} | {windows} | {found['peak_bytes'] / 2**30:.2f} | "
            f"{found['images']} | {found['made']} | {found['cache_bytes'] / 2**20:.2f} |",
            flush=True,
        )


def ranked(processes: int, folder: Path) -> dict[str, Any]:
    """`python train.py` with so many processes and an empty cache."""
    environment = {**os.environ, "VLMFT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = [*RUN, f"trainer.devices={processes}", f"output_root={folder}/out"]
    script = (
        "import resource, subprocess, sys, time; before = time.monotonic(); "
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(time.monotonic() - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )  # a process of its own, because the peak is of all children so far
    command = [sys.executable, "-c", script, sys.executable, "train.py", *arguments]
    told = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, peak = (float(number) for number in told.split())
    (metrics,) = folder.rglob("metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    rates = [line["train/rows_per_second"] for line in lines if "train/loss" in line]
    half = len(rates) // 2
    images, n_bytes = stored(folder / "cache" / "features")
    distinct = len(set(images))
    return {
        "seconds": seconds,
        "peak_bytes": peak * (1 if sys.platform == "darwin" else 1024),
        "window_ms": [1e3 * ROWS_PER_STEP / float(np.median(part)) for part in (rates[:half], rates[half:])],
        "made": len(images),
        "images": distinct,
        "cache_bytes": n_bytes,
    }


def stored(folder: Path) -> tuple[list[str], int]:
    """Hashes of the images that a cache folder has features of, one for each time that a process made them, and bytes
    of its files."""
    from safetensors import safe_open

    from vlmft.models.feature_files import FEATURE, stored_files

    images, n_bytes = list[str](), 0
    for file, stat in stored_files(folder):
        with safe_open(file, "pt") as opened:
            names = (name.split("/") for name in opened.keys())  # noqa: SIM118
            images += [sha256 for sha256, what in names if what == FEATURE]
        n_bytes += stat.st_size
    return images, n_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rows", "images", "tokens", "ranks"))
    parser.add_argument("--rows", type=int, nargs="+", help="default: 1e3 to 1e6; for images 10,000")
    parser.add_argument("--images", type=int, nargs="+", help="default: 2,000; for images 100 to 10,000")
    parser.add_argument("--form", choices=("messages", "columns", "stream"), default="columns")
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if asked.child is not None:
        print(json.dumps(set_up(asked.form, asked.child)))
    elif asked.what == "tokens":
        tokens()
    elif asked.what == "ranks":
        ranks(asked.processes)
    else:
        of_rows = asked.what == "rows"
        n_rows = asked.rows or ([10**3, 10**4, 10**5, 10**6] if of_rows else [10**4])
        n_images = asked.images or ([2_000] if of_rows else [100, 1_000, 10_000])
        large_sets(asked.form, [(r, min(r, i)) for r in n_rows for i in n_images], asked.starts)


if __name__ == "__main__":
    main()
