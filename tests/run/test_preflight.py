"""Every check of preflight fails on its own defect, and none of them leaves a trace."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from vlmft.config.check import ConfigError
from vlmft.config.schema import Init
from vlmft.models.lora import trainable
from vlmft.run import preflight as preflight_file
from vlmft.run.build import Built
from vlmft.run.preflight import Check, preflight, require
from vlmft.sample import EncodedRow, Message, Prompt, Sample

NAMES = ["learns", "first loss", "gradients", "images arrive", "longest row", "learning rate", "leak canary"]


class Defect:
    """A family that does everything as the real one does, but what a subclass does wrong."""

    def __init__(self, family: Any) -> None:
        self.family = family

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)


@pytest.fixture
def checked(make_built: Callable[..., Any]) -> Callable[..., list[Check]]:
    """checked(defect) -> all checks of a run with that family; `change` may spoil more."""

    def found(
        defect: Callable[[Any], Any] = lambda family: family,
        *overrides: str,
        change: Callable[[Built, Any], None] = lambda built, config: None,
    ) -> list[Check]:
        config, built = make_built("model.quantization.mode=none", *overrides)
        built.family = defect(built.family)
        built.data.encode = built.family.encode
        change(built, config)
        return preflight(built, config)

    return found


def failed(checks: Sequence[Check]) -> dict[str, str]:
    assert [check.name for check in checks] == NAMES
    return {check.name: check.sentence for check in checks if not check.ok}


def test_an_honest_run_passes(checked: Any) -> None:
    checks = checked()
    assert failed(checks) == {}
    require(checks)
    sentences = {check.name: check.sentence for check in checks}
    assert "'8<|im_end|>'" in sentences["learns"] or "<|im_end|>" in sentences["learns"]
    assert "on all 28 trained tensors" in sentences["gradients"]
    assert sentences["longest row"].startswith("8 rows of 38 tokens")
    assert "on 4 rows the gold answer was replaced (0 of them in the source record)" in sentences["leak canary"]


def relabelled(row: EncodedRow, supervised: np.ndarray) -> EncodedRow:
    return dataclasses.replace(row, supervised=supervised)


class WholePrompt(Defect):
    def encode(self, sample: Sample) -> EncodedRow:
        row = self.family.encode(sample)
        return relabelled(row, np.ones(row.length, bool))


class OneTooEarly(Defect):
    def encode(self, sample: Sample) -> EncodedRow:
        row = self.family.encode(sample)
        return relabelled(row, np.roll(row.supervised, -1))


class OneTooLate(Defect):
    def encode(self, sample: Sample) -> EncodedRow:
        row = self.family.encode(sample)
        return relabelled(row, row.supervised & np.roll(row.supervised, 1))


class NoEndToken(Defect):
    def encode(self, sample: Sample) -> EncodedRow:
        row = self.family.encode(sample)
        arrays = {name: array[:-1] for name, array in row.token_arrays.items()}
        ids, supervised = row.input_ids[:-1], row.supervised[:-1]
        return dataclasses.replace(row, input_ids=ids, supervised=supervised, token_arrays=arrays)


class CutAnswer(Defect):
    """Of "10" only the "1" is taught."""

    def encode(self, sample: Sample) -> EncodedRow:
        row: EncodedRow = self.family.encode(dataclasses.replace(sample, answer=sample.answer[:1]))
        return row


class OtherAnswer(Defect):
    def encode(self, sample: Sample) -> EncodedRow:
        row: EncodedRow = self.family.encode(dataclasses.replace(sample, answer="a different one"))
        return row


class OtherPrompt(Defect):
    """Trained under a system prompt that generation never sees."""

    def encode(self, sample: Sample) -> EncodedRow:
        prompt = Prompt((Message("system", ("Count.",)), *sample.prompt.messages))
        row: EncodedRow = self.family.encode(dataclasses.replace(sample, prompt=prompt))
        return row


@pytest.mark.parametrize(
    ("defect", "sentence"),
    [
        (WholePrompt, "not on its answer alone"),
        (OneTooEarly, "not on its answer alone"),
        (OneTooLate, "not on its answer alone"),
        (NoEndToken, "not in the end token"),
        (CutAnswer, "teaches '1', while its answer is '10'"),
        (OtherAnswer, "teaches 'a different one', while its answer is"),
        (OtherPrompt, "under another prompt than generation uses"),
    ],
)
def test_labels(defect: Callable[[Any], Any], sentence: str, checked: Any) -> None:
    # Of this seed's first rows one has the answer 10, which CutAnswer needs.
    found = failed(checked(defect))
    assert sentence in found.pop("learns")
    assert found == {}


def test_adapters_that_change_the_base(checked: Any) -> None:
    def change(built: Built, config: Any) -> None:
        with torch.no_grad():
            for name, parameter in trainable(built.model).items():
                if "lora_B" in name:
                    parameter.add_(0.02)

    found = failed(checked(change=change))
    assert list(found) == ["first loss"] and "new adapters must not change the base" in found["first loss"]


class Loud(Defect):
    """Right order, wrong scale: a pretrained model's loss is then far above chance."""

    def forward(self, *arguments: Any) -> torch.Tensor:
        logits: torch.Tensor = self.family.forward(*arguments)
        return logits * 1000


