"""Two files whose ids only number their rows: do the rows belong together?"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vlmft.config.check import ConfigError
from vlmft.tools.cli import run_tool

run_compare = partial(run_tool, "compare")

FIXTURES = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "fixtures"
PAIRED = FIXTURES / "paired_chartqa"
needs_paired = pytest.mark.skipif(not PAIRED.exists(), reason=f"no {PAIRED}; set VLMFT_REFERENCE_DATA")

Json = Callable[..., dict[str, Any]]
N = 400


@pytest.fixture
def json_of(capsys: pytest.CaptureFixture[str]) -> Json:
    def run(*arguments: object) -> dict[str, Any]:
        run_compare([*map(str, arguments), "--json"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def files(tmp_path: Path, *columns: str, shuffled: bool) -> tuple[Path, Path]:
    """Two models on the same questions, hard ones wrong in both more often; the second file in another order."""
    draw = random.Random(1)
    rows = []
    for i in range(N):
        ease = draw.choice((0.2, 0.95))
        rows.append(
            {
                "question": f"How many are in picture {i}?",
                "prompt": f"Answer briefly. Picture {i}?",
                "answer": str(draw.choice("3456")),
                "scores": [float(draw.random() < ease) for _ in range(2)],
            }
        )
    found = []
    for number in range(2):
        kept = [{name: row[name] for name in columns} | {"correct": row["scores"][number]} for row in rows]
        if number and shuffled:
            draw.shuffle(kept)
        for i, row in enumerate(kept):
            row["idx"] = i
        found.append(write(tmp_path / f"{'ab'[number]}.jsonl", kept))
    return found[0], found[1]


SCORES = ("--columns", "score=correct")


def test_rows_in_another_order_are_refused_by_their_questions(json_of: Json, tmp_path: Path) -> None:
    first, second = files(tmp_path, "question", shuffled=True)
    with pytest.raises(
        ConfigError,
        match=r"b\.jsonl: Expected each row's question as in .*a\.jsonl, got others in \d+ of 400 rows, first in row 0 "
        r"\('How many are in picture 0\?' there, .* but in another order; pair them with --columns id=question",
    ):
        json_of(first, second, *SCORES)
    paired = json_of(first, second, "--columns", "score=correct,id=question")["comparisons"][0]
    unshuffled = json_of(*files(tmp_path, "question", shuffled=False), *SCORES)["comparisons"][0]
    assert (paired["only_first"], paired["only_second"]) == (unshuffled["only_first"], unshuffled["only_second"])


def test_by_their_prompts_and_by_their_references(json_of: Json, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Expected each row's prompt as in .* but in another order"):
        json_of(*files(tmp_path, "prompt", shuffled=True), *SCORES)
    with pytest.raises(ConfigError, match=r"Expected each row's reference as in .*, first '\d' there and '\d' here"):
        json_of(*files(tmp_path, "answer", shuffled=True), *SCORES)


def test_another_prompt_is_no_other_row(json_of: Json, tmp_path: Path) -> None:
    first, second = files(tmp_path, "question", "prompt", shuffled=False)
    rows = [json.loads(line) for line in second.read_text(encoding="utf-8").splitlines()]
    write(second, [{**row, "prompt": "Think first. " + row["prompt"]} for row in rows])
    content = json_of(first, second, *SCORES)
    (note,) = content["notes"]
    assert "prompt is not as in" in note and "in 400 of 400 rows, first in row 0" in note
    write(second, [{**row, "question": row["question"].replace("picture", "image")} for row in rows])
    with pytest.raises(ConfigError, match=r"Expected each row's question .* or in another order; pair them by what"):
        json_of(first, second, *SCORES)  # no text of one file is in the other
    rows[5]["question"] = "Another?"
    (note,) = json_of(first, write(second, rows), *SCORES)["notes"]
    assert "question is not as in" in note and "in 1 of 400 rows, first in row 5" in note


def test_where_nothing_shows_it_that_is_said(json_of: Json, tmp_path: Path) -> None:
    notes = json_of(*files(tmp_path, shuffled=False), *SCORES)["notes"]
    assert len(notes) == 1 and "rows are paired by idx, which numbers them, and nothing in the files shows" in notes[0]
    notes = json_of(*files(tmp_path, shuffled=True), *SCORES)["notes"]
    assert len(notes) == 2 and "go together no more than chance" in notes[1]
    assert json_of(*files(tmp_path, "question", shuffled=False), *SCORES)["notes"] == []


def test_spelling_of_a_reference_is_no_other_row(json_of: Json, tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [{"id": i, "pred": "3", "gold": gold} for i, gold in enumerate(("3", "Yes"))])
    second = write(
        tmp_path / "b.jsonl", [{"id": i, "pred": "3", "gold": gold} for i, gold in enumerate(("3.0", "yes "))]
    )
    assert json_of(first, second)["comparisons"][0]["n"] == 2


@needs_paired
def test_published_files_in_another_order(json_of: Json, tmp_path: Path) -> None:
    """The two ChartQA files with row numbers for ids, one of them turned round: 84.68 and 85.24 %, unpaired."""
    first, second = (
        [json.loads(line) for line in (PAIRED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("baseline", "finetuned")
    )
    for rows in (first, second):
        for row in rows:
            del row["id"]
    second.reverse()
    paths = [
        write(tmp_path / f"{name}.jsonl", [{"idx": i, **row} for i, row in enumerate(rows)])
        for name, rows in (("a", first), ("b", second))
    ]
    with pytest.raises(ConfigError, match=r"Expected each row's query_sha256 as in .* but in another order"):
        json_of(*paths, "--columns", "score=relaxed")
    for path, rows in zip(paths, (first, second), strict=True):
        write(path, [{"idx": i, "relaxed": row["relaxed"]} for i, row in enumerate(rows)])
    content = json_of(*paths, "--columns", "score=relaxed")
    assert [arm["value"] for arm in content["arms"]] == [0.8468, 0.8524]
    assert "which numbers them, and nothing in the files shows" in content["notes"][0]
    assert "(correlation" in content["notes"][1]
    fine = json_of(PAIRED / "baseline.jsonl", PAIRED / "finetuned.jsonl", "--columns", "score=relaxed", "--by", "split")
    assert [one["value"] for one in fine["arms"][0]["values"].values()] == pytest.approx([0.7528, 0.9408])
    assert fine["notes"] == []
