"""What one optimiser step does to the model, and what it leaves alone."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader

from vlmft.config.check import ConfigError
from vlmft.config.schema import OptimizerName
from vlmft.data.datamodule import EncodedRows, as_list
from vlmft.models.lora import part_of, trainable
from vlmft.sample import BadRow
from vlmft.training.module import NOT_FINITE_LIMIT, VLMModule


def trainer(tmp_path: Any, **settings: Any) -> L.Trainer:
    plain: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": tmp_path,
        "limit_val_batches": 0,
    }
    return L.Trainer(**(plain | settings))


def fresh(bench: Any, **train: Any) -> VLMModule:
    """A module for a real Trainer: Lightning's own backward."""
    config = dataclasses.replace(bench.config.train, **train)
    return VLMModule(bench.built.family, bench.built.model, bench.config.model.train, config, 2e-3)


def weights(bench: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in bench.built.model.named_parameters()}


class Recorder(L.Callback):
    """Per window: what was logged, and the global norm of the gradients that the step was taken with."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.lines.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        squares = [float((p.grad.double() ** 2).sum()) for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(math.sqrt(sum(squares)))


@pytest.mark.parametrize("limit", [0.05, 1e6, 0.0])
def test_gradients_are_clipped_and_the_logged_norm_is_from_before(limit: float, make_bench: Any, tmp_path: Any) -> None:
    bench, recorder = make_bench(), Recorder()
    fitted = fresh(bench, max_gradient_norm=limit)
    trainer(tmp_path, max_steps=3, callbacks=[recorder]).fit(fitted, datamodule=bench.built.data)
    logged = [line["train/gradient_norm"] for line in recorder.lines]
    assert len(logged) == 3 and min(logged) > 0.05
    if limit == 0.05:
        # torch divides by the norm + 1e-6, so that the result is just below the limit; 1e-6 more for fp32's rounding.
        assert recorder.norms == pytest.approx([limit] * 3, rel=1e-5) and max(recorder.norms) <= limit * (1 + 1e-6)
    else:  # a limit that is not reached, and none at all
        assert recorder.norms == pytest.approx(logged, rel=1e-6)


class Fp16(MixedPrecision):
    """fp16's loss scaling around fp32 arithmetic, so that it can be run where there is no GPU."""

    def __init__(self, scale: float) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


def test_loss_scaling_changes_neither_norm_nor_step(make_bench: Any, tmp_path: Any) -> None:
    found = []
    for plugins in ([], [Fp16(1024.0)]):  # a power of two, so that scaling rounds nothing
        bench, recorder = make_bench(), Recorder()
        fit = trainer(tmp_path, max_steps=3, callbacks=[recorder], plugins=plugins)
        fit.fit(fresh(bench, max_gradient_norm=0.05), datamodule=bench.built.data)
        found.append(([line["train/gradient_norm"] for line in recorder.lines], weights(bench)))
    (plain, plain_weights), (scaled, scaled_weights) = found
    assert scaled == plain
    assert all(torch.equal(plain_weights[name], scaled_weights[name]) for name in plain_weights)


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")  # the scaler left the first step out
def test_an_overflow_of_fp16_is_skipped_and_counted(make_bench: Any, tmp_path: Any) -> None:
    bench = make_bench("train.rows_per_step=4")
    fitted = fresh(bench)
    trainer(tmp_path, max_epochs=1, plugins=[Fp16(2.0**126)]).fit(fitted, datamodule=bench.built.data)
    assert fitted.skipped_windows > 0 and fitted.steps > 0  # the scale is halved until nothing overflows
    assert fitted.skipped_windows + fitted.steps == 6
    assert all(torch.isfinite(value).all() for value in weights(bench).values())


@pytest.mark.parametrize("name", OptimizerName)
def test_each_optimiser_lowers_the_loss(name: OptimizerName, make_bench: Any, tmp_path: Any) -> None:
    bench, recorder = make_bench("data.limit_train=8"), Recorder()
    before = weights(bench)
    fitted = fresh(bench, optimizer=name, warmup_ratio=0.0)
    if name == OptimizerName.lion:
        fitted.lr = 1e-3  # its steps have the size of the learning rate, whatever the gradient
    trainer(tmp_path, max_epochs=5, callbacks=[recorder]).fit(fitted, datamodule=bench.built.data)
    losses = [line["train/loss"] for line in recorder.lines]
    assert len(losses) == 5 and losses[-1] < losses[0]
    changed = {name for name, value in weights(bench).items() if not torch.equal(value, before[name])}
    assert changed == set(trainable(bench.built.model))


