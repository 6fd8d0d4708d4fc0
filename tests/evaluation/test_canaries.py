"""The leak canary sings for every way in which a gold answer can reach the model, and is silent otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pytest

from vlmft.config.schema import DataConfig, OnBadRow
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.dataset import Dataset, Record
from vlmft.data.ledger import Ledger
from vlmft.data.other_answers import with_answer
from vlmft.evaluation.canaries import SENTINEL, CanaryResult, leak_canary
from vlmft.metrics import METRICS
from vlmft.sample import EncodedRow, Image, Message, Prompt, Sample, Split

IDS = ("toy/0", "toy/1", "toy/2")
Question = Callable[[Record], Sequence[str | Image]]


def blank_image(shade: int = 0) -> Image:
    return Image(partial(PIL.Image.new, "RGB", (4, 4), (shade, 0, 0)), "a picture")


class Toy(Dataset):
    """Three rows whose labels are texts, or numbers; `question` makes the prompt from a record."""

    name: ClassVar[str] = "toy"
    metric: ClassVar[str] = "exact_match"
    max_new_tokens: ClassVar[int] = 4

    def __init__(self, question: Question, labels: Sequence[Any] = ("cat", "dog", "12")) -> None:
        self.question, self.labels = question, labels

    def index(self) -> Mapping[Split, Sequence[str]]:
        return {"test": IDS}

    def read(self, row_id: str) -> Record:
        return {"id": row_id, "annotation": {"labels": [self.labels[int(row_id[-1])]]}}

    def to_sample(self, record: Record) -> Sample:
        gold = str(record["annotation"]["labels"][0])
        return Sample(record["id"], Prompt((Message("user", tuple(self.question(record))),)), gold, (gold,))


def label(record: Record) -> str:
    return str(record["annotation"]["labels"][0])


def honest(record: Record) -> Sequence[str | Image]:
    return blank_image(), "What is it?"


def no_encoder(sample: Sample) -> EncodedRow:
    raise AssertionError("not asked for")


def canary(
    question: Question = honest,
    shown: Callable[[Sample], str] | None = None,
    said: Callable[[Sample], str] | None = None,
    labels: Sequence[Any] = ("cat", "dog", "12"),
) -> CanaryResult:
    """The canary over `Toy`, with an encoder and a model of the test's own."""
    config = DataConfig(name="toy", dataset="tests:Toy")
    ledger = Ledger(None, OnBadRow["raise"], 0.0)
    data = VLMDataModule(Toy(question, labels), config, no_encoder, ledger, rows_per_step=1, seed=0)

    def text(sample: Sample) -> str:
        return sample.prompt.messages[0].text

    def model(sample: Sample) -> str:
        return hashlib.sha256(text(sample).encode()).hexdigest()

    samples = data.samples(IDS)
    pairs = [with_answer(data.dataset, data.dataset.read(row_id), SENTINEL) for row_id in IDS]
    return leak_canary(
        samples,
        [censored for censored, _ in pairs],
        ask=lambda rows: {row.id: (said or model)(row) for row in rows},
        show=lambda rows: {row.id: (shown or text)(row) for row in rows},
        in_source=sum(replaced for _, replaced in pairs),
    )


@pytest.mark.parametrize("labels", [("cat", "dog", "12"), (7, 12, 1.5)])
def test_an_honest_evaluation_passes(labels: Sequence[Any]) -> None:
    found = canary(labels=labels)
    assert found == CanaryResult(n=3, in_source=3, moved=(), exposed=()) and found.ok
    assert found.sentence == (
        "passed for our code: on 3 rows the gold answer was replaced (3 of them in the source record); "
        "no prediction and no prompt changed"
    )
    assert found.to_dict() == {"n": 3, "in_source": 3, "moved": (), "exposed": (), "asked": True, "ok": True}


def drawn(record: Record) -> Sequence[str | Image]:
    return blank_image(int(hashlib.sha256(label(record).encode()).digest()[0])), "What is it?"


