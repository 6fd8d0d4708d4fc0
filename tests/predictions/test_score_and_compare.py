"""vlmft score and vlmft compare on files of any tool, on published predictions, without torch."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vlmft.config.check import ConfigError
from vlmft.tools.cli import run_tool

run_compare = partial(run_tool, "compare")
run_score = partial(run_tool, "score")

FIXTURES = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "fixtures"
COUNTING, PAIRED = FIXTURES / "counting_predictions", FIXTURES / "paired_chartqa"
needs_counting = pytest.mark.skipif(not COUNTING.exists(), reason=f"no {COUNTING}; set VLMFT_REFERENCE_DATA")
needs_paired = pytest.mark.skipif(not PAIRED.exists(), reason=f"no {PAIRED}; set VLMFT_REFERENCE_DATA")
LEAKED = "--columns=prediction=Fine-tuning Model Prediction"

Tool = Callable[[Sequence[str]], None]
Json = Callable[..., dict[str, Any]]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """By the ending: JSONL, JSON, CSV or TSV."""
    if path.suffix in (".jsonl", ".json"):
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def answers(right: int, wrong: int, right_first: bool = True) -> list[dict[str, Any]]:
    rights = [True] * right + [False] * wrong
    rights = rights if right_first else rights[::-1]
    return [{"id": f"r{i}", "prediction": "yes" if one else "no", "reference": "yes"} for i, one in enumerate(rights)]


# --- published predictions


@needs_counting
def test_score_of_the_published_arms(json_of: Json) -> None:
    untuned = json_of(run_score, COUNTING / "zero_shot.csv")
    (score,) = untuned["scores"]
    assert untuned["n"] == 998 and score["metric"] == "count_accuracy/last-number-en-ru@1"
    assert score["value"] == 648 / 998 and score["remarks"] == []
    counts = untuned["tables"]["counting/last-number-en-ru@1"]
    assert counts["values"]["within_1"] == pytest.approx(0.8517, abs=5e-5)
    assert counts["values"]["mae"] == pytest.approx(0.519, abs=5e-4)
    assert [line["count"] for line in counts["lists"]["per_true_count"]] == list(range(3, 11))
    (tuned,) = json_of(run_score, COUNTING / "tuned.csv")["scores"]
    assert tuned["value"] == 341 / 998
    assert (tuned["top_answer"], tuned["top_share"]) == ("9", 782 / 998)
    assert "collapsed to one answer" in tuned["remarks"][0]
    (leaked,) = json_of(run_score, COUNTING / "tuned_leaked.csv", LEAKED)["scores"]
    assert leaked["value"] == 1 and leaked["suspicious"]
    assert leaked["remarks"][0].startswith("suspicious: all 998 predictions")


@needs_counting
def test_compare_of_the_published_arms(json_of: Json, capsys: pytest.CaptureFixture[str]) -> None:
    files = (COUNTING / "zero_shot.csv", COUNTING / "tuned.csv", "--by-order")
    (found,) = json_of(run_compare, *files)["comparisons"]
    assert (found["first_value"], found["second_value"]) == (648 / 998, 341 / 998)
    assert (found["only_first"], found["only_second"], found["verdict"]) == (310, 3, "worse")
    assert found["p_value"] == found["p_holm"] == pytest.approx(6.13e-88, rel=1e-2)
    run_compare([str(file) for file in files])
    shown = capsys.readouterr().out
    assert "-30.76 points" in shown and "exact McNemar p = 6.1e-88, 3 rows fixed, 310 broken, n = 998: worse" in shown
    assert "collapsed to one answer" in shown


@needs_paired
def test_compare_of_published_scores(json_of: Json) -> None:
    files = (PAIRED / "baseline.jsonl", PAIRED / "finetuned.jsonl", "--columns", "score=relaxed")
    content = json_of(run_compare, *files)
    (found,) = content["comparisons"]
    assert [arm["value"] for arm in content["arms"]] == [0.8468, 0.8524]
    assert (found["only_first"], found["only_second"]) == (69, 83)
    assert found["p_value"] == pytest.approx(0.29, abs=0.005)
    assert found["interval"] == pytest.approx((-0.0040, 0.0152), abs=0.001)
    assert found["verdict"] == "not distinguishable"


# --- files of any tool


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_every_format_gives_the_same(name: str, json_of: Json, tmp_path: Path) -> None:
    rows = [{"Question ID": "q1", "Model Prediction": "Yes", "Correct Answer": "yes"}]
    rows += [{"Question ID": "q2", "Model Prediction": 'a "b",\tc\nd;e', "Correct Answer": "нет"}]
    content = json_of(run_score, write(tmp_path / name, rows))
    columns = {"prediction": "Model Prediction", "reference": "Correct Answer", "id": "Question ID"}
    assert content["columns"] == columns
    assert content["scores"][0]["value"] == 0.5 and content["scores"][0]["metric"].startswith("exact_match/")


def test_what_other_tools_write(json_of: Json, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\ufeffpred;gold\r\n7;7\r\n;8\r\n", encoding="utf-8")  # a spreadsheet's: mark, semicolons
    (score,) = json_of(run_score, path)["scores"]
    assert (score["value"], score["parse_failures"], score["n"]) == (0.5, 1, 2)  # no answer stays in the denominator
    path = write(tmp_path / "b.jsonl", [{"output": None, "gold": ["4", "four"]}, {"output": 4, "gold": 4}])
    (score,) = json_of(run_score, path, "--metric", "exact_match")["scores"]
    assert score["value"] == 0.5
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"model": "m", "results": [{"pred": "a", "label": "a"}]}), encoding="utf-8")
    assert json_of(run_score, path)["n"] == 1


def test_references_from_another_file(json_of: Json, tmp_path: Path) -> None:
    rows = answers(3, 1)
    predictions = write(tmp_path / "p.jsonl", [{"id": row["id"], "text": row["prediction"]} for row in rows])
    gold = write(tmp_path / "gold.csv", [{"id": row["id"], "answer": row["reference"]} for row in rows[::-1]])
    assert json_of(run_score, predictions, "--references", gold)["scores"][0]["value"] == 0.75
    with pytest.raises(ConfigError, match=r"Expected a column of references, got text, id; .*--references FILE"):
        run_score([str(predictions)])
    short = write(tmp_path / "short.csv", [{"id": "r0", "answer": "yes"}, {"id": "other", "answer": "yes"}])
    with pytest.raises(ConfigError, match=r"got none for 3 of them \(r1, r2, r3\) and 1 others \(other\)"):
        run_score([str(predictions), "--references", str(short)])
    more = write(tmp_path / "more.csv", [{"id": f"r{i}", "answer": "yes"} for i in range(5)])
    with pytest.raises(ConfigError, match=r"got none for 0 of them \(\) and 1 others \(r4\)"):
        run_score([str(predictions), "--references", str(more)])  # a row that was never answered must not vanish
    by_order = write(tmp_path / "o.csv", [{"answer": "yes"}] * 4)
    with pytest.raises(ConfigError, match="or --by-order"):
        run_score([str(predictions), "--references", str(by_order)])
    assert json_of(run_score, predictions, "--references", by_order, "--by-order")["scores"][0]["value"] == 0.75


def test_the_named_reference_column_may_stand_in_the_other_file(json_of: Json, tmp_path: Path) -> None:
    predictions = write(tmp_path / "p.jsonl", [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}])
    gold = write(tmp_path / "gold.csv", [{"id": "2", "truth": "b"}, {"id": "1", "truth": "x"}])
    content = json_of(run_score, predictions, "--references", gold, "--columns", "reference=truth,prediction=text")
    assert content["scores"][0]["value"] == 0.5


def test_what_is_missing_is_no_text(json_of: Json, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"pred": NaN, "gold": "nan", "image_sha256": []}\n{"pred": "b", "gold": "b"}\n', encoding="utf-8")
    (score,) = json_of(run_score, path, "--metric", "exact_match")["scores"]
    assert (score["value"], score["parse_failures"], score["interval_method"]) == (0.5, 1, "Wilson")
    path.write_text('{"pred": "nan", "gold": NaN}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="Expected a reference in row 1, got nan"):
        run_score([str(path)])


def test_a_run_folder_knows_its_references(json_of: Json, tmp_path: Path, compose: Callable[..., Any]) -> None:
    from omegaconf import OmegaConf

    from vlmft.data.make import make_dataset
    from vlmft.run.folder import CONFIG_FILE, plain

    config = compose("model=tiny_qwen2vl", "data=shapes", "data.options.test_rows=12")
    dataset = make_dataset(config.data)
    samples = [dataset.to_sample(dataset.read(row_id)) for row_id in dataset.index()["test"]]
    OmegaConf.save(OmegaConf.create(plain(config)), tmp_path / CONFIG_FILE)
    (tmp_path / "predictions").mkdir()
    rows = [{"id": sample.id, "text": f"{sample.answer} items", "image_sha256": [sample.id]} for sample in samples]
    path = write(tmp_path / "predictions/tuned.jsonl", rows)
    content = json_of(run_score, path)
    assert content["scores"][0]["value"] == 1 and content["n"] == 12
    assert content["scores"][0]["metric"].startswith("count_accuracy/")
    assert not content["scores"][0]["suspicious"]  # right, and not by repeating the reference
    assert json_of(run_score, path, "--by-order")["scores"][0]["value"] == 1  # its ids still name the run's rows
    write(path, [*rows, {"id": "shapes/A/test/999999", "text": "3", "image_sha256": ["x"]}])
    with pytest.raises(ConfigError, match="the run's data no longer gives its rows"):
        run_score([str(path)])


def test_corpus_metrics_classes_and_suites(json_of: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": "Texas", "gold": "Texas"}, {"text": "it is new york", "gold": "New York"}]
    path = write(tmp_path / "a.jsonl", rows)
    tables = json_of(run_score, path, "--metric", "captions")["tables"]
    assert {name.split("/")[0] for name in tables} == {"chrf", "rouge", "bleu", "cider_d"}
    assert tables["bleu/sacrebleu-nfc@1"]["values"] == {"bleu": None}
    run_score([str(path), "--metric", "bleu"])
    shown = capsys.readouterr().out
    assert "withheld, because" in shown and " 0.0000" not in shown
    with pytest.raises(ConfigError, match="Expected the list of classes with alias_accuracy"):
        run_score([str(path), "--metric", "classes"])
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"Texas": [], "New York": ["NY"], "Ohio": []}), encoding="utf-8")
    content = json_of(run_score, path, "--metric", "classes", "--classes", classes)
    assert [score["value"] for score in content["scores"]] == [0.5, 1.0]
    assert content["tables"]["macro_f1/words-longest-first@1"]["values"]["macro_f1"] == pytest.approx(2 / 3)


VQA_V2 = [{"answer": "yes", "answer_confidence": "maybe", "answer_id": i} for i in range(1, 10)] + [{"answer": "no"}]


def test_the_answers_of_vqa_v2_are_texts(json_of: Json, tmp_path: Path) -> None:
    rows = [{"question_id": 1, "prediction": "yes", "answers": VQA_V2}]
    content = json_of(run_score, write(tmp_path / "a.jsonl", rows), "--metric", "exact_match,vqa_accuracy")
    assert [score["value"] for score in content["scores"]] == [1.0, 1.0]
    gold = tmp_path / "annotations.json"  # as published: one list among other things, and no predictions
    row = {"question_id": 1, "answers": VQA_V2, "image_id": 4}
    gold.write_text(json.dumps({"info": {"year": 2017}, "annotations": [row]}), encoding="utf-8")
    predictions = write(tmp_path / "p.json", [{"question_id": 1, "answer": "no"}])
    arguments = (predictions, "--references", gold, "--columns", "prediction=answer", "--metric", "exact_match")
    assert json_of(run_score, *arguments)["scores"][0]["value"] == 1.0


@pytest.mark.parametrize("answers", [[["yes"]], {"x": 1}, {"answer": "yes"}, [{"text": "yes"}], [{"answer": ["yes"]}]])
def test_other_nested_answers_are_refused(answers: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prediction": "yes", "answers": answers}])
    with pytest.raises(ConfigError, match="Expected a text or a list of texts as reference of row 1 "):
        run_score([str(path)])


@pytest.mark.parametrize(
    "text", ["[\"it's\", 'no']", '["yes", "no"]', "['yes' 'no']", str(VQA_V2[:3]), json.dumps(VQA_V2[:3])]
)
def test_a_list_written_as_text_is_refused(text: str, json_of: Json, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{"prediction": "yes", "answers": text}])  # what pandas writes
    with pytest.raises(ConfigError, match=r"got a list written as text, .*--alternatives"):
        run_score([str(path)])
    meant = write(tmp_path / "a.jsonl", [{"prediction": text, "answers": [text]}])
    assert json_of(run_score, meant, "--metric", "exact_match")["scores"][0]["value"] == 1
    boxes = write(tmp_path / "b.csv", [{"prediction": "[1, 2]", "answers": "[1, 2]"}])
    assert json_of(run_score, boxes)["scores"][0]["value"] == 1


def test_columns_are_looked_for_in_all_records(json_of: Json, tmp_path: Path) -> None:
    rows = [{"gold": "a"}, {"pred": "b", "gold": "b"}]
    assert json_of(run_score, write(tmp_path / "a.jsonl", rows))["scores"][0]["value"] == 0.5
    predictions = write(tmp_path / "p.csv", [{"pred": "a"}, {"pred": "b"}])
    gold = write(tmp_path / "gold.jsonl", [{"n": 1, "truth": "a"}, {"n": 2, "truth": "b", "extra": 1}])
    arguments = (predictions, "--references", gold, "--by-order", "--columns", "reference=truth")
    assert json_of(run_score, *arguments)["scores"][0]["value"] == 1


def test_scores_beyond_one_are_no_percentages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path / f"{n}.csv", [{"id": i, "s": n + i % 2} for i in range(20)]) for n in (0, 3)]
    options = ["--columns", "score=s"]
    run_score([str(files[1]), *options])
    shown = capsys.readouterr().out
    assert "score in column s: 3.5 (95 % interval 3." in shown and "350" not in shown
    run_score([str(files[0]), *options])
    assert "score in column s: 50.00 % (95 %" in capsys.readouterr().out
    run_compare([*map(str, files), *options])
    shown = capsys.readouterr().out
    assert "0.csv -> " in shown and "3.csv: +3 (95 % interval +2." in shown
    assert "points" not in shown and "300" not in shown and "50.00" not in shown
    assert "\n     0.5  (0." in shown and "\n     3.5  (3." in shown


def test_a_group_of_images_has_an_interval(json_of: Json, tmp_path: Path) -> None:
    """Ten right rows on two images: drawn again and again, they are always all right."""
    rows = [{**row, "image_sha256": f"image {i % 2}"} for i, row in enumerate(answers(10, 0))]
    (score,) = json_of(run_score, write(tmp_path / "a.jsonl", rows))["scores"]
    assert (score["interval_method"], score["value"], score["n_groups"]) == ("Wilson by group", 1.0, 2)
    assert score["interval"] == pytest.approx([0.0975, 1.0], abs=1e-3)  # of 2 of 2, with Student's quantile for 2


# --- compare


def test_rows_are_aligned_by_id(json_of: Json, tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", answers(20, 20))
    second = write(tmp_path / "b.jsonl", answers(30, 10)[::-1])
    (found,) = json_of(run_compare, first, second)["comparisons"]
    assert (found["only_first"], found["only_second"], found["verdict"]) == (0, 10, "better")
    missing = write(tmp_path / "c.csv", answers(30, 9))
    with pytest.raises(ConfigError, match=r"got 1 \(r39\) only in .*a\.csv"):
        run_compare([str(first), str(missing)])
    with pytest.raises(ConfigError, match=r"Expected 40 rows as in .*a\.csv, got 39"):
        run_compare([str(first), str(missing), "--by-order"])


def test_one_row_has_one_reference(tmp_path: Path) -> None:
    """Two files in another order, paired by order: the defect that no id in a row invites."""
    rows = [{"prediction": str(i % 7), "reference": str(i % 7)} for i in range(50)]
    first, second = write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", rows[::-1])
    with pytest.raises(ConfigError, match=r"Expected each row's reference as in .*a\.csv, got others in 42 rows"):
        run_compare([str(first), str(second), "--by-order"])
    with pytest.raises(ConfigError, match=r"Expected an id column, got none; use --columns id=\.\.\. or --by-order"):
        run_compare([str(first), str(second)])


def test_several_files_are_held_against_the_first_with_holm(
    json_of: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write(tmp_path / f"{n}.csv", answers(20 + n, 20 - n)) for n in (0, 6, 7, 12)]
    found = json_of(run_compare, *files)["comparisons"]
    assert [one["p_value"] for one in found] == [2 / 2**6, 2 / 2**7, 2 / 2**12]
    assert [one["p_holm"] for one in found] == [2 / 2**6, 4 / 2**7, 6 / 2**12]
    assert [one["verdict"] for one in found] == ["better"] * 3
    run_compare([str(file) for file in files])
    shown = capsys.readouterr().out
    assert shown.count(" (Holm for 3: ") == 3 and "Holm's for 3 comparisons" in shown


def test_groups_are_drawn_together(json_of: Json, tmp_path: Path) -> None:
    one, other = answers(20, 20), answers(30, 10)
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        a["chart"] = b["chart"] = f"chart {i // 10}"  # ten questions each
    files = write(tmp_path / "a.csv", one), write(tmp_path / "b.csv", other)
    (alone,) = json_of(run_compare, *files)["comparisons"]
    (grouped,) = json_of(run_compare, *files, "--columns", "group=chart")["comparisons"]
    assert (alone["verdict"], alone["n_groups"]) == ("better", 40)
    assert (grouped["verdict"], grouped["n_groups"], grouped["n"]) == ("not distinguishable", 4, 40)
    other[0]["chart"] = "another"
    write(files[1], other)
    with pytest.raises(ConfigError, match=r"Expected each row's group .* in 1 rows \(r0\)"):
        run_compare([*map(str, files), "--columns", "group=chart"])


def test_a_column_of_images_groups_rows(json_of: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The defect: 40 rows on four images, named in the file, counted as 40 independent ones (McNemar p = 0.002)."""
    one, other = answers(20, 20), answers(30, 10)
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        a["image"] = b["image"] = f"chart {i // 10}.png"
    files = write(tmp_path / "a.csv", one), write(tmp_path / "b.csv", other)
    (found,) = json_of(run_compare, *files)["comparisons"]
    assert (found["n"], found["n_groups"], found["kind"]) == (40, 4, "images")
    assert found["verdict"] == "not distinguishable" and found["p_value"] > 0.05 and found["interval"][0] <= 0
    run_score([str(files[0])])
    shown = capsys.readouterr().out
    assert "a.csv: 40 rows, 4 images;" in shown and "Wilson by group" in shown
    assert "With 40 rows, 4 images no difference between two arms can be distinguished from chance" in shown
    run_compare([*map(str, files)])
    shown = capsys.readouterr().out
    assert " on 40 rows, 4 images\n" in shown and shown.count("With 40 rows, 4 images") == 1


