"""Rows are read by a process beside the one that imports PyTorch; of several processes one reads, the others wait."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import PIL.Image
import psutil
import pytest

from vlmft.config.schema import DataConfig, TrainConfig
from vlmft.data.dataset import Ids
from vlmft.data.datasets.messages import Messages
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.data.rows import Rows
from vlmft.data.splits import all_ids
from vlmft.data.survey import ahead, facts, image_hashes
from vlmft.data.survey.cache import one_at_a_time
from vlmft.data.survey.facts import Facts, survey
from vlmft.data.survey.survey import survey_splits
from vlmft.run import start as start_of_a_run

N_ROWS = 30
OLD_NS = 1_700_000_000 * 10**9


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Conversations about 30 images, written long ago, and an empty cache."""
    monkeypatch.setenv("VLMFT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for number in range(N_ROWS):
        PIL.Image.new("RGB", (6, 4), (8 * number, 0, 7)).save(folder / f"{number}.bmp")
        turns = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}]
        lines.append(json.dumps({"messages": turns, "images": [f"{number}.bmp"]}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        os.utime(file, ns=(OLD_NS, OLD_NS))
    dataset = "vlmft.data.datasets.messages:Messages"
    return DataConfig(name="own", dataset=dataset, path=str(folder / "rows.jsonl"), val_rows=4, test_rows=4)


def rows_of(config: DataConfig) -> Rows:
    return Rows(make_dataset(config), config, Ledger(None, config.on_bad_row, config.bad_row_ceiling), 0)


def run_ahead(config: DataConfig) -> tuple[int, str]:
    """Exit status and all that it printed."""
    command = [sys.executable, "-m", "vlmft.data.survey.ahead"]
    settings = json.dumps({"seed": 0, "data": asdict(config)}, default=lambda enum: enum.name) + "\n"
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(settings)
        process.stdin.flush()  # and left open, as by a run
        return process.wait(), process.stdout.read() + process.stderr.read()


def test_a_run_finds_what_was_read_ahead(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_ahead(config) == (0, "")
    read: list[object] = []
    monkeypatch.setattr(facts, "_read", lambda *given: read.append(given))
    monkeypatch.setattr(image_hashes, "pixel_hash", read.append)
    stored = survey_splits(rows_of(config))
    assert read == []
    monkeypatch.undo()
    monkeypatch.setenv("VLMFT_CACHE", str(Path(config.path or "").parent.parent / "another"))
    assert stored.cards == survey_splits(rows_of(config)).cards
    assert sum(card.images for card in stored.cards.values()) == N_ROWS


@pytest.mark.parametrize("broken", ["no file", "a bad row", "options"])
def test_what_is_wrong_is_left_to_the_run(broken: str, config: DataConfig) -> None:
    path = Path(config.path or "")
    if broken == "no file":
        path.unlink()
    elif broken == "a bad row":
        (path.parent / "7.bmp").write_bytes(b"no picture")
    else:
        config.options["no_such"] = 1
    assert run_ahead(config) == (0, "")


def test_two_that_read_the_same_rows_at_once(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two jobs of a sweep: each row and each image is read by one of them."""
    read: list[str] = []
    pixel_hash = image_hashes.pixel_hash

    def one_image(path: str) -> bytes | str:
        read.append(path)
        return pixel_hash(path)

    monkeypatch.setattr(image_hashes, "pixel_hash", one_image)
    found: list[Facts] = []

    def job() -> None:
        dataset = Messages(path=str(config.path))

        def sample_of(row_id: str) -> Any:
            read.append(row_id)
            time.sleep(0.01)  # so that the other begins meanwhile
            return dataset.to_sample(dataset.read(row_id))

        ids = all_ids(dataset.index())
        found.append(survey(dataset, Ids(ids.__getitem__, range(N_ROWS)), sample_of))

    jobs = [threading.Thread(target=job) for _ in range(2)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join()
    assert len(read) == len(set(read)) == 2 * N_ROWS, "30 rows and their 30 images, once each"
    first, second = found
    assert np.array_equal(first.rows, second.rows) and np.array_equal(first.contents, second.contents)


def test_who_waits_can_be_stopped_and_says_for_what(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlmft.data.survey.cache.WAIT_SECONDS", 0.01)
    asked: list[int] = []

    def poll() -> None:
        asked.append(1)
        if len(asked) > 20:
            raise KeyboardInterrupt

    with one_at_a_time("rows", lambda: None):
        with pytest.raises(KeyboardInterrupt), one_at_a_time("rows", poll):
            pytest.fail("two are in it")
        assert len(asked) == 21
    assert capsys.readouterr().err == "data cache: another process reads rows; waiting for what it finds\n"
    with one_at_a_time("rows", poll if len(asked) < 20 else lambda: None):
        pass  # it is free again


def test_no_lock_is_no_reason_to_stop(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("vlmft.config.files.fcntl.flock", refuse)
    assert len(survey_splits(rows_of(config)).cards) == 3


@pytest.mark.parametrize(
    ("situation", "expected"), [("as a user starts it", 1), ("torch is imported", 0), ("another rank", 0)]
)
def test_when_rows_are_read_ahead(
    situation: str,
    expected: int,
    config: DataConfig,
    compose: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = compose("model=tiny", "data=messages", f"data.path={config.path}")
    begun: list[DataConfig] = []
    monkeypatch.setattr(start_of_a_run, "read_ahead", lambda dataset, data, seed: begun.append(data))
    if situation != "torch is imported":
        monkeypatch.delitem(sys.modules, "torch")
    if situation == "another rank":
        monkeypatch.setenv("LOCAL_RANK", "1")
    start_of_a_run.require_training(settings)
    assert begun == [settings.data] * expected


def test_the_process_gets_the_settings_and_ends(config: DataConfig) -> None:
    process = ahead.read_ahead(make_dataset(config), config, 0)
    assert process is not None
    while psutil.pid_exists(process.pid):  # a child that nobody waits for would stay in the list of processes
        time.sleep(0.05)
    assert process.returncode == 0
    assert list(Path(os.environ["VLMFT_CACHE"]).glob("*.sqlite")), "it has read the rows"


def test_it_ends_with_the_run_however_that_ends(config: DataConfig) -> None:
    """A run that is killed closes its end of the pipe, and nobody reads on for it."""
    with contextlib.ExitStack() as held:
        for bucket in range(256):  # all locks, so that it waits for ever
            path = Path(os.environ["VLMFT_CACHE"]) / f"reading-{bucket:02x}.lock"
            path.parent.mkdir(exist_ok=True)
            fcntl.flock(held.enter_context(path.open("a")), fcntl.LOCK_EX)
        process = ahead.read_ahead(make_dataset(config), config, 0)
        assert process is not None and process.stdin is not None
        time.sleep(1)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait() == 0


class Own(Messages):
    """A user's: settings of another package are not imported by the process."""


def test_nothing_is_read_ahead_that_cannot_be_handed_over(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(config)
    assert ahead.read_ahead(dataset, replace(config, streaming=True), 0) is None
    assert ahead.read_ahead(Own(path=str(config.path)), config, 0) is None
    monkeypatch.setattr(dataset, "settings", lambda: None)
    assert ahead.read_ahead(dataset, config, 0) is None
    monkeypatch.undo()
    monkeypatch.setattr(ahead, "cache_folder", lambda: None)
    assert ahead.read_ahead(make_dataset(config), config, 0) is None
