"""Images in class folders and nothing else; or a folder of images with captions in a table or in text files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import ClassVar

from vlmft.config.check import ConfigError
from vlmft.data.dataset import Record
from vlmft.data.datasets.columns import Columns
from vlmft.data.sources.files import REMEDIES, SUFFIXES, json_value
from vlmft.data.sources.image_folders import NO_CAPTION, descended, folders_of, image_rows
from vlmft.data.sources.roles import some_of
from vlmft.data.sources.split_names import known_names, splits_in
from vlmft.data.sources.table import table_in_memory
from vlmft.data.sources.tables import Loaded
from vlmft.data.sources.webdataset import webdataset_shards
from vlmft.sample import SPLITS, BadRowError

QUESTION = "What is in this image?"
MOST_LISTED = 20
"""Up to so many classes the question lists them, so that the untuned model knows which words are expected."""
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class ImageFolder(Columns):
    """`path`/<class>/<image>, or `path`/{train,val,test}/<class>/<image>: what is in the image? The folder's name.

    Metadata files give each image its caption, as in `data=columns`; so do text files of the same name beside the
    images.
    """

    name: ClassVar[str] = "imagefolder"
    max_new_tokens: ClassVar[int] = 32

    def __init__(
        self,
        *,
        path: str | None = None,
        question_text: str | None = None,
        answer: str | None = None,
        answers: str | None = None,
        labels: Mapping[str, Sequence[str]] | str | None = None,
        split_names: Mapping[str, str] | None = None,
        instruction: str | None = None,
    ) -> None:
        """`labels`: folder -> answer and further spellings that count as right, or a JSON file of that; a folder
        without an entry answers its name, underscores as spaces. `answer`: column of the metadata."""
        super().__init__(
            path=path,
            answer=answer,
            answers=answers,
            question_text=question_text,
            split_names=split_names,
            instruction=instruction,
        )
        self.asked = question_text
        self.labels = labels

    def _load(self) -> Loaded:
        if self.path is None:
            raise ConfigError("data.path: Expected a folder of images, got none; set it")
        root = Path(self.path).expanduser()
        tar = root.is_file() and webdataset_shards(root)
        if not root.is_dir() and not tar:
            remedy = REMEDIES.get(root.suffix.lower(), "name the folder itself").partition(":")[0]
            raise ConfigError(f"data.path: Expected a folder of images, got {str(root)!r}; {remedy}")
        self.question_text = self.asked or QUESTION
        if tar or webdataset_shards(root) or _has_metadata(root, known_names(self.split_names)):
            return super()._load()
        found = image_rows(root, known_names(self.split_names))
        names = sorted({row["class"] for rows in found.rows.values() for row in rows if "class" in row})
        if not names and not found.captions:
            there = next((f.name for f in sorted(root.iterdir()) if f.suffix.lower() in (*SUFFIXES, *REMEDIES)), "")
            remedy = REMEDIES.get(PurePath(there).suffix.lower(), "set data=columns for a table")
            raise ConfigError(
                f"data.path: Expected images in class folders, with captions in .txt files or in a metadata.csv, got "
                f"none below {str(root)!r}; {f'there is {there}: ' if there else ''}{remedy}"
            )
        if names:
            self._ask_for(root, names)
        what = (
            f"{len(names)} classes, the names of folders: {some_of(names, 6)}"
            if names
            else "captions of files beside them"
        )
        tables, origins = {}, {}
        for split in SPLITS:
            if rows := found.rows.get(split):
                tables[split] = table_in_memory([rows], root)
                origins[split] = f"{len(rows)} images, {what}" + (", by folder" if found.declared else "")
        return Loaded(tables, origins, notes=found.notes, declared=True)

    def _ask_for(self, root: Path, names: Sequence[str]) -> None:
        self.named.update(answer="class", class_column="class")
        self._spellings = self._spelled(root, names)
        answers = sorted({spellings[0] for spellings in self._spellings.values()})
        choices = f" Answer with one of: {', '.join(answers)}." if len(answers) <= MOST_LISTED else ""
        self.question_text = self.asked or f"{QUESTION}{choices}"

    def _spelled(self, root: Path, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        labels = self.labels or {}
        if isinstance(labels, str):
            labels = json_value(root / labels, dict, key="data.options.labels")
        if wrong := [name for name, texts in labels.items() if isinstance(texts, str) or not texts]:
            raise ConfigError(f"data.options.labels: Expected a list of spellings for each folder, got {wrong[0]!r}")
        return {name: tuple(map(str, labels.get(name, (name.replace("_", " "),)))) for name in names}

    def bare_question(self, record: Record) -> str:
        """Without the list of answers."""
        return self.asked or QUESTION

    def _answers(self, record: Record) -> tuple[str, ...]:
        if NO_CAPTION in record:
            raise BadRowError(f"Expected a caption, got {record[NO_CAPTION]}; write it, or remove the image")
        answer, *right = super()._answers(record)
        spellings = self._spellings.get(answer) if self._column["answer"] == "class" else None
        return (answer, *right) if spellings is None else (spellings[0], *spellings)


def _has_metadata(root: Path, names: Mapping[str, str]) -> bool:
    places = [root, descended(root)]
    places += [folder for folder in folders_of(root) if splits_in(folder.name, names)]
    return any(file.name.lower() in METADATA for folder in places for file in folder.iterdir())
