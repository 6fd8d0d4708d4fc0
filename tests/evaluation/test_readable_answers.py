"""Answers that occur in the prompts: counted unless several are offered, and compared with chance."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from vlmft.evaluation.readable_answers import SHUFFLES, Text, readable, words_of
from vlmft.sample import Message, Prompt, Sample

CHARTS = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "data/chartqa"
ANIMALS = ("cat", "dog", "cow", "hen", "fox", "owl", "pig", "bee", "ant", "elk")


def row(number: int, question: str, answer: str, *earlier: Message) -> Sample:
    return Sample(str(number), Prompt((*earlier, Message("user", (question,)))), answer, (answer,))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("How many? Answer is 3.", "3"),
        ("How many? (Answer is 3) Say the number.", "3"),
        ("how many?\n3\nAnswer briefly.", "3"),
        ("Hint: THREE cats", "three cats"),
        ("scenes/7_cubes.png: how many cubes?", "7"),
        ("dog/0001.jpg: what is in this image?", "dog"),
        ("The total is 1,234.50 dollars. What is the total?", "1234.50"),
        ("Сколько их? Ответ: Семь.", "семь"),
        ("Which?\nA. cat\nB. dog\nThe answer is dog.", "dog"),
        ("Which?\nA. cat\nB. dog\nThe answer is B.", "B"),
        ("Which one of: cat, dog, cow? It is the dog.", "dog"),
        ("Answer: Straße.", "STRASSE"),
    ],
)
def test_told(text: str, answer: str) -> None:
    assert Text(text).tells(words_of(answer))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("How many of the 13 cubes are red?", "3"),
        ("Is 3.5 the value?", "3"),
        ("Is 3.5 the value?", "5"),
        ("What is in this image? Answer with one of: cat, dog, cow.", "cat"),
        ("What is in this image? Answer with one of: cat, dog, cow.", "dog"),
        ("What is in this image? Answer with one of: cat, dog, cow.", "cow"),
        ("Is it a cat or a dog?", "a dog"),
        ("Is it the cat or dog?", "cat"),
        ("Answer yes or no.", "no"),
        ("Answer yes/no.", "yes"),
        ("Which is larger, Brazil or Chile?", "Chile"),
        ("Which?\nA. cat\nB. dog\nC. a fox", "dog"),
        ("Which? (a) cat (b) dog (c) cow", "cow"),
        ("Which? A) 12 cm B) 13 cm", "12"),
        ("Which?\nA. cat\nB. dog\nAnswer with the letter.", "B"),
        ("Options:\ncat\ndog\ncow\nWhich?", "dog"),
        ("['cat', 'dog', 'cow']: which?", "dog"),
        ("What is it?", "dog"),
        ("", "dog"),
        ("What is it?", "..."),
    ],
)
def test_not_told(text: str, answer: str) -> None:
    assert not Text(text).tells(words_of(answer))


def counted(n: int, question: str, seed: int = 0) -> list[Sample]:
    """`n` rows; `question` may name the {answer}, a {distractor}, and {another} number that says nothing of it."""
    chance = random.Random(seed)
    rows = []
    for number in range(n):
        answer, another = str(chance.randint(1, 9)), str(chance.randint(1, 9))
        rows.append(row(number, question.format(answer=answer, another=another), answer))
    return rows


def test_a_split_that_tells_its_answers_is_flagged() -> None:
    found = readable(counted(200, "How many? Answer is {answer}."))
    assert (found.n, found.rows, found.flagged) == (200, 200, True)
    assert 0.08 < found.chance < 0.15, "nine answers, about equally often"
    assert found.places == {"question": 200} and found.first == "0"
    assert found.sentence.startswith("200 of 200 rows (100.0 %), by chance 1")
    assert "in the question (first: 0)" in found.sentence


def test_a_twentieth_is_enough() -> None:
    rows = counted(1_900, "How many?") + counted(100, "How many? Answer is {answer}.", seed=1)
    rows = [row(number, sample.prompt.messages[0].text, sample.answer) for number, sample in enumerate(rows)]
    found = readable(rows)
    assert found.rows == 100 and found.flagged
    assert not readable(rows[:1_920]).flagged, "one in a hundred is how people ask"


def test_short_answers_that_stand_there_by_chance() -> None:
    found = readable(counted(500, "How many of the {another} cubes are red?"))
    assert 30 < found.rows < 90 and not found.flagged
    assert found.chance_interval[0] <= found.share <= found.chance_interval[1]


def options(number: int, form: str) -> tuple[str, str]:
    chance = random.Random(number)
    some = chance.sample(ANIMALS, 4)
    listed = {
        "marks": " ".join(f"{letter}. {name}" for letter, name in zip("ABCD", some, strict=True)),
        "lines": "\n".join(some),
        "or": f"{', '.join(some[:3])} or {some[3]}",
        "none that the rule knows": " ".join(ANIMALS),
    }[form]
    return f"What is it? Choose:\n{listed}", chance.choice(some)


@pytest.mark.parametrize("form", ["marks", "lines", "or", "none that the rule knows"])
def test_what_is_offered_is_not_told(form: str) -> None:
    """Each row's own options hold its answer, and hold other rows' answers four times of ten; or all do in all rows."""
    rows = [row(number, *options(number, form)) for number in range(300)]
    found = readable(rows)
    assert not found.flagged
    if form == "none that the rule knows":
        assert found.share == found.chance == 1.0
    else:
        assert found.rows == 0


def test_places_and_seeds() -> None:
    text = Message("system", ("The answer is 7.",))
    turns = (Message("user", ("Count.",)), Message("assistant", ("7",)))
    rows = [row(0, "How many?", "7", text), row(1, "How many?", "7", *turns), row(2, "How many? 7", "7")]
    rows += counted(60, "How many?")
    rows = [Sample(str(i), r.prompt, r.answer, r.references) for i, r in enumerate(rows)]
    found = readable(rows)
    assert found.places == {"system text": 1, "earlier turns": 1, "question": 1}
    assert readable(rows) == found and SHUFFLES >= 100


def test_another_reference_counts() -> None:
    prompt = Prompt((Message("user", ("It is the kitty. What is it?",)),))
    assert readable([Sample("0", prompt, "cat", ("cat", "kitty"))]).rows == 1


@pytest.mark.parametrize("rows", [[], [row(0, "How many?", "7")]])
def test_few_rows(rows: Sequence[Sample]) -> None:
    found = readable(rows)
    assert found.rows == 0 and not found.flagged and found.to_dict()["sentence"]


@pytest.mark.skipif(not CHARTS.is_dir(), reason=f"no {CHARTS}; set VLMFT_REFERENCE_DATA")
def test_questions_that_people_ask_of_charts() -> None:
    """They are not flagged; the same with each answer in its prompt are."""
    found = [row for file in sorted(CHARTS.glob("*/*_*.json")) for row in json.loads(file.read_text(encoding="utf-8"))]
    asked = [row(number, one["query"], str(one["label"])) for number, one in enumerate(found)]
    assert len(asked) == 450
    honest = readable(asked)
    assert not honest.flagged and honest.share < 0.01
    with_answers = readable(
        [row(number, f"{one['query']} ({one['label']})", one["label"]) for number, one in enumerate(found)]
    )
    assert with_answers.flagged and with_answers.share > 0.97
