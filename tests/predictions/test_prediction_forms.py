"""Predictions as other tools write them: each form gives the figure that its rows have, or one line of what to do."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vlmft.config.check import ConfigError
from vlmft.tools.cli import run_tool

run_compare = partial(run_tool, "compare")
run_score = partial(run_tool, "score")

FIELD = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "field"
needs_field = pytest.mark.skipif(not FIELD.exists(), reason=f"no {FIELD}; set VLMFT_REFERENCE_DATA")

COLOURS = ("red", "green", "blue", "red", "green", "blue", "red", "green", "blue", "red")
SAID = ("red", "green", "red", "red", "green", "blue", "red", "blue", "blue", "red")
RIGHT = 0.8
"""Of `SAID` against `COLOURS`, counted by hand: rows 2 and 7 are wrong."""

Tool = Callable[[Sequence[str]], None]
Json = Callable[..., dict[str, Any]]
Row = Callable[[int, str, str], dict[str, Any]]


def made(row: Row) -> list[dict[str, Any]]:
    return [row(i, said, gold) for i, (said, gold) in enumerate(zip(SAID, COLOURS, strict=True))]


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def whole(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
    return path


def table(path: Path, rows: Sequence[dict[str, Any]], separator: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


PLAIN = made(lambda i, said, gold: {"id": i, "prediction": said, "answer": gold})

LMMS = made(
    lambda i, said, gold: {
        "doc_id": i,
        "doc": {"question": "Which colour?", "answer": "of the document"},
        "target": gold,
        "arguments": {"0": "Which colour?", "1": {"until": ["\n"]}},
        "resps": [[said]],
        "filtered_resps": [said],
        "exact_match": 0.5,
    }
)
LMMS_RESPS_ALONE = made(lambda i, said, gold: {"doc_id": i, "resps": [[said]], "doc": {"answer": gold}})
LLAMA_FACTORY = made(lambda i, said, gold: {"prompt": f"user\n{i}", "predict": said, "label": gold + "\n"})
MS_SWIFT = made(
    lambda i, said, gold: {
        "response": said,
        "labels": gold,
        "logprobs": None,
        "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": said}],
        "history": [],
        "images": [{"bytes": None, "path": f"{i}.png"}],
    }
)
TRL = made(lambda i, said, gold: {"prompt": "?", "completion": said, "solution": gold})
TRL_CHAT = made(lambda i, said, gold: {"completion": [{"role": "assistant", "content": said}], "solution": gold})
PARTS = made(
    lambda i, said, gold: {
        "response": [{"role": "assistant", "content": [{"type": "text", "text": said}]}],
        "gold": gold,
    }
)
PIPELINE = made(lambda i, said, gold: {"output": [{"generated_text": said}], "label": gold})
VLMEVALKIT = made(lambda i, said, gold: {"index": i, "question": "Which?", "answer": gold, "prediction": said})
ODD_HEADS = made(lambda i, said, gold: {" Question ID": i, "PREDICTION ": said, "Ground Truth": gold})
CAMEL = made(lambda i, said, gold: {"questionId": i, "modelPrediction": said, "groundTruth": gold})
VLLM = made(lambda i, said, gold: {"outputs": [{"text": said, "index": 0}], "gt": gold})


@pytest.mark.parametrize(
    ("rows", "prediction", "reference", "row_id"),
    [
        (LMMS, "filtered_resps", "target", "doc_id"),
        (LMMS_RESPS_ALONE, "resps", "doc.answer", "doc_id"),
        (LLAMA_FACTORY, "predict", "label", None),
        (MS_SWIFT, "response", "labels", None),
        (TRL, "completion", "solution", None),
        (TRL_CHAT, "completion", "solution", None),
        (PARTS, "response", "gold", None),
        (PIPELINE, "output", "label", None),
        (VLMEVALKIT, "prediction", "answer", "index"),
        (ODD_HEADS, "PREDICTION ", "Ground Truth", " Question ID"),
        (CAMEL, "modelPrediction", "groundTruth", "questionId"),
        (VLLM, "outputs.0.text", "gt", None),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value),
)
def test_columns_of_other_tools(
    rows: list[dict[str, Any]], prediction: str, reference: str, row_id: str | None, json_of: Json, tmp_path: Path
) -> None:
    content = json_of(run_score, lines(tmp_path / "a.jsonl", rows))
    expected = {"prediction": prediction, "reference": reference, **({"id": row_id} if row_id else {})}
    assert content["columns"] == expected
    assert content["n"] == 10 and content["scores"][0]["value"] == RIGHT
    assert content["notes"] == []
    assert json_of(run_score, whole(tmp_path / "a.json", rows))["scores"][0]["value"] == RIGHT  # a list
    assert json_of(run_score, whole(tmp_path / "list.jsonl", rows))["scores"][0]["value"] == RIGHT
    assert json_of(run_score, lines(tmp_path / "lines.json", rows))["scores"][0]["value"] == RIGHT


def test_a_batch_of_openai(json_of: Json, tmp_path: Path) -> None:
    def row(i: int, said: str, gold: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": said}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "length" if i == 3 else "stop"}]}
        return {"id": f"batch_{i}", "custom_id": f"q{i}", "response": {"status_code": 200, "body": body}, "error": None}

    rows = made(row)[::-1]  # in whatever order they were done
    predictions = lines(tmp_path / "batch.jsonl", rows)
    gold = lines(
        tmp_path / "gold.jsonl", [{"custom_id": f"q{i}", "answer": colour} for i, colour in enumerate(COLOURS)]
    )
    content = json_of(run_score, predictions, "--references", gold)
    assert content["columns"]["prediction"] == "response.body.choices.0.message.content"
    (score,) = content["scores"]
    assert (score["value"], score["truncated"]) == (RIGHT, 1)
    named = ("--columns", "prediction=response.body.choices.0.message.content,id=custom_id")
    assert json_of(run_score, predictions, "--references", gold, *named)["scores"][0]["value"] == RIGHT


OPENCOMPASS = {
    str(i): {"origin_prompt": [{"role": "HUMAN", "prompt": "Which colour?"}], "prediction": said, "gold": gold}
    for i, (said, gold) in enumerate(zip(SAID, COLOURS, strict=True))
}
BY_KEY = {f"q{i}": {"pred": said, "gold": gold} for i, (said, gold) in enumerate(zip(SAID, COLOURS, strict=True))}
DETAILS = {str(i): {"pred": said, "answer": gold} for i, (said, gold) in enumerate(zip(SAID, COLOURS, strict=True))}


@pytest.mark.parametrize(
    "value",
    [
        OPENCOMPASS,
        {"predictions": OPENCOMPASS},
        {"accuracy": 80.0, "details": OPENCOMPASS},
        {"accuracy": 80.0, "details": {"type": "GEN", **DETAILS}},
        {"model": {"name": "m"}, "results": {"boxqa": {"details": DETAILS}}},
        BY_KEY,
        {"model": "m", "config": {"seed": 1}, "results": PLAIN},
        {"model": "m", "prompts": [{"role": "user", "text": "?"}], "results": PLAIN},
        {"splits": {"human": {"accuracy": 0.8, "items": PLAIN}}},
        [{"split": "human", "items": PLAIN}],
        {"accuracy": 80.0, "predictions": list(SAID), "references": list(COLOURS)},
        {"pred": list(SAID), "gold": list(COLOURS)},
        {"pred": dict(enumerate(SAID)), "gold": dict(enumerate(COLOURS))},
        {"columns": ["pred", "gold"], "index": list(range(10)), "data": [*map(list, zip(SAID, COLOURS, strict=True))]},
    ],
    ids=range(14),
)
def test_containers(value: Any, json_of: Json, tmp_path: Path) -> None:
    content = json_of(run_score, whole(tmp_path / "a.json", value))
    assert content["n"] == 10 and content["scores"][0]["value"] == RIGHT


def test_keys_are_ids(json_of: Json, tmp_path: Path) -> None:
    shuffled = dict(sorted(OPENCOMPASS.items(), key=lambda item: item[1]["gold"]))
    for value in (OPENCOMPASS, {"details": OPENCOMPASS}, BY_KEY):
        assert json_of(run_score, whole(tmp_path / "a.json", value))["columns"]["id"] == "id"
    first, second = whole(tmp_path / "a.json", OPENCOMPASS), whole(tmp_path / "b.json", {"details": shuffled})
    (found,) = json_of(run_compare, first, second)["comparisons"]
    assert (found["only_first"], found["only_second"]) == (0, 0)


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"predictions": value}])
def test_texts_by_id(wrap: Callable[[Any], Any], json_of: Json, tmp_path: Path) -> None:
    """What SQuAD's, DocVQA's and GQA's scripts take."""
    said = {f"q{i}": text for i, text in enumerate(SAID)}
    gold = {f"q{i}": [text] for i, text in reversed(list(enumerate(COLOURS)))}
    predictions, references = whole(tmp_path / "p.json", wrap(said)), whole(tmp_path / "g.json", gold)
    assert json_of(run_score, predictions, "--references", references)["scores"][0]["value"] == RIGHT