def test_what_occurred_in_one_file_alone_is_reported_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], json_of: Json
) -> None:
    whole = [{**row, "finish": "stop"} for row in answers(20, 20)]
    cut = [{**row, "finish": "length" if i < 12 else "stop"} for i, row in enumerate(answers(20, 20))]
    files = write(tmp_path / "a.jsonl", whole), write(tmp_path / "b.jsonl", cut)
    run_compare([*map(str, files)])
    shown = capsys.readouterr().out
    assert (
        shown.startswith("caution: Unequal treatment: 0.0 % of the answers of ") and "cut at the length limit" in shown
    )
    assert "20.0 % to 50.0 %: a difference of -30.0 to +0.0 points" in shown
    assert len(json_of(run_compare, *files)["cautions"]) == 1


def test_the_best_of_three_files_is_reported(tmp_path: Path, json_of: Json) -> None:
    files = [write(tmp_path / f"{n}.csv", answers(20 + n, 20 - n)) for n in (0, 6, 7, 12)]
    (caution,) = json_of(run_compare, *files)["cautions"]
    assert "12.csv is the best of 3 candidates on these very rows, which flatters it: 80.0 %" in caution
    assert json_of(run_compare, *files[:3])["cautions"] == []


def grouped_by(rows: Sequence[dict[str, Any]], groups: Sequence[object]) -> list[dict[str, Any]]:
    return [{**row, "image_sha256": [str(group)]} for row, group in zip(rows, groups, strict=True)]


