"""An adapter that was trained on the rows that it is tested on: said above the table, and at the verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.schema import EvaluateConfig, TrainConfig
from vlmft.run.evaluate import evaluate
from vlmft.run.rows import MANIFEST_FILE
from vlmft.run.train import train

pytestmark = pytest.mark.slow  # whole runs

MODEL = ("model=tiny_qwen2vl", "model.quantization.mode=none")
DATA = ("data=columns", "data.options={image: image, question: question, answer: answer}", "data.max_new_tokens=2")


def write(folder: Path, splits: dict[str, range], question: str = "How many?") -> Path:
    """A row for each number, which the picture shows; the same number is the same picture in any folder."""
    folder.mkdir()
    for split, numbers in splits.items():
        lines = []
        for number in numbers:
            name = f"{folder.name}-{number}.png"
            PIL.Image.new("RGB", (32, 32), (number * 5, 255 - number * 5, 7)).save(folder / name)
            lines.append(json.dumps({"image": name, "question": question, "answer": str(number)}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def trained_run(compose: Callable[..., TrainConfig], tmp_path: Path) -> Callable[[Path], Path]:
    """A run without a test, trained on a folder's train."""

    def made(folder: Path) -> Path:
        settings = ("trainer.max_steps=1", "train.rows_per_step=4", "preflight=false", "test=false", "data.val_rows=0")
        settings += ("data.test_rows=0", "logger=none", "name=run", f"output_root={tmp_path / 'outputs'}")
        return train(compose(*MODEL, *DATA, f"data.path={folder}", *settings))

    return made


@pytest.fixture
def tested(compose_evaluate: Callable[..., EvaluateConfig], tmp_path: Path, capsys: Any) -> Callable[..., Any]:
    """tested(folder, "adapter=...") -> (summary, report.md, report.html, what was printed)."""

    def made(folder: Path, *overrides: str) -> Any:
        capsys.readouterr()
        settings = ("evaluation.canary_rows=0", f"output_root={tmp_path / 'evaluations'}", "data.val_rows=0")
        where = evaluate(compose_evaluate(*MODEL, *DATA, f"data.path={folder}", *settings, *overrides))
        texts = [(where / name).read_text(encoding="utf-8") for name in ("report.md", "report.html")]
        return json.loads((where / "summary.json").read_text()), *texts, capsys.readouterr().out

    return made


@pytest.mark.parametrize("place", ["", "adapter", "adapter/../checkpoints"])
def test_an_adapter_that_saw_half_of_the_test_rows(
    place: str, trained_run: Callable[[Path], Path], tested: Callable[..., Any], tmp_path: Path
) -> None:
    """Under other file names, in another data set, asked something else; given as run folder, adapter or checkpoint."""
    run = trained_run(write(tmp_path / "theirs", {"train": range(20)}))
    mine = write(tmp_path / "mine", {"train": range(30, 40), "test": range(10, 30)}, question="Which?")
    adapter = next((run / "checkpoints").iterdir()) if place.endswith("checkpoints") else run / place
    key = "adapters.given" if place.endswith("checkpoints") else "adapter"
    summary, markdown, page, printed = tested(mine, f"{key}={adapter}", "evaluation.arms=[untuned,tuned]")
    arm = "given" if key == "adapters.given" else "tuned"
    said = f"{arm} was trained on 10 of these 20 test rows, or on what they show"
    assert summary["alarms"][0].startswith(said)
    assert summary["sentence"].startswith(said[:1].upper() + said[1:])
    assert printed.index(f"WARNING: {said}") < printed.index("exact_match on 20 rows")
    for text in (markdown, page):
        assert f"{arm} against untuned, not to be believed: see the first warning" in text and said in text


def test_one_that_saw_none_of_them(
    trained_run: Callable[[Path], Path], tested: Callable[..., Any], tmp_path: Path
) -> None:
    run = trained_run(write(tmp_path / "theirs", {"train": range(20)}))
    mine = write(tmp_path / "mine", {"train": range(20), "test": range(20, 30)})
    summary, markdown, page, printed = tested(mine, f"adapter={run}")
    assert summary["alarms"] == [] and "WARNING" not in printed
    assert "not to be believed" not in markdown + page
    assert not [note for note in summary["notes"] if "trained on" in note]


