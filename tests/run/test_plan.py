"""The settings of a run: what was left open is filled in beside them, and nobody writes into them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from vlmft.config.check import ConfigError
from vlmft.config.schema import EvaluateConfig, TrainConfig
from vlmft.run import train as training
from vlmft.run.build import peak_lr, resolved, tokens_for_answers
from vlmft.run.start import settled
from vlmft.sample import BadRow, EncodedRow, Message, Prompt, Sample


def test_what_was_left_open_is_filled_in_beside_the_settings(compose: Callable[..., TrainConfig]) -> None:
    config = compose("model=tiny_qwen2vl", "data=shapes", "trainer=cpu")
    before = copy.deepcopy(config)
    plan = resolved(config)
    assert config == before and config.train.lr is None and plan.config.train.lr is not None
    assert resolved(plan.config).config == plan.config


def test_other_options_of_the_data_are_not_written_into_the_settings(
    compose_evaluate: Callable[..., EvaluateConfig],
) -> None:
    config = compose_evaluate("model=tiny_qwen2vl", "data=shapes", "data_options.condition=B")
    before = copy.deepcopy(config)
    _, _, data = settled(config)
    assert config == before and data.options["condition"] == "B"


def test_the_tiny_model_says_what_it_has_seen(
    compose: Callable[..., TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default model meets somebody's own photos, and the table would say 0 % without a reason."""
    for settings, is_told in (("data=shapes", False), (f"data=imagefolder data.path={tmp_path}", True)):
        plan = resolved(compose("model=tiny", "trainer=cpu", *settings.split()))
        training._print_plan(plan, tmp_path, finished=False)
        assert (training.TINY_KNOWS in capsys.readouterr().out) == is_told


@pytest.mark.parametrize(
    ("model", "cores", "asked", "workers"),
    [("tiny", 2, (), 1), ("tiny", 1, (), None), ("tiny", 2, ("data.workers=0",), 0), ("tiny_qwen2vl", 8, (), None)],
)
def test_workers_on_a_core_that_the_models_threads_leave(
    model: str,
    cores: int,
    asked: tuple[str, ...],
    workers: int | None,
    compose: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlmft.run.build.cores", lambda: cores)
    plan = resolved(compose(f"model={model}", "data=shapes", "trainer=cpu", *asked))
    assert plan.config.data.workers == workers
    assert [item.value for item in plan.inferred if item.key == "data.workers"] == ([1] if workers == 1 else [])


def test_data_may_ask_for_a_multiple_of_the_models_learning_rate(compose: Callable[..., TrainConfig]) -> None:
    own = compose("model=tiny_qwen2vl", "data=receipts", "trainer=cpu")
    plan = resolved(own)
    assert plan.config.train.lr == peak_lr(own) == pytest.approx(3 * own.model.default_lr)
    assert any(item.origin.endswith(", 3 times for receipts") for item in plan.inferred)
    assert peak_lr(compose("model=tiny_qwen2vl", "data=receipts", "trainer=cpu", "train.lr=1e-4")) == 1e-4


class _Lengths:
    """Rows whose answers have as many tokens as letters, and an end."""

    ids: ClassVar[dict[str, list[str]]] = {"train": ["a"], "test": ["b", "c"]}
    texts: ClassVar[dict[str, tuple[str, ...]]] = {"a": ("xx",), "b": ("x" * 7, "x" * 11), "c": ("x" * 9,)}

    def some_samples(self, split: str, most: int) -> list[Sample]:
        prompt = Prompt((Message("user", ("?",)),))
        return [Sample(row, prompt, self.texts[row][0], self.texts[row]) for row in self.ids[split]]

    def encode(self, sample: Sample) -> EncodedRow | BadRow:
        if sample.id == "c":
            return BadRow("c", "too long")
        supervised = np.arange(3 + len(sample.answer) + 1) >= 3
        return EncodedRow(sample.id, supervised.astype(np.int64), supervised, 3, {}, ())


def test_the_longest_reference_decides_how_long_answers_may_be() -> None:
    data: Any = _Lengths()
    assert tokens_for_answers(data) == 15  # a quarter more than eleven letters and an end
    data.encode = lambda sample: BadRow(sample.id, "no")
    with pytest.raises(ConfigError, match="Expected rows whose references can be measured"):
        tokens_for_answers(data)
