"""Questions about the same images as one row: the loss and the gradients of separate rows, with the images once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from benchmarks.tiny_models import MODELS, Tiny, make_louder
from tests.models.tiny_folders import drawn, loaded
from vlmft.models import last_layer, shared_images
from vlmft.models.family import GenericFamily
from vlmft.models.lora import part_of
from vlmft.models.shared_images import SharedRow
from vlmft.sample import Batch, EncodedRow, Image, Message, Prompt, Sample
from vlmft.training.loss import summed_cross_entropy

CANNOT = {"Gemma 3", "Gemma 4", "Qwen3.5", "Qwen3.5-MoE", "LFM3-VL", "PaliGemma", "IDEFICS"}
"""Sliding windows, recurrent or convolutional layers, a prefix that sees all of itself, images outside the row."""
QUESTIONS = (("How many?", "7"), ("How many are red, small and round?", "the second"), ("Is it red?", "no, blue"))
MANY = 1 << 30
Model = tuple[GenericFamily, PreTrainedModel]


def picture(width: int, height: int, seed: int) -> Image:
    return Image(partial(drawn, width, height, seed), f"noise {seed}")


def to_train(tiny: Tiny, folder: Path) -> Model:
    """Louder than at initialisation, so that a wrong position shows, with gradients of the language part's matrices."""
    family, model = loaded(tiny, folder)
    make_louder(model)
    model.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) == "language" and parameter.dim() == 2)
    return family, model


def encoded(family: GenericFamily, n_images: int = 1) -> list[EncodedRow]:
    """Three questions about one image, two about another, one about a third, one without any."""
    rows = []
    shown = ((1, 3), (2, 2), (3, 1), *([(None, 1)] if "text_only" in family.capabilities else []))
    for seed, n in shown:
        images = [picture(60 + 20 * i, 60, seed + 10 * i) for i in range(n_images)] if seed is not None else []
        for number, (question, answer) in enumerate(QUESTIONS[:n]):
            prompt = Prompt((Message("user", (*images, question)),))
            rows.append(family.encode(Sample(f"{seed}/{number}", prompt, answer, (answer,))))
    return rows


def loss_and_gradients(
    family: GenericFamily, model: PreTrainedModel, batches: list[Batch]
) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        features = family.image_features(model, batch.images, grad=False)
        loss = summed_cross_entropy(family.forward(model, batch, features, batch.keep), batch.targets)
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """To 1e-5 of the largest gradient: sums over a window in another order, in 32 bit (measured: at most 2e-6)."""
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    assert one.keys() == other.keys() and len(one) > 5 and largest > 0
    for name, gradient in one.items():
        assert float((gradient - other[name]).abs().max()) <= 1e-5 * largest, name


def test_the_models_that_cannot_are_known() -> None:
    assert {tiny.name for tiny in MODELS} > CANNOT


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_loss_and_gradients_of_separate_rows(tiny: Tiny, tmp_path: Path) -> None:
    family, model = to_train(tiny, tmp_path / "model")
    rows = encoded(family)
    alone, together = family.share(rows, model, MANY, MANY)
    if tiny.name in CANNOT:
        assert together == [] and alone == rows
        return
    assert [len(unit.rows) for unit in together] == [3, 2] and len(alone) == len(rows) - 5
    separate = [family.collate([row], "right", model) for row in rows]
    mixed = [family.collate(alone, "right", model), family.collate_shared(together, model)]
    assert len(mixed[1].images) == 2 and mixed[1].layout == "shared_prefix"
    loss, gradients = loss_and_gradients(family, model, separate)
    shared_loss, shared_gradients = loss_and_gradients(family, model, mixed)
    assert shared_loss == pytest.approx(loss, rel=1e-6)
    assert_equal(gradients, shared_gradients)


