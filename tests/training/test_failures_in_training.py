"""What goes wrong inside a step: numbers that are not finite, and too little memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from vlmft.config.check import ConfigError
from vlmft.models.lora import trainable
from vlmft.models.memory import or_none
from vlmft.training.module import NOT_FINITE_LIMIT, OVERFLOW_LIMIT, SKIPPED_FILE, VLMModule


class Wrapped:
    """A family in which something goes wrong before a batch goes through the language part."""

    def __init__(
        self, family: Any, before: Callable[[Any], None], factor: Callable[[Any], float] = lambda _: 1
    ) -> None:
        self.family, self.before, self.factor = family, before, factor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)

    def forward(self, model: Any, batch: Any, features: Any, keep: torch.Tensor) -> torch.Tensor:
        self.before(batch)
        logits: torch.Tensor = self.family.forward(model, batch, features, keep) * self.factor(batch)
        return logits


def small_memory(rows: int, seen: list[int]) -> Callable[[Any], None]:
    """Memory for so many rows of a batch."""

    def check(batch: Any) -> None:
        seen.append(len(batch.row_ids))
        if len(batch.row_ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    return check


class Overflowing(MixedPrecision):
    """fp16's loss scaling around fp32 arithmetic, so that it can be run where there is no GPU."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu"))

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


def fitted(bench: Any, folder: Path, family: Any, *, epochs: int = 1, plugins: Any = None, **train: Any) -> VLMModule:
    """Trains with this family for some epochs of three windows; the module, also where training stops with an error."""
    module = bench.module(**train)
    module.manual_backward = L.LightningModule.manual_backward.__get__(module)
    module.family, module.lr, module.skipped_file = family, 2e-3, folder / SKIPPED_FILE
    settings: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"),
        False,
    )
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, limit_val_batches=0, default_root_dir=folder, plugins=plugins, **settings
    )
    module.raised = None
    torch.manual_seed(5)
    try:
        trainer.fit(module, datamodule=bench.built.data)
    except ConfigError as error:
        module.raised = str(error)
    return module  # type: ignore[no-any-return]


def weights(bench: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainable(bench.built.model).items()}


def skipped(folder: Path) -> list[dict[str, Any]]:
    path = folder / SKIPPED_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- not finite


def test_a_skipped_window_is_named_with_its_rows(make_bench: Any, tmp_path: Path, capsys: Any) -> None:
    bench = make_bench()
    bad = bench.built.data.ids["train"][0]
    family = Wrapped(bench.built.family, lambda _: None, lambda batch: math.nan if bad in batch.row_ids else 1)
    module = fitted(bench, tmp_path, family, epochs=2)
    assert (module.raised, module.skipped_windows, module.steps) == (None, 2, 4)
    lines = skipped(tmp_path)
    assert [line["reason"] for line in lines] == ["its loss is not finite"] * 2
    assert all(bad in line["rows"] and len(line["rows"]) == 8 for line in lines)
    assert lines[0]["step"] < 3 <= lines[1]["step"] < 6
    assert f"window {lines[0]['step'] + 1} is left out: its loss is not finite" in capsys.readouterr().err
    assert all(torch.isfinite(value).all() for value in weights(bench).values())


