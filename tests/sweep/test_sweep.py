"""Sweeps: ranking and importance by hand, the page, and grids of real processes with a stand-in for the training."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import wandb

from vlmft.evaluation.intervals import wilson_interval
from vlmft.sweep.launcher import sweep_name
from vlmft.sweep.page import Axis, sweep_page
from vlmft.sweep.result import Job, Sweep, eta_squared, importance, rank, validations

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("quick_train.py")
QUICK = ("trainer.max_steps=2", "trainer.log_every_n_steps=1")


def started(folder: Path, *arguments: str, script: Path = SCRIPT) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script), "-m", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def swept(folder: Path, *arguments: str, script: Path = SCRIPT) -> tuple[int, str, str]:
    process = started(folder, *arguments, script=script)
    output, errors = process.communicate(timeout=800)
    return process.returncode, output, errors


def sweep_of(folder: Path) -> dict[str, Any]:
    (found,) = folder.glob("outputs/sweeps/*/sweep.json")
    return dict(json.loads(found.read_text(encoding="utf-8")))


def job(number: int, right: int | None, n: int = 100, state: str = "finished", **values: str) -> Job:
    made = Job(number, [f"{key}={value}" for key, value in values.items()], dict(values), state, metric="val/q/acc")
    if right is not None:
        made.value, made.n, made.interval = right / n, n, wilson_interval(right, n)
    return made


def test_ranking_by_validation_and_what_overlaps() -> None:
    jobs = [job(1, 40), job(2, 60), job(3, None, state="failed"), job(4, 55), job(5, 99, state="pruned"), job(6, 60)]
    ranked = rank(jobs)
    assert [one.number for one in ranked] == [2, 6, 4, 1, 3, 5]
    assert [one.rank for one in ranked] == [1, 2, 3, 4, None, None]
    # Wilson at n = 100: 60 -> 50.2-69.1, 55 -> 45.2-64.4, 40 -> 30.9-49.8
    assert [one.standing for one in ranked] == ["best", *["not distinguishable"] * 2, "below", "", ""]


def test_scores_that_are_not_0_or_1_have_no_interval(tmp_path: Path) -> None:
    for value, has_interval in ((0.25, True), (0.31, False)):
        line = {"step": 3, "val/loss": 1.0, "val/q/anls": value, "val/q/n": 16.0, "val/q/unparsed": 0.0}
        (tmp_path / "metrics.jsonl").write_text(f'{json.dumps({"step": 1})}\n{json.dumps(line)}\n{{"step": 4, "va')
        (point,) = validations(tmp_path)
        assert (point.step, point.metric, point.value, point.n) == (3, "val/q/anls", value, 16)
        made = Job(1, [], {}, "interrupted", folder=str(tmp_path))
        made.read_validation()
        assert made.value == value and (made.interval is not None) == has_interval


def test_eta_squared_by_hand() -> None:
    # Means 2 and 5, grand mean 3.5: between = 2 * 2.25 + 2 * 2.25 = 9; total = 6.25 + .25 + .25 + 6.25 = 13 - within 4
    assert eta_squared(["a", "a", "b", "b"], [1.0, 3.0, 4.0, 6.0]) == pytest.approx(9 / 13)
    assert eta_squared(["a", "b", "a", "b"], [1.0, 1.0, 1.0, 1.0]) == 0.0


def test_importance_names_its_measure_and_knows_too_few() -> None:
    grid = [job(i, 10 * r + i, r=str(r), lr=lr) for i, (r, lr) in enumerate([(1, "x"), (1, "y"), (4, "x"), (4, "y")])]
    rank(grid)
    first, second = importance(grid)
    assert (first.parameter, first.measure, first.n, first.levels) == ("r", "eta squared", 4, 2)
    assert first.share is not None and first.share > 0.9 and second.share is not None and second.share < 0.1
    assert first.chance == pytest.approx(1 / 3)
    drawn = [job(i, 10 + 10 * i, lr=str(0.01 * (i + 1) ** 2)) for i in range(5)]
    rank(drawn)
    (only,) = importance(drawn)
    assert (only.measure, only.share, only.chance) == ("squared rank correlation", pytest.approx(1.0), 0.25)
    rank(drawn[:3])
    assert importance(drawn[:3])[0].share is None
    words = [job(i, 10 + i, kind=kind) for i, kind in enumerate("abcd")]
    rank(words)
    assert importance(words)[0].measure == "too few jobs"


def test_page_loads_nothing_and_escapes(tmp_path: Path) -> None:
    jobs = [job(i, 40 + i, r=str(i % 3), lr=str(10.0 ** -(i % 12 + 1)), kind="<b>&") for i in range(1, 25)]
    jobs.append(job(30, None, state="failed", r="9", lr="1", kind="k"))
    jobs[-1].message = "<script>alert(1)</script>"
    sweep = Sweep(tmp_path, jobs)
    sweep.write()
    page = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|<script|url\(|@import|<img", page)
    assert page.count("<figure") == 2 and page.count("<polyline") == 24
    assert "&lt;script&gt;alert" in page and "&lt;b&gt;&amp;" in page and "train.lr" not in page
    for few in ([], jobs[:1], jobs[:2], jobs[-1:]):
        assert "<h1>" in sweep_page(Sweep(tmp_path, few).content())


def test_axes_place_values_by_size() -> None:
    axis = Axis("lr", [str(10.0**-i) for i in range(1, 12)])
    assert axis.name == "lr (log)" and axis.place["0.1"] == 1.0 and axis.place["1e-11"] == 0.0
    few = Axis("r", ["16", "4", "8"])
    assert [mark for _, mark in few.marks] == ["4", "8", "16"]


def test_jobs_on_different_metrics_are_told_apart() -> None:
    jobs = [job(1, 10), job(2, 20, n=50)]
    (warning,) = Sweep(Path("x"), jobs).content()["warnings"]
    assert "val/q/acc on 100 rows, val/q/acc on 50 rows" in warning


def test_sweep_name_is_of_the_settings() -> None:
    base = sweep_name(None, ["a=1,2", "b=3"], "basic")
    assert base == sweep_name(None, ["b=3", "resume=true", "a=1,2", "logger=none", "++output_root=x"], "basic")
    assert base not in (sweep_name(None, ["a=1,2", "b=4"], "basic"), sweep_name(None, ["a=1,2", "b=3"], "optuna"))
    assert sweep_name("mine", ["a=1"], "basic") == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["+train.lrr=1,2"], "train.lrr: no such setting; did you mean 'train.lr'?"),
        (["trainer.devices=2", "seed=1,2"], "trainer.devices: Expected 1 in a sweep (-m), got 2; a sweep watches"),
        (["name=a,b"], "name: Expected one name for a sweep, got name=a,b"),
        (["hydra/sweeper=optuna", "name=a,b"], "name: Expected one name for a sweep, got name=a,b"),
        (["test=true", "seed=1,2"], "test: Expected false in a sweep, got true; the winner alone"),
        (["hydra/sweeper=optuna", "seed=1"], "hydra/sweeper=optuna: Expected a space"),
        (["hydra/sweeper=optuna", "hydra.sweeper.n_trials=x", "seed=1,2"], "hydra.sweeper.n_trials: Expected a whole"),
        (["hydra/sweeper=optuna", "hydra.sweeper.n_trialss=3", "seed=1,2"], "hydra.sweeper.n_trialss: no such setting"),
        (["hydra.launcher._target_=pathlib.Path", "seed=1,2"], "Invalid plugin 'pathlib.Path'"),
    ],
)
def test_mistakes_start_nothing(arguments: list[str], said: str, tmp_path: Path) -> None:
    code, _, errors = swept(tmp_path, *arguments)
    assert code == 2 and said in errors and errors.count("\n") == 1
    assert not [*tmp_path.glob("outputs/*/*/jobs")]


@pytest.mark.slow
def test_grid_with_failing_jobs_then_resume(tmp_path: Path) -> None:
    """A config that is refused, a job that breaks, four that finish; then only what is not finished runs."""
    arguments = ("model.lora.r=4,8,13", "train.lr=1e-3,-1", "name=mine", *QUICK)
    code, output, errors = swept(tmp_path, *arguments)
    assert (code, errors) == (1, "")
    sweep = sweep_of(tmp_path)
    assert (tmp_path / "outputs/sweeps/mine/sweep.html").exists()
    found = {(j["values"]["model.lora.r"], j["values"]["train.lr"]): j for j in sweep["jobs"]}
    assert len(sweep["jobs"]) == len(found) == 6
    codes = {key: j["exit_code"] for key, j in found.items()}
    lr = "0.001"
    assert codes == {("4", lr): 0, ("8", lr): 0, ("13", lr): 1, ("4", "-1"): 2, ("8", "-1"): 2, ("13", "-1"): 2}
    assert found["13", lr]["message"] == "RuntimeError: thirteen"
    assert found["4", "-1"]["message"].startswith("error: train.lr: Expected a number > 0")
    best = found["8", lr]
    assert (best["rank"], best["value"], best["n"]) == (1, 0.6, 100) and best["interval"] == [*wilson_interval(60, 100)]
    assert sweep["evaluate"] == f"python evaluate.py run={best['folder']}" and sweep["evaluate"] in output
    assert "test=false" in best["overrides"]
    code, output, errors = swept(tmp_path, *arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1) and sweep_of(tmp_path) == sweep
    assert "holds this sweep already; go on with resume=true, or give another name=" in errors
    code, output, _ = swept(tmp_path, *arguments, "resume=true")
    assert code == 1 and sweep_of(tmp_path)["jobs"][0]["folder"] == best["folder"]
    assert (tmp_path / best["folder"] / "calls").read_text() == "ran\nfinished already\n"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_sweep_stops_its_job_and_goes_on(number: int, code: int, tmp_path: Path) -> None:
    arguments = ("model.lora.r=4,8", "trainer.max_steps=2", "trainer.log_every_n_steps=40")
    process = started(tmp_path, *arguments)
    while not [*tmp_path.glob("outputs/tiny-shapes/*/metrics.jsonl")]:
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == code
    assert [(j["state"], j["exit_code"]) for j in sweep_of(tmp_path)["jobs"]] == [
        ("interrupted", 143),
        ("waiting", None),
    ]
    code, _, _ = swept(tmp_path, *arguments[:1], "resume=true", *arguments[1:])
    assert code == 0 and [j["state"] for j in sweep_of(tmp_path)["jobs"]] == ["finished", "finished"]


@pytest.mark.slow
def test_real_jobs_with_a_failing_one_and_finished_trackers(tmp_path: Path) -> None:
    """Six runs, three with a layer name that matches nothing; the others have an offline W&B run of their own."""
    settings = (
        "model=tiny", "data=shapes", "data.options.train_rows=16", "data.limit_val=16", "trainer.max_steps=2",
        "preflight=false", "logger.mode=offline", "logger.init_timeout_seconds=120", "train.lr=1e-3,2e-3,3e-3",
        "model.lora.target_modules=[q_proj],[nope]",
    )  # fmt: skip
    wandb.setup()  # sets WANDB_SERVICE: the jobs are written by this process's service, with another working directory
    code, output, errors = swept(tmp_path, *settings, script=ROOT / "train.py")
    wandb.teardown()
    assert code == 1
    assert "going on with metrics.jsonl alone" not in output + errors
    jobs = sweep_of(tmp_path)["jobs"]
    assert [j["state"] for j in jobs] == ["finished"] * 3 + ["failed"] * 3
    assert all(j["metric"] == "val/shapes/count_accuracy" and j["n"] == 16 and j["interval"] for j in jobs[:3])
    assert len({j["folder"] for j in jobs}) == 6
    assert not any((tmp_path / one["folder"]).exists() for one in jobs[3:]), "a start that fails leaves nothing"
    for one in jobs[:3]:
        (run,) = (tmp_path / one["folder"] / "wandb").glob("offline-run-*/*.wandb")
        assert run.stat().st_size > 0
        assert not (tmp_path / one["folder"] / "predictions").exists()  # the test split was left alone
