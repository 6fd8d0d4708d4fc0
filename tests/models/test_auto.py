"""`model=auto`: each architecture in docs/models.md trains a window and answers, or is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import PreTrainedModel

from benchmarks.coverage import PAGE, tables
from benchmarks.tiny_models import MODELS, REFUSED, Tiny, make_louder, save
from vlmft.config.check import ConfigError
from vlmft.config.schema import Init, ModelConfig, PartsConfig, QuantizationConfig, QuantizationMode, Tuning
from vlmft.models.family import GenericFamily, make_family
from vlmft.models.load import load_model, load_source
from vlmft.models.lora import attach, base_of, part_of, trainable, unused_gradient_names
from vlmft.sample import BadRowError, EncodedRow, Message, Prompt, Sample
from vlmft.training.loss import summed_cross_entropy

pytestmark = pytest.mark.slow  # each architecture is loaded, trained and asked

CPU = torch.device("cpu")
ROUNDING = 1e-5
VISIBLE = 1e-3


def config_of(folder: Path, mode: str = "none") -> ModelConfig:
    quantization = QuantizationConfig(mode=QuantizationMode[mode])
    return ModelConfig(name="auto", path=str(folder), init=Init.random, quantization=quantization)


@pytest.fixture(scope="module", params=MODELS, ids=lambda tiny: tiny.name)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    found: Tiny = request.param
    return found


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp(tiny.model_type)
    save(tiny, made)
    return made


@pytest.fixture(scope="module")
def family(folder: Path) -> GenericFamily:
    made = make_family(config_of(folder), *load_source(config_of(folder)))
    assert isinstance(made, GenericFamily)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    loaded = load_model(config_of(folder), *load_source(config_of(folder)), CPU, seed=0)
    make_louder(loaded)
    return loaded


@pytest.fixture(scope="module")
def fitting(family: GenericFamily, samples: dict[str, Sample]) -> list[Sample]:
    """The kinds of rows that the family says it can do."""

    def fits(sample: Sample) -> bool:
        n_images, able = len(sample.prompt.images), family.capabilities
        if family.max_images is not None and n_images > family.max_images:
            return False
        turns = len(sample.prompt.messages) > 1
        return ("text_only" in able or n_images > 0) and ("multi_turn" in able or not turns)

    return [sample for sample in samples.values() if fits(sample)]


def logits_of(family: GenericFamily, model: PreTrainedModel, rows: Sequence[EncodedRow]) -> torch.Tensor:
    batch = family.collate(rows, "right", model)
    with torch.no_grad():
        features = family.image_features(model, batch.images, grad=False)
        return family.forward(model, batch, features, batch.keep)


def answered(family: GenericFamily, model: PreTrainedModel, rows: Sequence[EncodedRow]) -> list[list[int]]:
    batch = family.collate(rows, "left", model)
    with torch.inference_mode():
        features = family.image_features(model, batch.images, grad=False)
        return [list(ids) for ids in family.generate(model, batch, features, 8).tolist()]


def test_batched_is_alone(family: GenericFamily, model: PreTrainedModel, fitting: list[Sample]) -> None:
    """Logits of training within rounding, answers equal: rows with none, one, two and three images together."""
    assert len(fitting) >= 2
    rows = [family.encode(sample) for sample in fitting]
    alone = torch.cat([logits_of(family, model, [row]) for row in rows])
    torch.testing.assert_close(logits_of(family, model, rows), alone, rtol=0, atol=ROUNDING)
    prompts = [family.encode_prompt(sample.id, sample.prompt) for sample in fitting]
    together = answered(family, model, prompts)
    assert together == [answered(family, model, [prompt])[0] for prompt in prompts]
    assert len({tuple(ids) for ids in together}) > 1 or len(fitting) == 2


def test_a_rows_length_is_told_from_texts_and_sizes(family: GenericFamily, fitting: list[Sample]) -> None:
    """Of Idefics2 within one an image: its processor writes a space behind it, which may or may not be a token."""
    for sample in fitting:
        sizes = [image.load().size for image in sample.prompt.images]
        told = family.text_tokens(sample) - len(sizes) + sum(family.image_tokens(*size) for size in sizes)
        slack = len(sizes) if type(family.processor).__name__ == "Idefics2Processor" else 0
        assert 0 <= family.encode(sample).length - told <= slack, sample.id


def test_another_image_shows(family: GenericFamily, model: PreTrainedModel, make_image: Callable[..., Any]) -> None:
    rows = [
        family.encode(Sample("row", Prompt((Message("user", (make_image(96, 60, seed), "How many?")),)), "7", ("7",)))
        for seed in (1, 2)
    ]
    first, second = (logits_of(family, model, [row]) for row in rows)
    assert rows[0].input_ids.tolist() == rows[1].input_ids.tolist()
    assert (first - second).abs().max() > VISIBLE


def test_an_answer_is_not_seen_before_it_is_said(
    family: GenericFamily, model: PreTrainedModel, make_image: Callable[..., Any]
) -> None:
    """Other ids at the end of an answer leave the logits before them: no part of it is a prefix that sees itself.

    Experts take the tokens that are sent to them together, and a product of fewer rows may round otherwise: measured
    5e-7, where a token that is seen moves a logit by 1 and more.
    """
    prompt = Prompt((Message("user", (make_image(96, 60, 1), "How many?")),))
    row = family.encode(Sample("row", prompt, "red blue", ("red blue",)))
    other = np.array(row.input_ids)
    other[-2:] = row.input_ids[-3]
    changed = EncodedRow(row.id, other, row.supervised, row.prompt_length, row.token_arrays, row.images)
    good, bad = logits_of(family, model, [row]), logits_of(family, model, [changed])
    kept = row.n_supervised - 2
    rounding = 2e-6 if getattr(model.config.get_text_config(), "num_experts", None) else 0.0
    assert kept >= 2 and (good[:kept] - bad[:kept]).abs().max() <= rounding


@pytest.mark.parametrize("mode", [pytest.param("none", marks=pytest.mark.slow), "nf4"])
def test_windows_lower_the_loss(
    tiny: Tiny, folder: Path, family: GenericFamily, fitting: list[Sample], mode: str
) -> None:
    """LoRA and QLoRA: three steps; every adapter has a gradient, also after an evaluation pass, and nothing else."""
    config = config_of(folder, mode)
    config.lora.target_modules = list(tiny.targets)
    model = attach(load_model(config, *load_source(config), CPU, seed=0), config, seed=0)
    base = base_of(model)
    optimizer = torch.optim.Adam(trainable(model).values(), lr=5e-3)
    rows = [family.encode(sample) for sample in fitting]
    batch = family.collate(rows, "right", base)
    losses = []
    for step in range(3):
        model.train()
        features = family.image_features(base, batch.images, grad=False)
        loss = summed_cross_entropy(family.forward(base, batch, features, batch.keep), batch.targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert unused_gradient_names(model) == {"trainable_without": [], "frozen_with": [], "unused": []}
        assert not any(feature.requires_grad for feature in features)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step == 1:
            model.eval()
            answered(family, base, [family.encode_prompt("p", fitting[0].prompt)])
    assert losses[-1] < losses[0]


def test_quantisation_leaves_vision_connector_and_output_alone(folder: Path) -> None:
    config = config_of(folder, "nf4")
    model = load_model(config, *load_source(config), CPU, seed=0)
    found = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert len(found) >= 7 and {part_of(name) for name in found} == {"language"}
    assert not [name for name in found if "lm_head" in name]


def test_vision_and_connector_can_be_trained(folder: Path, family: GenericFamily, fitting: list[Sample]) -> None:
    """The loss reaches both through the features, and the language part stays frozen."""
    config = config_of(folder)
    config.train = PartsConfig(Tuning.frozen, Tuning.full, Tuning.full)
    base = load_model(config, *load_source(config), CPU, seed=0)
    make_louder(base)
    model = attach(base, config, seed=0)
    batch = family.collate([family.encode(sample) for sample in fitting], "right", base)
    features = family.image_features(base, batch.images, grad=True)
    summed_cross_entropy(family.forward(base, batch, features, batch.keep), batch.targets).backward()  # type: ignore[no-untyped-call]
    moved = {part_of(name) for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"vision", "connector"}


def test_what_hears_is_neither_trained_nor_quantised(tmp_path: Path) -> None:
    """Gemma 4's audio part, whose layers have the names of the language part's: no adapter, whatever is tuned."""
    tiny = next(tiny for tiny in MODELS if tiny.name == "Gemma 4")
    save(tiny, tmp_path)
    config = config_of(tmp_path, "nf4")
    config.train = PartsConfig(Tuning.lora, Tuning.full, Tuning.full)
    config.lora.target_modules = list(tiny.targets)
    model = attach(load_model(config, *load_source(config), CPU, seed=0), config, seed=0)
    audio = {name: module for name, module in model.named_modules() if part_of(name) == "audio"}
    assert any(name.endswith("q_proj.linear") for name in audio)
    assert not any(isinstance(module, Linear4bit) for module in audio.values())
    assert not any(part_of(name) == "audio" for name in trainable(model))
    assert any(part_of(name) == "language" for name in trainable(model))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_from_the_config_alone(name: str, tmp_path: Path) -> None:
    """There is nothing but config.json in the folder."""
    (tmp_path / "config.json").write_text(json.dumps(REFUSED[name]))
    with pytest.raises(ConfigError) as refused:
        load_source(config_of(tmp_path))
    assert str(refused.value).startswith("model.path: ") and "this model " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_page_names_them_all() -> None:
    """docs/models.md is written by `python -m benchmarks.coverage`; the test below runs it."""
    page = PAGE.read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert {*(tiny.name for tiny in MODELS), "moondream2", *REFUSED} <= set(rows)
    assert len(MODELS) >= 12 and len(REFUSED) >= 6


def test_every_mark_is_from_a_run() -> None:
    assert tables() in PAGE.read_text(encoding="utf-8")


def test_missing_template_is_said(tmp_path: Path) -> None:
    """And taken from model.template."""
    tiny = next(tiny for tiny in MODELS if tiny.name == "LLaVA")
    save(tiny, tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    config = config_of(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.template: this model has no chat template; give one in Jinja"):
        make_family(config, *load_source(config))
    config.template = template
    make_family(config, *load_source(config))


def test_one_image_where_neighbours_would_change_it(
    family: GenericFamily, folder: Path, samples: dict[str, Sample]
) -> None:
    """LLaVA-OneVision cuts an image into fewer tiles beside others: such rows are refused, not fed a mixture."""
    if folder.name.startswith("llava_onevision"):
        with pytest.raises(BadRowError, match="Expected at most 1 images, got 2"):
            family.encode(samples["two_images"])
    else:
        assert family.max_images is None
