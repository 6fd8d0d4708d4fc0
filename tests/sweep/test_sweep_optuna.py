"""hydra/sweeper=optuna: the space in Hydra's words, and one study that is continued, shared, pruned and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from vlmft.config.check import ConfigError
from vlmft.sweep.launcher import whole_number
from vlmft.sweep.optuna_launcher import distribution

optuna = pytest.importorskip("optuna")
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("quick_train.py")
SPACE = ("model.lora.r=choice(4,8)", "train.lr=tag(log,interval(1e-4,1e-2))", "name=study", "hydra.sweeper.seed=0")


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "-m", "hydra/sweeper=optuna", *SPACE, *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def jobs_in(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "outputs/sweeps/study/sweep.json").read_text(encoding="utf-8"))["jobs"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=4,8", optuna.distributions.CategoricalDistribution(["4", "8"])),
        ("a=choice(x,'y z')", optuna.distributions.CategoricalDistribution(["x", "y\\ z"])),
        ("a=range(1,9,2)", optuna.distributions.IntDistribution(1, 7, step=2)),
        ("a=range(0,1,0.5)", optuna.distributions.CategoricalDistribution(["0.0", "0.5"])),
        ("a=interval(1e-4,3e-3)", optuna.distributions.FloatDistribution(1e-4, 3e-3)),
        ("a=tag(log,interval(1e-4,3e-3))", optuna.distributions.FloatDistribution(1e-4, 3e-3, log=True)),
        ("a=int(interval(1,5))", optuna.distributions.IntDistribution(1, 5)),
    ],
)
def test_space(override: str, expected: object) -> None:
    assert distribution(OverridesParser.create().parse_override(override)) == expected


@pytest.mark.parametrize("override", ["a=tag(log,interval(0,1))", "a=interval(2,1)", "a=tag(log,choice(1,2))"])
def test_a_space_that_cannot_be(override: str) -> None:
    with pytest.raises(ConfigError, match=r"^a="):
        distribution(OverridesParser.create().parse_override(override))


def test_without_optuna_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'vlmft\[sweep\]'"):
        distribution(OverridesParser.create().parse_override("a=1,2"))


@pytest.mark.parametrize("text", ["-1", "x", "1.5", "", "0"])
def test_whole_number(text: str) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.n_trials: Expected a whole number >= 1, got"):
        whole_number("hydra.sweeper.n_trials", text, at_least=1)


@pytest.mark.slow
def test_two_processes_share_a_study_which_is_continued(tmp_path: Path) -> None:
    settings = ("trainer.max_steps=2", "trainer.log_every_n_steps=1")
    together = [started(tmp_path, "hydra.sweeper.n_trials=4", *settings) for _ in range(2)]
    outputs = [process.communicate(timeout=600)[0] for process in together]
    assert [process.returncode for process in together] == [0, 0]
    assert sum(output.count("\njob ") + output.startswith("job ") for output in outputs) == 4
    assert all("job " in output for output in outputs), "one process did everything"
    assert sorted(job["number"] for job in jobs_in(tmp_path)) == [0, 1, 2, 3]
    more = started(tmp_path, "hydra.sweeper.n_trials=5", *settings)
    assert "job 4" in more.communicate(timeout=600)[0] and more.returncode == 0
    jobs = jobs_in(tmp_path)
    assert {job["state"] for job in jobs} == {"finished"} and len(jobs) == 5
    assert len({job["values"]["train.lr"] for job in jobs}) == 5, "a seed must not repeat what was tried"


@pytest.mark.slow
def test_a_trial_below_the_median_is_pruned(tmp_path: Path) -> None:
    """Rank 4 is worse at every step: after a better trial it is stopped early, and saved."""
    settings = ("hydra.sweeper.n_startup_trials=1", "trainer.log_every_n_steps=20", "hydra.sweeper.n_trials=4")
    process = started(tmp_path, *settings, "trainer.max_steps=2")
    process.communicate(timeout=600)
    jobs = jobs_in(tmp_path)
    pruned = [job for job in jobs if job["state"] == "pruned"]
    assert process.returncode == 0 and {job["state"] for job in jobs} == {"finished", "pruned"}
    assert {(job["exit_code"], job["values"]["model.lora.r"], job["rank"]) for job in pruned} == {(143, "4", None)}


@pytest.mark.slow
def test_a_killed_sweep_s_trial_is_done_over(tmp_path: Path) -> None:
    settings = ("hydra.sweeper.n_trials=2", "trainer.max_steps=2", "trainer.log_every_n_steps=5")
    process = started(tmp_path, *settings)
    while not [*tmp_path.glob("outputs/tiny-shapes/*/metrics.jsonl")]:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(3)  # the orphan ends by itself
    again = started(tmp_path, *settings)
    assert "job 1" in again.communicate(timeout=600)[0] and again.returncode == 0
    assert [job["number"] for job in sorted(jobs_in(tmp_path), key=lambda job: job["number"])] == [1, 2]
    assert len([*tmp_path.glob("outputs/tiny-shapes/*")]) == 2, "the first trial's settings came again"
