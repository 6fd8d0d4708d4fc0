"""Data that give away their answers, and baselines without images, in what a run prints, reports and stores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.schema import TrainConfig
from vlmft.evaluation.compare import adjusted, compare
from vlmft.evaluation.without_looking import control_sentence
from vlmft.run.train import train

pytestmark = pytest.mark.slow  # whole runs

N_ROWS = 120


def write(folder: Path, question: str) -> Path:
    """Rows in two splits, an image each; a question may name its {answer}, or a number {other} that says nothing."""
    folder.mkdir()
    for split, start in (("train", 0), ("test", N_ROWS)):
        lines = []
        for number in range(start, start + N_ROWS):
            shade = (number % 250, number // 250, 7)
            PIL.Image.new("RGB", (32, 32), shade).save(folder / f"{number}.png")
            answer, other = number * 7 % 9 + 1, number * 5 % 9 + 1
            asked = question.format(answer=answer, other=other)
            lines.append(json.dumps({"image": f"{number}.png", "question": asked, "answer": str(answer)}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@dataclass
class Run:
    folder: Path
    output: str

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "summary.json").read_text()))


@pytest.fixture
def looked(compose: Callable[..., TrainConfig], tmp_path: Path, capsys: Any) -> Callable[[str], Run]:
    """looked(question): a run on such rows, of one window."""

    def run(question: str) -> Run:
        settings = (
            "model=tiny_qwen2vl", "model.quantization.mode=none", "data=columns", "logger=none", "name=run",
            "data.options={image: image, question: question, answer: answer}", "trainer.max_steps=1",
            f"data.path={write(tmp_path / 'data', question)}", "data.max_new_tokens=2", "data.val_rows=0",
            "train.rows_per_step=4", "evaluation.arms=[untuned,tuned]", "evaluation.canary_rows=4",
        )  # fmt: skip
        folder = train(compose(*settings, f"output_root={tmp_path / 'outputs'}"))
        return Run(folder, capsys.readouterr().out)

    return run


def test_data_that_tell_their_answers(looked: Callable[[str], Run]) -> None:
    """The canary passes, because it is not this program that leaks; the warning is above every table."""
    run = looked("How many? Answer is {answer}.")
    assert "leak canary passed for our code" in run.output
    rows = "120 of 120 rows (100.0 %)"
    alarm = f"the data give away their answers: in test the gold answer occurs in its own prompt in {rows}"
    before_the_table = run.output[: run.output.index("exact_match on 120 rows")]
    assert f"WARNING: {alarm}" in before_the_table and f"WARNING: {alarm.replace('test', 'train')}" in before_the_table
    assert "majority by question " in run.output and "copy 100.0 %" in run.output
    summary = run.summary
    assert summary["alarms"][0].startswith(alarm) and "in the question (first: columns/" in summary["alarms"][0]
    assert summary["sentence"].startswith(alarm[:1].upper() + alarm[1:])
    rules = {rule["name"]: rule for rule in summary["without_looking"]["baselines"]}
    assert rules["copy"]["value"] == 1.0 and rules["copy"]["answered"] == 120
    card = json.loads((run.folder / "data_card.json").read_text())["readable_answers"]
    assert {split: found["rows"] for split, found in card.items()} == {"train": 120, "test": 120}
    assert all(found["flagged"] for found in card.values())
    for name in ("report.html", "report.md"):
        page = (run.folder / name).read_text()
        assert page.index("the data give away their answers") < page.index("Arms") and "Without looking" in page


def test_data_that_do_not(looked: Callable[[str], Run]) -> None:
    run = looked("How many of the {other} cubes are red?")
    assert "WARNING" not in run.output and run.summary["alarms"] == []
    assert not run.summary["sentence"].startswith("The data")
    (line,) = [line for line in run.output.splitlines() if line.startswith("answers that occur in the prompt: ")]
    assert "by chance 1" in line
    found = run.summary["without_looking"]["readable_answers"]
    assert 0 < found["rows"] < 40 and not found["flagged"]


def judged(first: str, second: str, right: tuple[int, int], n: int = 200) -> Any:
    scores = [{str(i): float(i < k) for i in range(n)} for k in right]
    return adjusted([compare(first, scores[0], second, scores[1], {str(i): str(i) for i in range(n)})])[0]


@pytest.mark.parametrize(
    ("control", "right", "words"),
    [
        ("blank", (150, 149), "these 200 rows do not show that it needs its images"),
        ("textonly", (150, 20), "it uses its images"),
        ("textonly", (100, 150), "it answers better without its images"),
    ],
)
def test_controls_in_words(control: str, right: tuple[int, int], words: str) -> None:
    sentence = control_sentence(judged("tuned", control, right))
    assert (sentence is not None and sentence.endswith(words)) or "it answers better without" in sentence
    first, second = (f"{100 * k / 200:.1f} %" for k in right)
    assert f"scores {second}, with its images {first}" in sentence


@pytest.mark.parametrize("pair", [("untuned", "tuned"), ("tuned", "fewshot")])
def test_other_comparisons_say_nothing_of_images(pair: tuple[str, str]) -> None:
    assert control_sentence(judged(*pair, right=(100, 150))) is None
