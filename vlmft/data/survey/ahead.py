"""Reads the rows in a process beside the one that imports PyTorch, which takes seconds and one core.

What it finds is in the cache of facts (`cache.py`), where the run looks for it: it waits for what is being read, and
says itself what is wrong with the data. `python -m vlmft.data.survey.ahead` takes the settings on stdin, as YAML.
"""

from __future__ import annotations

import atexit
import contextlib
import signal
import subprocess
import sys
import threading

from omegaconf import OmegaConf

from vlmft.config import progress
from vlmft.config.check import schema_node
from vlmft.config.schema import DataConfig
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.data.rows import Rows
from vlmft.data.survey.cache import cache_folder
from vlmft.data.survey.survey import facts_of_splits


def read_ahead(config: DataConfig, seed: int) -> subprocess.Popen[bytes] | None:
    """Starts that process; None where nothing could be handed over. It ends with this one."""
    if cache_folder() is None or config.streaming:
        return None
    process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin as settings:  # it may have died
        settings.write(OmegaConf.to_yaml({"seed": seed, "data": config}).encode())
    threading.Thread(target=process.wait, daemon=True).start()  # else it would stay in the list of processes
    atexit.register(process.kill)
    return process


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's
    progress.is_terminal = lambda: False  # lines: two processes cannot both draw bars
    settings = OmegaConf.create(sys.stdin.buffer.read().decode())
    config = OmegaConf.to_object(OmegaConf.merge(schema_node(DataConfig), settings.data))
    assert isinstance(config, DataConfig)
    ledger = Ledger(None, config.on_bad_row, config.bad_row_ceiling)
    with contextlib.suppress(Exception):  # which the run meets, too
        facts_of_splits(Rows(make_dataset(config), config, ledger, settings.seed))


if __name__ == "__main__":
    main()
