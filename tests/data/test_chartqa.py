"""ChartQA in its three forms: the files become exactly these questions."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from vlmft.config.check import ConfigError, checked_options
from vlmft.config.schema import DataConfig
from vlmft.data.datasets.chartqa import INSTRUCTION, ChartQA, answer_of
from vlmft.data.survey.facts import Reading, seen
from vlmft.metrics import METRICS
from vlmft.sample import SPLITS, BadRowError, Message, Prompt, Sample

REFERENCE = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "data/chartqa"
QUESTION = "What is the value of the blue bar?"


def chart(shade: int) -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), (shade, 80, 160)).save(stream, "PNG")
    return stream.getvalue()


def row(imgname: object, label: object, query: object = QUESTION) -> dict[str, object]:
    return {"imgname": imgname, "query": query, "label": label}


FOLDER: Mapping[str, Sequence[object]] = {
    "train/train_human": [row("1.png", "42"), row("1.png", "[2003, 2009]", "  Which years?\n")],
    "train/train_augmented": [row("1.png", ["91.1"]), row("1.png", ["2003", "2009"])],
    "val/val_human": [row("2.png", "Yes")],
    "val/val_augmented": [],
    "test/test_human": [row("3.png", "No"), row("../../train/png/1.png", "No"), row("/etc/hostname", "No")],
    "test/test_augmented": [row("3.png", "['91.1']"), row("3.png", 7), row("3.png", "7", " "), {"imgname": "3.png"}, 5],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, split in enumerate(SPLITS, start=1):
        (tmp_path / split / "png").mkdir(parents=True)
        (tmp_path / split / "png" / f"{number}.png").write_bytes(chart(number))
    for name, rows in FOLDER.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def sample_of(dataset: ChartQA, row_id: str) -> Sample:
    return dataset.to_sample(dataset.read(row_id))


def test_index(folder: Path) -> None:
    index = ChartQA(path=str(folder)).index()
    assert index["train"] == [
        "chartqa/train/000000",
        "chartqa/train/000001",
        "chartqa/train/000002",
        "chartqa/train/000003",
    ]
    assert index["val"] == ["chartqa/val/000000"]
    assert len(index["test"]) == 8


def test_a_stored_record_becomes_exactly_this_question(folder: Path) -> None:
    dataset = ChartQA(path=str(folder))
    record = dataset.read("chartqa/train/000000")
    assert record == {
        "id": "chartqa/train/000000",
        "imgname": "1.png",
        "query": "What is the value of the blue bar?",
        "label": "42",
    }
    sample = dataset.to_sample(record)
    (image,) = sample.prompt.images
    asked = "What is the value of the blue bar?\nAnswer the question using a single word or phrase."
    assert sample == Sample(
        id="chartqa/train/000000",
        prompt=Prompt((Message("user", (image, asked)),)),
        answer="42",
        references=("42",),
        tags={"source": "human"},
        question="What is the value of the blue bar?",
    )
    assert image.name == "1.png"
    assert image.pixels.shape == (6, 8, 3) and image.pixels[0, 0].tolist() == [1, 80, 160]


@pytest.mark.parametrize(
    ("row_id", "answer", "references"),
    [
        ("chartqa/train/000001", "[2003, 2009]", ("[2003, 2009]",)),
        ("chartqa/train/000002", "91.1", ("91.1",)),
        ("chartqa/train/000003", "2003, 2009", ("2003, 2009", "[2003, 2009]")),
    ],
)
def test_labels(folder: Path, row_id: str, answer: str, references: tuple[str, ...]) -> None:
    sample = sample_of(ChartQA(path=str(folder)), row_id)
    assert (sample.answer, sample.references) == (answer, references)
    assert sample.tags == {"source": "human" if row_id < "chartqa/train/000002" else "augmented"}


def test_question_without_stray_space(folder: Path) -> None:
    (message,) = sample_of(ChartQA(path=str(folder)), "chartqa/train/000001").prompt.messages
    assert message.text == f"Which years?\n{INSTRUCTION}"


@pytest.mark.parametrize("label", ["['91.1']", '["91.1"]', "['a', \"it's\"]", ["['91.1']"], " [ 'x' ] "])
def test_a_printed_list_is_never_taught(label: object) -> None:
    with pytest.raises(BadRowError, match="got a printed list"):
        answer_of(label)


@pytest.mark.parametrize("label", [None, 7, 91.1, True, "", "  ", [], [""], ["4", 5], {"a": "b"}])
def test_no_text_no_answer(label: object) -> None:
    with pytest.raises(BadRowError, match="Expected a"):
        answer_of(label)


def test_an_answer_of_several_parts_is_scored_part_by_part() -> None:
    answer, references = answer_of(["2003", "2009"])
    relaxed = METRICS["relaxed_accuracy"]
    assert answer == "2003, 2009"
    assert [relaxed(said, references).value for said in ("2003, 2009", "2003 and 2009", "2009, 2003")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("row_id", "words"),
    [
        ("chartqa/test/000001", "below the data folder"),
        ("chartqa/test/000002", "below the data folder"),
        ("chartqa/test/000003", "a printed list"),
        ("chartqa/test/000004", "a text as label, got 7"),
        ("chartqa/test/000005", "a text as query, got ' '"),
        ("chartqa/test/000006", "add query and label"),
        ("chartqa/test/000007", "Expected an object"),
        ("chartqa/test/000008", "take ids from index"),
        ("chartqa/test/-00001", "take ids from index"),
        ("chartqa/dev/000000", "take ids from index"),
    ],
)
def test_bad_rows(folder: Path, row_id: str, words: str) -> None:
    with pytest.raises(BadRowError, match=words) as error:
        sample_of(ChartQA(path=str(folder)), row_id)
    assert "\n" not in str(error.value)


def test_one_source(folder: Path) -> None:
    (folder / "train" / "train_augmented.json").unlink()
    dataset = ChartQA(path=str(folder), sources=["human"])
    assert {split: len(ids) for split, ids in dataset.index().items()} == {"train": 2, "val": 1, "test": 3}
    with pytest.raises(BadRowError, match="take ids from index"):
        dataset.read("chartqa/test/000003")


@pytest.mark.parametrize("sources", [[], ["machine"], "human", [1]])
def test_other_sources_are_refused(sources: Any) -> None:
    with pytest.raises(ValueError, match="Expected sources"):
        ChartQA(sources=sources)


def test_options_fit_the_config() -> None:
    config = DataConfig(name="chartqa", dataset="vlmft.data.datasets.chartqa:ChartQA", options={"sources": ["human"]})
    assert checked_options(config) is ChartQA
    with pytest.raises(ConfigError, match="no such option"):
        checked_options(
            DataConfig(name="chartqa", dataset="vlmft.data.datasets.chartqa:ChartQA", options={"source": "human"})
        )


def test_the_constructor_reads_nothing() -> None:
    assert ChartQA(path="/no/such/folder").sources == ("human", "augmented")
    with pytest.raises(ConfigError, match=r"data\.revision"):
        ChartQA(path="/no/such/folder", revision="main")


def broken_places() -> dict[str, str]:
    return {
        "empty": "with nothing",
        "file": "which is not a folder",
        "no png": "Expected the images in",
        "one source": "train_augmented.json",
        "not json": "fix the file",
        "not a list": "Expected a JSON list",
        "not utf-8": "fix the file",
    }


@pytest.mark.parametrize("place", broken_places())
def test_a_wrong_folder_is_the_users_mistake(folder: Path, place: str) -> None:
    root, train = folder, folder / "train" / "train_human.json"
    if place == "empty":
        (root := folder / "elsewhere").mkdir()
    elif place == "file":
        root = train
    elif place == "no png":
        (folder / "val" / "png").rename(folder / "val" / "images")
    elif place == "one source":
        (folder / "train" / "train_augmented.json").unlink()
    else:
        train.write_bytes({"not json": b'[{"imgname": ', "not a list": b"{}", "not utf-8": b'["\xff"]'}[place])
    with pytest.raises(ConfigError) as error:
        ChartQA(path=str(root)).index()
    assert str(error.value).startswith("data.path: Expected") and broken_places()[place] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_split_may_be_absent(folder: Path) -> None:
    (folder / "train").rename(folder / "hidden")
    assert list(ChartQA(path=str(folder)).index()) == ["val", "test"]


def test_travels_to_workers_without_its_rows(folder: Path) -> None:
    dataset = ChartQA(path=str(folder))
    before = sample_of(dataset, "chartqa/val/000000")
    assert dataset.tables and len(pickle.dumps(dataset)) < 1000
    copy = pickle.loads(pickle.dumps(dataset))
    assert sample_of(copy, "chartqa/val/000000").prompt.sha256 == before.prompt.sha256


HUB_ROWS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "train": [
        {"image": {"bytes": chart(1), "path": "1.png"}, "query": QUESTION, "label": ["42"], "human_or_machine": 0},
        {"image": {"bytes": b"<html>", "path": "1.png"}, "query": QUESTION, "label": ["43"], "human_or_machine": 1},
        {"image": {"bytes": chart(1), "path": None}, "query": QUESTION, "label": ["1", "2"], "human_or_machine": 0},
        {"image": {"bytes": None, "path": "/etc/hostname"}, "query": "?", "label": ["44"], "human_or_machine": 1},
    ],
    "val": [{"image": {"bytes": chart(2), "path": None}, "query": "?", "label": ["['9']"], "human_or_machine": 0}],
    "test": [{"image": {"bytes": chart(3), "path": None}, "query": QUESTION, "label": [], "human_or_machine": 1}],
}


def write_parquet(folder: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]], **columns: Any) -> Path:
    datasets = pytest.importorskip("datasets")
    features = {
        "image": datasets.Image(decode=False),
        "query": datasets.Value("string"),
        "label": datasets.List(datasets.Value("string")),
        "human_or_machine": datasets.ClassLabel(names=["human", "machine"]),
        **columns,
    }
    (folder / "data").mkdir(parents=True)
    for split, found in rows.items():
        table = datasets.Dataset.from_list(list(found), features=datasets.Features(features))
        table.cast_column("image", datasets.Image()).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def hub(tmp_path: Path, no_cache: None) -> Path:
    return write_parquet(tmp_path / "hub", HUB_ROWS)


@pytest.mark.parametrize("as_hub_id", [False, True])
def test_hub_rows(hub: Path, as_hub_id: bool) -> None:
    dataset = ChartQA(hub_id=str(hub)) if as_hub_id else ChartQA(path=str(hub))
    assert dataset.index() == {
        "train": [f"chartqa/train/00000{row}" for row in range(4)],
        "val": ["chartqa/val/000000"],
        "test": ["chartqa/test/000000"],
    }
    sample = sample_of(dataset, "chartqa/train/000000")
    assert sample.prompt.messages == (Message("user", (sample.prompt.images[0], f"{QUESTION}\n{INSTRUCTION}")),)
    assert (sample.answer, sample.references, sample.tags) == ("42", ("42",), {"source": "human"})
    assert sample.prompt.images[0].name == "chartqa/train/000000"
    assert sample.prompt.images[0].pixels[0, 0].tolist() == [1, 80, 160]
    assert sample_of(dataset, "chartqa/train/000002").references == ("1, 2", "[1, 2]")


def test_hub_bad_rows_end_nothing(hub: Path) -> None:
    dataset = ChartQA(path=str(hub))
    outcomes: dict[str, Any] = {}
    for row_id in [row for rows in dataset.index().values() for row in rows]:
        try:
            outcomes[row_id] = sample_of(dataset, row_id).prompt.images[0].pixels.shape
        except BadRowError as error:
            outcomes[row_id] = str(error)
    assert len(outcomes) == 6
    assert [outcomes[f"chartqa/train/{row}"] for row in ("000000", "000002")] == [(6, 8, 3)] * 2
    assert "got an HTML page in chartqa/train/000001" in outcomes["chartqa/train/000001"]
    assert "an image stored in its row" in outcomes["chartqa/train/000003"]
    assert "a printed list" in outcomes["chartqa/val/000000"]
    assert "an empty list" in outcomes["chartqa/test/000000"]


def test_hub_rows_of_the_other_source_have_other_ids(hub: Path) -> None:
    dataset = ChartQA(path=str(hub), sources=["augmented"])
    assert dataset.index()["train"] == ["chartqa/train/000001", "chartqa/train/000003"]
    for wrong in ("chartqa/train/000000", "chartqa/train/000000", "chartqa/train/000004"):
        with pytest.raises(BadRowError, match="take ids from index"):
            dataset.read(wrong)


def test_hub_tables_travel_to_workers_as_references(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    dataset = ChartQA(path=str(hub))
    dataset.index()
    stored = pickle.dumps(dataset)
    monkeypatch.setattr(datasets, "load_dataset", None)  # a worker does not load again
    assert sample_of(pickle.loads(stored), "chartqa/train/000000").answer == "42"
    assert len(stored) < 20_000


def test_hub_mistakes_are_one_line(tmp_path: Path, no_cache: None) -> None:
    import datasets

    good = HUB_ROWS["test"]
    renamed = [{"picture" if key == "image" else key: value for key, value in good[0].items()}]
    plain = datasets.Dataset.from_list(renamed)
    (tmp_path / "columns").mkdir()
    plain.to_parquet(tmp_path / "columns" / "test.parquet")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "test.parquet").write_bytes(b"PAR1 no more")
    write_parquet(tmp_path / "splits", {"dev2": good})
    makers = [{**good[0], "human_or_machine": 2}]
    write_parquet(tmp_path / "makers", {"test": makers}, human_or_machine=datasets.Value("int64"))
    expected = {
        "columns": "Expected columns image, query, label, human_or_machine, got picture, query",
        "damaged": "cannot be loaded",
        "splits": "Expected splits train, val and test",
        "makers": "Expected human_or_machine of 0 or 1, got ['2']",
    }
    for place, words in expected.items():
        with pytest.raises(ConfigError) as error:
            ChartQA(path=str(tmp_path / place)).index()
        assert words in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith("data: ")


def test_no_hub_is_one_line(no_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(place: str, revision: str | None) -> None:
        assert (place, revision) == ("HuggingFaceM4/ChartQA", "abc")
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ConfigError, match=r"cannot be loaded \(Couldn't reach the Hub\)"):
        ChartQA(revision="abc").index()


@pytest.mark.skipif(not REFERENCE.exists(), reason=f"no {REFERENCE}; set VLMFT_REFERENCE_DATA")
def test_real_charts_are_read_whole_and_stand_in_one_split() -> None:
    dataset = ChartQA(path=str(REFERENCE))
    index = dataset.index()
    assert {split: len(rows) for split, rows in index.items()} == {"train": 305, "val": 62, "test": 83}
    samples = {split: [sample_of(dataset, row_id) for row_id in rows] for split, rows in index.items()}
    found = [sample for rows in samples.values() for sample in rows]
    assert len({image.name for sample in found for image in sample.prompt.images}) == 250
    reading = Reading()
    for sample in found:
        reading.add(sample)
    groups = np.split(seen(reading.arrays()).groups(), [305, 367])
    assert len(set(np.concatenate(groups).tolist())) == 250 and min(map(np.min, groups)) >= 0
    assert sum(len(set(some.tolist())) for some in groups) == 250, "no chart stands in two splits"
    for name in ("relaxed_accuracy", "relaxed_accuracy_strict", "exact_match"):
        assert np.mean([METRICS[name](sample.answer, sample.references).value for sample in found]) == 1