class NotANumber(Defect):
    def forward(self, *arguments: Any) -> torch.Tensor:
        logits: torch.Tensor = self.family.forward(*arguments)
        return logits * float("nan")


def test_a_first_loss_above_chance(checked: Any) -> None:
    def change(built: Built, config: Any) -> None:
        config.model.init = Init.pretrained

    assert "far worse than chance" in failed(checked(Loud, change=change))["first loss"]
    assert "first loss" not in failed(checked(Loud))  # random weights may start anywhere
    assert "worse than chance" in failed(checked(NotANumber))["first loss"]


def test_frozen_adapters(checked: Any) -> None:
    def freeze(built: Built, config: Any, every: int) -> None:
        for parameter in list(trainable(built.model).values())[::every]:
            parameter.requires_grad_(False)

    found = failed(checked(change=functools.partial(freeze, every=1)))
    assert list(found) == ["gradients"] and "nothing is trained" in found["gradients"]
    found = failed(checked(change=functools.partial(freeze, every=4)))
    assert list(found) == ["gradients"] and "7 adapter matrices are frozen" in found["gradients"]


class Detached(Defect):
    """Gradients reach nothing: an input that was detached, or a kernel without autograd."""

    def forward(self, *arguments: Any) -> torch.Tensor:
        logits: torch.Tensor = self.family.forward(*arguments)
        return logits.detach()


class ZeroGradient(Defect):
    def forward(self, *arguments: Any) -> torch.Tensor:
        logits: torch.Tensor = self.family.forward(*arguments)
        return logits.detach() + 0 * logits


class LostByEvaluation(Defect):
    """What bitsandbytes does on some CPUs: after the first evaluation pass, gradients are gone."""

    evaluated = False

    def forward(self, model: Any, *arguments: Any) -> torch.Tensor:
        logits: torch.Tensor = self.family.forward(model, *arguments)
        self.evaluated = self.evaluated or (not model.training and len(arguments[0].row_ids) == 2)
        return logits.detach() + 0 * logits if self.evaluated else logits


@pytest.mark.parametrize(
    ("defect", "sentence"),
    [
        (Detached, "at first 28 trainable without gradient"),
        (ZeroGradient, "at first 14 adapters with a zero gradient"),
        (LostByEvaluation, "after an evaluation pass 14 adapters with a zero gradient"),
    ],
)
def test_gradients_that_do_not_arrive(defect: Callable[[Any], Any], sentence: str, checked: Any) -> None:
    found = failed(checked(defect))
    assert sentence in found.pop("gradients") and found == {}
    if defect is LostByEvaluation:
        assert "at first" not in sentence


