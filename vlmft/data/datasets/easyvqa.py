"""easy-VQA: shapes, colours, yes and no (https://github.com/vzhou842/easy-VQA), from its PyPI package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vlmft.config.check import ConfigError
from vlmft.data.datasets.columns import Columns
from vlmft.data.sources.table import Table, table_in_memory
from vlmft.data.sources.tables import Loaded


class EasyVQA(Columns):
    """4,000 images of one shape and 38,575 questions to train on, 1,000 and 9,673 to test; val is taken from train."""

    name: ClassVar[str] = "easyvqa"
    max_new_tokens: ClassVar[int] = 4

    def __init__(self, *, instruction: str | None = None) -> None:
        super().__init__(image="image", question="question", answer="answer", instruction=instruction)

    def _load(self) -> Loaded:
        try:
            import easy_vqa  # type: ignore[import-not-found]  # an extra
        except ImportError as error:
            raise ConfigError("data: easyvqa needs its package; pip install 'vlmft[easyvqa]'") from error
        train = _table(easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths())
        test = _table(easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths())
        return Loaded({"train": train, "test": test}, declared=True)


def _table(questions: tuple[list[str], list[str], list[int]], paths: dict[int, str]) -> Table:
    """`questions`: texts, answers and ids of images, side by side; `paths`: id -> file."""
    root = Path(next(iter(paths.values()))).parent
    rows: list[dict[str, Any]] = [
        {"question": text, "answer": answer, "image": Path(paths[image]).name}
        for text, answer, image in zip(*questions, strict=True)
    ]
    return table_in_memory([rows], root)
