"""What benchmarks/scaling.py counts; never its times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scaling import PATCHES, large_sets, ranked, stored, tokens

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def test_six_jobs_of_a_sweep_see_each_image_once(tmp_path: Path) -> None:
    """What goes through the tower is stored; what two jobs had made would be there twice."""
    n_train, n_val = 16, 8
    command = [
        *(sys.executable, "train.py", "-m", "model=tiny", "train.lr=1e-3,2e-3,3e-3", "model.lora.r=2,4"),
        *(f"data.options.train_rows={n_train}", f"data.limit_val={n_val}", "trainer.max_epochs=2", "preflight=false"),
        *("train.rows_per_step=8", "trainer=cpu", "logger=none", f"output_root={tmp_path}/out"),
    ]
    environment = {**os.environ, "VLMFT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = (tmp_path / "out").rglob("sweep.json")
    assert [job["state"] for job in json.loads(sweep.read_text())["jobs"]] == ["finished"] * 6
    images, n_bytes = stored(tmp_path / "cache" / "features")
    assert len(images) == len(set(images)) == n_train + n_val and n_bytes > 0


def test_what_two_processes_make_is_stored(tmp_path: Path) -> None:
    """In so short a run one process may make what the other has not written yet."""
    one, two = (ranked(number, tmp_path / str(number)) for number in (1, 2))
    assert one["made"] == one["images"] == two["images"] == 64 + 8
    assert 64 + 8 <= two["made"] <= 2 * 64 + 8
    assert len(one["window_ms"]) == len(two["window_ms"]) == 2


def test_rows_and_images_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    large_sets("messages", [(40, 10), (40, 20)], 1)
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(cells[0], cells[1], cells[2]) for cells in lines] == [("| 40", "10", "1"), ("| 40", "20", "1")]


def test_features_grow_with_tokens(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scaling.PATCHES", PATCHES[:2])
    tokens()
    few, many = ([*line.strip("| ").split(" | ")] for line in capsys.readouterr().out.splitlines()[2:])
    assert int(few[0]) < int(many[0]) <= 160
    for cells in (few, many):
        cold, warm = (float(number) for number in cells[1].split(" / "))
        assert warm < cold
        assert float(cells[4]) == pytest.approx(int(cells[0]) * 256 * 4 / 1024, rel=0.05)  # fp32, 256 wide
