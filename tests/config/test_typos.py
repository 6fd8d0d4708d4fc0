"""No misspelt setting passes in silence, whichever way it comes in: file, `key=`, `+key=` or `++key=`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmft.config import schema
from vlmft.config.check import ConfigError, nearest, nearest_key
from vlmft.config.entry import conf_dir, explained
from vlmft.config.setting_types import all_settings

KEYS = list(all_settings(schema.TrainConfig))
ONE_A_GROUP = list({key.rpartition(".")[0]: key for key in KEYS}.values())
"""Hydra refuses the first unknown key, by the group that it is in; what is advised for each key is one function's."""
OWN_EVALUATE_KEYS = [key for key in all_settings(schema.EvaluateConfig) if key not in KEYS]


def refusal(compose: Callable[..., object], *overrides: str) -> str:
    """The one line that a user reads."""
    try:
        compose(*overrides)
    except ConfigError as error:
        line = str(error)
    except (HydraException, OmegaConfBaseException) as error:
        line = explained(error)
    else:
        pytest.fail(f"{overrides} went through")
    assert line and "\n" not in line, line
    return line


def misspelt(key: str) -> str:
    return key + key[-1]


def names_with_advice(line: str, key: str) -> bool:
    assert f"{misspelt(key)}: no such setting; " in line, line
    return f"{misspelt(key)}: no such setting; did you mean '{key}'?" in line


def test_the_sweeps_below_are_over_something() -> None:
    assert len(KEYS) > 60
    assert len(ONE_A_GROUP) >= 12
    assert len(OWN_EVALUATE_KEYS) >= 5
    assert not {misspelt(key) for key in KEYS} & set(KEYS)


@pytest.mark.parametrize("key", ONE_A_GROUP)
def test_plain_override(key: str, compose: Callable[..., object]) -> None:
    assert names_with_advice(refusal(compose, f"{misspelt(key)}=1"), key)


@pytest.mark.parametrize("plus", ["+", "++"])
def test_forced_overrides(plus: str, compose: Callable[..., object]) -> None:
    """All at once, for speed: the one line names each."""
    line = refusal(compose, *(f"{plus}{misspelt(key)}=1" for key in KEYS))
    assert sum(names_with_advice(line, key) for key in KEYS) == len(KEYS)


