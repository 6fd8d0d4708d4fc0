"""Generation: greedy, the same in a batch as alone, and the same model as training sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from vlmft.models.family import GenericFamily
from vlmft.sample import EncodedRow, Sample

NEW_TOKENS = 8


def generated(family: GenericFamily, model: PreTrainedModel, rows: Sequence[EncodedRow]) -> list[list[int]]:
    """New ids of each row."""
    batch = family.collate(rows, "left", model)
    with torch.inference_mode():
        features = family.image_features(model, batch.images, grad=False)
        ids = family.generate(model, batch, features, NEW_TOKENS)
    assert ids.dtype == torch.int64 and ids.shape[0] == len(rows) and ids.shape[1] <= NEW_TOKENS
    return [list(row) for row in ids.tolist()]


@pytest.fixture(scope="module")
def prompts(family: GenericFamily, samples: dict[str, Sample]) -> dict[str, EncodedRow]:
    return {kind: family.encode_prompt(kind, sample.prompt) for kind, sample in samples.items()}


@pytest.fixture(scope="module")
def alone(family: GenericFamily, model: PreTrainedModel, prompts: dict[str, EncodedRow]) -> dict[str, list[int]]:
    """Kind of row -> ids generated without company."""
    return {kind: generated(family, model, [row])[0] for kind, row in prompts.items()}


def test_answers_differ_so_that_comparing_them_says_something(alone: dict[str, list[int]]) -> None:
    assert len({tuple(ids) for ids in alone.values()}) == len(alone) == 5
    assert all(len(set(ids)) > 1 for ids in alone.values())


def test_batched_is_alone(
    family: GenericFamily, model: PreTrainedModel, prompts: dict[str, EncodedRow], alone: dict[str, list[int]]
) -> None:
    """Equal ids, no tolerance: rounding moves logits by 2e-6, the gap between first and second choice is far wider."""
    assert generated(family, model, list(prompts.values())) == list(alone.values())
    backwards = list(prompts.values())[::-1]
    assert generated(family, model, backwards) == list(alone.values())[::-1]


def test_generation_is_the_argmax_of_training(
    family: GenericFamily, model: PreTrainedModel, prompts: dict[str, EncodedRow], alone: dict[str, list[int]]
) -> None:
    """Generated ids put behind the prompt as an answer: the training forward, without cache, would choose the same."""
    rows = []
    for kind, prompt in prompts.items():
        new = np.asarray(alone[kind])
        row = dataclasses.replace(
            prompt,
            input_ids=np.concatenate([prompt.input_ids, new]),
            supervised=np.concatenate([prompt.supervised, np.ones(len(new), bool)]),
            token_arrays={k: np.concatenate([v, np.zeros_like(new)]) for k, v in prompt.token_arrays.items()},
        )
        rows.append(row)
    batch = family.collate(rows, "right", model)
    with torch.no_grad():
        features = family.image_features(model, batch.images, grad=False)
        logits = family.forward(model, batch, features, batch.keep)
    assert torch.equal(logits.argmax(-1), batch.targets)
    first, second = logits.topk(2).values.T
    assert (first - second).min() > 1e-4, "a tie could fall either way"


def test_text_after_images_is_as_on_a_fresh_model(
    family: GenericFamily,
    fresh: Callable[..., PreTrainedModel],
    prompts: dict[str, EncodedRow],
    alone: dict[str, list[int]],
) -> None:
    """Qwen's model keeps the position offsets of its last batch: a text-only batch must not inherit them."""
    text, used = prompts["text_only"], fresh()
    assert generated(family, fresh(), [text]) == [alone["text_only"]]
    generated(family, used, [prompts["few_shot"], prompts["one_image"]])
    assert generated(family, used, [text]) == [alone["text_only"]]
    inner: Any = used.base_model
    if hasattr(inner, "rope_deltas"):
        inner.rope_deltas = torch.full((1, 1), -9)
        assert generated(family, used, [text]) == [alone["text_only"]]
    assert generated(family, used, [prompts["two_turns"]]) == [alone["two_turns"]]


def test_training_is_the_same_before_and_after_generation(
    family: GenericFamily, fresh: Callable[..., PreTrainedModel], samples: dict[str, Sample]
) -> None:
    """Validation in the middle of training leaves nothing behind."""
    model = fresh()
    row = family.encode(samples["text_only"])
    batch = family.collate([row], "right", model)
    with torch.no_grad():
        before = family.forward(model, batch, [], batch.keep)
        generated(family, model, [family.encode_prompt("p", samples["few_shot"].prompt)])
        assert torch.equal(family.forward(model, batch, [], batch.keep), before)


def test_greedy_whatever_the_model_brings(
    family: GenericFamily,
    fresh: Callable[..., PreTrainedModel],
    prompts: dict[str, EncodedRow],
    alone: dict[str, list[int]],
) -> None:
    """Qwen2.5-VL comes with a repetition penalty, others with sampling or a minimum length."""
    model = fresh()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=2.0, top_k=5, repetition_penalty=5.0, no_repeat_ngram_size=1, min_new_tokens=4
    )
    own = model.generation_config.to_dict()
    torch.manual_seed(0)
    assert {kind: generated(family, model, [row])[0] for kind, row in prompts.items()} == alone
    assert model.generation_config.to_dict() == own, "the model's own settings are given back"


def test_the_end_token_ends_a_row_and_padding_follows(
    family: GenericFamily,
    fresh: Callable[..., PreTrainedModel],
    prompts: dict[str, EncodedRow],
    alone: dict[str, list[int]],
    model_config: Any,
) -> None:
    """A family whose end token is what one row says first: that row stops there, the other goes on."""
    one, other = "one_image", "two_images"
    ending = type(family)(family.processor, model_config, family.max_length_tokens)
    ending.end_id = alone[one][0]
    first, second = generated(ending, fresh(), [prompts[one], prompts[other]])
    assert first == [ending.end_id] + [ending.pad_id] * (len(first) - 1)
    assert ending.end_id not in alone[other] and second == alone[other]
