"""Answers in slots, letters, units and years: the figure as it is, and what it hides, in the same print."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vlmft.tools.cli import run_tool

run_compare = partial(run_tool, "compare")
run_score = partial(run_tool, "score")


Tool = Callable[[Sequence[str]], None]
Json = Callable[..., dict[str, Any]]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def offers(score: dict[str, Any]) -> dict[str, float]:
    return {one["option"]: round(one["value"], 6) for one in score["other_scores"]}


# geometry as R1-V asks it: 4 of 10 right, of which one prints the degree sign
THOUGHT = "<think>Let the angle be x = 17.</think>\n<answer>{}</answer>"
SAID = ("140", "40", "35°", "60", "12", "90", "45", "9", "30", "1")
GOLD = ("140°", "50°", "35°", "60°", "12cm", "80°", "44°", "10cm", "31°", "2")
GEOMETRY = [
    {"id": i, "response": THOUGHT.format(said), "gold": gold}
    for i, (said, gold) in enumerate(zip(SAID, GOLD, strict=True))
]


def test_answers_in_slots_are_reported_and_not_silently_wrong(
    json_of: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", GEOMETRY)
    (score,) = json_of(run_score, path)["scores"]
    assert (score["value"], score["parse_failures"]) == (0, 0)  # the old print: 0 %, and no word of it
    assert offers(score) == {"--extract tag": 0.1, "--extract last-number": 0.4}
    run_score([str(path)])
    shown = capsys.readouterr().out
    assert "with --extract last-number: 40.00 % (10 of 10 predictions hold a number; above, all their text" in shown
    (score,) = json_of(run_score, path, "--extract", "last-number")["scores"]
    assert (score["value"], score["n_extracted"], offers(score)) == (0.4, 10, {"--extract none": 0.0})
    run_score([str(path), "--extract", "last-number"])
    assert "10 of 10 predictions hold a number; as they are (--extract none): 0.00 %" in capsys.readouterr().out
    (score,) = json_of(run_score, path, "--extract", "none")["scores"]
    assert (score["value"], offers(score)) == (0, {})
    (score,) = json_of(run_score, path, "--metric", "relaxed_accuracy")["scores"]
    assert (score["value"], offers(score)) == (0.1, {"--metric relaxed_accuracy_units": 0.6})
    content = json_of(run_compare, path, write(tmp_path / "b.jsonl", GEOMETRY), "--metric", "relaxed_accuracy")
    (other,) = content["other_scores"]
    assert (other["option"], other["comparisons"][0]["second_value"]) == ("--metric relaxed_accuracy_units", 0.6)
    # within 5 %: 44 for 45 and 31 for 30 as well
    assert json_of(run_score, path, "--metric", "relaxed_accuracy_units")["scores"][0]["value"] == pytest.approx(0.6)


def test_a_thought_without_an_end_is_no_answer(json_of: Json, tmp_path: Path) -> None:
    rows = [{"pred": "<think>yes", "gold": "yes"}, {"pred": "<think>no</think>yes", "gold": "yes"}]
    (score,) = json_of(run_score, write(tmp_path / "a.jsonl", rows), "--extract", "tag")["scores"]
    assert (score["value"], score["parse_failures"]) == (0.5, 1)


def test_letters(json_of: Json, tmp_path: Path) -> None:
    said = ("B", "The answer is B.", "I am not sure, A or B", "green", "(A) red", "")
    rows = [
        {"index": i, "A": "red", "B": "green", "prediction": text, "answer": gold}
        for i, (text, gold) in enumerate(zip(said, "BBABAA", strict=True))
    ]
    path = write(tmp_path / "a.jsonl", rows)
    (score,) = json_of(run_score, path)["scores"]
    assert score["value"] == pytest.approx(1 / 6)
    assert offers(score)["--extract letter"] == pytest.approx(4 / 6, abs=1e-6)
    (score,) = json_of(run_score, path, "--extract", "letter")["scores"]
    assert (score["value"], score["parse_failures"], score["n_extracted"]) == (pytest.approx(4 / 6), 2, 4)
    listed = [{**row, "options": [row.pop("A"), row.pop("B")]} for row in map(dict, rows)]
    (score,) = json_of(run_score, write(tmp_path / "b.jsonl", listed), "--extract", "letter")["scores"]
    assert score["value"] == pytest.approx(4 / 6)
    alone = [{key: row[key] for key in ("index", "prediction", "answer")} for row in rows]
    (score,) = json_of(run_score, write(tmp_path / "c.jsonl", alone), "--extract", "letter")["scores"]
    assert score["value"] == pytest.approx(3 / 6)  # nothing says that green is B


def test_plain_answers_have_nothing_to_offer(json_of: Json, tmp_path: Path) -> None:
    for gold in ("red", "B", "17"):
        rows = [{"pred": gold, "gold": gold}, {"pred": "blue", "gold": gold}]
        for score in json_of(run_score, write(tmp_path / "a.jsonl", rows))["scores"]:
            assert score["other_scores"] == []


def test_both_readings_are_compared(json_of: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write(tmp_path / "a.jsonl", [{**row, "response": THOUGHT.format("1")} for row in GEOMETRY])
    after = write(tmp_path / "b.jsonl", GEOMETRY)
    content = json_of(run_compare, before, after)
    assert [one["option"] for one in content["other_scores"]] == ["--extract tag", "--extract last-number"]
    (found,) = content["other_scores"][1]["comparisons"]
    assert (found["only_first"], found["only_second"], found["second_value"]) == (0, 4, 0.4)
    run_compare([str(before), str(after)])
    shown = capsys.readouterr().out
    assert "with --extract last-number:\n  0.00 % -> 40.00 %\n" in shown
    content = json_of(run_compare, before, after, "--extract", "last-number")
    assert content["comparisons"][0]["second_value"] == 0.4
    assert [one["option"] for one in content["other_scores"]] == ["--extract none"]


def test_the_format_debt_is_no_difference_of_two_figures(
    json_of: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three years that are wrong by a little, one answer with a thousands separator: strict is the higher figure."""
    rows = [{"pred": said, "gold": "2010"} for said in ("2011", "2012", "2009")]
    rows += [{"pred": "1,200", "gold": "1200"}, {"pred": "7", "gold": "7"}]
    path = write(tmp_path / "a.jsonl", rows)
    strict, normalised = json_of(run_score, path, "--metric", "relaxed_accuracy_strict,relaxed_accuracy")["scores"]
    assert (strict["value"], normalised["value"]) == (0.8, 0.4)
    (other,) = normalised["other_scores"]
    assert (
        "it alone takes 3 rows (3 with a year, which is to be met exactly here), and this one alone 1"
        in other["sentence"]
    )
    assert "the format debt is 20.00 points" in other["sentence"] and strict["other_scores"] == []
    assert (
        json_of(run_score, write(tmp_path / "b.jsonl", rows[3:]), "--metric", "relaxed_accuracy")["scores"][0][
            "other_scores"
        ]
        == []
    )


