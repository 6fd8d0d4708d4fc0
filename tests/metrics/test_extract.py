"""Where the answer stands in a text: slots, letters, numbers, and texts that only look like an answer."""

from __future__ import annotations

import pytest

from vlmft.metrics.extract import chosen_letter, last_number, only_number, reference_letter, tagged_answer

OPTIONS = {"A": "red", "B": "green", "C": "blue", "D": "dark green"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *((text, "B") for text in ("B", "b", "(B)", "B.", " **B** ", "[B]", "'B'", "B:")),
        *((text, "B") for text in ("The answer is B.", "Answer: (B)", "**Answer:** B", "the answer is **B**")),
        *(
            (text, "B")
            for text in ("Option B", "The correct option is (B) green", "Final answer: B. green", "answer B")
        ),
        *((text, "B") for text in ("B. green", "(B) green", "B) green", "B: green", "I think it is B", "Ответ: B")),
        ("The correct answer is:\n\nB", "B"),
        ("答案是B", "B"),
        ("选B", "B"),
        ("answer: b", "B"),
        ("The answer is b.", "B"),
        ("B\n\nOption A is red, and option C is blue.", "B"),
        ("A is red, C is blue, so:\n\nB", "B"),
        ("Option A is red. The answer is B", "B"),
        ("答案：B。", "B"),
        ("User: A or C?\nAssistant: B", "B"),
        ("B<|im_end|>", "B"),
        ('{"reason": "A is red", "answer": "B"}', "B"),
        ("answer is 'B'", "B"),
        ("<think>A? Maybe C.</think>The correct option is B", "B"),
        ("<think>A</think><answer>B</answer>", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("The answer is $\\boxed{B}$", "B"),
        ("<|begin_of_box|>B<|end_of_box|>", "B"),
        ("The answer is A. Wait, the answer is B.", "B"),  # the last word
        ("The correct answer is **B**. It is not A.", "B"),
        ("A cat is seen. The answer is B.", "B"),  # an article before
        ("A red cube", "A"),  # by its text: the A is an article
        ("blue", "C"),
        ("The colour is blue.", "C"),
        ("dark green", "D"),  # equal to one, though it holds another
    ],
)
def test_the_chosen_letter(text: str, letter: str) -> None:
    assert chosen_letter(text, "ABCD", OPTIONS) == letter


@pytest.mark.parametrize(
    "text",
    [
        *("", "I am not sure, A or B", "A or B", "A and B", "The answer is A or B", "The answer is A, B", "A/B"),
        *("Not B", "The answer is not B", "It is neither A nor B", "A. red B. green C. blue", "I cannot tell"),
        *("The answer is a dog", "E", "The answer is E", "A cat sits there", "<think>Maybe A", "It is red or blue"),
        *("B. green. Option A is red.", "A\nB", "Answer A is wrong, and so is C", "The answer is b or c"),
        *("I see nothing", "not red", "The answer: none of them"),
    ],
)
def test_what_chooses_no_letter(text: str) -> None:
    assert chosen_letter(text, "ABCD", OPTIONS) is None


def test_the_first_letter_would_be_taken_by_a_careless_rule() -> None:
    """The defect: a pattern that takes the first capital letter scores a doubt as a choice."""
    import re

    careless = re.search(r"\b[A-D]\b", "I am not sure, A or B")
    assert careless is not None and careless[0] == "A"


def test_letters_of_references() -> None:
    assert [reference_letter(text) for text in ("B", "(b)", "C.", " D ")] == ["B", "B", "C", "D"]
    assert [reference_letter(text) for text in ("AB", "red", "", "A red", "K", "4")] == [None] * 6


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x is 3</think><answer>40</answer>", "40"),
        ("<answer> 40 ", "40"),  # the stop string is cut away
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("So \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\text{red}}", "red"),
        ("<think>3</think> It is red", "It is red"),
        ("<think>3</think> The answer is: red", "red"),
        ("◁think▷3◁/think▷red", "red"),
        ("3 + 4\n#### 7", "7"),
        ("**Answer:** red", "red"),
        ("red<|im_end|>", "red"),
        ("red</s>\n", "red"),
        ("<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>", "red"),
        ("User: Which colour?\nAssistant: red", "red"),
        ('```json\n{"answer": 4, "why": "counted"}\n```', "4"),
        ('{"colour": "red"}', None),
        ("['14']", "14"),
        ('["red"]', "red"),
        ("['red', 'blue']", None),
        ("<think>it never ends", ""),
        ("red", None),
        ("It is red", None),
    ],
)
def test_what_a_text_marks_as_its_answer(text: str, answer: str | None) -> None:
    assert tagged_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("<think>3</think><answer>40°</answer>", "40"),
        ("140^\\circ", "140"),
        ("The angle is 140°", "140"),
        ("it is 1,200.50 kg", "2401/2"),
        ("1200.0", "1200"),
        ("between 3 and 5", "5"),
        ("B2 is -7", "-7"),
        ("1/2", "1/2"),
        ("½", "1/2"),
        ("0.5", "1/2"),
        ("none", None),
        ("<think>3", None),
        ("1/0", None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_a_reference_has_one_number_or_is_left() -> None:
    assert [only_number(text) for text in ("140°", "12 cm", "$1,200", "2√3", "none")] == [
        "140",
        "12",
        "1200",
        None,
        None,
    ]