def test_a_file_without_groups_has_no_say(json_of: Json, tmp_path: Path) -> None:
    """Ours against another tool's: ours knows the images."""
    images = [i // 2 for i in range(40)]
    ours = write(tmp_path / "ours.jsonl", grouped_by(answers(20, 20), images)[::-1])
    theirs = write(tmp_path / "theirs.csv", answers(30, 10))
    more = write(tmp_path / "more.csv", answers(20, 20))
    content = json_of(run_compare, ours, theirs)
    assert (content["comparisons"][0]["n_groups"], content["notes"]) == (20, [])
    assert [arm["interval_method"] for arm in content["arms"]] == ["Wilson by group"] * 2
    content = json_of(run_compare, theirs, more, ours)
    assert [one["n_groups"] for one in content["comparisons"]] == [20, 20]
    by_order = write(tmp_path / "ours.jsonl", grouped_by(answers(20, 20), images))
    (found,) = json_of(run_compare, theirs, by_order, "--by-order")["comparisons"]
    assert found["n_groups"] == 20


def test_a_blank_arm_has_seen_other_images(json_of: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = write(tmp_path / "tuned.jsonl", grouped_by(answers(30, 10), range(40)))
    blank = write(tmp_path / "blank.jsonl", grouped_by(answers(20, 20), ["black"] * 40))
    content = json_of(run_compare, tuned, blank)
    assert (content["comparisons"][0]["n_groups"], content["comparisons"][0]["verdict"]) == (40, "worse")
    (note,) = content["notes"]
    assert f"groups are those of {tuned} (40); {blank} has others (1)" in note
    run_compare([str(tuned), str(blank)])
    assert f"note: {note}" in capsys.readouterr().out
    renamed = write(tmp_path / "renamed.jsonl", grouped_by(answers(20, 20), [f"other {i}" for i in range(40)]))
    assert json_of(run_compare, tuned, renamed)["notes"] == []  # other names of the same groups


def test_each_file_may_have_columns_of_its_own(json_of: Json, tmp_path: Path) -> None:
    rows = answers(20, 20)
    first = write(tmp_path / "a.csv", [{"key": row["id"], "said": row["prediction"], "gold": "yes"} for row in rows])
    rows = answers(30, 10)
    second = write(tmp_path / "b.csv", [{"n": row["id"], "model": row["prediction"], "truth": "yes"} for row in rows])
    one, other = "id=key,prediction=said", "id=n,prediction=model,reference=truth"
    for arguments in (
        (first, second, "--columns", one, "--columns", other),
        (first, "--columns", one, second, "--columns", other),
    ):
        (found,) = json_of(run_compare, *arguments)["comparisons"]
        assert (found["only_first"], found["only_second"]) == (0, 10)
    with pytest.raises(ConfigError, match="--columns: Expected it once, or once for each of 2 files, got it 3 times"):
        run_compare([str(first), str(second), *["--columns", one] * 3])
    with pytest.raises(ConfigError, match="--columns: Expected it once, or once for each of 1 files, got it 2 times"):
        run_score([str(first), *["--columns", one] * 2])


def test_by_order_ids_have_no_say(json_of: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "id": "same"} for row in answers(30, 10)]
    files = write(tmp_path / "a.csv", answers(20, 20)), write(tmp_path / "b.csv", rows)
    (found,) = json_of(run_compare, *files, "--by-order")["comparisons"]
    assert (found["only_second"], found["n_groups"]) == (10, 40)
    assert json_of(run_score, files[1], "--by-order")["scores"][0]["value"] == 0.75
    gold = write(tmp_path / "gold.csv", [{"id": "same", "gold": "yes"}] * 40)
    assert json_of(run_score, files[1], "--references", gold, "--by-order")["scores"][0]["value"] == 0.75
    with pytest.raises(ConfigError, match=r"got row 2 as row 1 in every cell \(id 'same'\); .*--by-order"):
        run_compare([*map(str, files)])


# --- mistakes


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        ("pred,gold\n1,1,1\n", (), "got 1 too many in row 1; quote cells"),
        ("pred,gold\n1\n", (), "got 1 too few in row 1"),
        ("", (), "Expected a header line and rows, got an empty file"),
        ("a,b\n1,1\n", (), "Expected a column of predictions, got a, b"),
        ("pred,gold\n1,1\n", ("--columns", "prediction=predd"), "no column 'predd' for prediction; did you mean pred"),
        ("pred,gold\n1,1\n", ("--columns", "predction=pred"), "Expected USE=COLUMN with a use of prediction"),
        ("pred,gold\n1,\n", (), "Expected a reference in row 1"),
        ("pred,gold\n1,1\n", ("--metric", "exact_mach"), "did you mean 'exact_match'"),
        ("pred,gold\n1,many\n", ("--metric", "count_accuracy"), r"--metric count_accuracy: .*got 'many'.*\(row 1\)"),
        ("pred,gold\n1,1\n", ("--mteric", "x"), "mteric: no such setting; did you mean 'metric'"),
        ("id,pred,gold\n1,1,1\n1,2,2\n", ("--columns", "id=id"), r"Expected every id once, got 1 several times \(1\)"),
        ("id,pred,gold\n1,1,1\n1,1,1\n", (), "Expected each row once, got row 2 as row 1"),
        ("id,pred,gold\n,1,1\n", ("--columns", "id=id"), "row 1 has no id"),
        ("pred,gold,pred\n1,1,2\n", (), "Expected each column once, got several called pred"),
        ("Pred,gold,pred\n1,1,2\n", (), "Expected one column for prediction, got 'Pred' and 'pred'"),
        ("pred,gold\n1,1\n", ("--by", "kind"), "--by: Expected a column called 'kind', got none"),
        ("pred,gold\n1,1\n", ("--extract", "slot"), "extract: Expected auto, .*got 'slot'"),
        ("pred,gold\n1,yes\n", ("--extract", "letter"), "got 'yes' in row 1; take --extract tag, or none"),
        ("pred,gold\n1,yes\n", ("--extract", "last-number"), "Expected references with a number .* got 'yes' in row 1"),
        (
            "pred,gold\n1,1\n",
            ("--rows", "items"),
            "--rows: Expected a list of rows called 'items', got one list without",
        ),
        ("pred,gold\n1,1\n", ("--encoding", "utf-99"), "Expected text in utf-99, got unknown encoding"),
        ("id,s\n1,high\n", ("--columns", "score=s"), "Expected a number as score of row 1, got 'high'"),
    ],
)
def test_mistakes_are_named(text: str, arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence):
        run_score([str(path), *arguments])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"pred": 1}\n{"pred"\n', encoding="utf-8")
    (tmp_path / "a.csv").write_bytes(bytes(range(128, 160)) * 3)
    (tmp_path / "a.xls").write_text("1", encoding="utf-8")
    (tmp_path / "a.txt").write_text('{"pred": 1}', encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.json").write_text('{"a": [], "b": []}', encoding="utf-8")
    for name in ("deep.json", "deep.jsonl"):
        (tmp_path / name).write_text("[" * 100_000 + "]" * 100_000, encoding="utf-8")
    for name, sentence in {
        "a.jsonl": "Expected JSON in line 2",
        "a.csv": "save it as UTF-8, or name its encoding",
        "a.xls": "save it as .xlsx or as CSV",
        "a.txt": "Expected a text a line, got JSON",
        "a.json": "Expected rows with named columns",
        "folder": "Expected a file, got a folder",
        "deep.json": "lists in lists too deep",
        "deep.jsonl": "lists in lists too deep",
        "absent.csv": "Expected a file, got none there",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            run_score([str(tmp_path / name)])


def test_compare_refuses_what_it_cannot_pair(tmp_path: Path) -> None:
    path, other = write(tmp_path / "a.csv", answers(1, 1)), write(tmp_path / "b.csv", answers(2, 0))
    for files in ((path,), (path, path)):
        with pytest.raises(ConfigError, match="Expected two files or more"):
            run_compare([*map(str, files)])
    for metric in ("bleu", "exact_match,token_f1"):
        with pytest.raises(ConfigError, match="Expected one metric with a score for each row"):
            run_compare([str(path), str(other), "--metric", metric])


@pytest.mark.parametrize("tool", ["score", "compare"])
def test_no_torch_and_one_line_for_a_mistake(tool: str, tmp_path: Path) -> None:
    files = [str(write(tmp_path / f"{name}.csv", answers(5, 5))) for name in ("a", "b")]
    code = """
import sys
from vlmft.tools.cli import main
main()
heavy = {"torch", "transformers", "lightning", "peft", "datasets", "wandb", "torchmetrics"} & set(sys.modules)
print("heavy:", sorted(heavy))
"""
    command = [sys.executable, "-c", code, tool, *files[: 1 if tool == "score" else 2]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.endswith("heavy: []\n") and "50.00 %" in done.stdout
    done = subprocess.run([*command, "--metric", "nine"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["score", "FILE"], ["score", "FILE", "--json"], ["score", "--help"], ["--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_may_leave(arguments: list[str], unbuffered: str, tmp_path: Path) -> None:
    """`vlmft score ... | head`: the pipe's other end is closed before anything is written, at once or at the end."""
    path = write(tmp_path / "a.csv", answers(5, 5))
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "vlmft", *(str(path) if one == "FILE" else one for one in arguments)]
    try:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False, env=environment
        )
    finally:
        os.close(writing)
    assert (done.stderr, done.returncode) == ("", 1)