def test_a_gradient_where_none_should_be(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(built: Built, config: Any) -> None:
        name, parameter = next((n, p) for n, p in built.model.named_parameters() if not p.requires_grad)
        assert "lora" not in name
        zero_grad = built.model.zero_grad

        def forgetful(set_to_none: bool = True) -> None:
            zero_grad(set_to_none=set_to_none)
            parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(built.model, "zero_grad", forgetful)

    found = failed(checked(change=change))
    assert "frozen with gradient" in found["gradients"]


class Blind(Defect):
    """Every image looks the same: a lost image, or one whose features are never put in."""

    def image_features(self, *arguments: Any, **named: Any) -> list[torch.Tensor]:
        return [torch.zeros_like(feature) for feature in self.family.image_features(*arguments, **named)]


def test_images_that_never_reach_the_model(checked: Any) -> None:
    found = failed(checked(Blind))
    assert list(found) == ["images arrive"]


@pytest.mark.parametrize(
    ("losses", "ok", "words"),
    [
        ((1.42, 2.26), True, "they lower it"),
        ((2.26, 1.42), True, "the loss is lower without them"),
        ((2.26, 2.25), True, "they hardly change it"),
        ((2.26, 2.26), False, "the model does not see them"),
    ],
)
def test_it_is_said_which_way_the_images_move_the_loss(
    losses: tuple[float, float], ok: bool, words: str, make_built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lower loss of the untuned model without them is no fault of the set-up, and no sign that they help."""
    _, built = make_built("model.quantization.mode=none")
    with_and_without = iter(losses)
    monkeypatch.setattr(preflight_file, "_loss", lambda built, rows: torch.tensor(next(with_and_without)))
    samples = built.data.samples(built.data.ids["train"][:8])
    (check,) = preflight_file._images(built, [built.family.encode(sample) for sample in samples], samples)
    assert check.ok == ok and words in check.sentence
    assert check.sentence.startswith(f"loss {losses[0]:.3f} with the images, {losses[1]:.3f} with black ones (untuned,")
    assert check.is_news == (words not in ("they lower it", "the model does not see them"))


class TooBig(Defect):
    def forward(self, model: Any, batch: Any, *arguments: Any) -> torch.Tensor:
        if model.training and len(batch.row_ids) > 4:
            raise torch.OutOfMemoryError("no more")
        logits: torch.Tensor = self.family.forward(model, batch, *arguments)
        return logits


@pytest.mark.slow
def test_a_window_that_does_not_fit(checked: Any) -> None:
    found = failed(checked(TooBig))
    assert list(found) == ["longest row"]
    assert "8 rows of 38 tokens" in found["longest row"] and "lower train.rows_per_batch" in found["longest row"]
    assert failed(checked(TooBig, "train.rows_per_batch=4")) == {}
    assert failed(checked(TooBig, "train.tokens_per_batch=152")) == {}  # four rows of 38


@pytest.mark.parametrize("lr", ["1.0", "1e-12"])
def test_a_learning_rate_out_of_the_world(lr: str, checked: Any) -> None:
    found = failed(checked(lambda family: family, f"train.lr={lr}"))
    assert list(found) == ["learning rate"] and "for lora; usual are 1e-06 to 0.01" in found["learning rate"]


def test_leaking_questions(checked: Any) -> None:
    def change(built: Built, config: Any) -> None:
        dataset = built.data.dataset
        read, to_sample = dataset.read, dataset.to_sample

        def labelled(row_id: str) -> Any:
            return {**read(row_id), "label": to_sample(read(row_id)).answer}

        def leaking(record: Any) -> Sample:
            sample = to_sample(record)
            (message,) = sample.prompt.messages
            hinted = Message("user", (*message.content, f" Hint: {record['label']}"))
            return dataclasses.replace(sample, prompt=Prompt((hinted,)), answer=record["label"])

        dataset.read, dataset.to_sample = labelled, leaking  # type: ignore[method-assign]

    found = failed(checked(change=change))
    assert list(found) == ["leak canary"]
    assert "LEAK: on 4 rows the gold answer was replaced (4 of them in the source record)" in found["leak canary"]
    assert "4 prompts changed" in found["leak canary"]


def test_failed_checks_are_one_sentence() -> None:
    checks = [Check("a", True, "fine"), Check("b", False, "bad"), Check("c", False, "worse")]
    with pytest.raises(ConfigError, match=r"^preflight: b: bad; c: worse \(preflight=false trains anyway\)$"):
        require(checks)


def test_a_failed_check_stops_a_run(fit_small: Any) -> None:
    with pytest.raises(ConfigError, match="preflight: learning rate: 1 for lora"):
        fit_small("preflight=true", "train.lr=1.0")
    assert fit_small("name=anyway", "preflight=false", "train.lr=1.0", "trainer.max_steps=1").summary["steps"] == 1


@pytest.mark.parametrize("overrides", [(), ("model.lora.dropout=0.5", "model.quantization.mode=nf4")])
def test_nothing_is_left_behind(overrides: tuple[str, ...], make_built: Any) -> None:
    config, built = make_built("model.quantization.mode=none", *overrides)
    for number, module in enumerate(built.model.modules()):  # a pattern that no reset would restore by chance
        module.training = number % 3 == 0
    state = {name: tensor.clone() for name, tensor in built.model.state_dict().items()}
    modes = [module.training for module in built.model.modules()]
    flags = [parameter.requires_grad for parameter in built.model.parameters()]
    random = torch.get_rng_state()
    assert failed(preflight(built, config)) == {}
    after = built.model.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[name], state[name]) for name in state)
    assert [module.training for module in built.model.modules()] == modes
    assert [parameter.requires_grad for parameter in built.model.parameters()] == flags
    assert all(parameter.grad is None for parameter in built.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert len(built.data.ledger.bad) == 0
