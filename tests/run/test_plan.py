"""The settings of a run: what was left open is filled in beside them, and nobody writes into them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmft.config.schema import EvaluateConfig, TrainConfig
from vlmft.run import train as training
from vlmft.run.build import resolved
from vlmft.run.start import settled


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
