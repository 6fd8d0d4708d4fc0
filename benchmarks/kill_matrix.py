"""Kills a training at random moments and resumes it: does it end with the bytes of the run that nobody killed?

    python benchmarks/kill_matrix.py --kills 20
    python benchmarks/kill_matrix.py --kills 10 --settings trainer=fsdp trainer.accelerator=cpu trainer.threads=1

Each trial is a run of its own, killed once with SIGKILL (inside training, saving, validation or evaluation, in turn)
and started again with the same command until it ends. Of several ranks a random one is killed. Prints a line a trial,
then the verdict; exit code 1 if a hash differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
WINDOWS, VALIDATE_EVERY = 60, 24
SETTINGS = (
    "model=tiny_qwen2vl model.lora.dropout=0.1 data.limit_train=96 data.limit_val=32 data.limit_test=64 "
    f"train.rows_per_step=4 train.rows_per_batch=3 trainer.max_steps={WINDOWS} trainer.max_epochs=-1 "
    f"trainer.val_check_interval={VALIDATE_EVERY} trainer.log_every_n_steps=1 evaluation.rows_per_batch=8 "
    "evaluation.canary_rows=2 preflight=false logger=none name=run resume=true cache.answers=false"
).split()
STAGES = ("training", "saving", "validation", "evaluation", "training")
TIMEOUT_SECONDS = 600


@dataclass
class Trial:
    stage: str
    killed_at: int
    """Windows logged when the kill came."""
    inside: bool
    """Whether what the kill left shows that it came inside the stage."""
    redone: int
    same: bool
    repeated_or_lost: int


def start(folder: Path, workers: int) -> subprocess.Popen[bytes]:
    """The command, in the background, with one thread so that sums have one order."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *SETTINGS, f"output_root={folder}", f"data.workers={workers}"]
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)


def run_folder(folder: Path) -> Path:
    return folder / "tiny_qwen2vl-shapes" / "run"


def logged_steps(run: Path) -> list[int]:
    """Steps of the training windows in metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "train/loss" in values:
            found.append(values["step"])
    return found


def half_saved(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*.partial"))


def was_inside(stage: str, run: Path) -> bool:
    """What a stage leaves that was not ended; training leaves no mark but its windows."""
    values = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    if stage == "saving":
        return half_saved(run)
    if stage == "validation":  # its windows are done, its values are not yet there
        n_windows = max((line["step"] + 1 for line in values if "train/loss" in line), default=0)
        return n_windows == VALIDATE_EVERY * (1 + sum("val/loss" in line for line in values))
    if stage == "evaluation":
        return not (run / "summary.json").exists()
    return True


def reached(stage: str, run: Path, window: int) -> bool:
    """Whether the run is inside the stage now, past the window that was drawn."""
    n_logged = len(logged_steps(run))
    if stage == "saving":
        return half_saved(run)
    if stage == "validation":
        return n_logged >= VALIDATE_EVERY * (1 + window % 2)
    if stage == "evaluation":
        return any(path.stat().st_size for path in (run / "predictions").glob("*.jsonl"))
    return n_logged >= window


def killed(stage: str, folder: Path, workers: int, draw: random.Random) -> int:
    """Starts the run, kills it inside the stage; returns how many windows it had logged."""
    process = start(folder, workers)
    run, window = run_folder(folder), draw.randrange(1, WINDOWS)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while process.poll() is None and not reached(stage, run, window) and time.monotonic() < deadline:
        time.sleep(0.0005 if stage == "saving" else 0.01)
    time.sleep(draw.uniform(0, 0.002 if stage == "saving" else 0.05))
    if process.poll() is None:
        ranks = [psutil.Process(process.pid)]
        ranks += [child for child in ranks[0].children() if "train_ddp_process" in str(child.cmdline())]
        draw.choice(ranks).kill()
        psutil.wait_procs(ranks[1:], timeout=TIMEOUT_SECONDS)
    process.wait(timeout=TIMEOUT_SECONDS)
    return len(logged_steps(run))


def finished(folder: Path, workers: int) -> None:
    """Starts the run again and waits for its end."""
    code = start(folder, workers).wait(timeout=TIMEOUT_SECONDS)
    if code != 0:
        sys.exit(f"the resumed run ended with exit code {code}; see {folder / 'log.txt'}")


def outcome(run: Path) -> tuple[str, str]:
    """Hashes of the adapter and of the tuned answers."""
    files = (run / "adapter" / "adapter_model.safetensors", run / "predictions" / "tuned.jsonl")
    adapter, answers = (hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    return adapter, answers


def trial(number: int, root: Path, reference: tuple[str, str], draw: random.Random) -> Trial:
    folder, workers = root / f"trial-{number}", 2 * (number % 2)
    folder.mkdir()
    stage = STAGES[number % len(STAGES)]
    n_logged = killed(stage, folder, workers, draw)
    inside = was_inside(stage, run_folder(folder))
    before = len(folder.joinpath("log.txt").read_bytes())
    finished(folder, workers)
    said = folder.joinpath("log.txt").read_bytes()[before:].decode()
    resumed = next((int(part[5:12]) for part in said.split() if part.startswith("step-")), 0)
    steps = logged_steps(run_folder(folder))
    odd = len(set(range(WINDOWS)) ^ set(steps)) + len(steps) - len(set(steps))
    found = Trial(stage, n_logged, inside, max(0, n_logged - resumed), outcome(run_folder(folder)) == reference, odd)
    shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="*", default=[], help="more settings of the run")
    arguments = parser.parse_args()
    SETTINGS.extend(arguments.settings)
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "reference").mkdir()
        started = time.monotonic()
        finished(root / "reference", workers=0)
        reference = outcome(run_folder(root / "reference"))
        print(f"uninterrupted: adapter {reference[0][:12]}, answers {reference[1][:12]}", flush=True)
        trials = []
        for number in range(arguments.kills):
            found = trial(number, root, reference, draw)
            trials.append(found)
            print(
                f"{number + 1:2d}  killed in {found.stage} after window {found.killed_at}: {found.redone} windows done "
                f"again, {'same bytes' if found.same else 'OTHER BYTES'}",
                flush=True,
            )
    for stage in dict.fromkeys(STAGES):
        there = [found.inside for found in trials if found.stage == stage]
        print(f"{len(there)} kills aimed at {stage}, {sum(there)} of them inside it")
    same, odd = sum(found.same for found in trials), sum(found.repeated_or_lost for found in trials)
    redone = [found.redone for found in trials]
    print(
        f"{same} of {len(trials)} runs ended with the uninterrupted hashes; {odd} windows repeated or lost; "
        f"windows done again: median {statistics.median(redone):g}, most {max(redone)}; "
        f"{time.monotonic() - started:.0f} s"
    )
    sys.exit(same != len(trials) or odd != 0)


if __name__ == "__main__":
    main()
