"""Stands in for train.py where a sweep is tested: the same command line and run folder, a formula for a model."""

from __future__ import annotations

import json
import sys
import time

from vlmft.config.entry import entry, run_entry
from vlmft.config.schema import TrainConfig
from vlmft.run.folder import SUMMARY_FILE, find_folder, make_folder, report_folder, write_json
from vlmft.training.interruption import Interrupted, stop_request

N = 100


def accuracy(config: TrainConfig, step: int) -> float:
    """More with the rank, up to 8; a learning rate above 1e-2 spoils it."""
    spoilt = 0.3 if (config.train.lr or 0) > 1e-2 else 0.0
    return round(max(0.0, 0.05 * min(config.model.lora.r, 8) + 0.1 * step - spoilt), 2)


@entry("train", TrainConfig)
def main(config: TrainConfig) -> None:
    assert not config.test and config.name is None
    folder, finished = find_folder(config)
    make_folder(config)
    report_folder(folder)
    with (folder / "calls").open("a") as calls:
        calls.write("finished already\n" if finished else "ran\n")
    if finished:
        return
    if config.model.lora.r == 13:
        raise RuntimeError("thirteen")
    try:
        with stop_request() as stop:
            for step in range(1, config.trainer.max_steps + 1):
                line = {"step": step, "val/loss": 1.0, "val/q/acc": accuracy(config, step), "val/q/n": N}
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                for _ in range(config.trainer.log_every_n_steps):
                    stop.check()
                    time.sleep(0.1)
    except Interrupted as error:
        sys.exit(error.exit_code)
    write_json(folder / SUMMARY_FILE, {"best_value": accuracy(config, config.trainer.max_steps)})


if __name__ == "__main__":
    run_entry(main)
