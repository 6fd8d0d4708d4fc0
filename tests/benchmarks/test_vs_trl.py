"""What benchmarks/vs_trl.py counts and holds equal; never its times."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from benchmarks.measuring import flop_counter
from benchmarks.scaled_models import REAL, SCALED, save_config, save_model, work_of, write_rows
from benchmarks.vs_trl import (
    REFERENCE,
    TOLERANCE,
    VARIANTS,
    Contest,
    Job,
    Measured,
    compared,
    config_of,
    run,
    run_vlmft,
    settled,
)
from vlmft.models import last_layer
from vlmft.run.build import Built, build, resolved

pytestmark = pytest.mark.slow

NAMES = tuple(SCALED)
RATIOS = {"SmolVLM": 11.25, "Qwen2-VL": 2.27, "Qwen2.5-VL": 0.87}
"""Vision to language work of the published sizes, attention counted in full."""
PARAMETERS = {"SmolVLM": 256e6, "Qwen2-VL": 2.21e9, "Qwen2.5-VL": 3.75e9}
"""As published."""


def job_of(name: str, folder: Path, images: int = 2, rows_per_step: int = 2, questions: int = 1) -> Job:
    save_model(SCALED[name], folder / "model", "cpu")
    write_rows(folder / "rows", images, questions)
    return Job(REFERENCE, folder / "model", folder / "rows", rows_per_step, SCALED[name].lora_rank)


def built_of(job: Job) -> Built:
    config = resolved(config_of(job)).config
    return build(config.model, config.data, config.trainer, seed=0, train=config.train)


@pytest.mark.parametrize("name", NAMES)
def test_the_scaled_models_have_the_ratio_of_the_published_ones(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whole layers: what the last one leaves out is no share of a model's work that depth does not change."""
    monkeypatch.setattr(last_layer, "per_token_modules", lambda layer: [])
    built = built_of(job_of(name, tmp_path, images=1))
    assert isinstance(built.model, PeftModel)
    row = built.data.encode(built.data.sample(built.data.ids["train"][0]))
    batch = built.family.collate([row], "right", built.base)
    with flop_counter() as vision:
        features = built.family.image_features(built.base, batch.images, grad=False)
    with flop_counter() as language, torch.no_grad(), built.model.disable_adapter():
        logits = built.family.forward(built.base, batch, features, batch.keep)
    n_text = row.length - SCALED[name].image.tokens
    work, published = work_of(SCALED[name], n_text), work_of(REAL[name], n_text)
    of_logits = 2 * logits.numel() * SCALED[name].tiny.text["hidden_size"]
    assert vision.get_total_flops() == work.vision
    assert language.get_total_flops() - of_logits == work.linear + work.attention
    assert work.ratio == pytest.approx(published.ratio, rel=0.01)
    assert published.ratio == pytest.approx(RATIOS[name], rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_real_models_have_the_published_sizes(name: str, tmp_path: Path) -> None:
    config = save_config(REAL[name], tmp_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert model.num_parameters() == pytest.approx(PARAMETERS[name], rel=0.01)


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
    work = work_of(SCALED["Qwen2-VL"], n_text(job))
    vision, language = 2 * work.vision, 2 * (work.linear + work.attention)
    all_but_the_last = 1 - 1 / int(str(SCALED["Qwen2-VL"].tiny.text["num_hidden_layers"]))
    least = vision + 2 * all_but_the_last * language
    assert least < cold < vision + 3 * language, "seen once, not back-propagated through"
    assert timed.flops == [] and len(timed.seconds) == 2


def test_a_warm_step_sees_no_image(tmp_path: Path) -> None:
    job = job_of("Qwen2-VL", tmp_path)
    without, cached = run_vlmft(replace(job, count=True)), run_vlmft(replace(job, variant="vlmft, cache", count=True))
    assert cached.flops[0] == without.flops[0]
    assert without.flops[1] - cached.flops[1] == 2 * work_of(SCALED["Qwen2-VL"], 0).vision
    assert run_vlmft(replace(job, variant="vlmft, cache")).losses == run_vlmft(job).losses


def test_questions_about_an_image_are_one_row_of_a_step(tmp_path: Path) -> None:
    job = job_of("Qwen2-VL", tmp_path, rows_per_step=4, questions=4)
    found = run_vlmft(replace(job, count=True))
    images = [{int(row_id.rpartition("/")[2]) // 4 for row_id in step} for step in found.order]
    assert sorted(map(tuple, images)) == [(0,), (0,), (1,), (1,)]
    work = work_of(SCALED["Qwen2-VL"], n_text(job))
    assert work.vision < found.flops[0] < work.vision + 0.5 * 3 * 4 * (work.linear + work.attention)


def n_text(job: Job) -> int:
    """Tokens of the first row that are not the image's."""
    built = built_of(job)
    ids = built.data.encode(built.data.sample(built.data.ids["train"][0])).input_ids
    return int((ids != built.base.config.image_token_id).sum())


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


def test_a_gpu_gets_its_own_rounds_and_its_absence_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Namespace(device="cuda", rounds=None, minutes=None, quick=False, models=list(NAMES))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="Expected a GPU"):
        settled(asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = settled(asked)
    assert (found.rounds, found.minutes, found.models) == (1, 6, list(NAMES))
    assert settled(Namespace(device="cpu", rounds=None, minutes=None, quick=True, models=list(NAMES))).rounds == 1


def test_how_many_times_less() -> None:
    def took(flops: int, seconds: float) -> Measured:
        return Measured([1.0, 1.0], [2 * flops, flops], [2 * seconds, seconds], (("a",), ("b",)))

    kinds = {VARIANTS[0]: took(80, 8), VARIANTS[1]: took(40, 4), VARIANTS[3]: took(10, 2)}
    found = Contest(kinds, {variant: [one] for variant, one in kinds.items()})
    assert compared("Qwen2-VL", found, 4) == [
        "| Qwen2-VL | cold, 4 questions | 8.0 | 4.0 (0.50) | 4.0 | 2.0 (0.50) |",
        "| Qwen2-VL | warm, 4 questions | 8.0 | 4.0 (0.50) | 4.0 | 2.0 (0.50) |",
    ]


def test_medians_and_the_largest_difference() -> None:
    one = Measured([2.0, 1.0], [8, 4], [3.0, 1.0], (("a",), ("b",)))
    two = Measured([2.0, 1.1], [8, 4], [5.0, 2.0], (("a",), ("b",)))
    found = Contest({REFERENCE: one}, {REFERENCE: [one, one], "TRL tuned": [one, two]})
    assert (found.flops(REFERENCE, 0), found.flops(REFERENCE, 1)) == (8, 4)
    assert found.seconds("TRL tuned", 0) == 4 and found.rows() == 1
    assert found.difference("TRL tuned") == pytest.approx(0.1)
