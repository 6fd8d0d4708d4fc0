"""Rows reach the model as windows, without bad ones, and the gold answer of a record can be replaced."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pytest
import torch

from vlmft.config.schema import DataConfig, OnBadRow
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.dataset import Dataset, Record
from vlmft.data.ledger import Ledger
from vlmft.data.order import epoch_order
from vlmft.data.other_answers import NUMBER, with_answer
from vlmft.sample import BadRow, BadRowError, EncodedRow, Image, Message, Prompt, Question, Sample, Split

BROKEN = (2, 5)


def picture(number: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (40, 30), (number, 0, 0))


class Toy(Dataset):
    """Twelve rows a split; rows of `broken` numbers cannot be read."""

    name: ClassVar[str] = "toy"
    metric: ClassVar[str] = "exact_match"
    max_new_tokens: ClassVar[int] = 4

    def __init__(self, broken: Sequence[int] = ()) -> None:
        self.broken = broken

    def index(self) -> Mapping[Split, Sequence[str]]:
        return {split: [f"{split}/{i:02d}" for i in range(12)] for split in ("train", "val", "test")}  # type: ignore[misc]

    def read(self, row_id: str) -> Record:
        if int(row_id[-2:]) in self.broken:
            raise BadRowError("cannot be read")
        return {"id": row_id, "label": f"w{row_id[-2:]}"}

    def to_sample(self, record: Record) -> Sample:
        image = Image(partial(picture, int(record["id"][-2:])), record["id"])
        prompt = Prompt((Message("user", (image, "Which?")),))
        return Sample(record["id"], prompt, record["label"], (record["label"],))


def encode(sample: Sample) -> EncodedRow:
    ids = np.frombuffer(sample.id.encode(), np.uint8).astype(np.int64)
    return EncodedRow(sample.id, ids, np.ones(len(ids), bool), 0, {}, ())


def module(
    tmp_path: Path | None = None, dataset: Dataset | None = None, seed: int = 0, **settings: Any
) -> VLMDataModule:
    config = DataConfig(name="toy", dataset="tests:Toy", **settings)
    ledger = Ledger(tmp_path / "bad.jsonl" if tmp_path else None, config.on_bad_row, 1.0)
    return VLMDataModule(dataset or Toy(), config, encode, ledger, rows_per_step=4, seed=seed)


def test_limit_is_a_seeded_stable_subset() -> None:
    some = module(limit_train=5).ids["train"]
    assert len(some) == 5
    assert some == module(limit_train=5).ids["train"] == sorted(some)
    assert set(some) < set(module(limit_train=8).ids["train"])  # more rows are the same rows and others
    assert len({tuple(module(limit_train=5, seed=seed).ids["train"]) for seed in range(5)}) > 1
    assert some != module().ids["train"][:5]


@pytest.mark.parametrize("limit", [None, 12, 100])
def test_limit_above_the_split_changes_nothing(limit: int | None) -> None:
    found = module(limit_train=limit, limit_val=limit, limit_test=limit).ids
    assert found == {split: list(rows) for split, rows in Toy().index().items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_are_those_of_the_sampler(workers: int) -> None:
    data = module(workers=workers)
    loader = data.train_dataloader()
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        windows = [[row.id for row in window] for window in loader]
        order = [data.ids["train"][i] for i in epoch_order(12, 0, epoch)]
        assert windows == [order[:4], order[4:8], order[8:]]


def test_validation_keeps_the_order_of_the_split() -> None:
    rows = [row.id for window in module().val_dataloader() for row in window]
    assert rows == list(Toy().index()["val"])


def test_loaders_leave_the_global_random_numbers_alone() -> None:
    # Dropout draws from them: a loader that drew too would make a run depend on how often it was iterated.
    data, state = module(), torch.get_rng_state()
    assert len(list(data.train_dataloader())) == len(list(data.val_dataloader())) == 3
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_leaves_a_gap_and_no_other_row_fills_it(workers: int, tmp_path: Path) -> None:
    data = module(tmp_path, Toy(BROKEN), workers=workers, on_bad_row=OnBadRow["skip"])
    windows = [data.on_before_batch_transfer(window, 0) for window in data.train_dataloader()]
    order = [f"train/{i:02d}" for i in epoch_order(12, 0, 0)]
    expected = [[row for row in order[i : i + 4] if int(row[-2:]) not in BROKEN] for i in (0, 4, 8)]
    assert [[row.id for row in window] for window in windows] == expected
    assert sum(map(len, windows)) == 10
    assert data.ledger.bad == {"train/02": "cannot be read", "train/05": "cannot be read"}
    assert len(data.ledger.seen) == 12
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2


def test_a_bad_row_stops_the_run_unless_asked_otherwise() -> None:
    data = module(dataset=Toy(BROKEN))
    with pytest.raises(BadRowError, match=r"row train/0[25]: cannot be read"):
        for window in data.train_dataloader():
            data.on_before_batch_transfer(window, 0)


def test_samples_leave_bad_rows_to_the_ledger() -> None:
    data = module(dataset=Toy(BROKEN), on_bad_row=OnBadRow["skip"])
    assert [sample.id[-2:] for sample in data.samples(data.ids["val"])] == "00 01 03 04 06 07 08 09 10 11".split()
    assert list(data.ledger.bad) == ["val/02", "val/05"]


def test_questions_hold_no_answer() -> None:
    data = module()
    questions = data.questions(data.ids["test"])
    assert [question.id for question in questions] == list(data.ids["test"])
    assert {type(question) for question in questions} == {Question}
    for question in questions:
        assert f"w{question.id[-2:]}".encode() not in pickle.dumps(question)


def test_rows_travel_to_workers_without_pixels() -> None:
    sample = Toy().to_sample(Toy().read("val/03"))
    (image,) = sample.prompt.images
    before = image.sha256
    assert image.pixels.nbytes == 3600
    travelled = pickle.dumps(image)
    assert len(travelled) < 500
    again = pickle.loads(travelled)
    assert again.sha256 == before and np.array_equal(again.pixels, image.pixels)
    assert set(again.__dict__) == {"load", "name", "identity", "measure", "sha256"}
    untouched = Image(partial(picture, 3), "x")
    assert "sha256" not in pickle.loads(pickle.dumps(untouched)).__dict__  # nothing is decoded for the journey


def test_metric_and_budget_come_from_the_dataset_unless_said() -> None:
    assert (module().metric_name, module().max_new_tokens) == ("exact_match", 4)
    said = module(metric="count_accuracy", max_new_tokens=9)
    assert (said.metric_name, said.max_new_tokens) == ("count_accuracy", 9)


# --- with_answer: the gold answer out of the source record


@dataclasses.dataclass
class Source(Dataset):
    """One row from a record and two functions: how the answer is read, and what the question says."""

    record: Mapping[str, Any]
    answer: Any
    question: Any

    def index(self) -> Mapping[Split, Sequence[str]]:
        return {"train": ["r"]}

    def read(self, row_id: str) -> Record:
        return self.record

    def to_sample(self, record: Record) -> Sample:
        answer = self.answer(record)
        prompt = Prompt((Message("user", (self.question(record),)),))
        return Sample(record.get("id", "r"), prompt, answer, (answer, "an alternative"))


def plain_question(record: Record) -> str:
    return "How many?"


RECORDS: dict[str, tuple[Mapping[str, Any], Any]] = {
    "text": ({"id": "r", "label": "seven"}, lambda r: r["label"]),
    "list": ({"id": "r", "labels": ["seven", "7"]}, lambda r: r["labels"][0]),
    "tuple": ({"id": "r", "labels": ("seven",)}, lambda r: r["labels"][0]),
    "nested": (
        {"id": "r", "turns": [{"from": "gpt", "value": {"text": "seven"}}]},
        lambda r: r["turns"][0]["value"]["text"],
    ),
    "cased": ({"id": "r", "label": " Seven "}, lambda r: r["label"].strip().lower()),
    "nested id": ({"id": "r", "answer": {"id": "seven"}}, lambda r: r["answer"]["id"]),
    "whole number": ({"id": "r", "count": 7}, lambda r: str(r["count"])),
    "number in a list": ({"id": "r", "counts": [7]}, lambda r: str(r["counts"][0])),
    "inside a text": ({"id": "r", "said": "I count. <answer>seven</answer>"}, lambda r: r["said"][17:].split("<")[0]),
    "fraction": ({"id": "r", "value": 1.5}, lambda r: str(r["value"])),
}


@pytest.mark.parametrize("name", RECORDS)
def test_with_answer_reaches_the_label_in_the_record(name: str) -> None:
    record, answer = RECORDS[name]
    leaking = Source(record, answer, lambda r: f"How many? (It is {answer(r)}.)")
    censored, in_source = with_answer(leaking, leaking.read("r"), "quetzalcoatl")
    assert in_source
    assert (censored.id, censored.answer, censored.references) == ("r", "quetzalcoatl", ("quetzalcoatl",))
    shown = censored.prompt.messages[0].text
    assert "quetzalcoatl" in shown or str(NUMBER) in shown
    assert f"(It is {leaking.to_sample(record).answer}.)" not in shown


def test_with_answer_leaves_an_honest_prompt_as_it_is() -> None:
    for record, answer in RECORDS.values():
        honest = Source(record, answer, plain_question)
        censored, _ = with_answer(honest, honest.read("r"), "quetzalcoatl")
        assert censored.prompt == honest.to_sample(record).prompt


def test_with_answer_does_not_touch_words_that_are_equal_by_chance() -> None:
    """The answer is read out of a text; the question holds the same word, which this program did not put there."""
    record = {"id": "r", "asked": "Are there 4 cubes or 5?", "said": "There are 4 (4)"}
    chance = Source(record, lambda r: re.findall(r"\w+", r["said"])[-1], lambda r: r["asked"])
    censored, in_source = with_answer(chance, chance.read("r"), "quetzalcoatl")
    assert in_source and censored.prompt.messages[0].text == record["asked"]


def test_with_answer_says_when_the_source_holds_no_answer() -> None:
    counted = Source({"id": "r", "objects": ["cube", "ball"]}, lambda r: str(len(r["objects"])), plain_question)
    censored, in_source = with_answer(counted, counted.read("r"), "quetzalcoatl")
    assert not in_source and censored.answer == "quetzalcoatl"


def test_with_answer_does_not_touch_numbers_that_are_equal_by_chance() -> None:
    chance = Source({"id": "r", "label": "4", "choices": 4}, lambda r: r["label"], lambda r: f"{r['choices']} choices")
    censored, in_source = with_answer(chance, chance.read("r"), "quetzalcoatl")
    assert in_source and censored.prompt.messages[0].text == "4 choices"


@pytest.mark.parametrize("error", [BadRowError, ValueError, KeyError, TypeError, AttributeError])
def test_a_dataset_that_takes_no_such_answer_is_left_alone(error: type[Exception]) -> None:
    def strict(record: Record) -> str:
        if record["label"] != "yes":
            raise error("no such label")
        return "yes"

    source = Source({"id": "r", "label": "yes"}, strict, plain_question)
    censored, in_source = with_answer(source, source.read("r"), "x")
    assert not in_source and censored.answer == "x"


def test_bad_row_objects_pass_the_collation() -> None:
    data = module(dataset=Toy(BROKEN))
    rows = [row for window in data.val_dataloader() for row in window]
    assert [row.id for row in rows if isinstance(row, BadRow)] == ["val/02", "val/05"]
