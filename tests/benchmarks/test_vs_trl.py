"""What benchmarks/vs_trl.py counts and holds equal; never its times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.measuring import flop_counter
from benchmarks.scaled_models import SCALED, save_model, write_rows
from benchmarks.vs_trl import REFERENCE, TOLERANCE, Contest, Job, Measured, config_of, run, run_vlmft
from vlmft.run.build import Built, build, resolved

pytestmark = pytest.mark.slow

NAMES = tuple(SCALED)
VISION_GFLOP = {"SmolVLM": 18.893, "Qwen2-VL": 5.351, "Qwen2.5-VL": 4.346}
"""Of one image: counted once, and for SmolVLM worked out by hand (13 tiles of 256 patches through six layers)."""


def job_of(name: str, folder: Path, images: int = 2, rows_per_step: int = 2) -> Job:
    save_model(SCALED[name], folder / "model", "cpu")
    write_rows(folder / "rows", images, 1)
    return Job(REFERENCE, folder / "model", folder / "rows", rows_per_step, SCALED[name].lora_rank)


def built_of(job: Job) -> Built:
    config = resolved(config_of(job)).config
    return build(config.model, config.data, config.trainer, seed=0, train=config.train)


@pytest.mark.parametrize("name", NAMES)
def test_the_scaled_models_have_the_ratio_of_the_published_ones(name: str, tmp_path: Path) -> None:
    built = built_of(job_of(name, tmp_path, images=1))
    row = built.data.encode(built.data.sample(built.data.ids["train"][0]))
    batch = built.family.collate([row], "right", built.base)
    with flop_counter() as vision:
        features = built.family.image_features(built.base, batch.images, grad=False)
    with flop_counter() as language, torch.no_grad():
        built.family.forward(built.base, batch, features, batch.keep)
    assert vision.get_total_flops() / 1e9 == pytest.approx(VISION_GFLOP[name], rel=1e-3)
    assert vision.get_total_flops() / language.get_total_flops() == pytest.approx(SCALED[name].ratio, rel=0.05)


def test_another_picture_moves_the_loss_further_than_is_allowed(tmp_path: Path) -> None:
    built = built_of(job_of("Qwen2-VL", tmp_path))
    mine, other = (built.data.encode(built.data.sample(row_id)) for row_id in built.data.ids["train"])
    losses = []
    for images in (mine.images, other.images):
        batch = built.family.collate([replace(mine, images=images)], "right", built.base)
        features = built.family.image_features(built.base, batch.images, grad=False)
        logits = built.family.forward(built.base, batch, features, batch.keep)
        losses.append(torch.nn.functional.cross_entropy(logits, batch.targets).item())
    assert abs(losses[0] - losses[1]) > 50 * TOLERANCE["cpu"] * losses[0]


def test_work_of_a_step(tmp_path: Path) -> None:
    """Without a cache every epoch costs the same and sees each image once; counting changes no order."""
    job = job_of("Qwen2-VL", tmp_path)
    counted, timed = run_vlmft(replace(job, count=True)), run_vlmft(job)
    assert counted.order == timed.order and len(counted.order) == 2
    assert counted.losses == pytest.approx(timed.losses, rel=TOLERANCE["cpu"])
    cold, warm = counted.flops
    assert cold == warm
    vision = 2 * VISION_GFLOP["Qwen2-VL"] * 1e9
    language = 2 * VISION_GFLOP["Qwen2-VL"] / SCALED["Qwen2-VL"].ratio * 1e9
    assert vision + 2 * language < cold < vision + 3 * language, "seen once, not back-propagated through"
    assert timed.flops == [] and len(timed.seconds) == 2


def test_a_warm_step_sees_no_image(tmp_path: Path) -> None:
    job = job_of("Qwen2-VL", tmp_path)
    without, cached = run_vlmft(replace(job, count=True)), run_vlmft(replace(job, variant="vlmft, cache", count=True))
    assert cached.flops[0] == without.flops[0]
    assert without.flops[1] - cached.flops[1] == pytest.approx(2 * VISION_GFLOP["Qwen2-VL"] * 1e9, rel=1e-3)
    assert run_vlmft(replace(job, variant="vlmft, cache")).losses == run_vlmft(job).losses


def test_trl_has_the_same_losses_and_more_work(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    job = job_of("Qwen2-VL", tmp_path)
    mine = run(replace(job, count=True))
    tuned, ships = (
        run(replace(job, variant=variant, count=True, order=mine.order)) for variant in ("TRL tuned", "TRL as it ships")
    )
    for found in (tuned, ships):
        assert found.losses == pytest.approx(mine.losses, rel=TOLERANCE["cpu"])
    assert mine.flops[0] < tuned.flops[0] < 0.5 * ships.flops[0]


def test_medians_and_the_largest_difference() -> None:
    one = Measured([2.0, 1.0], [8, 4], [3.0, 1.0], (("a",), ("b",)))
    two = Measured([2.0, 1.1], [8, 4], [5.0, 2.0], (("a",), ("b",)))
    found = Contest({REFERENCE: one}, {REFERENCE: [one, one], "TRL tuned": [one, two]})
    assert (found.flops(REFERENCE, 0), found.flops(REFERENCE, 1)) == (8, 4)
    assert found.seconds("TRL tuned", 0) == 4 and found.rows() == 1
    assert found.difference("TRL tuned") == pytest.approx(0.1)
