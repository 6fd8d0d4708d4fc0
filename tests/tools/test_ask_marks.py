"""vlmft ask marks=boxes: the question says what the answer is made of, and the answer is in pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import PIL.Image

from vlmft.evaluation.predict import Answerer
from vlmft.sample import Answer, BadRow, Question
from vlmft.tools.ask import answers


class Asked:
    """Stands for a model that writes one box."""

    def __init__(self) -> None:
        self.questions: list[Question] = []

    def batches(self, questions: Sequence[Question], skip: Any) -> Iterator[dict[str, Answer]]:
        self.questions += questions
        yield {q.id: Answer('[{"pixels": [1, 2, 3, 4]}]', "stop", 9, raw="cat 1 2 3 4") for q in questions}


def test_marks(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    asked, bad = Asked(), list[BadRow]()
    (row,) = answers(cast(Answerer, asked), tmp_path, ["a.png"], "Where is the cat?", bad, "boxes")
    assert row["text"] == '[{"pixels": [1, 2, 3, 4]}]' and row["raw"] == "cat 1 2 3 4" and not bad
    assert [question.prompt.marks for question in asked.questions] == ["boxes"]
    list(answers(cast(Answerer, asked), tmp_path, ["a.png"], "What?", bad))
    assert asked.questions[-1].prompt.marks == ""
