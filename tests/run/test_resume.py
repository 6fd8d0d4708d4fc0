"""Nothing lost: a stopped run goes on and ends with the bytes of the run that nobody stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlmft.config.check import ConfigError
from vlmft.data.datasets.shapes import Shapes
from vlmft.run.lock import locked
from vlmft.run.train import train
from vlmft.sample import BadRowError
from vlmft.training.checkpoint import latest_whole
from vlmft.training.module import VLMModule

ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS = (
    "cache.answers=false",
    "model=tiny_qwen2vl", "model.lora.dropout=0.1", "data.limit_train=24", "data.limit_val=8", "data.limit_test=8",
    "train.rows_per_step=4", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "evaluation.canary_rows=2",
    "preflight=false", "logger=none", "name=run",
)  # fmt: skip
"""Twelve windows, a validation after the sixth and the twelfth, dropout so that random state matters."""


def result(root: Path) -> dict[str, str]:
    run = root / "tiny_qwen2vl-shapes" / "run"
    files = ("adapter/adapter_model.safetensors", "predictions/untuned.jsonl", "predictions/tuned.jsonl")
    found = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in files}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not any(s in k for s in ("second", "share", "memory"))} for line in lines]
    return {**found, "metrics": json.dumps(kept)}


@pytest.fixture(scope="module")
def uninterrupted(compose, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("uninterrupted")
    train(compose(*SETTINGS, f"output_root={root}"))
    return result(root)


def stop_at(window: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends this process a real signal when the window begins."""
    before = VLMModule.on_train_batch_start

    def signalling(self: VLMModule, batch: object, batch_idx: int) -> None:
        before(self, batch, batch_idx)
        if self.trainer.global_step == window:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(VLMModule, "on_train_batch_start", signalling)


@pytest.mark.parametrize(
    ("window", "number", "code", "kept"),
    [
        (2, signal.SIGTERM, 143, "step-0000003"),  # inside an epoch
        pytest.param(8, signal.SIGINT, 130, "step-0000009", marks=pytest.mark.slow),  # inside the second epoch
        # validation is due: it is left at once, and done again
        pytest.param(5, signal.SIGTERM, 143, None, marks=pytest.mark.slow),
    ],
)
def test_signal_then_resume(
    window: int, number: int, code: int, kept: str | None, compose, uninterrupted, tmp_path: Path
) -> None:
    config = (*SETTINGS, f"output_root={tmp_path}")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(window, number, patch)
        with pytest.raises(SystemExit) as stopped:
            train(compose(*config))
    assert stopped.value.code == code
    latest, _ = latest_whole(tmp_path / "tiny_qwen2vl-shapes" / "run" / "checkpoints")
    assert (latest.name if latest is not None else None) == kept
    train(compose(*config, "resume=true"))
    assert result(tmp_path) == uninterrupted


