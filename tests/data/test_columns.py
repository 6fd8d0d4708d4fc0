"""A table in any form becomes the same questions; a wrong column is refused with the list of columns."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.data.datasets.columns import Columns
from vlmft.sample import BadRowError, Message, Prompt, Sample

REFERENCE = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "data/emoji_ru"
ROWS: tuple[Mapping[str, str], ...] = (
    {"image": "img/1.png", "question": "What, then?", "answer": "a cat", "kind": "pet", "part": "train"},
    {"image": "img/2.png", "question": "Кто это?", "answer": "Чебурашка", "kind": "toy", "part": "dev"},
    {"image": "img/3.png", "question": "How many?", "answer": "<answer> 3 </answer>", "kind": "toy", "part": "train"},
)


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), (shade, 80, 160)).save(stream, "PNG")
    return stream.getvalue()


def write(folder: Path, form: str, name: str = "table") -> Path:
    (folder / "img").mkdir(parents=True, exist_ok=True)
    for number in (1, 2, 3):
        (folder / "img" / f"{number}.png").write_bytes(png(number))
    file = folder / f"{name}.{form.removeprefix('semicolon.')}"
    if form == "json":
        file.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8-sig")
    elif form == "jsonl":
        file.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    elif form == "parquet":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list([dict(row) for row in ROWS]).to_parquet(file)
    else:
        delimiter = {"csv": ",", "tsv": "\t", "semicolon.csv": ";"}[form]
        with file.open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    return file


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def sample_of(dataset: Columns, row_id: str) -> Sample:
    return dataset.to_sample(dataset.read(row_id))


FORMS = ["csv", "tsv", "semicolon.csv", "json", "jsonl", "parquet"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_stored_record_becomes_exactly_this_question(tmp_path: Path, form: str, as_folder: bool) -> None:
    file = write(tmp_path, form)
    dataset = Columns(path=str(tmp_path if as_folder else file), split="none")
    assert {s: list(ids) for s, ids in dataset.index().items()} == {
        "train": [f"columns/train/{n:06d}" for n in range(3)]
    }
    record = dataset.read("columns/train/000001")
    assert record == {**ROWS[1], "id": "columns/train/000001"}
    sample = dataset.to_sample(record)
    (image,) = sample.prompt.images
    prompt = Prompt((Message("user", (image, "Кто это?")),))
    assert sample == Sample("columns/train/000001", prompt, "Чебурашка", ("Чебурашка",), question="Кто это?")
    assert image.name == "img/2.png" and image.pixels[0, 0].tolist() == [2, 80, 160]
    assert sample_of(pickle.loads(pickle.dumps(dataset)), sample.id).prompt.sha256 == sample.prompt.sha256


def test_options(tmp_path: Path) -> None:
    file = write(tmp_path, "jsonl")
    dataset = Columns(
        path=str(file),
        split="none",
        question_text="Who is it?",
        instruction="One word.",
        system="You know pets.",
        group="kind",
        class_column="kind",
        answer_pattern=r"<answer>\s*(\d+)\s*</answer>",
        where={"kind": "^t"},
    )
    assert list(dataset.index()["train"]) == ["columns/train/000001", "columns/train/000002"]
    sample = sample_of(dataset, "columns/train/000002")
    assert (sample.answer, sample.tags) == ("3", {"group": "toy", "class": "toy"})
    system, user = sample.prompt.messages
    assert (system.role, system.text, user.text) == ("system", "You know pets.", "Who is it?\nOne word.")
    with pytest.raises(BadRowError, match="Expected an answer like"):
        sample_of(dataset, "columns/train/000001")
    with pytest.raises(BadRowError, match="take ids from index"):
        dataset.read("columns/train/000000")  # `where` left it out


def test_a_column_of_splits(tmp_path: Path) -> None:
    file = write(tmp_path, "csv")
    index = Columns(path=str(file), split="part").index()
    assert index == {"train": ["columns/train/000000", "columns/train/000002"], "val": ["columns/val/000001"]}
    with pytest.raises(ConfigError, match="got 'pet' in row 0"):
        Columns(path=str(file), split="kind").index()
    assert list(Columns(path=str(file), split="kind", split_names={"pet": "train", "toy": "test"}).index()) == [
        "train",
        "test",
    ]


def test_files_that_name_their_split(tmp_path: Path) -> None:
    write(tmp_path, "csv", "train-00000-of-00002")
    write(tmp_path, "csv", "train-00001-of-00002")
    write(tmp_path, "jsonl", "validation")
    write(tmp_path, "json", "notes")  # names no split: not read
    dataset = Columns(path=str(tmp_path), split="none")
    assert {split: len(ids) for split, ids in dataset.index().items()} == {"train": 6, "val": 3}
    assert [sample_of(dataset, f"columns/train/{n:06d}").answer for n in (0, 3, 4)] == ["a cat", "a cat", "Чебурашка"]
    write(tmp_path / "alone", "csv", "test")  # one file has no split: it may be all that there is
    assert list(Columns(path=str(tmp_path / "alone"), split="none").index()) == ["train"]


def test_lists_of_answers_and_of_images(tmp_path: Path) -> None:
    write(tmp_path, "csv")
    rows = [
        {"image": ["img/1.png", "img/2.png"], "question": "?", "answer": ["one", "two", "one"]},
        {"image": "img/1.png", "question": "?", "answer": 7, "also": ["seven"]},
        {"image": str(tmp_path / "img/1.png"), "question": "?", "answer": "x", "also": "y"},
    ]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    many = sample_of(Columns(path=str(file)), "columns/train/000000")
    assert [image.name for image in many.prompt.images] == ["img/1.png", "img/2.png"]
    assert (many.answer, many.references) == ('["one", "two", "one"]', ('["one", "two", "one"]',)), "one JSON answer"
    many = sample_of(Columns(path=str(file), answers="list"), "columns/train/000000")
    assert (many.answer, many.references) == ("one", ("one", "two", "one")), "how often it was given is kept"
    rows[0]["also"] = "eins"
    file.write_text(json.dumps(rows), encoding="utf-8")
    also = Columns(path=str(file), references="also", answers="list")
    assert [sample_of(also, f"columns/train/00000{n}").references for n in (0, 1, 2)] == [
        ("one", "eins"),
        ("7", "seven"),
        ("x", "y"),
    ]


BAD: Mapping[str, tuple[Any, str]] = {
    "no file": ({"image": "img/9.png"}, "Expected an image file 'img/9.png'"),
    "no image": ({"image": None}, "Expected an image in column 'image', got none"),
    "outside": ({"image": "../secret.png"}, "below the data folder"),
    "absolute": ({"image": "/etc/hostname"}, "below the data folder"),
    "address": ({"image": "https://example.org/1.png"}, "rows are read offline"),
    "inline": ({"image": "data:image/png;base64,A"}, "Expected base64 in"),
    "number": ({"image": 7}, "Expected an image file '7'"),
    "no answer": ({"answer": " "}, "Expected a text as answer, got ' '"),
    "null answer": ({"answer": None}, "Expected a text as answer, got None"),
    "not a number": ({"answer": float("nan")}, "Expected a text as answer, got nan"),
    "empty list": ({"answer": []}, "got an empty list"),
    "printed list": ({"answer": "['91.1']"}, "got a printed list"),
    "no question": ({"question": ""}, "Expected a text as question"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows(tmp_path: Path, case: str) -> None:
    changed, words = BAD[case]
    write(tmp_path, "csv")
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in (ROWS[0], {**ROWS[0], **changed})), encoding="utf-8")
    dataset = Columns(path=str(file))
    assert sample_of(dataset, "columns/train/000000").answer == "a cat"
    with pytest.raises(BadRowError) as error:
        sample_of(dataset, "columns/train/000001")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_bad_lines_are_rows_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "csv")
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(ROWS[0])}\n[1, 2\n[1, 2]\n", encoding="utf-8")
    dataset = Columns(path=str(tmp_path / "rows.jsonl"))
    assert len(dataset.index()["train"]) == 3
    for number, words in ((1, "Expected JSON in line 2"), (2, "Expected an object")):
        with pytest.raises(BadRowError, match=words):
            dataset.read(f"columns/train/00000{number}")
    with (tmp_path / "table.csv").open("a", encoding="utf-8") as stream:
        stream.write("img/1.png,one,two,three,four,five\n")
    with pytest.raises(BadRowError, match="Expected a cell for each column, got 1 more"):
        Columns(path=str(tmp_path / "table.csv")).read("columns/train/000003")


MISTAKES: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "column": (
        {"image": "picture"},
        "data.options.image: Expected a column of image, question, answer, kind, part, got",
    ),
    "where": ({"where": {"sort": "x"}}, "data.options.where: Expected a column of image"),
    "revision": ({"revision": "main"}, "data.revision: Expected none beside data.path"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(tmp_path: Path, mistake: str) -> None:
    options, words = MISTAKES[mistake]
    with pytest.raises(ConfigError) as error:
        Columns(path=str(write(tmp_path, "csv")), **options).index()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_table_without_the_usual_columns_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    fixed = "data.options.question=NAME (or data.options.question_text='...' for all rows)"
    told: dict[str, dict[str, str]] = {
        f"answer and one with the question, among a, b, got none; set data.options.answer=NAME {fixed}": {},
        "answer, among a, b, got none; set data.options.answer=NAME": {"question": "a"},
        f"question, among a, b, got none; set {fixed}": {"answer": "b"},
    }
    for words, named in told.items():
        with pytest.raises(ConfigError) as refused:
            Columns(path=str(tmp_path / "t.csv"), **named).index()
        assert str(refused.value).endswith(f": Expected a column with the {words}")
    text = Columns(path=str(tmp_path / "t.csv"), answer="b", question="a")  # rows without images
    assert sample_of(text, "columns/train/000000").prompt == Prompt((Message("user", ("1",)),))
    with pytest.raises(ConfigError, match=r"Expected a table \(\.jsonl"):
        Columns(path=str(tmp_path / "none")).index()


def test_options_that_exclude_each_other() -> None:
    for options in ({"question": "a", "question_text": "b"}, {"where": {"a": "("}}, {"split_names": {"a": "b"}}):
        with pytest.raises(ValueError, match="Expected"):
            Columns(**options)  # type: ignore[arg-type]


# --- datasets that are a config of this one


def dataset_of(compose: Any, *overrides: str) -> tuple[Any, Columns]:
    from vlmft.data.make import make_dataset

    config = compose(*overrides)
    dataset = make_dataset(config.data)
    assert isinstance(dataset, Columns)
    return config, dataset


def test_clevr_count(tmp_path: Path, compose: Any) -> None:
    datasets = pytest.importorskip("datasets")
    row = {"image": {"bytes": png(1), "path": None}, "problem": "How many items are there in the image?"}
    rows = [{**row, "solution": "<answer> 3 </answer>"}, {**row, "solution": "3"}]
    features = {
        "image": datasets.Image(decode=False),
        "problem": datasets.Value("string"),
        "solution": datasets.Value("string"),
    }
    table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    config, dataset = dataset_of(compose, "data=clevr_count", f"data.path={tmp_path}")
    assert (config.data.limit_train, config.data.val_rows, config.data.test_rows) == (3500, 350, 998)
    sample = sample_of(dataset, "columns/train/000000")
    asked = Message("user", (sample.prompt.images[0], "How many items are there in the image?"))
    assert (sample.prompt.messages, sample.answer, sample.references) == ((asked,), "3", ("3",))
    assert sample.prompt.images[0].pixels[0, 0].tolist() == [1, 80, 160]
    with pytest.raises(BadRowError, match="Expected an answer like"):
        sample_of(dataset, "columns/train/000001")


def test_sports_captions(tmp_path: Path, compose: Any) -> None:
    write(tmp_path, "csv")
    captions = [["A man surfs.", "A surfer on a wave."], ["Two women talk."], ["A basketball player jumps."]]
    rows = [
        {"image": f"img/{n}.png", "caption": texts, "split": split}
        for n, texts, split in zip((1, 2, 3), captions, ("train", "train", "test"), strict=True)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    _, dataset = dataset_of(compose, "data=sports_captions", "data.revision=null", f"data.path={tmp_path}/rows.json")
    assert dataset.index() == {"train": ["columns/train/000000"], "test": ["columns/test/000002"]}
    sample = sample_of(dataset, "columns/train/000000")
    assert (sample.answer, sample.references) == ("A man surfs.", ("A man surfs.", "A surfer on a wave."))
    assert sample.prompt.messages[0].text == "What is a caption for this photo?"
    every = ("data.options.where=null", "data.options.split=none")
    _, dataset = dataset_of(
        compose, "data=sports_captions", "data.revision=null", f"data.path={tmp_path}/rows.json", *every
    )
    assert {split: len(ids) for split, ids in dataset.index().items()} == {"train": 3}


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference data are not here")
def test_emoji(compose: Any) -> None:
    said = 'data.options.question_text="Что это?"'
    _, dataset = dataset_of(compose, "data=columns", f"data.path={REFERENCE}", "data.options.answer=ru", said)
    assert {split: len(ids) for split, ids in dataset.index().items()} == {"train": 300}
    sample = sample_of(dataset, "columns/train/000002")
    assert (sample.prompt.messages[0].text, sample.answer) == ("Что это?", "крюк")
    assert sample.prompt.images[0].pixels.shape[2] == 3
