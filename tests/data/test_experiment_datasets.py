"""Datasets of published experiments that are neither a table's config nor conversations."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from benchmarks.smoke.rows import write_characters, write_parquet, write_picture
from vlmft.config.check import ConfigError
from vlmft.config.schema import DataConfig, OnBadRow
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.datasets.characters import Characters
from vlmft.data.datasets.chartqa import ChartQA
from vlmft.data.datasets.easyvqa import EasyVQA
from vlmft.data.datasets.pjn_charts import PJNCharts
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.data.survey.survey import survey_splits
from vlmft.sample import BadRowError, Message

REFERENCE = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "data"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference data are not here")


def flat(shade: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (8, 6), (shade, 80, 160))


def paint(file: Path, shade: int) -> None:
    write_picture(file, flat(shade))


# --- characters


@pytest.fixture
def characters(tmp_path: Path) -> Path:
    pictures = {name: flat(number) for number, name in enumerate(["gena/1.png", "gena/2.png", "masha/1.png"])}
    names = {"gena": "Крокодил Гена", "masha": "Маша"}
    prompts = ["Кто изображён на картинке?", "Что это за персонаж?"]
    missing = {"gena/9.png": ("Кто?", "Гена")}
    annotations = {"gena/2.png": ("Что это за персонаж?", "Это крокодил Гена."), **missing}
    write_characters(tmp_path, pictures, names, prompts, annotations)
    return tmp_path


def test_characters(characters: Path) -> None:
    dataset = Characters(path=str(characters))
    ids = dataset.index()["train"]
    assert [dataset.read(row_id)["image"] for row_id in ids] == [
        "images/gena/2.png",
        "images/gena/9.png",
        "images/gena/1.png",
        "images/masha/1.png",
    ]
    annotated, named = (dataset.to_sample(dataset.read(ids[number])) for number in (0, 3))
    assert annotated.prompt.messages == (Message("user", (annotated.prompt.images[0], "Что это за персонаж?")),)
    assert (annotated.answer, annotated.tags) == ("Это крокодил Гена.", {"class": "gena"})
    assert named.prompt.messages[0].text == "Кто изображён на картинке?"
    assert (named.answer, named.prompt.images[0].name) == ("Маша", "images/masha/1.png")
    with pytest.raises(BadRowError, match=r"Expected an image file 'images/gena/9\.png'"):
        dataset.to_sample(dataset.read(ids[1]))
    assert len(Characters(path=str(characters), unannotated=False).index()["train"]) == 2


def test_a_folder_without_a_name_is_refused(characters: Path) -> None:
    paint(characters / "images" / "stranger" / "1.png", 9)
    dataset = Characters(path=str(characters))
    with pytest.raises(BadRowError, match="Expected a text as answer, got None"):
        dataset.to_sample(dataset.read(dataset.index()["train"][-1]))


def test_characters_without_their_files(tmp_path: Path, characters: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.path: Expected JSON in .*annotation\.json"):
        Characters(path=str(tmp_path / "json")).index()
    (characters / "images").rename(characters / "pictures")
    with pytest.raises(ConfigError, match=r"data\.path: Expected a folder images in .*, got none"):
        Characters(path=str(characters)).missing()
    (characters / "json/base_prompts.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"Expected at least one question, and texts alone, in .*base_prompts\.json"):
        Characters(path=str(characters)).missing()


def test_an_annotation_prompt_asks_the_question() -> None:
    """Otherwise the answers would be stored under a question that was not asked."""
    config = DataConfig(name="characters", dataset="vlmft.data.datasets.characters:Characters")
    config.options = {"annotation_prompt": "Describe {name}"}
    with pytest.raises(ConfigError, match=r"data\.options: Expected annotation_prompt with \{question\} in it, got"):
        make_dataset(config)


def module(dataset: Any, folder: Path, policy: str, ceiling: float) -> VLMDataModule:
    config = DataConfig(name="x", dataset="x:X", on_bad_row=OnBadRow[policy], bad_row_ceiling=ceiling)
    ledger = Ledger(folder / "bad_rows.jsonl", config.on_bad_row, config.bad_row_ceiling)
    return VLMDataModule(dataset, config, lambda sample: sample, ledger, 4, 0)  # type: ignore[arg-type, return-value]


@needs_reference
def test_97_missing_images_are_one_error(tmp_path: Path) -> None:
    """The first is named, the others are counted and recorded."""
    dataset = Characters(path=str(REFERENCE / "characters"))
    with pytest.raises(BadRowError, match="97 rows cannot be used; the first: row characters/train/000000: ") as error:
        module(dataset, tmp_path, "raise", 0.01)
    assert "data.on_bad_row=skip" in str(error.value) and "\n" not in str(error.value)
    assert len((tmp_path / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines()) == 97
    with pytest.raises(BadRowError, match=r"97 of 101 rows are bad, more than data\.bad_row_ceiling=0\.01"):
        module(dataset, tmp_path, "skip", 0.01)
    data = module(dataset, tmp_path, "skip", 1.0)
    assert {split: len(ids) for split, ids in data.ids.items()} == {"train": 3, "val": 0, "test": 1}
    assert survey_splits(data).cards["train"].images == 3 and len(data.ledger.bad) == 97


# --- pjn_charts


def test_the_choice_is_that_of_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    shuffled = datasets.Dataset.from_dict({"n": list(range(3000))}).shuffle(seed=42)[:1200]["n"]
    assert np.random.default_rng(42).permutation(3000)[:1200].tolist() == list(shuffled)


@needs_reference
def test_pjn_charts_from_chartqa() -> None:
    dataset = PJNCharts(path=str(REFERENCE / "chartqa"))
    index = dataset.index()
    assert {split: len(ids) for split, ids in index.items()} == {"train": 200, "val": 41, "test": 56}
    samples = {split: [dataset.to_sample(dataset.read(row_id)) for row_id in ids] for split, ids in index.items()}
    assert {sample.tags["source"] for rows in samples.values() for sample in rows} == {"human"}
    stored = ChartQA(path=str(REFERENCE / "chartqa"), sources=["human"])
    asked = [stored.to_sample(stored.read(row_id)).bare_question for row_id in stored.index()["test"]]
    order = np.random.default_rng(42).permutation(56)
    assert [s.bare_question for s in samples["test"]] == [asked[n] for n in order], "in the order of the shuffle"
    sample = samples["test"][0]
    assert [message.role for message in sample.prompt.messages] == ["system", "user"]
    assert sample.prompt.messages[1].text == dataset.read(index["test"][0])["query"].strip()
    dataset = PJNCharts(path=str(REFERENCE / "chartqa"), system=None)
    assert "single word or phrase" in dataset.to_sample(dataset.read(index["test"][0])).prompt.messages[0].text


def test_a_small_choice_takes_that_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val", "test"):
        paint(tmp_path / split / "png" / "1.png", len(split))
        rows = [{"imgname": "1.png", "query": f"q{n}?", "label": str(n)} for n in range(30)]
        (tmp_path / split / f"{split}_human.json").write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.setattr("vlmft.data.datasets.pjn_charts.ROWS", {"train": 12, "val": 5, "test": 5})
    dataset = PJNCharts(path=str(tmp_path))
    index = dataset.index()
    chosen = [int(dataset.read(row_id)["label"]) for row_id in index["val"]]
    assert chosen == np.random.default_rng(42).permutation(30)[:5].tolist()
    assert len(index["train"]) == 12
    with pytest.raises(BadRowError, match="take ids from index"):
        dataset.read("pjn_charts/val/000005")


@pytest.mark.parametrize("where", [lambda place: {"hub_id": place}, lambda place: {"path": place}], ids=["hub", "path"])
def test_the_hub_s_lists_are_taught_as_texts(
    where: Callable[[str], dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defect: "['91.1']" was trained on. A folder of the Hub's own files is read as the Hub is."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_parquet(
        tmp_path / "hub/train-00000-of-00001.parquet", [{"image": flat(1), "query": "How many?", "label": ["91.1"]}]
    )
    dataset = PJNCharts(**where(str(tmp_path / "hub")))
    assert dataset.index() == {"train": ["pjn_charts/train/000000"]}
    sample = dataset.to_sample(dataset.read("pjn_charts/train/000000"))
    assert (sample.answer, sample.references) == ("91.1", ("91.1",))
    assert sample.prompt.images[0].pixels.shape == (6, 8, 3)


# --- easyvqa


def test_easyvqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the functions of the package; the package itself is an extra."""
    package = types.ModuleType("easy_vqa")
    for split in ("train", "test"):
        paint(tmp_path / split / "0.png", len(split))
        questions = (["what shape is present?", "is there a blue shape?"], ["circle", "no"], [0, 0])
        setattr(package, f"get_{split}_questions", lambda questions=questions: questions)
        setattr(package, f"get_{split}_image_paths", lambda split=split: {0: str(tmp_path / split / "0.png")})
    monkeypatch.setitem(sys.modules, "easy_vqa", package)
    dataset = EasyVQA()
    assert {split: len(ids) for split, ids in dataset.index().items()} == {"train": 2, "test": 2}
    sample = dataset.to_sample(dataset.read("easyvqa/test/000001"))
    assert sample.prompt.messages == (Message("user", (sample.prompt.images[0], "is there a blue shape?")),)
    assert sample.answer == "no" and sample.prompt.images[0].pixels[0, 0].tolist() == [4, 80, 160]


def test_easyvqa_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ConfigError, match=r"pip install 'vlmft\[easyvqa\]'"):
        EasyVQA().index()
