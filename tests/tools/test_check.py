"""vlmft check: what was read as what, one row of each split, bad rows by kind; in seconds, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.config.tool_schema import CheckConfig
from vlmft.config.tools import compose_tool
from vlmft.tools.check import check

HEAVY = ("torch", "lightning", "transformers", "peft", "datasets", "wandb")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """20 rows with a question, an image each, a column that nobody reads, two rows that cannot be used."""
    (tmp_path / "img").mkdir()
    lines = ["Image;Question;Answer;Photographer"]
    for number in range(20):
        PIL.Image.new("RGB", (8, 6 + number), (number, 80, 160)).save(tmp_path / "img" / f"{number}.png")
        answer = "" if number in (3, 7) else ("cat", "dog")[number % 2]
        lines.append(f"img/{number}.png;Which pet?;{answer};Anna {number}")
    (tmp_path / "pets.csv").write_text("\n".join(lines), encoding="cp1252")
    return tmp_path


def checked(*overrides: str) -> int:
    """The exit code."""
    try:
        check(compose_tool("check", CheckConfig, overrides))
    except SystemExit as end:
        return int(str(end.code))
    return 0


def test_what_was_read_as_what(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked("data=columns", f"data.path={pets}") == 1
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "  train: pets.csv (CSV in UTF-8)",
        "  image: 'Image'",
        "  question: 'Question'",
        "  answer: 'Answer': the text as it stands",
        "  not read: Photographer (such as 'Anna 0')",
        "  the source declares no test and no val: taken from train by content",
        "rows that cannot be used: 2",
        "  2: Expected a text as Answer, got ''; drop the row or fill it in "
        "(columns/train/000003, columns/train/000007)",
    ):
        assert line in lines
    assert sum(line.startswith("a row of ") and "columns/train/" in line for line in lines) == 3, "a row of each split"
    assert any("[image img/" in line and "'Which pet?'" in line for line in lines)
    assert checked("data=columns", f"data.path={pets}", "data.on_bad_row=skip") == 0


def test_json_and_a_model(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("data.on_bad_row=skip", "model=tiny", "json=true")
    assert checked("data=columns", f"data.path={pets}", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == {"train": 12, "val": 2, "test": 4} and found["bad"][0]["rows"] == 2
    assert found["source"]["unread"] == {"Photographer": "'Anna 0'"}
    seen = found["model"]["rows"]["train"]
    assert seen["tokens"] > 20 and "Which pet?" in seen["text"] and "<image>x" in seen["text"]


def test_what_is_known_is_printed_before_a_refusal(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="tie 18 rows into 1 groups"):
        checked("data=columns", f"data.path={pets}", "data.options.group=Question")
    assert "  image: 'Image'" in capsys.readouterr().out


def test_suspicions(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checked("data=columns", f"data.path={pets}", "data.options.answer=Question", "data.options.question_text=?")
    assert "warning: every answer of train is 'Which pet?': nothing to learn" in capsys.readouterr().out
    table = pets / "splits.csv"
    table.write_text(
        "\n".join(["image,answer", *(f"img/{n}.png,{('Train', 'Test', 'nan')[n % 3]}" for n in range(20))])
    )
    checked("data=columns", f"data.path={table}", "data.options.question_text=?")
    out = capsys.readouterr().out
    assert (
        "warning: answers of train are names of splits (T" in out and "is what pandas writes for a missing value" in out
    )


def test_no_heavy_import_without_a_model(pets: Path) -> None:
    program = (
        "import sys; from vlmft.tools.cli import main; sys.argv = ['vlmft', 'check', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    arguments = ["data=columns", f"data.path={pets}", "data.on_bad_row=skip"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "every row" not in done.stderr


@pytest.mark.slow
def test_train_prints_the_short_form_and_stops_before_the_first_step(pets: Path, tmp_path: Path) -> None:
    """A test row with a control token, known before: the run that trained first and died then is the defect."""
    rows = [
        {
            "image": f"img/{n}.png",
            "question": "Which?" + "<end_of_utterance>" * (n == 19),
            "answer": "cat",
            "source": "me",
        }
        for n in range(20)
    ]
    for split, some in (("train", rows[:12]), ("val", rows[12:16]), ("test", rows[16:])):
        (pets / f"{split}.jsonl").write_text("\n".join(map(json.dumps, some)))
    (pets / "pets.csv").unlink()
    settings = [
        "data=columns",
        f"data.path={pets}",
        "trainer.fast_dev_run=true",
        "logger=none",
        f"output_root={tmp_path}/out",
    ]
    done = subprocess.run([sys.executable, "train.py", *settings], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "row columns/test/000003: Expected plain text" in done.stderr and "Traceback" not in done.stderr
    assert "  test: test.jsonl (JSON Lines), by name" in done.stdout
    assert "  not read: source (such as 'me')" in done.stdout
    assert "preflight" not in done.stdout


def test_answers_that_stand_in_the_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["image,question,answer"]
    for number in range(60):
        PIL.Image.new("RGB", (8, 8), (number * 4, 80, 160)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,How many? Answer is {number % 9}.,{number % 9}")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    assert checked("data=columns", f"data.path={tmp_path}", "json=true") == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    start = "the data give away their answers: in train the gold answer occurs in its own prompt in "
    assert [warning for warning in warnings if warning.startswith(start)]
