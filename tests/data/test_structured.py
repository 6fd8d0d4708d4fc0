"""Answers that are JSON: one spelling for all, numbers as they were written, bad ones refused by name."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.data.dataset import Dataset
from vlmft.data.datasets.columns import Columns
from vlmft.data.datasets.extraction import Extraction
from vlmft.data.datasets.messages import Messages
from vlmft.data.other_answers import with_answer
from vlmft.data.sources.structured import JsonAnswers
from vlmft.metrics.json_schema import errors_of, fits, schema_of
from vlmft.sample import BadRowError


def image(place: Path, shade: int = 0) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 6), (shade, 80, 160)).save(place)


def table(folder: Path, *answers: Any) -> Path:
    """A JSON Lines file of answers that are texts of JSON, written as they are, or anything else."""
    lines = []
    for number, answer in enumerate(answers):
        image(folder / f"{number}.png", number)
        written = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        lines.append(b'{"image": "%d.png", "question": "Read it.", "answer": %s}' % (number, written))
    file = folder / "rows.jsonl"
    file.write_bytes(b"\n".join(lines))
    return file


def answers_of(dataset: Dataset, split: Any = "train") -> list[str]:
    return [dataset.to_sample(dataset.read(row_id)).answer for row_id in dataset.index()[split]]


def test_one_spelling_for_all(tmp_path: Path) -> None:
    file = table(
        tmp_path,
        {"nm": "Tea", "price": "12.50", "n": None},
        b'{"price": 12.50, "nm": "\\u00c9clair", "n": 1e2}',
        '{"n": 3, "price": 0.10, "nm": "a b"}',
        '```json\n{"nm": "x",\n "extra": [1, {"b": 1, "a": true}]}\n```',
    )
    dataset = Columns(path=str(file), answer_format="json")
    assert answers_of(dataset) == [
        '{"nm":"Tea","price":"12.50","n":null}',
        '{"nm":"Éclair","price":12.50,"n":1e2}',
        '{"nm":"a b","price":0.10,"n":3}',
        '{"nm":"x","extra":[1,{"b":1,"a":true}]}',
    ]
    assert (dataset.metric, dataset.max_new_tokens) == ("json_fields", 512)
    assert Columns.metric == "exact_match"
    said = "JSON, keys in the order in which rows have them first: nm, price, n, extra"
    assert said in dataset.describe().roles["answer"]
    assert answers_of(pickle.loads(pickle.dumps(dataset))) == answers_of(dataset)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"a": 1', "Expected JSON as answer"),
        ("red", "Expected JSON as answer, got 'red'"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"a": NaN}', "NaN is no JSON"),
        ("4", "Expected a JSON object or list"),
        ("{}", "that is not empty"),
        (None, "Expected a JSON object or list that is not empty as answer, got None"),
    ],
)
def test_bad_json_is_refused_by_name(tmp_path: Path, answer: Any, problem: str) -> None:
    dataset = Columns(path=str(table(tmp_path, {"a": 1}, answer)), answer_format="json")
    row = dataset.index()["train"][1]
    with pytest.raises(BadRowError, match=problem):
        dataset.to_sample(dataset.read(row))


def test_a_given_schema_orders_and_refuses(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    item = {"type": "object", "properties": {"price": {"type": "number"}, "nm": {"type": "string"}}}
    whole = {"type": "object", "properties": {"total": {"type": "number"}, "menu": {"$ref": "#/$defs/menu"}}}
    schema.write_text(json.dumps({**whole, "required": ["total"], "$defs": {"menu": {"type": "array", "items": item}}}))
    file = table(tmp_path / "data", {"menu": [{"nm": "Tea", "price": 2}], "total": 2}, {"menu": []}, {"total": "2"})
    dataset = Columns(path=str(file), answer_format="json", json_schema=str(schema))
    first, *others = dataset.index()["train"]
    assert dataset.to_sample(dataset.read(first)).answer == '{"total":2,"menu":[{"price":2,"nm":"Tea"}]}'
    problems = ("'total' is a required property at [$]", "'2' is not of type 'number' at [$].total")
    for row, problem in zip(others, problems, strict=True):
        with pytest.raises(BadRowError, match=f"fit data.options.json_schema, got {problem}"):
            dataset.to_sample(dataset.read(row))
    assert dataset.answer_schema() == json.loads(schema.read_text())
    for place in (schema, file):
        os.utime(place, (1, 1))  # what was written just now may be written again within the same time
    again = Columns(path=str(file), answer_format="json", json_schema=str(schema))
    assert any(str(schema) in source for source in again.comes_from() or ())


@pytest.mark.parametrize("text", ["[", "[]", '{"type": "nonsense"}', '{"$ref": "https://example.org/x.json"}'])
def test_what_is_no_schema_is_refused(tmp_path: Path, text: str) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(text)
    dataset = Columns(path=str(table(tmp_path / "data", {"a": 1})), answer_format="json", json_schema=str(schema))
    with pytest.raises(ConfigError, match=r"^data\.options\.json_schema: Expected a JSON"):
        dataset.index()


@pytest.mark.parametrize(
    "options", [{"answer_format": "xml"}, {"json_schema": "a.json"}, {"answer_format": "json", "answers": "list"}]
)
def test_options_that_exclude_each_other(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Columns(path="rows.csv", **options)  # type: ignore[arg-type]


def test_conversations_too(tmp_path: Path) -> None:
    image(tmp_path / "1.png")
    turns = [
        {"role": "user", "content": "<image>Read it."},
        {"role": "assistant", "content": '{ "b": 1.50, "a": null }'},
    ]
    other = [turns[0], {"role": "assistant", "content": '{"a": 1, "b": 2}'}]
    rows = [{"messages": messages, "images": ["1.png"]} for messages in (turns, other)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = Messages(path=str(tmp_path / "rows.jsonl"), answer_format="json")
    assert answers_of(dataset) == ['{"b":1.50,"a":null}', '{"b":2,"a":1}']
    assert dataset.metric == "json_fields"


CORD = {"menu": [{"nm": "Nasi Goreng", "cnt": "1", "price": "45,500"}], "total": {"total_price": "45.500"}}


def test_donut_layout(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        image(tmp_path / split / "a.png", len(split))
        line = {"file_name": "a.png", "ground_truth": json.dumps({"gt_parse": CORD, "meta": {"version": "2.0.0"}})}
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps(line))
    dataset = Extraction(path=str(tmp_path))
    for split in ("train", "val"):
        (answer,) = answers_of(dataset, split)
        assert json.loads(answer) == CORD
        assert " " not in answer.replace("Nasi Goreng", "")
    sample = dataset.to_sample(dataset.read(dataset.index()["val"][0]))
    assert sample.prompt.messages[0].text == "Write what the document says as JSON. Keys: menu, total."
    assert sample.prompt.images[0].size == (8, 6)


def test_cord_layout(tmp_path: Path) -> None:
    """Parquet files of an image and a text of `gt_parse`, as on the Hub."""
    datasets = pytest.importorskip("datasets")
    image(tmp_path / "a.png")
    stored = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    truth = json.dumps({"gt_parse": CORD, "meta": {"image_id": 0}, "valid_line": [{"words": []}]})
    rows = datasets.Dataset.from_list([{"image": stored, "ground_truth": truth}]).cast_column("image", datasets.Image())
    for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
        (tmp_path / "data").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "data" / name)
    dataset = Extraction(path=str(tmp_path / "data"))
    assert [json.loads(answer) for answer in answers_of(dataset, "test")] == [CORD]
    assert dataset.to_sample(dataset.read(dataset.index()["train"][0])).prompt.images[0].size == (8, 6)


SROIE = {
    "company": "OJC MARKETING SDN BHD",
    "date": "15/01/2019",
    "address": "NO 2 & 4, JALAN BAYU 4",
    "total": "193.00",
}


@pytest.mark.parametrize(("folder", "suffix"), [("entities", "txt"), ("key", "json")])
def test_sroie_layout(tmp_path: Path, folder: str, suffix: str) -> None:
    """Images, boxes as lines of numbers and texts, and the fields of each image as JSON."""
    for split in ("train", "test"):
        image(tmp_path / split / "img" / "X1.jpg", len(split))
        (tmp_path / split / "box").mkdir()
        (tmp_path / split / "box" / "X1.txt").write_text("72,25,326,25,326,64,72,64,TAN WOON YANN")
        (tmp_path / split / folder).mkdir()
        (tmp_path / split / folder / f"X1.{suffix}").write_text(json.dumps({**SROIE, "total": split}, indent=4))
    image(tmp_path / "train" / "img" / "X2.jpg", 9)
    dataset = Extraction(path=str(tmp_path))
    assert {split: len(ids) for split, ids in dataset.index().items()} == {"train": 2, "test": 1}
    assert json.loads(answers_of(dataset, "test")[0]) == {**SROIE, "total": "test"}
    first, second = dataset.index()["train"]
    assert json.loads(dataset.to_sample(dataset.read(first)).answer)["total"] == "train"
    with pytest.raises(BadRowError, match="Expected a file of JSON, got none of the name X2"):
        dataset.to_sample(dataset.read(second))
    assert Extraction(path=str(tmp_path), question_text="Read it.").question_text == "Read it."
    (tmp_path / "train" / folder / f"X1.{suffix}").write_text('{"company": "A"')
    dataset = Extraction(path=str(tmp_path))
    with pytest.raises(BadRowError, match=r"Expected JSON as answer, got .* the image is 'train/img/X1.jpg'"):
        dataset.to_sample(dataset.read(dataset.index()["train"][0]))


def test_a_schema_of_the_training_answers() -> None:
    schema = schema_of(['{"a": 1, "l": [{"n": "x"}], "d": null}', '{"a": 2.5, "l": [{"n": "y", "p": true}], "d": "z"}'])
    assert schema is not None
    assert schema["required"] == ["a", "l", "d"]
    assert schema["properties"]["a"] == {"type": "number"}
    assert schema["properties"]["d"] == {"type": ["null", "string"]}
    item = schema["properties"]["l"]["items"]
    assert (list(item["properties"]), item["required"]) == (["n", "p"], ["n"])
    assert fits(schema, '```json\n{"a": 3, "l": [], "d": null}\n```')
    for wrong in ('{"a": "3", "l": [], "d": null}', '{"a": 3, "l": [], "d": null, "e": 1}', '{"a": 3}', "{", "3"):
        assert not fits(schema, wrong)
    assert errors_of(schema, {"a": 3, "l": 1, "d": None}) == "1 is not of type 'array' at $.l"
    assert schema_of(["red"]) is None


def test_keys_of_no_order_keep_their_own() -> None:
    form = JsonAnswers(None)
    form.learn([{"a": {"y": 1, "x": 2}}, "no JSON", [{"b": 1}]])
    assert (
        form.written("answer", {"z": 1, "a": {"x": 1, "w": 2, "y": 3}, "c": 2})
        == '{"a":{"y":3,"x":1,"w":2},"z":1,"c":2}'
    )


class Leaking(Columns):
    """The defect that the canary is for: the answer stands in the question."""

    def question(self, record: Any) -> str:
        return f"{super().question(record)} It is {record['answer']}."


ANSWER = {"nm": "Tea", "price": 0.1}


@pytest.mark.parametrize("answer", [ANSWER, json.dumps(ANSWER, indent=1), json.dumps({"gt_parse": ANSWER})])
def test_the_canary_finds_answers_that_are_json(tmp_path: Path, answer: Any) -> None:
    file = str(table(tmp_path, answer))
    for kind, leaks in ((Columns, False), (Leaking, True)):
        dataset = kind(path=file, answer_format="json")
        record = dataset.read(dataset.index()["train"][0])
        censored, in_source = with_answer(dataset, record, "quetzalcoatl")
        assert in_source and censored.answer == "quetzalcoatl"
        assert (dataset.to_sample(record).prompt.sha256 != censored.prompt.sha256) == leaks
        assert ("quetzalcoatl" in censored.prompt.messages[0].text) == leaks
