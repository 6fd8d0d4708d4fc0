"""Images in class folders and nothing else; or a folder of images with metadata.csv or metadata.jsonl for captions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from vlmft.config.check import ConfigError
from vlmft.data.columns import Columns
from vlmft.data.dataset import Record
from vlmft.data.tables import SPLIT_NAMES, Table, load_tables
from vlmft.sample import Split

NOT_IMAGES = {".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".db", ".ini", ".html", ".py", ".zip"}
"""Suffixes of files that lie beside images; hidden files do so, too. Every other file is a row, or a bad one."""
QUESTION = "What is in this image?"
MOST_LISTED = 20
"""Up to so many classes the question lists them, so that the untuned model knows which words are wanted."""
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class ImageFolder(Columns):
    """`path`/<class>/<image>, or `path`/{train,val,test}/<class>/<image>: what is in the image? The folder's name.

    Where metadata files are there they say which file has which caption, as in `data=columns`.
    """

    name: ClassVar[str] = "imagefolder"
    max_new_tokens: ClassVar[int] = 32

    def __init__(
        self,
        *,
        path: str | None = None,
        question_text: str | None = None,
        answer: str | None = None,
        labels: Mapping[str, Sequence[str]] | str | None = None,
        instruction: str | None = None,
    ) -> None:
        """`labels`: folder -> answer and further spellings that count as right, or a JSON file of that; a folder
        without an entry answers its name, underscores as spaces. `answer`: column of the metadata."""
        super().__init__(path=path, answer=answer, question_text=question_text, instruction=instruction)
        self.asked = question_text
        self.labels = labels

    def _load(self) -> dict[Split, Table]:
        if self.path is None:
            raise ConfigError("data.path: Expected a folder of images, got none; set it")
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise ConfigError(f"data.path: Expected a folder of images, got {str(root)!r}; name the folder itself")
        folders = {SPLIT_NAMES[folder.name.lower()]: folder for folder in _folders(root) if folder.name in SPLIT_NAMES}
        if any((folder / name).is_file() for folder in (root, *folders.values()) for name in METADATA):
            self.question_text = self.asked or QUESTION
            return load_tables(self.path, None, None, {})
        rows = {split: class_images(root, folder) for split, folder in (folders or {"train": root}).items()}
        names = sorted({row["class"] for found in rows.values() for row in found})
        if not names:
            raise ConfigError(f"data.path: Expected images in class folders, got none below {str(root)!r}")
        self.named.update(answer="class", class_column="class")
        self._spellings = self._spelled(root, names)
        answers = sorted({spellings[0] for spellings in self._spellings.values()})
        listed = f" Answer with one of: {', '.join(answers)}." if len(answers) <= MOST_LISTED else ""
        self.question_text = self.asked or f"{QUESTION}{listed}"
        return {split: Table(found, root, range(len(found))) for split, found in rows.items()}

    def _spelled(self, root: Path, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        labels = self.labels or {}
        if isinstance(labels, str):
            try:
                labels = json.loads((root / labels).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError(f"data.options.labels: Expected a JSON file, got {error}; mend it") from error
        if wrong := [name for name, texts in labels.items() if isinstance(texts, str) or not texts]:
            raise ConfigError(f"data.options.labels: Expected a list of spellings for each folder, got {wrong[0]!r}")
        return {name: tuple(map(str, labels.get(name, (name.replace("_", " "),)))) for name in names}

    def bare_question(self, record: Record) -> str:
        """Without the list of answers."""
        return self.asked or QUESTION

    def _answers(self, record: Record) -> tuple[str, ...]:
        answers = super()._answers(record)
        return self._spellings.get(answers[0], answers) if self._column["answer"] == "class" else answers


def _folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def class_images(root: Path, folder: Path) -> list[dict[str, str]]:
    """{"image": path below `root`, "class": name of the folder} of each file below `folder`'s folders."""
    return [
        {"image": file.relative_to(root).as_posix(), "class": inner.name}
        for inner in _folders(folder)
        for file in sorted(inner.rglob("*"))
        if file.is_file() and file.suffix.lower() not in NOT_IMAGES and not file.name.startswith(".")
    ]
