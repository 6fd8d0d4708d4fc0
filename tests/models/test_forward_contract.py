"""From rows to logits: the same numbers as the plain library model, whatever the batch, and nothing left out.

Tolerance 1e-5 in fp32: rounding between differently shaped products moves these losses and logits by up to 2e-6
(measured), while each defect here moves them by 1e-3 at the least.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from vlmft.models.family import GenericFamily
from vlmft.sample import Batch, EncodedRow, Layout, Prompt, Sample
from vlmft.training.loss import summed_cross_entropy

TOLERANCE = 1e-5
VISIBLE = 1e-3
LAYOUTS: tuple[Layout, ...] = ("right", "left")


def logits_of(
    family: GenericFamily, model: PreTrainedModel, rows: Sequence[EncodedRow], layout: Layout = "right"
) -> tuple[torch.Tensor, Batch]:
    """Logits at the supervised positions, as training makes them, and the batch."""
    batch = family.collate(rows, layout, model)
    with torch.no_grad():
        features = family.image_features(model, batch.images, grad=False)
        return family.forward(model, batch, features, batch.keep), batch


def mean_loss(family: GenericFamily, model: PreTrainedModel, rows: Sequence[EncodedRow]) -> float:
    logits, batch = logits_of(family, model, rows)
    return float(summed_cross_entropy(logits, batch.targets)) / len(batch.targets)


def library_inputs(family: GenericFamily, chat: list[dict[str, Any]], answer: str) -> dict[str, torch.Tensor]:
    """What a plain fine-tuning script feeds the model: the processor's output on prompt and answer in one text."""
    turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    inputs = family.processor.apply_chat_template(
        [*chat, turn], tokenize=True, add_generation_prompt=False, return_dict=True, return_tensors="pt"
    )
    return dict(inputs)


@pytest.fixture
def theirs(
    family: GenericFamily, sample: Sample, vendor_chat: Callable[[Prompt], list[dict[str, Any]]]
) -> dict[str, torch.Tensor]:
    return library_inputs(family, vendor_chat(sample.prompt), sample.answer)


@pytest.fixture(scope="module")
def rows(family: GenericFamily, samples: dict[str, Sample]) -> list[EncodedRow]:
    """A row of each kind."""
    return [family.encode(sample) for sample in samples.values()]


