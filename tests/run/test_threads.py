"""CPU threads: as many as there are free cores; and a run that goes on keeps the number that it began with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vlmft.config.schema import TrainConfig
from vlmft.run import threads
from vlmft.run.build import resolved
from vlmft.run.folder import read_run
from vlmft.run.threads import cgroup_cores, choose_threads
from vlmft.run.train import train
from vlmft.training.module import VLMModule

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "model=tiny_qwen2vl", "data.limit_train=12", "data.limit_val=4", "data.limit_test=4", "train.rows_per_step=4",
    "trainer.max_epochs=1", "preflight=false", "test=false", "logger=none", "name=run",
)  # fmt: skip


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


def machine(monkeypatch: pytest.MonkeyPatch, physical: int, busy: float, quota: float | None = None) -> None:
    monkeypatch.setattr(threads, "there_in_all", lambda: physical)
    monkeypatch.setattr(threads, "busy_cores", lambda: busy)
    monkeypatch.setattr(threads, "cgroup_cores", lambda: quota)


@pytest.mark.parametrize(
    ("physical", "busy", "quota", "chosen"),
    [
        (8, 0.3, None, 8),
        (8, 2.9, None, 5),
        (8, 8.0, None, 1),
        (64, 0.0, 2.5, 2),  # a container: others' cores are not ours to count
        (64, 60.0, 2.0, 2),
        (64, 63.0, 2.0, 1),
        (2, 0.0, 0.5, 1),
    ],
)
def test_free_cores(
    physical: int, busy: float, quota: float | None, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, physical, busy, quota)
    assert choose_threads()[0] == chosen


def test_several_processes_of_a_run_share_the_cores_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 16, 9.0)
    assert choose_threads(4)[0] == 4


def test_what_was_asked_for_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 16, 0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads() == (3, "OMP_NUM_THREADS")
    assert choose_threads(of_model=1) == (3, "OMP_NUM_THREADS")
    assert choose_threads(stored=5)[0] == 5, "a run that goes on has its number already"


def test_a_small_model_says_how_many_are_enough(
    compose: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 8, 0.0)
    assert choose_threads(of_model=1)[0] == 1
    assert choose_threads(stored=2, of_model=1)[0] == 2
    assert resolved(compose("model=tiny")).config.trainer.threads == 1


def test_limits_of_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/pods/job\n")
    job = tmp_path / "root" / "pods" / "job"
    job.mkdir(parents=True)
    assert cgroup_cores(tmp_path / "root", own) is None
    (job / "cpu.max").write_text("max 100000\n")
    (job.parent / "cpu.max").write_text("150000 100000\n")
    assert cgroup_cores(tmp_path / "root", own) == 1.5, "the limit of a group above holds, too"


def test_two_hardware_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(4):
        (tmp_path / f"cpu{cpu}").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    monkeypatch.setattr(threads, "TOPOLOGY", str(tmp_path / "cpu{}"))
    monkeypatch.setattr(threads, "allowed_cpus", lambda: {0, 1, 2, 3})
    assert threads.there_in_all() == 2
    monkeypatch.setattr(threads, "allowed_cpus", lambda: {0, 2})
    assert threads.there_in_all() == 1


@pytest.mark.slow
def test_a_resumed_run_computes_with_the_number_it_began_with(
    compose: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Although the machine is busy now: else its sums would be rounded in another order."""
    seen: list[int] = []
    start = VLMModule.on_train_batch_start

    def looking(self: VLMModule, batch: object, batch_idx: int) -> None:
        seen.append(torch.get_num_threads())
        start(self, batch, batch_idx)
        if self.trainer.global_step == 1 and len(seen) == 2:
            os.kill(os.getpid(), 15)

    monkeypatch.setattr(VLMModule, "on_train_batch_start", looking)
    machine(monkeypatch, 2, 0.0)
    with pytest.raises(SystemExit):
        train(compose(*SETTINGS, f"output_root={tmp_path}"))
    assert "trainer.threads = 2  (from 2 cores, all of them free)" in capsys.readouterr().out
    machine(monkeypatch, 2, 1.0)
    torch.set_num_threads(1)
    train(compose(*SETTINGS, f"output_root={tmp_path}", "resume=true"))
    assert seen == [2, 2, 2], "two windows, then one"
    assert "trainer.threads = 2  (from what this run began with" in capsys.readouterr().out
    assert read_run(str(tmp_path / "tiny_qwen2vl-shapes" / "run")).trainer.threads == 2
    train(compose(*SETTINGS, f"output_root={tmp_path}", "resume=true", "trainer.threads=1"))
    assert "finished already" in capsys.readouterr().out, "it makes no other run"


SHOWN = """
import os, sys
from vlmft.config.entry import run_entry
run_entry(lambda: print(*(os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")),
                        "torch" in sys.modules))
"""


@pytest.mark.parametrize(
    ("asked", "found"), [({}, "PASSIVE None 0 False"), ({"GOMP_SPINCOUNT": "9"}, "None 9 None False")]
)
def test_waiting_is_set_before_torch_is_imported(asked: dict[str, str], found: str, tmp_path: Path) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"PYTHONPATH": str(ROOT), **asked}
    done = subprocess.run(
        [sys.executable, "-c", SHOWN], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == found