@pytest.mark.slow
def test_damaged_checkpoint_falls_back(compose, uninterrupted, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = (*SETTINGS, f"output_root={tmp_path}")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(8, signal.SIGTERM, patch)
        with pytest.raises(SystemExit):
            train(compose(*config))
    checkpoints = tmp_path / "tiny_qwen2vl-shapes" / "run" / "checkpoints"
    newest = checkpoints / "step-0000009" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    (checkpoints / "step-notes").mkdir()  # not ours: left alone
    train(compose(*config, "resume=true"))
    said = capsys.readouterr().out
    assert "step-0000009/tensors.safetensors is damaged" in said
    assert "going on from step-0000006" in said
    assert result(tmp_path) == uninterrupted
    assert (checkpoints / "step-notes").exists()


def test_folder_states(compose, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = (*SETTINGS, f"output_root={tmp_path}", "trainer.max_steps=1", "test=false")
    folder = train(compose(*config, "resume=true"))  # nothing to resume: a new run
    with pytest.raises(ConfigError, match="holds a finished run"):
        train(compose(*config))
    train(compose(*config, "resume=true"))
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="run of other settings"):
        train(compose(*config, "resume=true", "seed=1"))
    (folder / "summary.json").unlink()
    with pytest.raises(ConfigError, match="resume=true"):
        train(compose(*config))


def test_second_process_is_refused(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from vlmft.run.lock import locked\n"
    code += "with locked(Path(sys.argv[1])): pass"
    with locked(tmp_path):
        second = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
        assert f"in use by process {os.getpid()}" in second.stderr
    third = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert third.returncode == 0  # the lock went with its holder, the file may stay


def test_a_lock_is_not_held_by_processes_that_read_rows(tmp_path: Path) -> None:
    """They outlive a killed run for some seconds, and the resumed one must not wait for them."""
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
    code = "import sys; from pathlib import Path; from vlmft.run.lock import locked\n"
    code += "with locked(Path(sys.argv[1])): pass"
    try:
        after = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert after.returncode == 0, after.stderr


def adapter_of(folder: Path) -> tuple[str, int]:
    summary = json.loads((folder / "summary.json").read_text())
    return summary["adapter_sha256"], summary["steps"]


def undone(folder: Path) -> None:
    """As if the process had ended after training."""
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "adapter")


@pytest.mark.slow
def test_a_run_that_stopped_early_stays_stopped(compose, tmp_path: Path) -> None:
    early = (
        "train.early_stopping_patience=1",
        "trainer.val_check_interval=2",
        "trainer.max_epochs=10",
        "train.lr=1e-9",
    )
    config = (*SETTINGS, *early, "test=false", f"output_root={tmp_path}")
    folder = train(compose(*config))
    found = adapter_of(folder)
    assert found[1] < 60, "it did not stop early, and the test shows nothing"
    undone(folder)
    train(compose(*config, "resume=true"))
    assert adapter_of(folder) == found


@pytest.mark.slow
def test_a_limited_epoch_goes_on_with_the_rows_that_are_next(compose, tmp_path: Path) -> None:
    limited = ("trainer.limit_train_batches=3", "test=false")
    whole = train(compose(*SETTINGS, *limited, f"output_root={tmp_path / 'whole'}"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    folder = tmp_path / "cut" / whole.relative_to(tmp_path / "whole")
    undone(folder)
    shutil.rmtree(folder / "checkpoints" / "step-0000006")
    train(compose(*SETTINGS, *limited, f"output_root={tmp_path / 'cut'}", "resume=true"))
    assert adapter_of(folder) == adapter_of(whole)


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_reported(compose, tmp_path: Path) -> None:
    config = (*SETTINGS, "test=false", "trainer.max_epochs=3", "train.lr=1e-9", f"output_root={tmp_path}")
    folder = train(compose(*config))
    best = json.loads((folder / "summary.json").read_text())["best_checkpoint"]
    assert best == "step-0000006", "the last one would be the one that a resumed run leaves out"
    undone(folder)
    with (folder / "checkpoints" / best / "tensors.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ConfigError, match=r"best checkpoint is lost: .*step-0000006.*; remove .* and train again"):
        train(compose(*config, "resume=true"))


def test_validation_without_a_usable_row(compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Shapes.read
    monkeypatch.setenv("VLMFT_CACHE", str(tmp_path / "cache"))  # where nothing is known of these rows

    def refusing(self: Shapes, row_id: str) -> object:
        if "/val/" in row_id:
            raise BadRowError("it cannot be read")
        return read(self, row_id)

    monkeypatch.setattr(Shapes, "read", refusing)
    with pytest.raises(ConfigError, match="no row of the validation split can be used"):
        train(compose(*SETTINGS, "data.on_bad_row=skip", "data.bad_row_ceiling=1", f"output_root={tmp_path}"))


@pytest.mark.slow
def test_kill_matrix() -> None:
    """Three real SIGKILLs, inside training, saving and validation, with 0 and 2 workers."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_matrix.py"), "--kills", "3"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "3 of 3 runs ended with the uninterrupted hashes; 0 windows repeated or lost" in found.stdout
