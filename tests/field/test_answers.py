"""What an answer may be in a row, and what is trained on and correct."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import PIL.Image
import pytest

Check = Callable[..., None]
TEN = ["a"] * 6 + ["b"] * 4


def rows(column: str, *values: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"image": "a.png", "question": "q", column: value, **more} for value in values]


CASES: dict[str, tuple[list[dict[str, Any]], list[str], dict[str, Any]]] = {
    "numbers": (rows("answer", 3, 0.5, True, False), ["3", "0.5", "true", "false"], {}),
    "nothing": (rows("answer", "x", None, "", " \n"), ["x", "BAD", "BAD", "BAD"], {}),
    "lists": (rows("answer", ["a", "b"], ["c"]), ['["a", "b"]', '["c"]'], {}),
    "lists, named": (rows("answer", ["a", "b"], ["c"]), ["a | b", "c"], {"answers": "list"}),
    "lists of one": (rows("label", ["14"], ["Yes"]), ["14", "Yes"], {}),
    "lists of one, then of two": (rows("answer", ["a"], ["b", "c"]), ['["a"]', '["b", "c"]'], {}),
    "boxes": (rows("answer", [9, 10, 29, 31]), ["[9, 10, 29, 31]"], {}),
    "objects": (rows("answer", {"a": [1, "é"]}), ['{"a": [1, "é"]}'], {}),
    "JSON text": (rows("answer", '{"a": 1}', '["a"]'), ['{"a": 1}', '["a"]'], {}),
    "printed": (rows("answer", "['a', 'b']", "{'a': 1}", "[1, 2]"), ["BAD", "BAD", "[1, 2]"], {}),
    "half a surrogate pair": (rows("answer", "\ud800x", "x\0"), ["BAD", "BAD"], {}),
    "several": (rows("answers", ["a", "b"], ["c"]), ["a | b", "c"], {}),
    "several in CSV": (rows("answers", '["a", "b"]', "['c', 'd']"), ["a | b", "c | d"], {}),
    "several as JSON": (rows("answers", ["a", "b"]), ['["a", "b"]'], {"answers": "json"}),
    "ten": (rows("answer", TEN), ["a | b"], {}),
    "ten, some nine": (rows("answer", TEN, TEN, TEN[:9]), ["a | b"] * 3, {}),
    "objects of annotators": (rows("answers", [{"answer": "a"}, {"answer": "a"}, {"answer": "b"}]), ["a | b"], {}),
    "SQuAD": (rows("answers", {"text": ["a", "b"], "answer_start": [1, 2]}), ["a | b"], {}),
    "direct_answers": (rows("direct_answers", TEN, choices=["x", "a"], correct_choice_idx=1), ["a | b"], {}),
    "references": (rows("answer", "a", "c", references=["a", "b"]), ["a | b", "c | a | b"], {}),
    "references in CSV": (rows("answer", "a", references='["a", "b"]'), ["a | b"], {}),
    "no references": (rows("answer", "a", references=[]) + rows("answer", "b", references=["c"]), ["a", "b | c"], {}),
    "references, named": (rows("answer", "a", gold='["b"]'), ["a | b"], {"references": "gold"}),
    "references alone": (rows("references", ["a", "b"]), ["a | b"], {}),
    "places": (rows("answer", 1, 0, 7, choices=["x", "y"]), ["y", "x", "BAD"], {}),
    "places in CSV": (rows("answer", "1", "0", choices="['x', 'y']"), ["y", "x"], {}),
    "many": (rows("answer", 15, "P", choices=[f"c{n}" for n in range(20)]), ["c15", "c15"], {}),
    "letters": (rows("answer", "B", "A", choices=["x", "y"]), ["y", "x"], {}),
    "letters of an object": (rows("answer", "B", options={"A": "x", "B": "y"}), ["y"], {}),
    "numbers among choices": (rows("answer", 4, 5, choices=[4, 5]), ["4", "5"], {}),
    "texts among choices": (rows("answer", "y", choices=["x", "y"]), ["y"], {}),
    "answer_index": (rows("answer_index", 1, choices=["x", "y"]), ["y"], {}),
    "both labels": (rows("label", 0, label_name="cat"), ["cat"], {}),
    "the mark": (rows("answer", "see <image>"), ["see <image>"], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_answers(check: Check, case: str) -> None:
    table, answers, options = CASES[case]
    expected = [f"train: {'BAD ...' if text == 'BAD' else f'[1] q => {text}'}" for text in answers]
    check(expected, "columns", {"t.jsonl": table, "a.png": 1}, "t.jsonl", **options)


def test_places_from_1_are_refused(check: Check) -> None:
    table = rows("answer", 1, 2, choices=["x", "y"])
    check("REFUSED data.options.answers: ...got [1, 2]; ...", "columns", {"t.jsonl": table}, "t.jsonl")


def test_a_letter_is_the_answer_where_the_question_lists_the_choices(check: Check) -> None:
    table = [{"image": "a.png", "question": "q? A. red B. blue", "answer": "B", "choices": ["red", "blue"]}]
    check("train: [1] q? A. red B. blue => B", "columns", {"t.jsonl": table, "a.png": 1}, "t.jsonl")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (rows("label", 0, 1), "the answers are numbers in 'label'"),
        (rows("label", "0", "1"), "the answers are numbers in 'label'"),
        (rows("answer", "1.0", "2.0"), "all answers end in .0"),
        (rows("answer", "y", choices=["x", "y"]), "the choices in 'choices' are not shown to the model"),
    ],
)
def test_what_is_noted(read: Callable[..., list[str]], table: list[dict[str, Any]], words: str) -> None:
    found = read("columns", {"t.jsonl": table, "a.png": 1}, "t.jsonl")
    assert any(line.startswith("note: ") and words in line for line in found)


@pytest.mark.parametrize(
    ("labels", "names"),
    [([0, 1], ["cat", "dog"]), ([[0], [1]], ["cat", "dog"]), ([[0, 1], [1]], ['["cat", "dog"]', '["dog"]'])],
)
def test_class_numbers_are_their_names(check: Check, labels: list[Any], names: list[str]) -> None:
    import datasets

    feature = datasets.ClassLabel(names=["cat", "dog"])
    inner = datasets.List(feature) if isinstance(labels[0], list) else feature
    features = datasets.Features({"image": datasets.Value("string"), "label": inner})
    table = datasets.Dataset.from_list([{"image": "a.png", "label": label} for label in labels], features=features)

    def make(root: Any) -> None:
        PIL.Image.new("RGB", (8, 6), (1, 80, 160)).save(root / "a.png")
        table.to_parquet(root / "t.parquet")

    check([f"train: [1] q => {name}" for name in names], "columns", make, "t.parquet", question_text="q")
