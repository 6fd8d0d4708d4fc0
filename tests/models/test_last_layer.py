"""The last layer at the tokens whose logits are asked for: loss, gradients and answers of the whole layer, for less."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.tiny_models import MODELS, Tiny
from tests.models.test_shared_images import MANY, assert_equal, encoded, loss_and_gradients, to_train
from vlmft.models import last_layer
from vlmft.models.last_layer import PER_TOKEN
from vlmft.models.lora import layer_lists


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_loss_gradients_and_answers_of_the_whole_layer(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, model = to_train(tiny, tmp_path / "model")
    rows = encoded(family)
    alone, together = family.share(rows, model, MANY, MANY)
    batches = [family.collate(alone, "right", model)]
    batches += [family.collate_shared(together, model)] if together else []
    prompts = family.collate(rows, "left", model)
    lists = layer_lists(model)
    assert len(lists) == (2 if tiny.name == "IDEFICS" else 1)
    there = [module for name, module in lists[0][-1].named_modules() if name in PER_TOKEN]
    widths = Counter[int]()  # of what a module is given, in tokens
    for module in there:
        module.register_forward_hook(lambda _, arguments, __: widths.update([arguments[0].shape[-2]]))

    def all_of_it() -> tuple[float, dict[str, torch.Tensor], torch.Tensor]:
        loss, gradients = loss_and_gradients(family, model, batches)
        features = family.image_features(model, prompts.images, grad=False)
        with torch.inference_mode():
            return loss, gradients, family.generate(model, prompts, features, 4)

    loss, gradients, answers = all_of_it()
    n_kept = {int(batch.keep.sum()) for batch in batches}
    assert there
    if len(lists) > 1:
        assert not set(widths) & n_kept
        return
    assert set(widths) - {1} == n_kept | {len(rows)}  # training, prompts; 1 where a row goes on behind its first token
    widths.clear()
    monkeypatch.setattr(last_layer, "_last", {model: None})
    whole_loss, whole_gradients, whole_answers = all_of_it()
    assert not set(widths) & n_kept
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert_equal(gradients, whole_gradients)
    assert torch.equal(answers, whole_answers)
