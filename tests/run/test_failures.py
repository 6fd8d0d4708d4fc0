"""What the machine does to a run: an exit code, a line, and nothing lost."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from vlmft.config.entry import mistakes_in_one_line
from vlmft.config.failures import machine_failure, outlive_signals
from vlmft.data.datamodule import EncodedRows, as_list
from vlmft.data.datasets.shapes import Shapes
from vlmft.evaluation.predict import Answerer
from vlmft.models.family import GenericFamily
from vlmft.run.evaluate import evaluate
from vlmft.run.train import train
from vlmft.training.checkpoint import steps_in
from vlmft.training.module import SKIPPED_FILE, VLMModule

pytestmark = pytest.mark.slow  # whole runs

ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS = (
    "cache.answers=false",
    "model=tiny_qwen2vl", "model.lora.dropout=0.1", "data.limit_train=24", "data.limit_val=8", "data.limit_test=8",
    "train.rows_per_step=4", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "evaluation.canary_rows=0",
    "evaluation.rows_per_batch=4", "preflight=false", "logger=none", "name=run",
)  # fmt: skip
"""Twelve windows, a validation after the sixth and the twelfth, dropout so that random state matters."""
ROOM = 100_000
"""Bytes of a file: enough for all but checkpoints and adapters."""

RunTrain = Callable[..., Path]


@pytest.fixture
def run_train(compose: Any, tmp_path: Path) -> RunTrain:
    """run_train("key=value", ...): a run below tmp_path, as the entry would do it."""

    def run(*overrides: str) -> Path:
        with mistakes_in_one_line():
            return train(compose(*SETTINGS, f"output_root={tmp_path}", *overrides))
        raise AssertionError

    return run


@pytest.fixture(scope="module")
def uninterrupted(compose: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return result(train(compose(*SETTINGS, f"output_root={tmp_path_factory.mktemp('uninterrupted')}")))


def result(folder: Path) -> dict[str, str]:
    """Hashes of the adapter and the answers."""
    files = ("adapter/adapter_model.safetensors", "predictions/untuned.jsonl", "predictions/tuned.jsonl")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if "partial" in path.name]


def once(patch: pytest.MonkeyPatch, owner: Any, name: str, action: Callable[[], None], call: int = 0) -> None:
    """Does something before this call of a method."""
    original, calls = getattr(owner, name), iter(range(10**6))

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            action()
        return original(*arguments, **named)

    patch.setattr(owner, name, wrapped)


# --- signals


@pytest.mark.parametrize(
    ("number", "code", "call"),
    [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 4), (signal.SIGTERM, 143, 6)],
    ids=["in the first validation", "in the untuned arm", "in the tuned arm"],
)
def test_a_signal_while_answering(
    number: int, code: int, call: int, run_train: RunTrain, uninterrupted: Any, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        once(patch, Answerer, "answer_rows", lambda: os.kill(os.getpid(), number), call)
        with pytest.raises(SystemExit) as stopped:
            run_train()
    assert stopped.value.code == code
    assert result(run_train("resume=true")) == uninterrupted


def test_a_signal_while_evaluating_alone(run_train: RunTrain, compose_evaluate: Any, capsys: Any) -> None:
    folder = run_train("test=false", "data.max_new_tokens=1")
    config = (f"run={folder}", "evaluation.arms=[tuned]")
    with pytest.MonkeyPatch.context() as patch:
        once(patch, Answerer, "answer_rows", lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as stopped:
            evaluate(compose_evaluate(*config))
    assert stopped.value.code == 143
    assert "stopped by SIGTERM; the same command goes on after the answers" in capsys.readouterr().err
    answers = folder / "evaluations" / "test" / "predictions" / "tuned.jsonl"
    assert answers.read_bytes().count(b"\n") == 4
    evaluate(compose_evaluate(*config))
    assert answers.read_bytes().count(b"\n") == 8


def test_a_signal_to_the_whole_job_leaves_the_workers_alive(tmp_path: Path) -> None:
    """Ctrl-C, `timeout` and Slurm signal the processes that read rows, too: the window is finished all the same."""
    more = ("data.workers=2", "data.limit_train=2000", f"output_root={tmp_path}")
    command = [sys.executable, str(ROOT / "train.py"), *SETTINGS, *more]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "tiny_qwen2vl-shapes" / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text()):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "stopped by SIGTERM; the same command with resume=true goes on" in said and "Traceback" not in said
    assert len(steps_in(metrics.parent / "checkpoints")) == 1


class Slow(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 200

    def __getitem__(self, position: int) -> int:
        time.sleep(0.01)
        return position


@pytest.mark.parametrize("guarded", [True, False])
def test_workers_die_of_a_signal_to_the_job_unless_guarded(guarded: bool) -> None:
    loader = DataLoader(
        Slow(), batch_size=4, num_workers=1, collate_fn=as_list, worker_init_fn=outlive_signals if guarded else None
    )
    rows = iter(loader)
    next(rows)
    (worker,) = rows._workers  # type: ignore[attr-defined]
    # From another process: torch lets a worker end quietly when the parent itself says so.
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    if guarded:
        assert sum(len(batch) for batch in rows) == 196
        worker.terminate()  # by the parent
        worker.join(10)
        assert worker.exitcode == 0
    else:
        with pytest.raises(RuntimeError, match="DataLoader worker") as raised:
            list(rows)
        assert "a process that reads rows has died" in (machine_failure(raised.value) or "")


# --- a full disk


def test_a_disk_that_is_full_for_a_while(run_train: RunTrain, tmp_path: Path, capsys: Any) -> None:
    checkpoints = tmp_path / "tiny_qwen2vl-shapes" / "run" / "checkpoints"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        set_room = resource.setrlimit
        once(patch, VLMModule, "training_step", lambda: set_room(resource.RLIMIT_FSIZE, (ROOM, hard)), 2)
        once(patch, VLMModule, "training_step", lambda: set_room(resource.RLIMIT_FSIZE, (soft, hard)), 8)
        folder = run_train()
    said = capsys.readouterr().err
    assert said.count("is not saved") == 1 and "step-0000006 is not saved" in said and "training goes on" in said
    assert steps_in(checkpoints) == ["step-0000012"] and partials(folder) == []
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["best_checkpoint"]) == (12, "step-0000012")


def test_a_disk_that_stays_full(run_train: RunTrain, uninterrupted: Any, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "tiny_qwen2vl-shapes" / "run"
    with pytest.MonkeyPatch.context() as patch:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        once(patch, VLMModule, "training_step", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard)))
        try:
            with pytest.raises(SystemExit) as stopped:
                run_train()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stopped.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert sum("is not saved" in line for line in lines) == 3  # both validations, and once more at the end
    assert "no room on the disk" in lines[-1] and "resume=true" in lines[-1] and lines[-1].startswith("error: ")
    assert not (folder / "adapter").exists() and not (folder / "summary.json").exists() and partials(folder) == []
    assert result(run_train("resume=true")) == uninterrupted


def test_a_disk_that_is_full_for_answers(run_train: RunTrain, uninterrupted: Any, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "tiny_qwen2vl-shapes" / "run"
    with pytest.MonkeyPatch.context() as patch:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        small = folder / "predictions" / "untuned.jsonl"
        once(
            patch, Answerer, "answer_rows",
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (small.stat().st_size + 99, hard)), 5,
        )  # fmt: skip
        try:
            with pytest.raises(SystemExit) as stopped:
                run_train()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert stopped.value.code == 1 and "no room on the disk" in capsys.readouterr().err
    assert (folder / "predictions" / "untuned.jsonl").read_bytes().count(b"\n") == 4
    assert result(run_train("resume=true")) == uninterrupted


# --- processes that read rows


def test_a_dead_worker_is_one_line_and_the_run_goes_on(
    run_train: RunTrain, uninterrupted: Any, tmp_path: Path, capsys: Any
) -> None:
    here, reads = os.getpid(), iter(range(10**6))

    def killed(self: Shapes, row_id: str, read: Any = Shapes.read) -> Any:
        if os.getpid() != here and next(reads) == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, row_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shapes, "read", killed)
        with pytest.raises(SystemExit) as stopped:
            run_train("data.workers=1")
    assert stopped.value.code == 1
    # torch raises for a dead worker whenever any child ends, for as long as its loader is alive: here, in a traceback.
    del stopped
    gc.collect()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: a process that reads rows has died") and "data.workers: 0 reads in the main" in last
    assert result(run_train("data.workers=0", "resume=true")) == uninterrupted  # another number of workers is allowed


class Tensors(EncodedRows):
    """The defect: tensors travel from a worker through /dev/shm, where containers have little."""

    def __getitem__(self, position: int) -> Any:
        super().__getitem__(position)
        return torch.zeros(ROOM)


@pytest.mark.parametrize("rows_class", [EncodedRows, pytest.param(Tensors, marks=pytest.mark.slow)])
def test_rows_need_no_shared_memory(
    rows_class: type[EncodedRows],
    make_built: Any,
    room_for: Callable[[int], AbstractContextManager[None]],
) -> None:
    _, built = make_built()
    rows = rows_class(built.data.dataset, built.data.ids["train"], built.family.encode)
    loader = DataLoader(
        rows, batch_size=4, num_workers=1, collate_fn=as_list, timeout=60 if rows_class is EncodedRows else 10
    )
    with room_for(4096):  # shared memory is a file, and the limit holds in the worker, too
        if rows_class is EncodedRows:
            found = [row for batch in loader for row in batch]
            assert len(found) == 32 and sum(image.arrays["pixel_values"].nbytes for image in found[0].images) > 4096
        else:
            with pytest.raises(RuntimeError, match="timed out"):  # without a limit, it would wait for ever
                list(loader)


# --- empty splits, foreign files, clocks, bugs


def test_without_validation_rows(run_train: RunTrain, capsys: Any) -> None:
    rows = ("data.options.val_rows=0", "data.limit_val=null", "test=false")
    with pytest.MonkeyPatch.context() as patch:  # stopped in the second epoch: the first one's end was saved
        once(patch, VLMModule, "training_step", lambda: (_ for _ in ()).throw(RuntimeError("a bug")), 8)
        with pytest.raises(RuntimeError, match="a bug"):
            run_train(*rows)
    said = capsys.readouterr().out
    assert said.count("val has no rows: nothing is validated") == 1
    folder = run_train(*rows, "resume=true")
    assert "going on from step-0000006" in capsys.readouterr().out
    assert steps_in(folder / "checkpoints") == ["step-0000006", "step-0000012"]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["best_checkpoint"]) == (12, None)
    again = run_train(*rows, "name=again")
    file = "adapter/adapter_model.safetensors"
    assert (again / file).read_bytes() == (folder / file).read_bytes()
    assert "val/loss" not in (folder / "metrics.jsonl").read_text()


def test_without_test_rows(run_train: RunTrain, uninterrupted: Any, capsys: Any) -> None:
    folder = run_train("data.options.test_rows=0", "data.limit_test=null")
    assert "test has no rows: nothing is evaluated" in capsys.readouterr().out
    assert json.loads((folder / "summary.json").read_text())["arms"] == []
    assert not (folder / "predictions").exists() and (folder / "adapter" / "adapter_model.safetensors").exists()


def test_without_training_rows(run_train: RunTrain, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_train("data.options.train_rows=0", "data.limit_train=null")
    assert stopped.value.code == 2
    assert "error: data: the training split has no rows" in capsys.readouterr().err


def test_files_of_others_are_left_alone(run_train: RunTrain, uninterrupted: Any, tmp_path: Path) -> None:
    folder = tmp_path / "tiny_qwen2vl-shapes" / "run"
    strange = ("notes.txt", "checkpoints/foo/x", "checkpoints/step-0000001", "checkpoints/step-12/x", "predictions/x")
    for name in strange:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    assert result(run_train()) == uninterrupted
    assert all((folder / name).read_text() == "mine" for name in strange)


def test_a_clock_that_goes_backwards_changes_nothing(
    run_train: RunTrain, uninterrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    folder = run_train()
    assert result(folder) == uninterrupted
    seconds = [json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(seconds) >= 14 and seconds == sorted(seconds) and seconds[0] >= 0
    phases = json.loads((folder / "summary.json").read_text())["phases"].values()
    assert all(phase["seconds"] >= 0 for phase in phases)


WALL_CLOCK = re.compile(r"\btime\.time\(|\btime_ns\(|datetime\.now|utcnow|st_[mc]time|getmtime")


def test_nothing_asks_the_wall_clock() -> None:
    files = sorted((ROOT / "vlmft").rglob("*.py"))
    assert len(files) > 60
    # A cache takes a file that has just changed for unknown, and a server may name a time to ask again: a wrong clock
    # costs time there, and no result. Features that were half written are deleted an hour later, and vlmft cache shows
    # when features were used. A report shows the date on which it was written, and those of a server's
    # answers, which nothing reads.
    asking = [path.name for path in files if WALL_CLOCK.search(path.read_text(encoding="utf-8"))]
    assert asking == [
        "cache.py", "server_arms.py", "feature_files.py", "results.py", "chat_client.py", "cache.py"
    ]  # fmt: skip
    assert WALL_CLOCK.search("started = time.time()") and not WALL_CLOCK.search("time.monotonic(); time.perf_counter()")


def test_a_bug_is_a_traceback_and_the_run_goes_on(run_train: RunTrain, uninterrupted: Any, capsys: Any) -> None:
    def bug() -> None:
        raise ZeroDivisionError("a bug")

    with pytest.MonkeyPatch.context() as patch:
        once(patch, VLMModule, "training_step", bug, 8)
        with pytest.raises(ZeroDivisionError):  # the entry lets it through: a traceback, exit code 1
            run_train()
    assert result(run_train("resume=true")) == uninterrupted
    assert "going on from step-0000006" in capsys.readouterr().out


# --- a failure inside a step, and a resume after it


def test_skipped_windows_and_smaller_batches_are_the_same_after_a_resume(
    run_train: RunTrain, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    forward, bad = GenericFamily.forward, list[str]()

    def broken(self: Any, model: Any, batch: Any, features: Any, keep: torch.Tensor) -> torch.Tensor:
        """No memory for three rows, and a row whose loss is not a number."""
        if len(batch.row_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        bad.append(batch.row_ids[0])
        logits: torch.Tensor = forward(self, model, batch, features, keep)
        return logits * float("nan") if bad[0] in batch.row_ids else logits

    monkeypatch.setattr(GenericFamily, "forward", broken)
    settings = ("test=false", "data.max_new_tokens=1")
    whole = run_train(*settings)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        once(patch, VLMModule, "training_step", lambda: os.kill(os.getpid(), signal.SIGTERM), 8)
        with pytest.raises(SystemExit):
            run_train(*settings, "name=stopped")
    said = capsys.readouterr().err
    resumed = run_train(*settings, "name=stopped", "resume=true")
    assert (
        said.count("out of memory") == 1 and "out of memory" not in capsys.readouterr().err
    )  # it is in the checkpoint
    file = "adapter/adapter_model.safetensors"
    assert (resumed / file).read_bytes() == (whole / file).read_bytes()
    assert (resumed / SKIPPED_FILE).read_bytes() == (whole / SKIPPED_FILE).read_bytes()
    lines = [json.loads(line) for line in (whole / SKIPPED_FILE).read_text().splitlines()]
    assert len(lines) == 2 and all(bad[0] in line["rows"] for line in lines)  # once an epoch
    summary = json.loads((resumed / "summary.json").read_text())
    assert (summary["steps"], summary["skipped_windows"]) == (10, 2)
