"""train.compile: loss and gradients of the model as it is, one graph for layers alike, answers that it leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.config.schema import ModelConfig, QuantizationConfig, QuantizationMode, TrainConfig
from vlmft.models import compiled
from vlmft.models.compiled import compile_language
from vlmft.models.family import GenericFamily
from vlmft.models.lora import attach, base_of, trainable
from vlmft.run.folder import folder_of, rounding_note
from vlmft.sample import Sample
from vlmft.training.loss import summed_cross_entropy


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.parametrize("mode", [QuantizationMode.none, QuantizationMode.nf4])
def test_loss_and_gradients_of_the_model_as_it_is(
    family: GenericFamily,
    make_config: Callable[..., ModelConfig],
    fresh: Callable[..., PreTrainedModel],
    samples: dict[str, Sample],
    mode: QuantizationMode,
) -> None:
    """Within 1e-5 of the largest gradient: kernels that are fused round otherwise, in 32 bit (measured: 1e-6)."""
    config = make_config(quantization=QuantizationConfig(mode=mode))
    model = attach(fresh(config), config, seed=0)
    base = base_of(model)
    kinds = ("one_image", "two_images", "few_shot")
    batches = [
        family.collate([family.encode(samples[kind]) for kind in kinds[:n]], "right", base) for n in (1, 2, 3, 1)
    ]

    def found() -> tuple[list[float], dict[str, torch.Tensor], torch.Tensor]:
        model.train()
        model.zero_grad()
        losses = []
        for batch in batches:
            features = family.image_features(base, batch.images, grad=False)
            loss = summed_cross_entropy(family.forward(base, batch, features, batch.keep), batch.targets)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
        with torch.no_grad():
            logits = family.forward(base, batches[-1], features, batches[-1].keep)
        return losses, {name: p.grad.clone() for name, p in trainable(model).items() if p.grad is not None}, logits

    losses, gradients, logits = found()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_language(base)
    compiled_losses, compiled_gradients, same_logits = found()
    counters = torch._dynamo.utils.counters
    # The first layer, whose input needs no gradient, and the others; a row alone, and several.
    assert 1 <= counters["stats"]["unique_graphs"] <= 4 and not counters["graph_break"]
    assert compiled_losses == pytest.approx(losses, rel=1e-5) and torch.equal(same_logits, logits)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert gradients.keys() == compiled_gradients.keys() and len(gradients) >= 28
    for name, gradient in gradients.items():
        assert float((gradient - compiled_gradients[name]).abs().max()) <= 1e-5 * largest, name


def test_without_a_compiler_or_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"train\.compile: Expected layers in this model's language part"):
        compile_language(torch.nn.Linear(2, 2))
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"train\.compile: .* needs a C\+\+ compiler"):
        compile_language(torch.nn.Linear(2, 2))


def test_it_is_the_same_run_which_may_differ_by_rounding(compose: Callable[..., TrainConfig], tmp_path: object) -> None:
    one, other = (compose("model=tiny", f"output_root={tmp_path}", f"train.compile={on}") for on in ("false", "true"))
    assert folder_of(one) == folder_of(other) and rounding_note(one) is None
    with pytest.raises(ConfigError, match=r"train\.compile: Expected trainer\.strategy=ddp or auto"):
        compose("model=tiny", "trainer=fsdp", "train.compile=true")
