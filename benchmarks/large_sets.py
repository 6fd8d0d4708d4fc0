"""What a large dataset costs: set-up at the first and at later starts, memory of the main process, time of a window.

    python benchmarks/large_sets.py --rows 1000000 --form messages
    python benchmarks/large_sets.py --rows 1000000 --form columns

Writes a JSON Lines file over 2,000 JPEG files, then sets it up three times, each in a process of its own, with an empty
cache folder at first. Set-up is what a run does from its first import to its first window: reading the index, taking
val and test from train by content, checking that no image stands in two splits, counting the card.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

ROOT = Path(__file__).resolve().parent.parent
WINDOWS, ROWS_PER_STEP, IMAGE_SIZE = 200, 16, (336, 252)


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


def set_up(form: str, file: Path) -> dict[str, Any]:
    """In a process of its own: seconds of each stage, then of a window."""
    begun = time.monotonic()
    sys.path.insert(0, str(ROOT))
    from vlmft.config.schema import DataConfig, OnBadRow
    from vlmft.data.datamodule import VLMDataModule
    from vlmft.data.ledger import Ledger
    from vlmft.data.make import make_dataset
    from vlmft.data.survey.survey import survey_splits

    imported, cpu = time.monotonic(), time.process_time()
    kind = {"messages": "vlmft.data.datasets.messages:Messages", "columns": "vlmft.data.datasets.columns:Columns"}[form]
    config = DataConfig(name=form, dataset=kind, path=str(file))
    ledger = Ledger(None, OnBadRow["raise"], 0.01)
    data = VLMDataModule(make_dataset(config), config, _decoded, ledger, ROWS_PER_STEP, seed=0)  # type: ignore[arg-type]
    survey = survey_splits(data)
    ready, cpu = time.monotonic(), time.process_time() - cpu
    memory = peak_bytes()
    loader = iter(data.train_dataloader())
    windows = []
    for _ in range(min(WINDOWS, len(data.ids["train"]) // ROWS_PER_STEP)):
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
    command = [sys.executable, __file__, "--form", form, "--child", str(file)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--small-rows", type=int, default=10_000, help="what the time of a window is compared with")
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--form", choices=("messages", "columns"), default="messages")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child is not None:
        print(json.dumps(set_up(asked.form, asked.child)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_images(folder, asked.images)
        stamps = time.time_ns() - 3_600_000_000_000  # an hour old: what was changed just now is not remembered
        for file in (folder / "images").iterdir():
            os.utime(file, ns=(stamps, stamps))
        for n_rows in (asked.small_rows, asked.rows):
            write_rows(folder / f"{n_rows}.jsonl", asked.form, n_rows, asked.images)
            os.utime(folder / f"{n_rows}.jsonl", ns=(stamps, stamps))
            for number in range(1, asked.starts + 1):
                found = start(asked.form, folder / f"{n_rows}.jsonl", folder / f"cache-{n_rows}")
                rate = n_rows / found["setup_seconds"]
                print(
                    f"{asked.form}, {n_rows:,} rows, start {number}: set-up {found['setup_seconds']:.1f} s "
                    f"({found['setup_cpu_seconds']:.1f} s of CPU, {rate:,.0f} rows/s) after "
                    f"{found['import_seconds']:.1f} s of imports, peak {found['peak_bytes'] / 2**30:.2f} GiB, "
                    f"a window of {ROWS_PER_STEP} rows {found['window_ms']:.1f} ms of CPU",
                    flush=True,
                )
            print(f"  {found['rows']} {found['few_ids']} {found['cards']['train']}")


if __name__ == "__main__":
    main()
