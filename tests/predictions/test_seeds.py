"""Several training seeds together: each reported, and no verdict that one of them contradicts."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vlmft.config.check import ConfigError
from vlmft.predictions.seeds import seeds_of, taken_together
from vlmft.tools.cli import run_tool

run_seeds = partial(run_tool, "seeds")

IDS = [str(i) for i in range(40)]
GROUPS = {i: i for i in IDS}


def right(n: int) -> dict[str, float]:
    return {i: float(int(i) < n) for i in IDS}


def test_mean_range_and_verdict_by_hand() -> None:
    found = taken_together([0, 1, 2], "exact_match", [right(10)] * 3, [right(20), right(30), right(25)], GROUPS)
    assert found.differences == [0.25, 0.5, 0.375]
    assert found.comparison.difference == pytest.approx(0.375) and found.verdict == "better"
    assert found.sentence.startswith("3 seeds: mean +37.5 points, from +25.0 to +50.0; 95 % interval over the 40 rows ")
    assert found.to_dict()["seeds"][1] == {"seed": 1, "difference": 0.5}
    low, high = found.to_dict()["seeds_interval"]
    assert (low, high) == pytest.approx((0.375 - 4.3027 * 0.125 / 3**0.5, 0.375 + 4.3027 * 0.125 / 3**0.5), abs=1e-4)
    assert f"over seeds {100 * low:+.1f} to {100 * high:+.1f}: better" in found.sentence


def test_two_seeds_apart_are_too_few() -> None:
    """The rows are sure of these two; of a third nothing is known."""
    found = taken_together([0, 1], "exact_match", [right(10)] * 2, [right(20), right(30)], GROUPS)
    assert found.comparison.verdict == "better" and found.verdict == "not distinguishable"


def test_one_seed_that_points_the_other_way_ends_the_claim() -> None:
    found = taken_together([0, 1, 2], "exact_match", [right(10)] * 3, [right(39), right(39), right(9)], GROUPS)
    assert found.comparison.verdict == "better" and found.verdict == "not distinguishable"


@pytest.fixture
def two_seeds(trained: Any, tmp_path: Path) -> list[Path]:
    """A run, and what another seed might have left."""
    runs = [tmp_path / "a", tmp_path / "b"]
    for seed, run in enumerate(runs):
        shutil.copytree(trained.folder, run)
        text = (run / "config.yaml").read_text()
        assert text.count("\nseed: 0") == 1
        (run / "config.yaml").write_text(text.replace("\nseed: 0", f"\nseed: {seed}"))
    return runs


def test_runs_of_two_seeds(two_seeds: list[Path], trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_seeds([*map(str, two_seeds), "--json"])
    json_of = json.loads(capsys.readouterr().out)
    (pair,) = [pair for pair in trained.summary["comparisons"] if pair["second"] == "tuned"]
    assert [one["difference"] for one in json_of["seeds"]] == [pytest.approx(pair["difference"])] * 2
    assert json_of["comparison"]["interval"] == pytest.approx(pair["interval"])
    run_seeds([*map(str, two_seeds)])
    assert "a claim about training takes three seeds" in capsys.readouterr().out


def test_other_questions_are_refused(two_seeds: list[Path]) -> None:
    """Equal settings, other data: a file behind data.path may have changed between the two."""
    path = two_seeds[1] / "predictions" / "untuned.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "prompt_sha256": "0" * 64}) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"was asked other questions, or another base, than .* in 24 rows"):
        run_seeds([*map(str, two_seeds)])


def test_settings_that_change_no_result_may_differ(two_seeds: list[Path]) -> None:
    text = (two_seeds[1] / "config.yaml").read_text()
    assert "  workers: null\n" in text and "  memory_gib: null\n" in text
    changed = text.replace("  workers: null\n", "  workers: 2\n").replace("  memory_gib: null\n", "  memory_gib: 8.0\n")
    (two_seeds[1] / "config.yaml").write_text(changed)
    assert seeds_of(two_seeds) == [0, 1]


def test_runs_that_differ_otherwise_are_refused(two_seeds: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"each of another seed, got seeds \[0, 0\]"):
        seeds_of([two_seeds[0], two_seeds[0]])
    with pytest.raises(ConfigError, match="Expected two runs or more"):
        seeds_of(two_seeds[:1])
    text = (two_seeds[1] / "config.yaml").read_text()
    (two_seeds[1] / "config.yaml").write_text(text.replace("rows_per_step: 8", "rows_per_step: 4"))
    with pytest.raises(ConfigError, match=r"differs from .* in train, not in its seed alone"):
        seeds_of(two_seeds)