class Poisoned:
    """A family whose loss is NaN in windows that hold one of these rows."""

    def __init__(self, family: Any, rows: set[str]) -> None:
        self.family, self.rows = family, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)

    def forward(self, model: Any, batch: Any, features: Any, keep: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.family.forward(model, batch, features, keep)
        return logits * float("nan") if self.rows & set(batch.row_ids) else logits


def test_a_window_without_a_finite_gradient_is_left_out(make_bench: Any, tmp_path: Any) -> None:
    bench, recorder = make_bench(), Recorder()
    fitted = fresh(bench)
    fitted.family = Poisoned(bench.built.family, {bench.built.data.ids["train"][0]})  # type: ignore[assignment]
    trainer(tmp_path, max_epochs=2, callbacks=[recorder]).fit(fitted, datamodule=bench.built.data)
    assert (fitted.skipped_windows, fitted.steps) == (2, 4)  # one row, so one window of three in each epoch
    assert sum(math.isnan(line["train/loss"]) for line in recorder.lines) == 2
    assert all(torch.isfinite(value).all() for value in weights(bench).values())


def test_the_defect_it_guards_against_ruins_every_weight(
    make_bench: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    fitted = fresh(bench)
    fitted.family = Poisoned(bench.built.family, {bench.built.data.ids["train"][0]})  # type: ignore[assignment]
    monkeypatch.setattr(VLMModule, "on_before_optimizer_step", lambda *_: None)
    trainer(tmp_path, max_epochs=1).fit(fitted, datamodule=bench.built.data)
    assert all(torch.isnan(parameter).all() for parameter in trainable(bench.built.model).values())


def test_training_that_diverges_stops_with_a_sentence(make_bench: Any, tmp_path: Any) -> None:
    bench = make_bench()
    fitted = fresh(bench)
    fitted.family = Poisoned(bench.built.family, set(bench.built.data.ids["train"]))  # type: ignore[assignment]
    before = weights(bench)
    with pytest.raises(ConfigError, match=rf"train\.lr: .* {NOT_FINITE_LIMIT} windows in a row were not finite"):
        trainer(tmp_path, max_epochs=9).fit(fitted, datamodule=bench.built.data)
    assert fitted.skipped_windows == NOT_FINITE_LIMIT
    assert all(torch.equal(value, before[name]) for name, value in weights(bench).items())


def test_a_window_of_bad_rows_alone_takes_no_step(make_bench: Any, tmp_path: Any) -> None:
    bench = make_bench("data.on_bad_row=skip", "data.bad_row_ceiling=1.0")
    data, encode = bench.built.data, bench.built.family.encode
    lost = set(data.ids["train"][:1])
    data.rows_per_step = 1
    fitted = fresh(bench)
    data.on_before_batch_transfer = _without(lost, data)
    trainer(tmp_path, max_epochs=1).fit(fitted, datamodule=data)
    assert (fitted.skipped_windows, fitted.steps) == (1, 23)
    assert set(data.ledger.bad) == lost and encode is not None


def _without(lost: set[str], data: Any) -> Any:
    inner = data.on_before_batch_transfer

    def transfer(batch: Any, dataloader_idx: int) -> Any:
        return inner([BadRow(row.id, "lost") if row.id in lost else row for row in batch], dataloader_idx)

    return transfer


def test_frozen_parts_stay_in_eval_mode_and_without_gradients(make_bench: Any, tmp_path: Any) -> None:
    bench = make_bench("model.lora.dropout=0.5")
    seen: list[dict[str, bool]] = []

    class Modes(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append({name: module.training for name, module in bench.built.base.named_modules()})
            parameters = list(bench.built.base.named_parameters())
            assert all((parameter.grad is not None) == parameter.requires_grad for _, parameter in parameters)
            assert {part_of(name) for name, parameter in parameters if parameter.requires_grad} == {"language"}

    fit = trainer(tmp_path, max_epochs=2, limit_val_batches=1, callbacks=[Modes()])
    fitted = fresh(bench)
    fitted.generated_scores = lambda ids: {"val/x": float(len(ids))}  # type: ignore[method-assign]
    fit.fit(fitted, datamodule=bench.built.data)
    assert len(seen) == 6
    for modes in seen:  # also in the second epoch, after a validation
        frozen = {name for name in modes if name and part_of(name) != "language"}
        assert len(frozen) > 20 and not any(modes[name] for name in frozen)
        assert all(modes[name] for name in modes if "lora_dropout" in name)


def test_a_connector_inside_a_frozen_tower_is_trained_with_its_dropout(make_bench: Any) -> None:
    bench = make_bench("model.train.connector=full")
    module = bench.module()
    module.training_mode()
    modes = {name: found.training for name, found in bench.built.base.named_modules() if name}
    connector = {name for name in modes if part_of(name) == "connector"}
    assert any(".visual.merger" in name for name in connector)  # Qwen2-VL keeps it inside the tower
    assert all(modes[name] for name in connector)
    assert not any(modes[name] for name in modes if part_of(name) == "vision")


def test_the_model_stays_where_it_is_when_training_ends(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning calls module.cpu() at the end of a fit: on a GPU, evaluation would go on without it.
    moved: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "_apply", lambda self, *_, **__: moved.append(self) or self)
    module = bench.module()
    assert module.cpu() is module and not moved
    torch.nn.Module.cpu(module)
    assert moved == [module]  # so the spy sees what the override prevents


def test_state_dict_holds_trained_parameters_alone(make_bench: Any) -> None:
    bench = make_bench()
    state = bench.module().state_dict()
    assert state.keys() == trainable(bench.built.model).keys() and len(state) == 28
    assert all("lora_" in name for name in state)
    both = make_bench("model.train.connector=full").module().state_dict()
    assert {name for name in both if "lora_" not in name} == {name for name in both if "merger" in name} != set()


def test_load_state_dict_takes_its_own_and_nothing_else(make_bench: Any) -> None:
    bench = make_bench()
    module = bench.module()
    state = {name: torch.randn_like(value) for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    first = next(iter(state))
    for other in ({**state, "more": torch.zeros(1)}, {n: v for n, v in state.items() if n != first}, {}):
        with pytest.raises(RuntimeError, match="same trained parameters"):
            module.load_state_dict(other)


def test_load_state_dict_refuses_another_rank(make_bench: Any) -> None:
    # torch's copy_ spreads a (1, 64) over a (16, 64) without a word.
    state = make_bench("model.lora.r=1").module().state_dict()
    module = make_bench("model.lora.r=16").module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert any(value.shape[0] == 1 for value in state.values())
    with pytest.raises(RuntimeError, match="28 differ"):
        module.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_loss_of_validation_is_over_all_its_tokens(make_bench: Any, tmp_path: Any) -> None:
    bench = make_bench("train.rows_per_batch=3")
    rows = [bench.built.family.encode(sample) for sample in bench.built.data.samples(bench.built.data.ids["val"])]
    module = bench.module()
    with torch.no_grad():
        sums = [float(module.loss_sum(batch)) for batch in module.batches(rows)]
    expected = sum(sums) / sum(row.n_supervised for row in rows)
    fitted = fresh(bench)
    fitted.generated_scores = lambda ids: {"val/n": float(len(ids))}  # type: ignore[method-assign]
    (found,) = trainer(tmp_path, limit_val_batches=None).validate(fitted, datamodule=bench.built.data, verbose=False)
    assert found["val/n"] == 8
    assert found["val/loss"] == pytest.approx(expected, rel=1e-6)


WAITS = ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__format__")
"""Methods of a tensor for which this program waits for the device that the tensor is on."""


def test_the_loop_waits_once_in_a_window_for_the_device(
    make_bench: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For loss and norm of the gradients, without which no step may be taken. A CPU shows it: whoever calls is seen."""
    calls: list[str] = []

    def watched(name: str, plain: Any) -> Any:
        def method(self: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            caller = sys._getframe(1)
            if f"{os.sep}vlmft{os.sep}" in caller.f_code.co_filename:
                calls.append(f"{name} in {caller.f_code.co_name}")
            return plain(self, *arguments, **named)

        return method

    for name in WAITS:
        monkeypatch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
    bench = make_bench("train.rows_per_batch=3")  # three batches a window
    trainer(tmp_path, max_steps=3, log_every_n_steps=100).fit(fresh(bench), datamodule=bench.built.data)
    assert calls == ["tolist in on_before_optimizer_step"] * 3
    float(torch.ones(()))  # from here it is not counted
    assert len(calls) == 3


def test_padding_is_logged(make_bench: Any, tmp_path: Any) -> None:
    bench, recorder = make_bench(), Recorder()
    trainer(tmp_path, max_steps=3, callbacks=[recorder]).fit(fresh(bench), datamodule=bench.built.data)
    shares = [line["train/padding_share"] for line in recorder.lines]
    assert len(shares) == 3
    assert all(0 <= share < 0.2 for share in shares), "questions of one template are of like length"
    module = bench.module(rows_per_batch=8)
    module.batches(bench.rows())
    lengths = [row.length for row in bench.rows()]
    assert module.padding.share == pytest.approx(1 - sum(lengths) / (8 * max(lengths))) and module.padding.share > 0


def test_a_worker_makes_the_features_that_this_process_makes(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = make_bench().built
    family, base, ids = built.family, built.base, built.data.ids["train"][:4]
    monkeypatch.setattr(family, "seeing", base)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = [family.encode(sample).images[0] for sample in built.data.samples(ids)]
    expected = family.image_features(base, here, grad=False)
    torch.set_num_threads(threads)
    rows = EncodedRows(built.data.dataset, ids, family.encode)
    (there,) = [[row.images[0] for row in rows] for rows in DataLoader(rows, 4, num_workers=1, collate_fn=as_list)]
    assert [image.sha256 for image in there] == [image.sha256 for image in here]
    assert all(image.feature is None for image in here) and all(image.feature is not None for image in there)

    def refuse(*_: Any) -> Any:
        raise AssertionError("an image went through the tower here")

    monkeypatch.setattr(family, "see", refuse)
    found = family.image_features(base, there, grad=False)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with pytest.raises(AssertionError, match="went through the tower"):  # of another model they would be wrong
        family.image_features(copy.copy(base), there, grad=False)