def test_a_whole_model_that_saw_them(
    compose: Callable[..., TrainConfig], tested: Callable[..., Any], tmp_path: Path, capsys: Any
) -> None:
    """What one run trained in full is the untuned model of another: evaluated alone, or trained further."""
    full = ("model.train.language=full", "model.train.connector=frozen", "trainer.max_steps=1", "preflight=false")
    alone = ("test=false", "data.val_rows=0", "data.test_rows=0", "logger=none", "train.rows_per_step=4")
    theirs = write(tmp_path / "theirs", {"train": range(20)})
    settings = (*MODEL, *DATA, *full, *alone, f"data.path={theirs}", "name=run", f"output_root={tmp_path / 'outputs'}")
    whole = train(compose(*settings)) / "adapter"
    mine = write(tmp_path / "mine", {"train": range(30, 40), "test": range(15, 25)})
    base = (f"model.path={whole}", "model.init=pretrained")
    said = "untuned was trained on 5 of these 10 test rows"
    summary, *_ = tested(mine, *base, "evaluation.arms=[untuned]")
    assert summary["alarms"][0].startswith(said)
    capsys.readouterr()
    settings = (*MODEL, *DATA, *base, "trainer.max_steps=1", "train.rows_per_step=4", "preflight=false")
    settings += ("evaluation.arms=[untuned,tuned]", "evaluation.canary_rows=0", "data.val_rows=0", "logger=none")
    train(compose(*settings, f"data.path={mine}", "name=further", f"output_root={tmp_path / 'outputs'}"))
    assert f"WARNING: {said}" in capsys.readouterr().out


def test_one_of_which_nothing_is_known(
    trained_run: Callable[[Path], Path], tested: Callable[..., Any], tmp_path: Path
) -> None:
    """Somebody's adapter outside of its run."""
    run = trained_run(write(tmp_path / "theirs", {"train": range(20)}))
    shutil.copytree(run / "adapter", tmp_path / "given")
    summary, *_ = tested(
        write(tmp_path / "mine", {"train": range(9), "test": range(9, 20)}), f"adapter={tmp_path}/given"
    )
    assert summary["alarms"] == []
    assert "tuned: nothing shows which rows it was trained on, so they may be among these" in summary["notes"]


@pytest.mark.parametrize("known", ["contents", "ids"])
def test_the_training_rows_themselves(
    known: str, trained: Any, tmp_path: Path, evaluate_small: Callable[..., Any]
) -> None:
    """By what they show; by their ids where that is not stored and the data are the run's own."""
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run)
    stored = json.loads((run / MANIFEST_FILE).read_text())
    if known == "ids":
        for split in stored.values():
            del split["contents"]
        (run / MANIFEST_FILE).write_text(json.dumps(stored))
    quick = (f"run={run}", "logger=none", "evaluation.arms=[tuned]", "evaluation.canary_rows=0")
    of_train = evaluate_small(*quick, "split=train")
    assert of_train.summary["alarms"][0].startswith("tuned was trained on 32 of these 32 train rows")
    assert evaluate_small(*quick).summary["alarms"] == []
    of_val = evaluate_small(*quick, "split=val").summary
    assert of_val["alarms"] == [] and "tuned: its checkpoint was chosen by 16 of these 16 rows" in str(of_val["notes"])
    others = evaluate_small(*quick, "data_options.condition=B").summary
    note = "tuned: nothing shows which rows it was trained on, so they may be among these"
    assert others["alarms"] == [] and (note in others["notes"]) == (known == "ids")


def test_what_train_shows_stands_in_the_run_folder(trained_run: Callable[[Path], Path], tmp_path: Path) -> None:
    run = trained_run(write(tmp_path / "theirs", {"train": range(20)}))
    contents = json.loads((run / MANIFEST_FILE).read_text())["train"]["contents"]
    assert len(contents) == len(set(contents)) == 20 and {len(digest) for digest in contents} == {16}
