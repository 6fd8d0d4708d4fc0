"""Conversations of three forms become the same prompts; each prompt holds what comes before its answer and no more."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.schema import DataConfig
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.datasets.chartllama import ChartLlama
from vlmft.data.datasets.messages import Messages
from vlmft.data.ledger import Ledger
from vlmft.data.other_answers import with_answer
from vlmft.data.survey.facts import Reading, seen
from vlmft.sample import BadRowError, Image, Message, Sample

REFERENCE = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "data/chartllama"


def written(folder: Path, *rows: Any) -> Messages:
    for number in (1, 2):
        PIL.Image.new("RGB", (8, 6), (number, 80, 160)).save(folder / f"{number}.png")
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Messages(path=str(folder / "chat.jsonl"))


def shown(sample: Sample) -> list[tuple[str, list[str]]]:
    """Role and pieces of each message, images by the names of their files."""
    return [
        (message.role, [piece.name if isinstance(piece, Image) else piece for piece in message.content])
        for message in sample.prompt.messages
    ]


def samples_of(dataset: Messages) -> list[Sample]:
    return [dataset.to_sample(dataset.read(row_id)) for row_id in dataset.index()["train"]]


def chat(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def llava(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"id": "x", "conversations": [{"from": role, "value": value} for role, value in turns], **more}


IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


FORMS: Mapping[str, Mapping[str, Any]] = {
    "hub, list of images": chat(("user", [IMAGE, text("Who?")]), ("assistant", [text("Gena")]), images=["1.png"]),
    "hub, image in place": chat(("user", [{**IMAGE, "image": "1.png"}, text("Who?")]), ("assistant", [text("Gena")])),
    "hub, path in place": chat(("user", [{**IMAGE, "path": "1.png"}, text("Who?")]), ("assistant", "Gena")),
    "hub, mark": chat(("user", "<image>Who?"), ("assistant", "Gena"), images=["1.png"]),
    "hub, no mark": chat(("user", "Who?"), ("assistant", "Gena"), images=["1.png"]),
    "llava": llava(("human", "<image>\nWho?"), ("gpt", "Gena"), image="1.png"),
    "sharegpt": llava(("human", "<image>Who?"), ("gpt", "Gena"), images=["1.png"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_stored_record_becomes_exactly_this_question(tmp_path: Path, form: str) -> None:
    dataset = written(tmp_path, FORMS[form])
    assert dataset.index() == {"train": ["messages/train/000000/0"]}
    sample = dataset.to_sample(dataset.read("messages/train/000000/0"))
    (image,) = sample.prompt.images
    assert sample.prompt.messages == (Message("user", (image, "Who?")),)
    assert (sample.answer, sample.references, sample.conversation) == ("Gena", ("Gena",), "")
    assert image.name == "1.png" and image.pixels[0, 0].tolist() == [1, 80, 160]


def test_a_conversation_is_one_sample_an_answer(tmp_path: Path) -> None:
    turns = (("system", "Be brief."), ("human", "<image>\nWho?"), ("gpt", "Gena"), ("human", "Sure?"), ("gpt", "Yes"))
    first, second = samples_of(written(tmp_path, llava(*turns, image="1.png")))
    before = [("system", ["Be brief."]), ("user", ["1.png", "Who?"])]
    assert shown(first) == before
    assert shown(second) == [*before, ("assistant", ["Gena"]), ("user", ["Sure?"])]
    assert (first.answer, second.answer, second.id) == ("Gena", "Yes", "messages/train/000000/1")
    assert first.conversation == second.conversation == "messages/train/000000"


def test_several_images_between_texts(tmp_path: Path) -> None:
    asked = "First <image>\nsecond <image> which?"
    (sample,) = samples_of(written(tmp_path, llava(("human", asked), ("gpt", "2"), image=["1.png", "2.png"])))
    assert shown(sample) == [("user", ["First", "1.png", "second", "2.png", "which?"])]


def test_an_image_of_a_later_question_is_not_in_an_earlier_prompt(tmp_path: Path) -> None:
    turns = (("user", [IMAGE, text("A?")]), ("assistant", "1"), ("user", [IMAGE, text("B?")]), ("assistant", "2"))
    first, second = samples_of(written(tmp_path, chat(*turns, images=["1.png", "2.png"])))
    assert [image.name for image in first.prompt.images] == ["1.png"]
    assert [image.name for image in second.prompt.images] == ["1.png", "2.png"]


def test_text_alone(tmp_path: Path) -> None:
    row = chat(("user", "What does a mark mean?"), ("assistant", "An <image>."), images=[])
    (sample,) = samples_of(written(tmp_path, row))
    assert (shown(sample), sample.answer) == ([("user", ["What does a mark mean?"])], "An <image>.")


def test_system_and_instruction(tmp_path: Path) -> None:
    written(
        tmp_path, chat(("user", "A?"), ("assistant", "1")), chat(("system", "S"), ("user", "B?"), ("assistant", "2"))
    )
    dataset = Messages(path=str(tmp_path / "chat.jsonl"), system="Be kind.", instruction="One word.")
    one, two = samples_of(dataset)
    assert shown(one) == [("system", ["Be kind."]), ("user", ["A?\nOne word."])]
    assert shown(two) == [("system", ["S"]), ("user", ["B?\nOne word."])]


BAD: Mapping[str, tuple[Any, str]] = {
    "no turns": ({"text": "hello"}, "Expected a list in messages"),
    "role": (chat(("user", "A?"), ("tool", "1")), "Expected a role of system"),
    "no answer": (chat(("user", "A?")), "Expected each answer after a question, got turns of user"),
    "no question": (chat(("assistant", "1")), "Expected each answer after a question"),
    "two answers": (chat(("user", "A?"), ("assistant", "1"), ("assistant", "2")), "Expected each answer after"),
    "empty": (chat(), "got turns of none"),
    "mark alone": (chat(("user", "What is <image>?"), ("assistant", "A")), "got 0 and 1"),
    "marks": (llava(("human", "<image><image>?"), ("gpt", "1"), image="1.png"), "got 1 and 2"),
    "image answers": (chat(("user", "Draw"), ("assistant", [IMAGE]), images=["1.png"]), "with an image"),
    "video": (chat(("user", [{"type": "video"}]), ("assistant", "1")), "Expected as many videos .*, got 0 and 1"),
    "no content": (chat(("user", None), ("assistant", "1")), "Expected a text or an image as content"),
    "blank answer": (chat(("user", "A?"), ("assistant", " ")), "Expected a text as answer"),
    "no file": (llava(("human", "<image>?"), ("gpt", "1"), image="9.png"), "Expected an image file '9.png'"),
    "address": (
        chat(("user", [{**IMAGE, "url": "http://a/b"}, text("?")]), ("assistant", "1")),
        "rows are read offline",
    ),
    "no mapping": (5, "Expected an object"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows(tmp_path: Path, case: str) -> None:
    row, words = BAD[case]
    dataset = written(tmp_path, row, chat(("user", "A?"), ("assistant", "1")))
    assert len(dataset.index()["train"]) == 2, "a bad row has an id under which it is refused"
    with pytest.raises(BadRowError, match=words) as error:
        dataset.to_sample(dataset.read("messages/train/000000/0"))
    assert "\n" not in str(error.value)
    assert dataset.to_sample(dataset.read("messages/train/000001/0")).answer == "1"


def test_a_conversation_without_images_stays_together(tmp_path: Path) -> None:
    one, two, other = samples_of(
        written(
            tmp_path,
            chat(("user", "A?"), ("assistant", "1"), ("user", "B?"), ("assistant", "2")),
            chat(("user", "C?"), ("assistant", "3")),
        )
    )
    reading = Reading()
    for sample in (one, two, other):
        reading.add(sample)
    groups = seen(reading.arrays()).groups()
    assert groups[0] == groups[1] != groups[2]


def test_the_leak_canary_replaces_the_answer_and_no_earlier_turn(tmp_path: Path) -> None:
    turns = (("user", "A?"), ("assistant", "Yes"), ("user", "B?"), ("assistant", "Yes"))
    config = DataConfig(name="messages", dataset="vlmft.data.datasets.messages:Messages", val_rows=0, test_rows=0)
    dataset = written(tmp_path, chat(*turns))
    data = VLMDataModule(dataset, config, lambda sample: sample, Ledger(None, config.on_bad_row, 1), 4, 0)  # type: ignore[arg-type, return-value]
    censored, in_source = with_answer(data.dataset, data.dataset.read("messages/train/000000/1"), "quetzalcoatl")
    assert in_source and censored.answer == "quetzalcoatl"
    assert censored.prompt == data.sample("messages/train/000000/1").prompt


# --- chartllama: LLaVA's form, answers with further pairs glued into them


def chartllama(folder: Path, answers: Sequence[str], nested: bool = False) -> ChartLlama:
    place = folder / "ours" / ("ours/box" if nested else "box")
    place.mkdir(parents=True)
    PIL.Image.new("RGB", (8, 6), (1, 80, 160)).save(place / "1.png")
    rows = [llava(("human", "<image>\nWhich?"), ("gpt", answer), image="ours/box/1.png") for answer in answers]
    (folder / "box_qa.json").write_text(json.dumps(rows), encoding="utf-8")
    return ChartLlama(path=str(folder))


@pytest.mark.parametrize("nested", [False, True])
def test_glued_answers_are_split(tmp_path: Path, nested: bool) -> None:
    glued = "No\n\nQuestion: How many?\nAnswer: 10000\n\nQuestion: Is it\nso?\nAnswer: Yes"
    dataset = chartllama(tmp_path, ["Books", glued], nested)
    plain, *pairs = samples_of(dataset)
    instruction = "Answer the question using a single word or phrase."
    assert shown(plain) == [("user", ["ours/box/1.png", f"Which?\n{instruction}"])]
    assert [(sample.prompt.messages[0].text.removesuffix(f"\n{instruction}"), sample.answer) for sample in pairs] == [
        ("Which?", "No"),
        ("How many?", "10000"),
        ("Is it\nso?", "Yes"),
    ]
    assert [len(sample.prompt.images) for sample in pairs] == [1, 1, 1]
    assert {sample.conversation for sample in pairs} == {""}, "each pair is a question of its own"
    assert plain.prompt.images[0].pixels.shape == (6, 8, 3)


@pytest.mark.parametrize("torn", ["No\n\nQuestion: How many?", "No\n\nQuestion: A?\nAnswer: ", "Answer: 5"])
def test_a_torn_glue_is_refused(tmp_path: Path, torn: str) -> None:
    dataset = chartllama(tmp_path, [torn])
    with pytest.raises(BadRowError, match="Expected question and answer pairs"):
        dataset.read("chartllama/train/000000/0")


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference data are not here")
def test_real_charts() -> None:
    dataset = ChartLlama(path=str(REFERENCE))
    index = dataset.index()
    samples = samples_of(dataset)
    assert (list(index), len(samples)) == (["train"], 198)
    assert not [sample for sample in samples if "Question:" in sample.answer or "\n" in sample.answer]
    assert max(len(sample.answer) for sample in samples) < 80
    assert all(len(sample.prompt.images) == 1 for sample in samples)
