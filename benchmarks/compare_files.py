"""How long `vlmft compare` takes on two large files: python benchmarks/compare_files.py [--rows 100000]"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def write(path: Path, rows: int, skill: float, seed: int) -> None:
    golds, source = random.Random(0), random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            gold = golds.randint(3, 10)
            said = gold if source.random() < skill else source.randint(3, 10)
            row = {"id": f"row/{i:06d}", "prediction": f"There are {said} items.", "reference": str(gold)}
            file.write(json.dumps(row) + "\n")


def cpu_seconds() -> float:
    """Of ended child processes; what a loaded machine makes them wait is not in it."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "a.jsonl", Path(folder) / "b.jsonl"]
        for seed, (path, skill) in enumerate(zip(files, (0.60, 0.61), strict=True), start=1):
            write(path, rows, skill, seed)
        for metric in ("count_accuracy", "relaxed_accuracy", "token_f1"):
            command = [sys.executable, "-m", "vlmft", "compare", *map(str, files), "--metric", metric]
            started, busy = time.perf_counter(), cpu_seconds()
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            passed, worked = time.perf_counter() - started, cpu_seconds() - busy
            print(f"{metric}: two files of {rows:,} rows in {passed:.1f} s, of which {worked:.1f} s on a processor")


if __name__ == "__main__":
    main()