LEAKING_DATASETS: dict[str, Question] = {
    "in the question": lambda record: ["What is it?", f" (Answer: {label(record)})"],
    "in capitals": lambda record: [f"What is it? {label(record).upper()}"],
    "backwards": lambda record: [f"What is it? {label(record)[::-1]}"],
    "as a number of letters": lambda record: [f"What is it? It has {len(label(record))} letters."],
    "drawn into the picture": drawn,
    "as a chosen wording": lambda record: ["What is it?" if label(record) < "d" else "Which is it?"],
}


@pytest.mark.parametrize("name", LEAKING_DATASETS)
@pytest.mark.parametrize("labels", [("cat", "bat", "ant"), (7, 12, 1)])
def test_a_leaking_dataset_is_named(name: str, labels: Sequence[Any]) -> None:
    if name == "as a chosen wording" and labels[0] == 7:
        labels = ("cat", "bat", "ant")  # numbers stay below "d", whatever they are
    found = canary(LEAKING_DATASETS[name], labels=labels)
    assert not found.ok and found.exposed == IDS
    assert found.sentence.startswith("LEAK: on 3 rows") and "toy/0" in found.sentence


LEAKING_ENCODERS: dict[str, Callable[[Sample], str]] = {
    "appends the answer": lambda sample: f"{sample.prompt.messages[0].text} {sample.answer}",
    "appends a reference": lambda sample: f"{sample.prompt.messages[0].text} {sample.references[0]}",
    "pads to the answer's length": lambda sample: sample.prompt.messages[0].text + "<pad>" * len(sample.answer),
}


@pytest.mark.parametrize("name", LEAKING_ENCODERS)
def test_a_leaking_encoder_is_named(name: str) -> None:
    found = canary(shown=LEAKING_ENCODERS[name])
    assert not found.ok and found.exposed == IDS and found.moved == ()


def test_a_model_that_is_handed_the_answer_is_named() -> None:
    found = canary(said=lambda sample: sample.answer)
    assert not found.ok and found.moved == IDS and found.exposed == ()
    assert "3 predictions and 0 prompts changed" in found.sentence


def test_one_leaking_row_is_enough() -> None:
    found = canary(shown=lambda sample: sample.answer if sample.id == "toy/1" else "What?")
    assert found.exposed == ("toy/1",) and "(first: toy/1)" in found.sentence


def test_an_answer_that_disappears_counts_as_moved() -> None:
    kept: list[str] = []

    def said(sample: Sample) -> str:
        kept.append(sample.id)
        return "x"

    samples = [Toy(honest).to_sample(Toy(honest).read(row_id)) for row_id in IDS]
    found = leak_canary(
        samples,
        samples,
        ask=lambda rows: {row.id: said(row) for row in rows if len(kept) < 5 or row.id != "toy/2"},
        show=lambda rows: {row.id: "" for row in rows},
        in_source=0,
    )
    assert found.moved == ("toy/2",)


def test_it_says_where_it_could_not_look() -> None:
    """Objects that are counted have no answer in their record: only the encoder is then put to the test."""

    class Counted(Toy):
        def read(self, row_id: str) -> Record:
            return {"id": row_id, "objects": ["cube"] * (int(row_id[-1]) + 3)}

        def to_sample(self, record: Record) -> Sample:
            count = str(len(record["objects"]))
            return Sample(record["id"], Prompt((Message("user", ("How many?",)),)), count, (count,))

    config = DataConfig(name="toy", dataset="tests:Toy")
    ledger = Ledger(None, OnBadRow["raise"], 0.0)
    data = VLMDataModule(Counted(honest), config, no_encoder, ledger, rows_per_step=1, seed=0)
    pairs = [with_answer(data.dataset, data.dataset.read(row_id), SENTINEL) for row_id in IDS]
    assert [replaced for _, replaced in pairs] == [False] * 3
    assert [censored.answer for censored, _ in pairs] == [SENTINEL] * 3


def test_the_sentinel_is_nobody_s_answer() -> None:
    for name, metric in METRICS.items():
        of_boxes = name.startswith(("box_", "point_"))
        assert metric(SENTINEL, ['[{"pixels": [1, 2, 3, 4]}]' if of_boxes else "7"]).value == 0.0
    assert not np.any([character.isdigit() for character in SENTINEL])
