"""How much slower is training beside other work on the same cores?

    python benchmarks/threads.py

Prints a table: windows of the default job in a second, alone, and beside one and two busy processes (a Python loop
each), as PyTorch is by itself, as vlmft chooses, with one thread, and with a thread a core. Let nothing else run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (
    "trainer.max_epochs=-1 trainer.limit_val_batches=0 trainer.log_every_n_steps=1 data.limit_val=8 data.limit_test=8 "
    "data.options.train_rows=512 preflight=false test=false logger=none trainer.enable_progress_bar=false "
    "cache.enabled=false"  # else the later runs read what the first have made
).split()
WARM_UP = 4
"""First windows that are not counted."""
CORES = len(os.sched_getaffinity(0))
WAITING = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Where no waiting policy is set, libgomp spins 300,000 times, and 1,000 times where it knows of too few cores.
BY_ITSELF = {"OMP_NUM_THREADS": str(CORES), "GOMP_SPINCOUNT": "300000"}
FORMS: dict[str, tuple[dict[str, str], list[str]]] = {
    "before: PyTorch by itself": (BY_ITSELF, ["data.workers=0"]),
    "after: chosen": ({}, []),
    "one thread, no worker": ({}, ["trainer.threads=1", "data.workers=0"]),
    f"{CORES} threads that sleep while they wait": ({}, [f"trainer.threads={CORES}", "data.workers=0"]),
}


@contextlib.contextmanager
def busy(n: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def windows_per_second(extra: dict[str, str], settings: list[str], windows: int) -> float:
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    environment |= {"HF_HUB_OFFLINE": "1", **extra}
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*SETTINGS, *settings, f"trainer.max_steps={windows}", f"output_root={folder}"]
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        (metrics,) = Path(folder).rglob("metrics.jsonl")
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines = [line for line in lines if "train/loss" in line]
    first, last = lines[WARM_UP], lines[-1]
    return float((last["step"] - first["step"]) / (last["seconds"] - first["seconds"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=24, help="optimiser steps of each run")
    parser.add_argument("--most-busy", type=int, default=2, help="busy processes beside it, at most")
    arguments = parser.parse_args()
    started = time.monotonic()
    print(f"windows a second, {CORES} cores, load at first {os.getloadavg()[0]:.2f}")
    heads = ["alone", *(f"beside {n}" for n in range(1, arguments.most_busy + 1))]
    print("| |" + " | ".join(heads) + " |\n|---|" + "---|" * len(heads))
    for name, (environment, settings) in FORMS.items():
        rates = []
        for n in range(arguments.most_busy + 1):
            with busy(n):
                rates.append(windows_per_second(environment, settings, arguments.windows))
        print(f"| {name} | " + " | ".join(f"{rate:.2f}" for rate in rates) + " |", flush=True)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
