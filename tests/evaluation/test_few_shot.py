"""Examples come from train, share no image with a question, and are never cut."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import PIL.Image
import pytest

from vlmft.evaluation.few_shot import draw, images_of, nearest, question_after, turns_of
from vlmft.sample import BadRowError, Image, Message, Prompt, Sample


def row(number: int, shade: int | None = None) -> Sample:
    shade = number if shade is None else shade
    picture = Image(partial(PIL.Image.new, "RGB", (2, 2), (shade, 0, 0)), f"shade {shade}")
    messages = (Message("system", ("Count.",)), Message("user", (picture, f"question {number}")))
    return Sample(f"row {number}", Prompt(messages), f"answer {number}", (f"answer {number}",))


def test_examples_are_turns_behind_the_rows_own_system_message() -> None:
    shots, last = [row(1), row(2)], row(3)
    turns = turns_of(shots, last)
    assert [message.role for message in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [message.text for message in turns[1:]] == ["question 1", "answer 1", "question 2", "answer 2"]
    question = question_after(shots, last)
    assert [m.role for m in question.prompt.messages].count("system") == 1
    assert question.prompt.messages[-1].text == "question 3" and question.prompt.messages[:-1] == turns
    assert "answer 3" not in "".join(message.text for message in question.prompt.messages)
    mute = dataclasses.replace(last, prompt=Prompt(last.prompt.messages[1:]))  # a row that has none is given none
    assert [m.role for m in question_after(shots, mute).prompt.messages].count("system") == 0
    plain = [dataclasses.replace(shot, prompt=Prompt(shot.prompt.messages[1:])) for shot in shots]
    assert question_after(plain, last).prompt.messages[0].text == "Count."  # and one that has it keeps it


def test_examples_that_do_not_fit_go_one_by_one_and_never_the_question() -> None:
    last = row(3)
    question = question_after([row(1), row(2)], last)
    texts = [[m.text for m in p.messages if m.role == "user"] for p in (question.prompt, *question.shorter)]
    assert texts == [["question 1", "question 2", "question 3"], ["question 2", "question 3"], ["question 3"]]
    assert question.shorter[-1] == last.prompt  # asked as the untuned arm asks it
    assert all(prompt.messages[0].role == "system" for prompt in question.shorter)


TEST_ROWS = [row(100, shade=7), row(101, shade=8)]


def read(row_id: str) -> Sample:
    number = int(row_id)
    if number == 3:
        raise BadRowError("Expected an image")
    return row(number)


def undisturbed_draw(candidates: list[str], n: int, forbidden: set[str], seed: tuple[int, int]) -> list[Sample]:
    """The defect: it does not look at what the questions show."""
    return draw(candidates, read, n, set(), seed)


def test_no_example_shows_what_a_question_shows() -> None:
    candidates, forbidden = [str(number) for number in range(12)], images_of(TEST_ROWS)
    caught = 0
    for number in range(20):
        shots = draw(candidates, read, 10, forbidden, (0, number))
        assert not images_of(shots) & forbidden and len({shot.id for shot in shots}) == len(shots)
        assert len(shots) == 9  # twelve, without two that are forbidden and one that cannot be read
        caught += bool(images_of(undisturbed_draw(candidates, 10, forbidden, (0, number))) & forbidden)
    assert caught > 15  # the test sees the defect


def test_draws_differ_and_repeat() -> None:
    candidates = [str(number) for number in range(50)]
    draws = [[shot.id for shot in draw(candidates, read, 4, set(), (0, number))] for number in range(5)]
    assert len({tuple(ids) for ids in draws}) == 5
    assert draws[2] == [shot.id for shot in draw(candidates, read, 4, set(), (0, 2))]
    assert draws[2] != [shot.id for shot in draw(candidates, read, 4, set(), (1, 2))]


def test_the_most_alike_stands_next_to_the_question() -> None:
    pool = [row(number) for number in range(4)]
    vectors = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 0.0]])
    found = nearest(pool, vectors, {"x": np.array([1.0, 0.1]), "y": np.array([0.0, 1.0])}, 2)
    assert [shot.id for shot in found["x"]] == ["row 2", "row 0"]  # by angle: length says nothing
    assert [shot.id for shot in found["y"]] == ["row 2", "row 1"]


def test_rows_without_images_are_told_apart_by_their_text() -> None:
    text = Sample("t", Prompt((Message("user", ("q",)),)), "a", ("a",))
    assert images_of([text]) == {text.prompt.sha256}
    assert draw(["t"], lambda _: text, 1, images_of([text]), (0, 0)) == []


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_candidates_than_asked_for(n: int) -> None:
    assert len(draw([str(i) for i in range(n)], read, 4, set(), (0, 0))) == n