def test_several_lists_are_all_read_and_kept_apart(
    json_of: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [{**row, "prediction": "none"} for row in PLAIN[:5]]
    value = {"model": "m", "splits": {"human": {"items": PLAIN}, "augmented": {"items": wrong}}}
    path = whole(tmp_path / "a.json", value)
    content = json_of(run_score, path)
    (score,) = content["scores"]
    assert content["n"] == 15 and score["value"] == pytest.approx(8 / 15)
    assert {name: (one["n"], one["value"]) for name, one in score["values"].items()} == {
        "human": (10, RIGHT),
        "augmented": (5, 0.0),
    }
    assert score["by"] == "split" and "10 of 'human', 5 of 'augmented'" in " ".join(content["notes"])
    assert json_of(run_score, path, "--rows", "splits.human")["scores"][0]["value"] == RIGHT
    run_score([str(path)])
    shown = capsys.readouterr().out
    assert "human: 80.00 %" in shown and "augmented: 0.00 %" in shown and "10 rows" in shown
    items = [{**row, "n": 1} for row in PLAIN[:5]]
    better = {"splits": {"augmented": {"items": items}, "human": {"items": PLAIN}}}
    comparison = json_of(run_compare, path, whole(tmp_path / "b.json", better))
    assert comparison["comparisons"][0]["only_second"] == 4  # of the five, row 2 is wrong in both
    assert comparison["by_value"]["human"][0]["difference"] == 0
    with pytest.raises(ConfigError, match=r"Expected a list of rows called 'dogs', got 'splits\.human\.items', "):
        run_score([str(path), "--rows", "dogs"])


def test_a_row_in_two_lists_is_not_counted_twice(tmp_path: Path, json_of: Json) -> None:
    path = whole(tmp_path / "a.json", {"all": PLAIN, "errors": [PLAIN[2], PLAIN[7]]})
    with pytest.raises(ConfigError, match="got those of 'errors' in 'all' too; choose with --rows all"):
        run_score([str(path)])
    assert json_of(run_score, path, "--rows", "all")["scores"][0]["value"] == RIGHT


def test_a_text_a_line(json_of: Json, tmp_path: Path) -> None:
    said, gold = tmp_path / "said.txt", tmp_path / "gold.txt"
    said.write_text("\n".join(SAID) + "\n", encoding="utf-8")
    gold.write_bytes("\r\n".join(COLOURS).encode())
    content = json_of(run_score, said, "--references", gold)
    assert content["scores"][0]["value"] == RIGHT
    assert content["notes"] == ["predictions and references are paired line by line"]
    said.write_text("\n".join([*SAID[:4], "", *SAID[5:]]), encoding="utf-8")  # an empty answer is a row
    (score,) = json_of(run_score, said, "--references", gold)["scores"]
    assert (score["value"], score["parse_failures"], score["n"]) == (0.7, 1, 10)
    gold.write_text("\n".join(COLOURS[:9]), encoding="utf-8")
    with pytest.raises(ConfigError, match="equal lengths, got 10 and 9 rows"):
        run_score([str(said), "--references", str(gold)])
    with pytest.raises(ConfigError, match="Expected a column of references"):
        run_score([str(said)])
    texts = whole(tmp_path / "said.json", list(SAID))
    gold.write_text("\n".join(COLOURS), encoding="utf-8")
    assert json_of(run_score, texts, "--references", gold)["scores"][0]["value"] == RIGHT


def test_texts_a_line_are_compared_line_by_line(json_of: Json, tmp_path: Path) -> None:
    for name, said in (("a.txt", SAID), ("b.txt", COLOURS), ("gold.txt", COLOURS)):
        (tmp_path / name).write_text("\n".join(said), encoding="utf-8")
    files = (tmp_path / "a.txt", tmp_path / "b.txt", "--references", tmp_path / "gold.txt")
    (found,) = json_of(run_compare, *files)["comparisons"]
    assert (found["first_value"], found["second_value"]) == (RIGHT, 1.0)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1251"])
def test_tables_in_any_encoding(separator: str, encoding: str, json_of: Json, tmp_path: Path) -> None:
    russian = {"red": "красный цвет", "green": "зелёный цвет", "blue": "синий цвет"}
    rows = made(lambda i, said, gold: {"index": i, "prediction": russian[said], "answer": russian[gold]})
    path = table(tmp_path / ("a.tsv" if separator == "\t" else "a.csv"), rows, separator, encoding)
    content = json_of(run_score, path)
    (score,) = content["scores"]
    assert (score["value"], score["top_answer"]) == (RIGHT, "красный цвет")
    assert ("guessed" in content["form"]) == (encoding == "cp1251")


def test_parquet_and_workbook(json_of: Json, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(LMMS), tmp_path / "a.parquet")
    content = json_of(run_score, tmp_path / "a.parquet")
    assert content["columns"]["prediction"] == "filtered_resps" and content["scores"][0]["value"] == RIGHT
    openpyxl = pytest.importorskip("openpyxl", reason="no openpyxl; pip install 'vlmft[xlsx]'")
    book = openpyxl.Workbook()
    for row in (list(VLMEVALKIT[0]), *(list(row.values()) for row in VLMEVALKIT)):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert json_of(run_score, tmp_path / "a.xlsx")["scores"][0]["value"] == RIGHT


def test_lists_of_one_text_written_as_text(json_of: Json, tmp_path: Path) -> None:
    rows = made(lambda i, said, gold: {"index": i, "prediction": f"['{said}']", "answer": f"['{gold}']"})
    content = json_of(run_score, table(tmp_path / "a.tsv", rows, "\t"))
    assert content["scores"][0]["value"] == RIGHT
    assert [note.split(" were")[0] for note in content["notes"]] == ["all 10 predictions", "10 references"]
    rows[0]["prediction"] = "red"  # now the brackets are what a model said
    content = json_of(run_score, table(tmp_path / "a.tsv", rows, "\t"))
    assert content["scores"][0]["value"] == 0.1
    assert len(content["notes"]) == 1
    content = json_of(run_score, lines(tmp_path / "a.jsonl", rows[1:]))  # where a list can be one, so is a text
    (score,) = content["scores"]
    assert score["value"] == 0 and score["other_scores"][0]["value"] == pytest.approx(7 / 9)


def test_lists_of_right_answers_written_as_text(json_of: Json, tmp_path: Path) -> None:
    two = made(lambda i, said, gold: {"pred": said, "answers": str([gold, "or else"])})
    path = table(tmp_path / "a.csv", two)
    with pytest.raises(ConfigError, match="add --alternatives where each of its texts is a right answer"):
        run_score([str(path)])
    content = json_of(run_score, path, "--alternatives")
    assert content["scores"][0]["value"] == RIGHT
    assert content["notes"] == ["10 references were lists written as text: each text in them is a right answer"]
    ten = made(lambda i, said, gold: {"pred": said, "target": str([gold] * 9 + ["no"])})  # VQA's ten people
    content = json_of(run_score, table(tmp_path / "b.csv", ten), "--metric", "vqa_accuracy")
    assert content["scores"][0]["value"] == RIGHT and len(content["notes"]) == 1


def test_objects_are_json_answers(json_of: Json, tmp_path: Path) -> None:
    rows = made(lambda i, said, gold: {"prediction": {"colour": said, "n": 1}, "answer": {"n": 1.0, "colour": gold}})
    path = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(ConfigError, match=r"row 1, got \{'colour': .* or --metric json_match where this is the answer"):
        run_score([str(path)])
    assert json_of(run_score, path, "--metric", "json_match")["scores"][0]["value"] == RIGHT
    texts = [{name: json.dumps(value) for name, value in row.items()} for row in rows]
    (score,) = json_of(run_score, table(tmp_path / "a.csv", texts))["scores"]
    assert (score["metric"], score["value"]) == ("json_match/exact-values@1", RIGHT)
    (other,) = score["other_scores"]
    assert (other["option"], other["value"]) == ("--metric exact_match", 0.0)
    (score,) = json_of(run_score, table(tmp_path / "a.csv", texts), "--metric", "exact_match")["scores"]
    assert [(one["option"], one["value"]) for one in score["other_scores"]] == [("--metric json_match", RIGHT)]


def test_several_answers_to_one_question_are_no_prediction(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", made(lambda i, said, gold: {"resps": [[said, "other"]], "target": gold}))
    with pytest.raises(ConfigError, match=r"Expected one text as prediction of row 1, got \[\['red', 'other'\]\]"):
        run_score([str(path)])


def test_another_column_of_the_same_kind_is_reported(json_of: Json, tmp_path: Path) -> None:
    rows = made(lambda i, said, gold: {"pred": said, "response": f"It is {said}", "gold": gold, "answer": gold})
    content = json_of(run_score, lines(tmp_path / "a.jsonl", rows))
    assert content["notes"] == ["prediction is 'pred', and not 'response'; --columns prediction=... takes another"]
    rows = made(lambda i, said, gold: {"pred": said, "raw": said, "response": said, "gold": gold})
    assert json_of(run_score, lines(tmp_path / "b.jsonl", rows))["notes"] == []


def test_ids_that_come_twice_are_said(json_of: Json, tmp_path: Path) -> None:
    rows = made(lambda i, said, gold: {"id": i // 2, "doc_id": i, "prediction": said, "answer": gold})
    content = json_of(run_score, lines(tmp_path / "a.jsonl", rows))
    assert content["columns"]["id"] == "doc_id" and content["notes"] == []
    for row in rows:
        del row["doc_id"]
    path = lines(tmp_path / "b.jsonl", rows)
    content = json_of(run_score, path)
    assert "id" not in content["columns"] and content["scores"][0]["value"] == RIGHT
    assert "id is not taken as id: 5 values come several times (0, 1, 2)" in content["notes"][0]
    other = lines(tmp_path / "c.jsonl", rows)
    with pytest.raises(ConfigError, match=r"Expected an id column, got none \(id is not taken as id: 5 values"):
        run_compare([str(path), str(other)])


def test_results_of_vqa_need_references_from_elsewhere(json_of: Json, tmp_path: Path) -> None:
    said = [{"question_id": i, "answer": text} for i, text in enumerate(SAID)]
    notes = [
        {"question_id": i, "image_id": i, "answers": [{"answer": text, "answer_id": n} for n in range(1, 11)]}
        for i, text in enumerate(COLOURS)
    ]
    predictions = whole(tmp_path / "p.json", said)
    references = whole(tmp_path / "annotations.json", {"info": {"year": 2017}, "annotations": notes[::-1]})
    content = json_of(run_score, predictions, "--references", references, "--metric", "vqa_accuracy")
    assert content["columns"] == {"prediction": "answer", "id": "question_id"}
    assert content["scores"][0]["value"] == RIGHT


def test_answers_that_were_not_had_are_counted(json_of: Json, tmp_path: Path) -> None:
    rows = [dict(row) for row in VLMEVALKIT]
    rows[0]["prediction"] = "Failed to obtain answer via API."
    content = json_of(run_score, table(tmp_path / "a.tsv", rows, "\t"))
    assert content["scores"][0]["value"] == pytest.approx(RIGHT - 0.1)
    assert "1 predictions say 'Failed to obtain answer'" in content["notes"][0]


# --- files as people have them


def counted(path: Path, prediction: str, reference: str) -> float:
    """The share of equal cells, read by the standard library alone."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    else:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    first = [row[prediction][0] if isinstance(row[prediction], list) else row[prediction] for row in rows]
    return sum(one == row[reference] for one, row in zip(first, rows, strict=True)) / len(rows)


@needs_field
@pytest.mark.parametrize("name", ["samples_boxqa", "filtered_text"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_files_of_lmms_eval(name: str, when: str, json_of: Json) -> None:
    path = FIELD / "pred_lmms" / f"{when}_{name}.jsonl"
    content = json_of(run_score, path)
    assert content["columns"] == {"prediction": "filtered_resps", "reference": "target", "id": "doc_id"}
    assert (
        content["scores"][0]["value"]
        == counted(path, "filtered_resps", "target")
        == {"before": 0.4, "after": 52 / 60}[when]
    )


@needs_field
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_files_of_vlmevalkit(kind: str, json_of: Json) -> None:
    files = [FIELD / "pred_vlmevalkit" / f"{when}_MMBench.{kind}" for when in ("before", "after")]
    content = json_of(run_compare, *files)
    assert [arm["value"] for arm in content["arms"]] == [counted(file, "prediction", "answer") for file in files]
    assert [arm["value"] for arm in content["arms"]] == [0.2, 35 / 60]
    (other,) = content["other_scores"]
    (found,) = other["comparisons"]
    assert (other["option"], found["first_value"], found["second_value"]) == ("--extract letter", 0.4, 52 / 60)
    (found,) = json_of(run_compare, *files, "--extract", "letter", "--by", "answer")["comparisons"]
    assert (found["first_value"], found["second_value"], found["verdict"]) == (0.4, 52 / 60, "better")
    with pytest.raises(ConfigError, match=r"Expected an Excel workbook, got a damaged one .* or as CSV"):
        run_score([str(files[0].with_suffix(".xlsx"))])


@needs_field
def test_files_of_json_answers(json_of: Json) -> None:
    for name, metric, value in (("p", "json_match", 1.0), ("l", "json_match", 1.0), ("utf16", "exact_match", 0.0)):
        (score,) = json_of(run_score, FIELD / "pred_json_answers" / f"{name}.csv")["scores"]
        assert (score["metric"].split("/")[0], score["value"]) == (metric, value)


def test_scores_that_are_true_or_false(json_of: Json, tmp_path: Path) -> None:
    rows = made(lambda i, said, gold: {"index": i, "hit": said == gold})
    for path in (table(tmp_path / "a.csv", rows), lines(tmp_path / "a.jsonl", rows)):
        assert json_of(run_score, path, "--columns", "score=hit")["scores"][0]["value"] == RIGHT


def test_lists_of_one_number(json_of: Json, tmp_path: Path) -> None:
    rows = [{"id": i, "prediction": said, "answer": "[14]"} for i, said in enumerate(("14", "15"))]
    content = json_of(run_score, table(tmp_path / "a.tsv", rows, "\t"))
    assert content["scores"][0]["value"] == 0.5
    assert content["notes"] == ["2 references were a list of one number, written as text, and are that number"]


def test_lists_in_rows(json_of: Json, tmp_path: Path) -> None:
    value = [{"split": "human", "items": PLAIN}, {"split": "augmented", "items": [{**PLAIN[2], "prediction": "none"}]}]
    (score,) = json_of(run_score, whole(tmp_path / "a.json", value))["scores"]
    assert {name: one["n"] for name, one in score["values"].items()} == {"human": 10, "augmented": 1}


def test_the_list_with_the_named_column_is_read(json_of: Json, tmp_path: Path) -> None:
    shown = [{"text": "Which?", "n": 1}, {"text": "What?", "n": 2}]
    rows = made(lambda i, said, gold: {"n": i, "said": said, "gold": gold})
    path = whole(tmp_path / "a.json", {"prompts": shown, "rows": rows})
    content = json_of(run_score, path, "--columns", "prediction=said")
    assert (content["n"], content["scores"][0]["value"]) == (10, RIGHT)
    assert content["notes"] == ["rows are those of 'rows'; not read: 'prompts'"]


def test_an_image_may_be_asked_about_twice(json_of: Json, tmp_path: Path) -> None:
    rows = [{"image": "a.png", "prediction": "yes", "label": "yes"}] * 2
    content = json_of(run_score, lines(tmp_path / "a.jsonl", rows))
    assert (content["n"], content["notes"]) == (2, []) and "id" not in content["columns"]