def test_most_references_are_json_and_one_is_not(json_of: Json, tmp_path: Path) -> None:
    rows = [
        {"pred": '{"a": 1}', "gold": '{"a":1}'},
        {"pred": '{"a": 2}', "gold": '{"a":2}'},
        {"pred": "no", "gold": "no"},
    ]
    (score,) = json_of(run_score, write(tmp_path / "a.jsonl", rows))["scores"]
    assert score["metric"].startswith("exact_match/")
    (other,) = score["other_scores"]
    assert (
        "most references are JSON, but not all: --metric json_match: Expected JSON as reference, got 'no'"
        in other["sentence"]
    )


def test_figures_by_a_column(json_of: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"id": i, "pred": "yes" if i % 4 else "no", "gold": "yes", "Kind ": ("chart", "table", None)[i % 3]}
        for i in range(60)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    (score,) = json_of(run_score, path, "--by", "kind")["scores"]
    assert {name: one["n"] for name, one in score["values"].items()} == {"chart": 20, "table": 20, "(none)": 20}
    for name, one in score["values"].items():
        mine = [row["pred"] == "yes" for row in rows if (row["Kind "] or "(none)") == name]
        assert one["value"] == sum(mine) / len(mine)
    other = [{key: value for key, value in row.items() if key != "Kind "} | {"pred": "yes"} for row in rows]
    second = write(tmp_path / "b.jsonl", other[::-1])  # the column may stand in one file alone
    content = json_of(run_compare, path, second, "--by", "kind")
    assert {name: one[0]["n"] for name, one in content["by_value"].items()} == {"chart": 20, "table": 20, "(none)": 20}
    assert content["by_value"]["chart"][0]["second_value"] == 1
    run_compare([str(path), str(second), "--by", "kind"])
    assert "by kind:\n  chart, 20 rows: 75.00 % -> 100.00 %, +25.00 points (" in capsys.readouterr().out