@pytest.fixture(scope="module", params=["SmolVLM / Idefics3", "Qwen2-VL"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    (tiny,) = [tiny for tiny in MODELS if tiny.name == request.param]
    return to_train(tiny, tmp_path_factory.mktemp("model"))


def test_rows_of_several_images(small: Model) -> None:
    family, model = small
    rows = encoded(family, n_images=2)
    alone, together = family.share(rows, model, MANY, MANY)
    assert [len(unit.rows) for unit in together] == [3, 2]
    batches = [family.collate(alone, "right", model), family.collate_shared(together, model)]
    loss, gradients = loss_and_gradients(family, model, [family.collate([row], "right", model) for row in rows])
    shared_loss, shared_gradients = loss_and_gradients(family, model, batches)
    assert shared_loss == pytest.approx(loss, rel=1e-6)
    assert_equal(gradients, shared_gradients)


@pytest.mark.parametrize("defect", ["questions see each other", "positions go on"])
def test_the_defects_would_be_noticed(defect: str, small: Model) -> None:
    family, model = small
    rows = encoded(family)[:3]
    (unit,) = family.share(rows, model, MANY, MANY)[1]
    batch = family.collate_shared([unit], model)
    expected, _ = loss_and_gradients(family, model, [family.collate(rows, "right", model)])
    if defect == "positions go on":
        n = batch.input_ids.shape[1]
        batch.position_ids = torch.arange(n).expand(batch.position_ids.shape).contiguous()
    else:
        batch.attention_mask = batch.attention_mask.new_full(batch.attention_mask.shape, -1e9).triu(1)
    found, _ = loss_and_gradients(family, model, [batch])
    assert abs(found - expected) > 1e-3 * expected


def test_limits_of_rows_and_tokens(small: Model) -> None:
    family, model = small
    rows = encoded(family)
    alone, together = family.share(rows, model, 2, MANY)
    assert [len(unit.rows) for unit in together] == [2, 2] and len(alone) == 3
    ids = sorted(row.id for row in [*alone, *(row for unit in together for row in unit.rows)])
    assert ids == sorted(row.id for row in rows)
    longest = max(row.length for row in rows)
    alone, together = family.share(rows, model, MANY, longest)
    assert all(unit.length <= longest for unit in together)
    assert len(alone) + sum(len(unit.rows) for unit in together) == len(rows)


def test_few_shot_rows_share_up_to_the_last_image_only(small: Model) -> None:
    """Another image behind other text: nothing can be shared, for its tokens would come twice."""
    family, model = small
    first, second = picture(60, 60, 1), picture(80, 60, 2)
    rows = [
        family.encode(Sample(text, Prompt((Message("user", (first, text, second, "Which?")),)), "a", ("a",)))
        for text in ("one", "two")
    ]
    assert family.share(rows, model, MANY, MANY) == (sorted(rows, key=lambda row: (row.length, row.id)), [])


def test_the_same_images_are_counted_once(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix multiplications of whole layers grow with tokens: four questions cost less than two rows."""
    monkeypatch.setattr(last_layer, "per_token_modules", lambda layer: [])
    family, model = small
    image = picture(96, 96, 1)
    rows = [family.encode(Sample(str(i), Prompt((Message("user", (image, f"{i}?")),)), "a", ("a",))) for i in range(4)]
    (unit,) = family.share(rows, model, MANY, MANY)[1]
    assert isinstance(unit, SharedRow) and unit.length < sum(row.length for row in rows[:3])

    def flops(batch: Batch) -> int:
        features = family.image_features(model, batch.images, grad=False)
        with FlopCounterMode(display=False) as counter:
            family.forward(model, batch, features, batch.keep)
        return counter.get_total_flops()

    separate, together = family.collate(rows, "right", model), family.collate_shared([unit], model)
    n_tokens = separate.input_ids.numel() / together.input_ids.numel()
    # The language model's head sees as many as before.
    assert n_tokens > 1.5 and flops(separate) / flops(together) > 1.4


def test_other_attention_takes_separate_rows(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    family, model = small
    rows = encoded(family)
    monkeypatch.setattr("vlmft.models.generic.MASKED_ATTENTION", ())
    assert family.share(rows, model, MANY, MANY) == (rows, [])
    assert "sdpa" in shared_images.MASKED_ATTENTION