def test_forced_override_has_no_effect_without_the_check() -> None:
    """The defect that `checked` is there for: Hydra and OmegaConf accept it, and no field holds it."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = hydra.compose("train", ["+model.lora.rr=3", "++seedd=3"])
    unchecked = OmegaConf.to_object(composed)
    assert isinstance(unchecked, schema.TrainConfig)
    assert "seedd" not in dataclasses.asdict(unchecked)
    assert dataclasses.asdict(unchecked.model.lora) == dataclasses.asdict(schema.LoraConfig())


@pytest.mark.parametrize("key", ONE_A_GROUP)
def test_experiment_file(key: str, compose: Callable[..., object], tmp_path: Path) -> None:
    experiment(tmp_path, "mine", OmegaConf.to_yaml(OmegaConf.from_dotlist([f"{misspelt(key)}=1"])))
    line = refusal(compose, f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert line.startswith("in experiment/mine.yaml: ")
    assert names_with_advice(line, key)


def experiment(folder: Path, name: str, content: str, head: str = "# @package _global_") -> None:
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(f"{head}\n{content}\n", encoding="utf-8")


@pytest.mark.parametrize("plus", ["", "+"])
@pytest.mark.parametrize("key", OWN_EVALUATE_KEYS)
def test_evaluate(key: str, plus: str, compose_evaluate: Callable[..., object]) -> None:
    line = refusal(compose_evaluate, "model=tiny", "data=shapes", f"{plus}{misspelt(key)}=1")
    assert names_with_advice(line, key)


@pytest.mark.parametrize("key", ["train.lr", "resume", "preflight"])
def test_evaluate_does_not_advise_what_only_training_has(key: str, compose_evaluate: Callable[..., object]) -> None:
    line = refusal(compose_evaluate, "model=tiny", "data=shapes", f"{key}=1")
    assert key.split(".")[0] + ": no such setting" in line
    assert f"'{key}'" not in line


ADVICE = {
    "lr": "train.lr",
    "optim": "train.optimizer",
    "data.pth": "data.path",
    "modl.path": "model.path",
    "train.max_steps": "trainer.max_steps",
    "model.rank": "model.lora.r",
    "train.batch_size": "train.rows_per_step",
    "trainer.accumulate_grad_batches": "train.rows_per_batch",
    "trainer.gradient_clip_val": "train.max_gradient_norm",
    "learning_rate": "train.lr",
    "epochs": "trainer.max_epochs",
}


@pytest.mark.parametrize(("key", "meant"), ADVICE.items())
def test_advice_looks_across_groups_and_knows_other_trainers_words(key: str, meant: str) -> None:
    assert nearest_key(key, KEYS) == f"did you mean {meant!r}?"


def test_no_advice_where_nothing_is_near() -> None:
    legal = "r, alpha, dropout, target_modules, init, use_rslora, use_dora"
    assert nearest_key("model.lora.zzz", KEYS) == f"expected one of {legal}"
    assert nearest_key("data._target_", KEYS).startswith("expected one of name, dataset, path")
    assert nearest("zzz", []) == "expected one of none"


REFUSED = {
    # wrong types
    "data.workers=two": "data.workers: Expected a whole number, got 'two'",
    "train.rows_per_step=1.9": "train.rows_per_step: Expected a whole number, got '1.9'",
    "seed=true": "seed: Expected a whole number, got 'True'",
    "train.lr=fast": "train.lr: Expected a number, got 'fast'",
    "preflight=maybe": "preflight: Expected true or false, got 'maybe'",
    "model.quantization.mode=nf5": "model.quantization.mode: Expected one of none, int8, nf4, fp4, got 'nf5'",
    "model.lora.target_modules=q_proj": "model.lora.target_modules: Expected a list such as [a,b], got a str",
    "model.lora=3": "model.lora: Expected settings below it, as in a.b=c, got 3",
    "data.options=3": "data.options: Expected a mapping such as {a: 1}, got a int",
    "train={lr: fast}": "train.lr: Expected a number, got 'fast'",
    # null and nothing
    "seed=null": "seed: Expected a value, got null; leave it out for its default",
    "model.path=???": "model.path: Expected a value, got none; set it",
    "~data": "data.name: Expected a value, got none; set it",
    "name=": "name: Expected a name for a folder",
    "name=../../elsewhere": "name: Expected a name for a folder",
    "name=${nope}": "name: Interpolation key 'nope' not found",
    "name=${oc.env:VLMFT_NO_SUCH_VARIABLE}": "name: Expected a value, got '${oc.env:VLMFT_NO_SUCH_VARIABLE}', which",
    # groups
    "data=chrtqa": "data=chrtqa: no such choice; did you mean 'chartqa'? (there are ",
    "logger=zzzzzz": "logger=zzzzzz: no such choice; expected one of comet, csv, mlflow, none, tensorboard, wandb",
    "experiment=nope": "experiment=nope: no such choice; ",
    "dat=chartqa": "dat: no such setting; did you mean 'data'?",
    # what cannot be read
    "data": "data: Expected key=value, with quotes of their own",
    "name=[": "name=[: Expected key=value, with quotes of their own",
    # a dataset's options
    "data.options.train_row=3": "data.options.train_row: Shapes has no such option; did you mean 'train_rows'?",
    "+data.options.train_row=3": "data.options.train_row: Shapes has no such option; did you mean 'train_rows'?",
    "data.options.train_rows=many": "data.options.train_rows: Expected int, got 'many'",
    "data.options.train_rows=true": "data.options.train_rows: Expected int, got True",
    "data.options.condition=C": "data.options.condition: Expected one of 'A', 'B', got 'C'",
    "data.path=/no/such/folder": "data.path: there is no file or folder '/no/such/folder'; ",
}


@pytest.mark.parametrize(("override", "said"), REFUSED.items())
def test_one_clear_line(override: str, said: str, compose: Callable[..., object]) -> None:
    assert refusal(compose, override).startswith(said)


@pytest.mark.parametrize(
    ("content", "head", "said"),
    [
        (
            "train: {lr: fast}",
            "# @package _global_",
            "in experiment/mine.yaml: train.lr: Expected a number, got 'fast'",
        ),
        ("seed: 7", "", "in experiment/mine.yaml: Expected '# @package _global_' as the first line"),
        (
            "defaults: [override /modl: tiny]",
            "# @package _global_",
            "in experiment/mine.yaml: modl: no such setting; did you mean 'model'?",
        ),
        (
            "defaults: [override /model: tny]",
            "# @package _global_",
            "model=tny: no such choice; did you mean 'tiny'?",
        ),
    ],
)
def test_mistakes_in_an_experiment_file(
    content: str, head: str, said: str, compose: Callable[..., object], tmp_path: Path
) -> None:
    experiment(tmp_path, "mine", content, head)
    assert refusal(compose, f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine").startswith(said)


def test_several_mistakes_are_told_together(compose: Callable[..., object]) -> None:
    line = refusal(compose, "+seedd=3", "+modell=tiny")
    assert line.split(" | ") == [
        "seedd: no such setting; did you mean 'seed'?",
        "modell: no such setting; did you mean 'model'?",
    ]


def test_open_mappings_need_no_plus(compose: Callable[..., Any], compose_evaluate: Callable[..., Any]) -> None:
    assert compose("data.options.train_rows=4").data.options == {"train_rows": 4}
    assert compose("data.options={train_rows: 4}").data.options == {"train_rows": 4}
    found = compose_evaluate("model=tiny", "data=shapes", "data_options.condition=B")
    assert found.data_options == {"condition": "B"}