def test_references_may_be_the_place_or_the_text_of_an_option(json_of: Json, tmp_path: Path) -> None:
    colours = ["red", "green", "blue"]
    said = ("The answer is A.", "(B)", "blue", "I do not know")
    for name, golds in (("0", (0, 1, 1, 2)), ("1", (1, 2, 2, 3)), ("text", ("red", "green", "green", "blue"))):
        rows = [
            {"id": i, "choices": colours, "answer": gold, "prediction": text}
            for i, (text, gold) in enumerate(zip(said, golds, strict=True))
        ]
        path = write(tmp_path / f"{name}.jsonl", rows)
        (score, *_) = json_of(run_score, path)["scores"]
        assert score["value"] == 0 and offers(score)["--extract letter"] == 0.5
        (score,) = json_of(run_score, path, "--extract", "letter")["scores"]
        assert (score["value"], score["parse_failures"]) == (0.5, 1)


def test_yes_and_no(json_of: Json, tmp_path: Path) -> None:
    said = ("Yes, there is a dog.", "No.", "There is, yes", "Yes or no? I cannot say", "maybe")
    rows = [{"pred": text, "label": gold} for text, gold in zip(said, ("yes", "No", "no", "yes", "yes"), strict=True)]
    path = write(tmp_path / "a.jsonl", rows)
    (score,) = json_of(run_score, path)["scores"]
    assert score["value"] == 0.2 and offers(score)["--extract yes-no"] == 0.4
    assert json_of(run_score, path, "--extract", "yes-no")["scores"][0]["parse_failures"] == 2


def test_objects_that_python_printed(json_of: Json, tmp_path: Path) -> None:
    rows = [{"pred": str({"a": i, "b": None}), "gold": str({"b": None, "a": 1})} for i in range(4)]
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["pred", "gold"])
        writer.writeheader()
        writer.writerows(rows)
    content = json_of(run_score, path)
    assert content["scores"][0]["metric"].startswith("json_match/") and content["scores"][0]["value"] == 0.25
    assert [note.split(" ")[0] for note in content["notes"]] == ["predictions", "references"]


def test_a_table_says_that_answers_stand_in_slots(json_of: Json, tmp_path: Path) -> None:
    rows = [{"pred": "<think>long</think>a red cube on a table", "gold": "a red cube on a table"}] * 3
    path = write(tmp_path / "a.jsonl", rows)
    content = json_of(run_score, path, "--metric", "rouge")
    assert content["notes"] == ["3 of 3 predictions mark their answer; --extract tag scores that alone"]
    content = json_of(run_score, path, "--metric", "rouge", "--extract", "tag")
    assert content["tables"]["rouge/unicode-words@1"]["values"]["rouge1_f"] == 1 and content["notes"] == []


OPTIONS = {"A": "a red cube", "B": "a blue ball", "C": "two cones", "D": "nothing"}
WAYS: tuple[Callable[[str], str], ...] = (
    lambda one: one,
    lambda one: f"({one})",
    lambda one: f"{one}. {OPTIONS[one]}",
    lambda one: f"The answer is {one}.",
    lambda one: f"Answer: {one.lower()}",
    lambda one: f"{OPTIONS[one].capitalize()}.",
    lambda one: f"<think>It may be A or B.</think>\n<answer>{one}</answer>",
    lambda one: f"The correct answer is option {one}: {OPTIONS[one]}.",
    lambda one: f"{one}\nBecause the picture shows {OPTIONS[one]}.",
    lambda one: f"Looking at it, I see {OPTIONS[one]}. So the answer is ({one}).",
    lambda one: f"The correct option is:\n\n**{one}. {OPTIONS[one]}**",
    lambda one: f"I would choose {one}.",
)
"""How models say an option."""


def test_every_way_to_say_a_letter_counts_alike(json_of: Json, tmp_path: Path) -> None:
    rows = []
    for i in range(len(WAYS) * 16):
        gold, said = "ABCD"[i % 4], "ABCD"[i // 4 % 4]  # each pair of letters in each way
        rows.append({"index": i, **OPTIONS, "answer": gold, "prediction": WAYS[i // 16](said), "way": i // 16})
    (score,) = json_of(run_score, write(tmp_path / "a.jsonl", rows), "--extract", "letter", "--by", "way")["scores"]
    assert (score["value"], score["n_extracted"]) == (0.25, len(rows))
    assert [one["value"] for one in score["values"].values()] == [0.25] * len(WAYS)
