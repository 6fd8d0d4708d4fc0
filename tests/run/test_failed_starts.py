"""A start that fails says so at once, and leaves nothing behind but the rows that it refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.config.entry import mistakes_in_one_line
from vlmft.config.schema import EvaluateConfig, TrainConfig
from vlmft.config.tool_schema import ExportConfig
from vlmft.config.tools import compose_tool
from vlmft.data.ledger import LEDGER_FILE
from vlmft.run.evaluate import evaluate
from vlmft.run.folder import make_folder
from vlmft.run.train import train
from vlmft.sample import BadRowError
from vlmft.tools.export import export

pytestmark = pytest.mark.slow  # whole starts of the programs

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "lightning", "peft", "wandb", "datasets"}
TRAIN, EVALUATE, TOOL = "train.py", "evaluate.py", "vlmft/__main__.py"
TINY = ("model=tiny_qwen2vl", "data=shapes")
SMALL = (*TINY, "data.limit_train=8", "data.limit_val=4", "data.limit_test=4", "trainer.max_epochs=1", "name=run")


NOT_THERE: dict[str, list[tuple[tuple[str, ...], str]]] = {
    TRAIN: [
        (("data=imagefolder",), "data.path: Expected a folder of images, got none; set it"),
        (("data=imagefolder", "data.path=pictrues"), "data.path: there is no file or folder 'pictrues'"),
        (("data=columns",), "data.path: Expected a file or folder, got none; set it"),
        (("data=messages",), "data.path: Expected a file or folder, got none; set it"),
        (("data=messages", "data.path=rows.jsonl"), "data.path: "),
        (("data=chartqa", "data.path=nowhere"), "data.path: "),
        (("data.metric=acuracy",), "data.metric: "),
        (("data.options.image_size=1",), "data.options: "),
        (("model=smolvlm", "model.path=./SmolVLM"), "model.path: there is no folder './SmolVLM'"),
        (("model.path=package:tny",), "model.path: no model 'tny' comes with vlmft"),
        (("model=auto", "model.path=no/such-model"), "model.path: 'no/such-model' cannot be read"),
        (("model=auto", "model.path=."), "model.path: Expected a folder with config.json, got '.'"),
        (("scale=smoke", "data=imagefolder", "data.path=."), "data.path: Expected images in class folders"),
    ],
    EVALUATE: [
        (("run=.",), "run: there is no config.yaml in '.'"),
        ((*TINY, "adapter=./adaptr"), "adapter: there is no folder './adaptr'"),
        ((*TINY, "adapters.other=./adaptr"), "adapters.other: there is no folder './adaptr'"),
        (("model=tiny", "data=imagefolder"), "data.path: Expected a folder of images, got none"),
        (("model=auto", "model.path=no/such-model", "data=shapes"), "model.path: 'no/such-model' cannot"),
    ],
    TOOL: [
        (("ask", "image=a.png", "question=What?", "run=."), "run: there is no config.yaml in '.'"),
        (("export", "to=given", "run=."), "run: there is no config.yaml in '.'"),
        (("trace", "model=tiny", "data=imagefolder"), "data.path: Expected a folder of images, got none"),
    ],
}


@pytest.mark.parametrize("program", NOT_THERE)
def test_what_is_not_there_is_reported_before_anything_heavy(
    program: str, call_in_turn: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """One line, exit code 2, nothing imported that takes seconds, nothing made; all commands of a program in one
    process, each in a folder of its own."""
    commands = [command for command, _ in NOT_THERE[program]]
    found = call_in_turn(program, commands, tmp_path)
    assert len(found) == len(commands) >= 3
    for (command, sentence), called in zip(NOT_THERE[program], found, strict=True):
        assert (called.code, called.made, called.modules & HEAVY) == (2, [], set()), (command, called.stderr)
        assert called.stderr.startswith(f"error: {sentence}") and called.stderr.count("\n") == 1, command


@pytest.fixture
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, as Hydra leaves it. W&B is offline, so it would write here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_an_export_that_fails_leaves_nothing(compose: Callable[..., TrainConfig], in_an_empty_folder: Path) -> None:
    """A run whose training has not ended; the folder that is written beside goes, too."""
    run = make_folder(compose(*SMALL))
    shutil.move(run, "run")
    shutil.rmtree("outputs")
    for form in ("adapter", "merged"):
        with pytest.raises(ConfigError, match=r"run: there is no (adapter|folder)"):
            export(compose_tool("export", ExportConfig, ("run=run", "to=given", f"form={form}", "check_rows=0")))
    assert [name for name in everything(in_an_empty_folder) if not name.startswith("run")] == []


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("train.lr=1.0",), "preflight: learning rate: 1 for lora"),
        (("model.lora.target_modules=[nothing]",), "model.lora.target_modules"),
        (("data.test_rows=0.5", "data.limit_train=0"), "data"),
    ],
)
def test_a_start_that_fails_later_leaves_nothing(
    overrides: tuple[str, ...], sentence: str, compose: Callable[..., TrainConfig], in_an_empty_folder: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        train(compose(*SMALL, "evaluation.canary_rows=2", *overrides))
    assert everything(in_an_empty_folder) == []


def test_an_evaluation_that_fails_later_leaves_nothing(
    compose_evaluate: Callable[..., EvaluateConfig], in_an_empty_folder: Path
) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.arms: Expected an adapter to go with it, got tuned alone"):
        evaluate(compose_evaluate(*TINY, "evaluation.arms=[tuned]"))
    with pytest.raises(ConfigError, match="split: val has no rows"):
        evaluate(compose_evaluate(*TINY, "evaluation.arms=[untuned]", "split=val", "data.options.val_rows=0"))
    assert everything(in_an_empty_folder) == []


def pictures(folder: Path, n_broken: int) -> None:
    for number in range(12):
        file = folder / ("dark", "light")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (32, 32), (number * 20, 0, 255 - number * 20)).save(file)
        if number < n_broken:
            file.write_bytes(b"no picture")


FOLDER = ("model=tiny_qwen2vl", "data=imagefolder")


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_refused_rows_are_kept_and_nothing_else(
    policy: str, compose: Callable[..., TrainConfig], in_an_empty_folder: Path, capsys: Any
) -> None:
    """So that they can be looked at; once they are mended the same command runs, and its ledger has no word of them."""
    pictures(in_an_empty_folder / "pictures", n_broken=3)
    command = (
        *FOLDER, f"data.path={in_an_empty_folder / 'pictures'}", f"data.on_bad_row={policy}",
        "data.bad_row_ceiling=0.001", "data.val_rows=2", "data.test_rows=2", "preflight=false", "test=false",
        "train.rows_per_step=4", "trainer.max_steps=1", "logger=none", "name=run",
    )  # fmt: skip
    ledger = Path("outputs/tiny_qwen2vl-imagefolder/run") / LEDGER_FILE
    with pytest.raises(SystemExit) as ended, mistakes_in_one_line():
        train(compose(*command))
    assert ended.value.code == 2
    assert f"(3 refused rows are listed in {ledger})" in capsys.readouterr().err
    assert len(ledger.read_text().splitlines()) == 3
    made = [name for name in everything(in_an_empty_folder) if not name.startswith("pictures")]
    assert made == [str(parent) for parent in reversed(ledger.parents[:-1])] + [str(ledger)]
    pictures(in_an_empty_folder / "pictures", n_broken=0)
    folder = train(compose(*command))
    assert folder == ledger.parent and (folder / "summary.json").is_file() and not ledger.exists()


def test_refused_rows_of_an_evaluation(
    compose_evaluate: Callable[..., EvaluateConfig], in_an_empty_folder: Path
) -> None:
    pictures(in_an_empty_folder / "pictures", n_broken=3)
    with pytest.raises(BadRowError, match=r"\(3 refused rows are listed in outputs/.*/bad_rows.jsonl\)"):
        path = f"data.path={in_an_empty_folder / 'pictures'}"
        evaluate(compose_evaluate(*FOLDER, path, "evaluation.arms=[untuned]"))
    made = [name for name in everything(in_an_empty_folder) if not name.startswith("pictures")]
    assert [Path(name).name for name in made if Path(name).is_file()] == [LEDGER_FILE]
