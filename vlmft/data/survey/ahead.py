"""Reads the rows in a process beside the one that imports PyTorch, which takes seconds and one core.

What it finds is in the cache of facts (`cache.py`), where the run looks for it: it waits for what is being read, and
says itself what is wrong with the data. `python -m vlmft.data.survey.ahead` takes the settings on stdin, as a line of
JSON.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading

from omegaconf import OmegaConf

from vlmft.config import progress
from vlmft.config.check import schema_node
from vlmft.config.schema import DataConfig
from vlmft.data.dataset import Dataset
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.data.rows import Rows
from vlmft.data.survey.cache import cache_folder
from vlmft.data.survey.facts import sources_of
from vlmft.data.survey.survey import facts_of_splits


def read_ahead(dataset: Dataset, config: DataConfig, seed: int) -> subprocess.Popen[bytes] | None:
    """Starts that process; None where nothing could be handed over. It ends with this one."""
    stored = sources_of(dataset) is not None and dataset.settings() is not None and cache_folder() is not None
    if not stored or config.streaming or not type(dataset).__module__.startswith("vlmft."):
        return None
    process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    settings = {"seed": seed, "data": dataclasses.asdict(config)}
    with contextlib.suppress(OSError):  # it may have died
        process.stdin.write(json.dumps(settings, default=lambda enum: enum.name).encode() + b"\n")
        process.stdin.flush()
    threading.Thread(target=process.wait, daemon=True).start()  # else it would stay in the list of processes
    atexit.register(process.kill)
    return process


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's
    progress.is_terminal = lambda: False  # lines: two processes cannot both draw bars
    with contextlib.suppress(Exception):  # which the run meets, too
        settings = OmegaConf.create(sys.stdin.readline())
        threading.Thread(target=_end_with_the_run, daemon=True).start()
        config = OmegaConf.to_object(OmegaConf.merge(schema_node(DataConfig), settings.data))
        assert isinstance(config, DataConfig)
        ledger = Ledger(None, config.on_bad_row, config.bad_row_ceiling)
        facts_of_splits(Rows(make_dataset(config), config, ledger, settings.seed))


def _end_with_the_run() -> None:
    """However that ends: its end of stdin is closed then."""
    os.read(sys.stdin.fileno(), 1)  # not by sys.stdin, whose lock the end of this process would need
    os._exit(0)


if __name__ == "__main__":
    main()
