"""Batches: padding on the asked side, explicit positions, labels beside the logits that predict them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from vlmft.models.family import GenericFamily
from vlmft.sample import Batch, EncodedRow, Layout, Prompt, Sample

LAYOUTS: tuple[Layout, ...] = ("right", "left")


@pytest.fixture(scope="module")
def rows(family: GenericFamily, samples: dict[str, Sample]) -> list[EncodedRow]:
    """A row of each kind."""
    return [family.encode(sample) for sample in samples.values()]


@pytest.fixture(params=LAYOUTS)
def batch(
    request: pytest.FixtureRequest, family: GenericFamily, model: PreTrainedModel, rows: list[EncodedRow]
) -> Batch:
    """All rows, in each layout."""
    return family.collate(rows, request.param, model)


def real(batch: Batch, rows: list[EncodedRow], i: int) -> slice:
    """Where row i stands in the batch."""
    width, length = batch.input_ids.shape[1], rows[i].length
    return slice(width - length, width) if batch.layout == "left" else slice(0, length)


def test_shapes_and_dtypes(batch: Batch, rows: list[EncodedRow], name: str) -> None:
    shape = (len(rows), max(row.length for row in rows))
    assert batch.row_ids == tuple(row.id for row in rows)
    for tensor, dtype in (
        (batch.input_ids, torch.int64),
        (batch.attention_mask, torch.int64),
        (batch.supervised, torch.bool),
    ):
        assert tensor.shape == shape and tensor.dtype == dtype
    assert batch.position_ids.dtype == torch.int64
    assert batch.position_ids.shape == (shape if name == "tiny" else (3, *shape))
    assert [image.sha256 for image in batch.images] == [image.sha256 for row in rows for image in row.images]
    facts = {key: (tuple(value.shape), value.dtype) for key, value in batch.image_arrays.items()}
    assert facts == ({} if name == "tiny" else {"image_grid_thw": ((7, 3), torch.int64)})


def test_rows_stand_whole_on_their_side(batch: Batch, rows: list[EncodedRow], family: GenericFamily) -> None:
    assert len({row.length for row in rows}) > 2, "rows of one length would need no padding"
    for i, row in enumerate(rows):
        where = real(batch, rows, i)
        assert batch.input_ids[i, where].tolist() == row.input_ids.tolist()
        assert batch.supervised[i, where].tolist() == row.supervised.tolist()
        padding = torch.ones(batch.input_ids.shape[1], dtype=torch.bool)
        padding[where] = False
        assert batch.attention_mask[i].tolist() == (~padding).long().tolist()
        assert (batch.input_ids[i, padding] == family.pad_id).all()
        assert not batch.supervised[i, padding].any()


def test_keep_stands_one_before_its_target(batch: Batch, rows: list[EncodedRow]) -> None:
    assert batch.keep.shape == batch.input_ids.shape and batch.keep.dtype == torch.bool
    where = batch.keep.nonzero()
    assert len(where) == len(batch.targets) == sum(row.n_supervised for row in rows)
    assert (batch.attention_mask[where[:, 0], where[:, 1]] == 1).all(), "padding predicts nothing"
    for (row, position), target in zip(where.tolist(), batch.targets.tolist(), strict=True):
        assert batch.supervised[row, position + 1] and batch.input_ids[row, position + 1] == target
    for i, row in enumerate(rows):
        start = real(batch, rows, i).start
        first = where[where[:, 0] == i][0, 1]
        assert first == start + row.prompt_length - 1, "the last prompt token predicts the answer's first"


def test_positions_of_real_tokens_are_those_of_the_row_alone(
    batch: Batch, rows: list[EncodedRow], family: GenericFamily, model: PreTrainedModel, name: str
) -> None:
    for i, row in enumerate(rows):
        got = batch.position_ids[..., i, real(batch, rows, i)]
        if name == "tiny" or not row.images:
            assert torch.equal(got, torch.arange(row.length).expand(got.shape))
            continue
        inner: Any = model.base_model
        tokens = {key: torch.from_numpy(value)[None] for key, value in row.token_arrays.items()}
        grids = torch.cat([torch.from_numpy(image.arrays["image_grid_thw"]) for image in row.images])
        expected, _ = inner.get_rope_index(torch.from_numpy(row.input_ids)[None], image_grid_thw=grids, **tokens)
        assert torch.equal(got, expected[:, 0])


@pytest.mark.parametrize("name", ["tiny_qwen2vl"], indirect=True)
def test_positions_by_hand(family: GenericFamily, model: PreTrainedModel, rows: list[EncodedRow]) -> None:
    """M-RoPE as Qwen2-VL's paper (section 2.1) draws it: text counts on in all three, an image stands still in time and
    spreads over rows and columns, and the text behind it goes on from the largest position so far."""
    row = rows[0]
    _, height, width = (row.images[0].arrays["image_grid_thw"][0] // [1, 2, 2]).tolist()
    assert (height, width) == (2, 3)
    before = row.input_ids.tolist().index(family.processor.image_token_id)
    text = list(range(before))
    after = list(range(before + 3, before + 3 + row.length - before - 6))
    expected = [
        [*text, *[before] * 6, *after],
        [*text, *(before + i for i in (0, 0, 0, 1, 1, 1)), *after],
        [*text, *(before + i for i in (0, 1, 2, 0, 1, 2)), *after],
    ]
    for layout in LAYOUTS:
        batch = family.collate([row, rows[-1]], layout, model)
        start = 0 if layout == "right" else batch.input_ids.shape[1] - row.length
        assert batch.position_ids[:, 0, start : start + row.length].tolist() == expected


def test_a_shared_prefix_has_a_call_of_its_own(
    family: GenericFamily, model: PreTrainedModel, rows: list[EncodedRow]
) -> None:
    with pytest.raises(ValueError, match="Expected layout right or left, got 'shared_prefix'; see collate_shared"):
        family.collate(rows, "shared_prefix", model)


def test_to_moves_every_tensor_and_no_picture(batch: Batch) -> None:
    """The meta device stands for any other one."""
    there = batch.to("meta")
    tensors = {key: value for key, value in vars(there).items() if isinstance(value, torch.Tensor)}
    assert set(tensors) == {"input_ids", "attention_mask", "position_ids", "supervised"}
    moved = [*tensors.values(), *there.token_arrays.values(), *there.image_arrays.values()]
    assert all(tensor.device.type == "meta" for tensor in moved)
    assert there.images is batch.images and there.row_ids == batch.row_ids and there.layout == batch.layout
    assert batch.input_ids.device.type == "cpu"
    back = batch.to("cpu")
    assert torch.equal(back.input_ids, batch.input_ids) and torch.equal(back.keep, batch.keep)


def test_prompts_alone_have_nothing_to_learn(
    family: GenericFamily, model: PreTrainedModel, samples: dict[str, Sample]
) -> None:
    prompts: list[Prompt] = [sample.prompt for sample in samples.values()]
    batch = family.collate([family.encode_prompt(str(i), p) for i, p in enumerate(prompts)], "left", model)
    assert not batch.supervised.any() and not batch.keep.any() and batch.targets.shape == (0,)
    assert batch.attention_mask[:, -1].all(), "generation goes on from the last column"