def test_three_windows_in_a_row_stop_the_run(make_bench: Any, tmp_path: Path) -> None:
    bench = make_bench()
    before = weights(bench)
    module = fitted(bench, tmp_path, Wrapped(bench.built.family, lambda _: None, lambda _: math.nan), epochs=9)
    assert NOT_FINITE_LIMIT == 3 == module.skipped_windows == len(skipped(tmp_path))
    assert "3 windows in a row were not finite, up to window 3" in module.raised and SKIPPED_FILE in module.raised
    assert all(torch.equal(value, before[name]) for name, value in weights(bench).items())


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")  # the first step is left out
@pytest.mark.parametrize(
    ("scaled", "limit", "reason"), [(False, 3, "not finite"), (True, OVERFLOW_LIMIT, "overflowed")]
)
def test_gradients_that_are_not_finite_have_longer_under_loss_scaling(
    scaled: bool, limit: int, reason: str, make_bench: Any, tmp_path: Path
) -> None:
    bench = make_bench()
    before = weights(bench)
    hooks = [value.register_hook(lambda grad: grad * math.inf) for value in trainable(bench.built.model).values()]
    try:
        module = fitted(bench, tmp_path, bench.built.family, epochs=9, plugins=[Overflowing()] if scaled else None)
    finally:
        for hook in hooks:
            hook.remove()
    assert module.skipped_windows == limit and f"{limit} windows in a row" in module.raised
    assert all(reason in line["reason"] for line in skipped(tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in weights(bench).items())


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
def test_a_loss_that_is_not_finite_has_no_longer_under_loss_scaling(make_bench: Any, tmp_path: Path) -> None:
    bench = make_bench()
    family = Wrapped(bench.built.family, lambda _: None, lambda _: math.nan)
    assert fitted(bench, tmp_path, family, epochs=9, plugins=[Overflowing()]).skipped_windows == NOT_FINITE_LIMIT


def test_two_in_a_row_and_a_good_one_go_on(make_bench: Any, tmp_path: Path) -> None:
    bench = make_bench("data.limit_train=24")
    calls = iter([math.nan, math.nan, 1] * 9)
    module = fitted(bench, tmp_path, Wrapped(bench.built.family, lambda _: None, lambda _: next(calls)), epochs=3)
    assert (module.raised, module.skipped_windows, module.steps) == (None, 6, 3)


# --- out of memory


def test_a_window_without_memory_is_done_again_in_halves(make_bench: Any, tmp_path: Path, capsys: Any) -> None:
    """As if the size that fits had been asked for, to the bit: with dropout, so that random state matters."""
    found, sizes = [], []
    for asked, memory in ((8, 3), (2, 99)):
        bench, seen = make_bench("model.lora.dropout=0.3"), list[int]()
        family = Wrapped(bench.built.family, small_memory(memory, seen))
        module = fitted(bench, tmp_path, family, epochs=2, rows_per_batch=asked)
        assert (module.raised, module.rows_per_batch, module.steps) == (None, 2, 6)
        found.append(weights(bench))
        sizes.append(seen)
    assert sizes[0] == [8, 4, *sizes[1]] and set(sizes[1]) == {2}  # the smaller size stays
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    said = capsys.readouterr().err
    assert said.count("out of memory with") == 2 and "out of memory with 4 rows at once" in said


class WithoutRandomState(VLMModule):
    """The defect: the second attempt goes on with the random numbers that the first one left."""

    def _halve(self, rows: Any) -> None:
        super()._halve(rows)
        torch.rand(7)
        self.state_left = torch.get_rng_state()


def test_random_state_is_put_back(bench: Any) -> None:
    module, seen = bench.module(rows_per_batch=8), list[torch.Tensor]()
    module.__class__ = WithoutRandomState
    memory = small_memory(4, [])

    def check(batch: Any) -> None:
        seen.append(torch.get_rng_state())
        torch.rand(3)  # what dropout would do
        memory(batch)

    module.family = Wrapped(module.family, check)
    module.window_backward(bench.rows())
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert not torch.equal(module.state_left, seen[1])  # so the defect would have been seen


def test_gradients_of_the_failed_attempt_are_dropped(bench: Any, gradients: Any) -> None:
    rows = bench.rows()
    module = bench.module(rows_per_batch=4)
    _, expected = gradients(bench.module(rows_per_batch=2), rows)
    attempts: list[int] = []

    def check(batch: Any) -> None:
        attempts.append(len(batch.row_ids))
        if attempts == [4, 4]:  # the second batch of the first attempt: the first has left its gradients
            raise torch.OutOfMemoryError("CUDA out of memory")

    module.family = Wrapped(module.family, check)
    _, found = gradients(module, rows)
    assert attempts == [4, 4, 2, 2, 2, 2]
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_tokens_are_halved_with_the_rows(bench: Any) -> None:
    module = bench.module(rows_per_batch=8, tokens_per_batch=4000)
    module.family = Wrapped(module.family, small_memory(2, []))
    module.window_backward(bench.rows())
    assert (module.rows_per_batch, module.tokens_per_batch) == (2, 1000)


def test_no_memory_for_one_row_is_told_by_name(make_bench: Any, tmp_path: Path) -> None:
    bench, seen = make_bench(), list[int]()
    module = fitted(bench, tmp_path, Wrapped(bench.built.family, small_memory(0, seen)))
    assert seen == [8, 4, 2, 1] and "\n" not in module.raised
    assert f"row {module.batch_ids[0]}: Expected memory for one row of " in module.raised
    assert module.batch_ids[0] in bench.built.data.ids["train"]


@pytest.mark.slow
def test_validation_without_memory_has_the_same_loss(bench: Any) -> None:
    rows, sums = bench.rows(), []
    for memory in (99, 3):
        module = bench.module(rows_per_batch=8)
        module.family = Wrapped(module.family, small_memory(memory, []))
        with torch.no_grad():
            module.validation_step(rows, 0)
        sums.append((float(module.validation_loss), module.validation_tokens))
    assert sums[0][1] == sums[1][1] == sum(row.n_supervised for row in rows)
    assert sums[1][0] == pytest.approx(sums[0][0], rel=1e-6)


def test_the_size_that_fits_is_in_the_checkpoint(bench: Any) -> None:
    module, checkpoint = bench.module(rows_per_batch=8, tokens_per_batch=4000), dict[str, Any]()
    module.rows_per_batch, module.tokens_per_batch = 2, 1000
    module.on_save_checkpoint(checkpoint)
    other = bench.module(rows_per_batch=8, tokens_per_batch=4000)
    limits = json.loads(json.dumps(checkpoint["limits"]))
    other.on_load_checkpoint({**checkpoint, "limits": limits})
    assert (other.rows_per_batch, other.tokens_per_batch) == (2, 1000)


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert or_none(lambda: torch.empty(1 << 50, dtype=torch.uint8)) is None  # torch's own error on a CPU
    assert or_none(lambda: bytearray(1 << 62)) is None  # Python's
    assert or_none(lambda: 3) == 3
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        or_none(lambda: torch.ones(2, 3) @ torch.ones(2, 3))


def test_an_attempt_that_failed_holds_no_memory() -> None:
    class Held:
        pass

    import weakref

    alive: list[Any] = []

    def work() -> None:
        held = Held()
        held.me = held  # type: ignore[attr-defined]  # a cycle, as in an autograd graph
        alive.append(weakref.ref(held))
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert or_none(work) is None and alive[0]() is None