def test_loss_is_the_librarys(
    family: GenericFamily, model: PreTrainedModel, sample: Sample, theirs: dict[str, torch.Tensor]
) -> None:
    row = family.encode(sample)
    ids = theirs["input_ids"][0]
    np.testing.assert_array_equal(ids[: row.length].numpy(), row.input_ids)  # the template may write more behind
    labels = torch.full_like(ids, -100)
    labels[row.prompt_length : row.length] = ids[row.prompt_length : row.length]
    with torch.no_grad():
        loss = float(model(**theirs, labels=labels[None]).loss)
    assert mean_loss(family, model, [row]) == pytest.approx(loss, abs=TOLERANCE)
    wrong = torch.roll(labels, 1)
    with torch.no_grad():
        assert abs(float(model(**theirs, labels=wrong[None]).loss) - loss) > VISIBLE, "a shifted label would show"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_is_its_rows(
    family: GenericFamily, model: PreTrainedModel, rows: list[EncodedRow], layout: Layout
) -> None:
    together, batch = logits_of(family, model, rows, layout)
    alone = torch.cat([logits_of(family, model, [row])[0] for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=TOLERANCE)
    assert batch.targets.tolist() == [i for row in rows for i in row.input_ids[row.supervised].tolist()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_in_view_would_show(
    family: GenericFamily, model: PreTrainedModel, rows: list[EncodedRow], layout: Layout
) -> None:
    """The comparison above sees something: with padding attended to, or positions counted over it, logits move.

    Positions alone are no defect for right padding, nor where they are relative (tiny, all shifted alike)."""
    good, batch = logits_of(family, model, rows, layout)
    features = family.image_features(model, batch.images, grad=False)
    counted = torch.arange(batch.input_ids.shape[1]).expand(batch.position_ids.shape)
    seen = dataclasses.replace(batch, attention_mask=torch.ones_like(batch.attention_mask), position_ids=counted)
    with torch.no_grad():
        bad = family.forward(model, seen, features, seen.keep)
    moved = (bad - good).abs().max()
    has_3d_positions = batch.position_ids.dim() == 3
    assert moved > VISIBLE or (layout == "right" and not has_3d_positions)


def test_right_padding_makes_no_mask(
    family: GenericFamily, model: PreTrainedModel, rows: list[EncodedRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """sdpa's causal kernel takes none. The defect: padding that does not count on is taken for packed rows."""
    attention, masks = torch.nn.functional.scaled_dot_product_attention, list[torch.Tensor | None]()

    def noted(*arguments: Any, attn_mask: torch.Tensor | None = None, **named: Any) -> torch.Tensor:
        masks.append(attn_mask)
        return attention(*arguments, attn_mask=attn_mask, **named)

    batch = family.collate(rows, "right", model)
    features = family.image_features(model, batch.images, grad=False)
    assert not batch.attention_mask.all() and model.config.get_text_config()._attn_implementation == "sdpa"
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    with torch.no_grad():
        family.forward(model, batch, features, batch.keep)
        n_layers = len(masks)
        assert n_layers >= 2 and masks == [None] * n_layers
        ids, positions = batch.input_ids, batch.position_ids
        model(input_ids=ids, position_ids=positions, use_cache=False, **family.seen(model, batch, features))
    has_3d_positions = positions.dim() == 3
    assert len(masks) == 2 * n_layers and all((mask is None) == has_3d_positions for mask in masks[n_layers:])


def test_keep_returns_the_logits_at_the_mask(
    family: GenericFamily, model: PreTrainedModel, sample: Sample, theirs: dict[str, torch.Tensor]
) -> None:
    """`logits_to_keep` beside the plain model's full logits, on its pixel path."""
    row = family.encode(sample)
    kept, batch = logits_of(family, model, [row])
    with torch.no_grad():
        full = model(**theirs).logits[:, : row.length]
    torch.testing.assert_close(kept, full[batch.keep], rtol=0, atol=TOLERANCE)
    assert kept.shape == (row.n_supervised, model.get_output_embeddings().weight.shape[0])


def test_keep_anything(family: GenericFamily, model: PreTrainedModel, rows: list[EncodedRow]) -> None:
    batch = family.collate(rows, "right", model)
    features = family.image_features(model, batch.images, grad=False)
    everywhere = torch.ones_like(batch.supervised)
    some = torch.from_numpy(np.random.default_rng(0).random(everywhere.shape) < 0.3)
    with torch.no_grad():
        full = family.forward(model, batch, features, everywhere).reshape(*everywhere.shape, -1)
        kept = family.forward(model, batch, features, some)
    torch.testing.assert_close(kept, full[some], rtol=0, atol=TOLERANCE)


def without(row: EncodedRow, key: str) -> EncodedRow:
    tokens = {k: v for k, v in row.token_arrays.items() if k != key}
    images = tuple(
        dataclasses.replace(image, arrays={k: v for k, v in image.arrays.items() if k != key}) for image in row.images
    )
    return dataclasses.replace(row, token_arrays=tokens, images=images)


@pytest.mark.parametrize("name", ["tiny_qwen2vl"], indirect=True)
@pytest.mark.parametrize("key", ["mm_token_type_ids", "image_grid_thw"])
def test_no_key_of_qwen_can_be_dropped_in_silence(
    family: GenericFamily, model: PreTrainedModel, samples: dict[str, Sample], key: str
) -> None:
    """Without these the positions of images are unknown: an error here, other logits on other Qwen models."""
    row = family.encode(samples["one_image"])
    assert {*row.token_arrays, *row.images[0].arrays} == {"mm_token_type_ids", "image_grid_thw", "pixel_values"}
    with pytest.raises(TypeError):
        logits_of(family, model, [without(row, key)])


@pytest.mark.parametrize("name", ["tiny"], indirect=True)
def test_mask_of_pixels_reaches_the_vision_part(
    family: GenericFamily, model: PreTrainedModel, samples: dict[str, Sample]
) -> None:
    """tiny stretches every picture over its square, so its mask hides nothing; one that hides the lower half shows."""
    row = family.encode(samples["one_image"])
    arrays = row.images[0].arrays
    assert set(arrays) == {"pixel_values", "pixel_attention_mask"} and not row.token_arrays
    assert arrays["pixel_attention_mask"].all()
    hidden = arrays["pixel_attention_mask"].copy()
    hidden[..., 48:, :] = 0
    image = dataclasses.replace(row.images[0], arrays={**arrays, "pixel_attention_mask": hidden})
    good, _ = logits_of(family, model, [row])
    bad, _ = logits_of(family, model, [dataclasses.replace(row, images=(image,))])
    assert (bad - good).abs().max() > VISIBLE


def test_token_types_decide_positions(
    family: GenericFamily, model: PreTrainedModel, samples: dict[str, Sample]
) -> None:
    """The batch mixes rows with and without images: zeros fill in for the latter, and only for them."""
    rows = [family.encode(samples[kind]) for kind in ("one_image", "text_only")]
    batch = family.collate(rows, "right", model)
    for key, array in batch.token_arrays.items():
        assert array.dtype == torch.int64 and array.shape == batch.input_ids.shape
        assert array[0, : rows[0].length].tolist() == rows[0].token_arrays[key].tolist()
        assert array[0].any() and not array[1].any()
        zeroed = dataclasses.replace(rows[0], token_arrays={key: np.zeros(rows[0].length, np.int64)})
        good, _ = logits_of(family, model, [rows[0]])
        bad, _ = logits_of(family, model, [zeroed])
        assert (bad - good).abs().max() > VISIBLE
    assert set(batch.token_arrays) == set(rows[0].token_arrays)


def test_features_together_are_features_alone(
    family: GenericFamily, model: PreTrainedModel, rows: list[EncodedRow]
) -> None:
    """1e-6: sums in another order, on features of size 1 to 10 (measured 0 here, 2e-8 on Qwen2-VL elsewhere)."""
    images = [image for row in rows for image in row.images]
    assert len(images) == 7
    alone = family.image_features(model, images, grad=False)
    together = family.image_features(model, images, grad=True)
    assert len(alone) == len(together) == len(images)
    for one, other in zip(alone, together, strict=True):
        assert one.shape == other.shape == (len(one), model.get_input_embeddings().weight.shape[1])
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    again = family.image_features(model, images[::-1], grad=False)[::-1]
    assert all(torch.equal(one, other) for one, other in zip(alone, again, strict=True)), "frozen: bit for bit"


def test_features_reach_the_logits(family: GenericFamily, model: PreTrainedModel, rows: list[EncodedRow]) -> None:
    """Another image, or two swapped ones, show."""
    row = rows[2]
    good, batch = logits_of(family, model, [row])
    features = family.image_features(model, batch.images, grad=False)
    assert len(features) == 2
    with torch.no_grad():
        blank = family.forward(model, batch, [torch.zeros_like(f) for f in features], batch.keep)
        swapped = family.forward(model, batch, features[::-1], batch.keep)
    assert (blank - good).abs().max() > VISIBLE
    assert (swapped - good).abs().max() > VISIBLE


def test_frozen_features_carry_no_gradient(
    family: GenericFamily, fresh: Callable[..., PreTrainedModel], rows: list[EncodedRow]
) -> None:
    model = fresh().requires_grad_(True)
    images = rows[0].images
    (frozen,) = family.image_features(model, images, grad=False)
    (trained,) = family.image_features(model, images, grad=True)
    assert not frozen.requires_grad and trained.requires_grad
    assert torch.equal(frozen, trained)
    assert family.image_features(model, [], grad=True) == family.image_features(model, [], grad=False) == []


def test_frozen_features_are_not_rounded_by_autocast(
    family: GenericFamily, model: PreTrainedModel, rows: list[EncodedRow]
) -> None:
    """One definition: the same under mixed precision as in an evaluation without it."""
    (plain,) = family.image_features(model, rows[0].images, grad=False)
    with torch.autocast("cpu", torch.bfloat16):
        (mixed,) = family.image_features(model, rows[0].images, grad=False)
    assert torch.equal(plain, mixed)
