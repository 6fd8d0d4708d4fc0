"""A W&B sweep file is what the agent and train.py can both read: its arguments compose, its metric is logged."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra.errors
import pytest
import yaml

from vlmft.config.check import ConfigError
from vlmft.config.schema import TrainConfig
from vlmft.run.results import Summary

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


def test_there_are_sweeps() -> None:
    assert len(SWEEPS) >= 1


def commands(sweep: dict[str, Any], macro: str | None = None) -> list[list[str]]:
    """What W&B's agent runs for each corner of the search space, made by the agent's own functions."""
    from wandb.sdk.launch.sweeps import utils

    def values(parameter: dict[str, Any]) -> list[Any]:
        if "value" in parameter:
            return [parameter["value"]]
        return list(parameter.get("values", [parameter.get("min"), parameter.get("max")]))

    names, choices = list(sweep["parameters"]), [values(p) for p in sweep["parameters"].values()]
    found = []
    for chosen in itertools.product(*choices):
        arguments = {name: {"value": value} for name, value in zip(names, chosen, strict=True)}
        filled = utils.create_sweep_command_args({"args": arguments})
        command = utils.create_sweep_command(copy.deepcopy(sweep["command"]))
        command = [macro if macro and "args" in part else part for part in command]
        known = {"${env}": ["env"], "${interpreter}": ["python"], "${program}": [sweep["program"]]}
        known |= {"${args_no_hyphens}": filled["args_no_hyphens"], "${args}": filled["args"]}
        found.append([word for part in command for word in known.get(part, [part])])
    return found


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_the_agent_s_arguments_compose(path: Path, compose: Callable[..., TrainConfig]) -> None:
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = commands(sweep)
    assert len(found) >= 4 and (ROOT / sweep["program"]).is_file()
    for _, python, program, *overrides in found:
        assert (python, program) == ("python", "train.py")
        config = compose(*overrides)
        assert not config.test and config.resume
        assert f"train.lr={config.train.lr}" in overrides
        assert f"model.lora.r={config.model.lora.r}" in overrides
    assert len({tuple(words) for words in found}) == len(found)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_with_hyphens_they_would_not(path: Path, compose: Callable[..., TrainConfig]) -> None:
    """The defect: W&B's own default."""
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    with pytest.raises((hydra.errors.OverrideParseException, ConfigError)):
        compose(*commands(sweep, "${args}")[0][3:])


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_its_metric_is_one_that_a_run_logs_before_the_test(path: Path) -> None:
    metric = yaml.safe_load(path.read_text(encoding="utf-8"))["metric"]
    assert metric["goal"] == "maximize"
    assert metric["name"] in Summary("m", "d", best_value=0.5).headline_values()
    assert "test" not in metric["name"]
