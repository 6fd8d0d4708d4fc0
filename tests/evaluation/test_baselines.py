"""Baselines without images: what they score, fitted on train alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from vlmft.evaluation.baselines import LEAST, baselines
from vlmft.metrics import metric_named
from vlmft.sample import Message, Prompt, Sample

EXACT, RELAXED = metric_named("exact_match"), metric_named("relaxed_accuracy")


def row(number: int, question: str, answer: str, tags: Mapping[str, str] | None = None) -> Sample:
    return Sample(str(number), Prompt((Message("user", (question,)),)), answer, (answer,), tags=tags or {})


def values(train: list[Sample], test: list[Sample]) -> dict[str, float]:
    return {found.name: found.value for found in baselines(train, test, EXACT)}


def test_majorities() -> None:
    """Overall "a" is most frequent; of colours "red"; a kind that train has too seldom falls back on its source."""
    train = [row(i, f"Which letter is at place {i}?", "a") for i in range(20)]
    train += [row(i, "Which colour is it?", "red" if i < 6 else "blue", {"source": "x"}) for i in range(10)]
    train += [row(i, "Is it?", "no", {"source": "y"}) for i in range(LEAST - 1)]
    train += [row(0, "Really?", "yes", {"source": "y"})]
    test = [
        row(0, "Which letter is at place 77?", "a"),
        row(1, "Which colour is it?", "red"),
        row(2, "Is it?", "no", {"source": "y"}),
        row(3, "Something new?", "a"),
        row(4, "Which colour is it?", "blue"),
    ]
    found = {rule.name: rule for rule in baselines(train, test, EXACT)}
    assert found["majority"].value == 2 / 5
    assert found["majority by question"].value == 4 / 5 and found["majority by question"].kinds == 2
    assert (found["copy"].value, found["copy"].answered) == (0.0, 0)


def test_test_answers_teach_nothing() -> None:
    """Fitted on train: where the two differ, the majority of test is of no use."""
    train = [row(i, "Which?", "a") for i in range(10)]
    assert values(train, [row(i, "Which?", "b") for i in range(10)])["majority"] == 0.0


@pytest.mark.parametrize("form", ["How many? Answer is {}.", "How many?\n{}", "Scene with {} cubes. How many cubes?"])
def test_copying_what_the_prompt_tells(form: str) -> None:
    train = [row(i, form.format(i % 9), str(i % 9)) for i in range(40)]
    test = [row(i, form.format(i), str(i)) for i in range(100, 140)]
    found = {rule.name: rule for rule in baselines(train, test, EXACT)}
    assert found["copy"].value == 1.0 and found["copy"].answered == 40
    assert found["majority"].value == 0.0


def test_answers_of_any_length_are_copied() -> None:
    answers = ["a red cat", "dog", "two old owls on a tree", "hen"]
    train = [row(i, f"Hint: {answers[i % 4]}. What is it?", answers[i % 4]) for i in range(40)]
    assert values(train, [row(0, "Hint: the long way home. What is it?", "the long way home")])["copy"] == 1.0


def test_texts_are_copied_as_metrics_read_them() -> None:
    train = [row(i, f"It shows 1,0{i}0.5 %. How much?", f"1,0{i}0.5") for i in range(10, 30)]
    test = [row(i, f"It shows 2,0{i}0.5 %. How much?", f"2,0{i}0.5") for i in range(10, 30)]
    copied = next(rule for rule in baselines(train, test, RELAXED) if rule.name == "copy")
    assert copied.value == 1.0


def test_an_answer_that_is_always_the_first_option() -> None:
    words = ["cat", "dog", "cow", "hen", "fox", "owl"]
    rows = []
    for i in range(40):
        first, second, third = words[i % 6], words[(i + 1) % 6], words[(i + 3) % 6]
        rows.append(row(i, f"What is it? A. {first} B. {second} C. {third}", first))
    found = values(rows[:20], rows[20:])
    assert found["copy"] == 1.0 and found["majority"] < 0.3


def test_honest_questions_lead_to_nothing() -> None:
    train = [row(i, "How many of the 13 cubes are red?", str(i % 4)) for i in range(40)]
    assert values(train, train[:8])["copy"] == 0.0


def test_nothing_to_fit_on() -> None:
    rows = [row(0, "How many?", "1")]
    assert baselines([], rows, EXACT) == baselines(rows, [], EXACT) == []


def test_the_bare_question_is_the_kind() -> None:
    """Instructions that rows share or not make no kinds of their own."""
    train = [dataclasses.replace(row(i, f"Which? Rule {chr(97 + i)}.", "a"), question="Which?") for i in range(10)]
    (_, by_question, _) = baselines(train, train, EXACT)
    assert by_question.kinds == 1
