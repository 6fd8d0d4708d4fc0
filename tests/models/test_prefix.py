"""What many prompts begin with is computed once, and not one token comes out otherwise."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.tiny_models import MODELS
from tests.models.tiny_folders import loaded
from vlmft.models import prefix as prefix_file
from vlmft.models.families.idefics import IdeficsFamily
from vlmft.models.family import GenericFamily
from vlmft.models.prefix import make_prefix, pads_after
from vlmft.sample import Batch, EncodedRow, Message, Prompt, Sample

NEW_TOKENS = 8


@pytest.fixture(scope="module")
def shots(samples: dict[str, Sample]) -> tuple[Message, ...]:
    return (*samples["two_images"].prompt.messages, Message("assistant", ("2",))) * 2


@pytest.fixture(scope="module")
def rows(
    family: GenericFamily, shots: tuple[Message, ...], samples: dict[str, Sample], make_image: Any
) -> list[EncodedRow]:
    """With one image, none, two, and of several lengths."""
    questions = [samples[kind].prompt.messages for kind in ("one_image", "text_only", "two_images")]
    questions.append((Message("user", (make_image(50, 90, 11), "And how many of them are red, small and round?")),))
    return [family.encode_prompt(str(i), Prompt((*shots, *turns))) for i, turns in enumerate(questions)]


def whole(family: GenericFamily, model: PreTrainedModel, rows: list[EncodedRow]) -> list[list[int]]:
    with torch.inference_mode():
        batch = family.collate(rows, "left", model)
        features = family.image_features(model, batch.images, grad=False)
        return family.generate(model, batch, features, NEW_TOKENS).tolist()


def after(
    family: GenericFamily, model: PreTrainedModel, shots: tuple[Message, ...], rows: list[EncodedRow]
) -> list[list[int]]:
    found = make_prefix(family, model, Prompt(shots))
    assert found is not None and all(map(found.begins, rows)) and found.length > 40
    with torch.inference_mode():
        return found.generate(family, model, rows, NEW_TOKENS).tolist()


def test_the_same_tokens(
    family: GenericFamily, model: PreTrainedModel, shots: tuple[Message, ...], rows: list[EncodedRow]
) -> None:
    """No tolerance: rounding moves logits by 2e-6, and the gap between first and second choice is far wider."""
    expected = whole(family, model, rows)
    assert len({tuple(ids) for ids in expected}) >= 3 and len(rows) == 4
    assert after(family, model, shots, rows) == expected
    assert after(family, model, shots, rows[::-1]) == expected[::-1]  # the cache is not used up
    for row, ids in zip(rows, expected, strict=True):
        (alone,) = after(family, model, shots, [row])
        assert alone == ids[: len(alone)]


def test_padding_in_front_of_the_prefix_would_be_noticed(
    family: GenericFamily,
    model: PreTrainedModel,
    shots: tuple[Message, ...],
    rows: list[EncodedRow],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The defect: a left-padded batch as it is, so that the cache stands for padding and prefix."""
    expected = whole(family, model, rows)
    monkeypatch.setattr(prefix_file, "pads_after", lambda batch, length: batch)
    with contextlib.suppress(ValueError):  # the new images' tokens are then partly in the cache
        assert after(family, model, shots, rows) != expected


def test_another_image_is_another_prefix(
    family: GenericFamily, model: PreTrainedModel, shots: tuple[Message, ...], rows: list[EncodedRow]
) -> None:
    found = make_prefix(family, model, Prompt(shots))
    assert found is not None
    other = dataclasses.replace(rows[0].images[0], sha256="0" * 64)
    changed = dataclasses.replace(rows[0], images=(other, *rows[0].images[1:]))
    assert found.begins(rows[0]) and not found.begins(changed)
    assert not found.begins(found.row)  # there must be something behind it


def test_padding_moves_and_nothing_else() -> None:
    ids = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 4, 5, 6], [0, 1, 2, 7, 8]])
    mask = (ids > 0).long()
    batch = Batch(("a", "b", "c"), "left", ids, mask, ids.expand(3, 3, 5), mask.bool(), {"t": ids}, (), {})
    moved = pads_after(batch, 2)
    expected = [[1, 2, 0, 0, 3], [1, 2, 4, 5, 6], [1, 2, 0, 7, 8]]
    assert moved.input_ids.tolist() == expected == moved.token_arrays["t"].tolist()
    assert moved.position_ids.tolist() == [expected] * 3
    assert moved.attention_mask.tolist() == [[1, 1, 0, 0, 1], [1] * 5, [1, 1, 0, 1, 1]]


def test_families_that_cannot_say_so(family: GenericFamily, model: PreTrainedModel, monkeypatch: Any) -> None:
    assert "prefix" not in IdeficsFamily.capabilities
    monkeypatch.setattr(family, "capabilities", family.capabilities - {"prefix"}, raising=False)
    assert make_prefix(family, model, Prompt((Message("user", ("q",)), Message("assistant", ("a",))))) is None


@pytest.mark.parametrize("name", ["Gemma 3", "Qwen3.5"])
def test_caches_that_padding_would_spoil_are_not_kept(name: str, tmp_path: Path) -> None:
    """Padding behind the prefix takes places in a sliding window, and goes into linear attention's state."""
    (tiny,) = [one for one in MODELS if one.name == name]
    own, random = loaded(tiny, tmp_path)
    turns = (Message("user", ("How many?",)), Message("assistant", ("2",)))
    assert "prefix" in own.capabilities and make_prefix(own, random, Prompt(turns)) is None
