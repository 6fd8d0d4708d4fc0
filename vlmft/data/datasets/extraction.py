"""Documents and what they say as JSON: CORD, Donut's metadata.jsonl, SROIE's folders, and any table of that kind."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlmft.data.datasets.columns import Columns
from vlmft.data.sources.json_forms import IMAGE_SUFFIXES
from vlmft.data.sources.roles import shown
from vlmft.data.sources.split_names import LEFT_OUT, Names, known_names, split_of
from vlmft.data.sources.table import Table, table_in_memory
from vlmft.data.sources.tables import Loaded
from vlmft.data.sources.text import read_text
from vlmft.sample import SPLITS, BadRowError, Split

QUESTION = "Write what the document says as JSON."
NO_FILE = ""
"""Key of the reason why a row has no answer; a column without a name is not listed as unread."""


class Extraction(Columns):
    """A table whose answers are JSON, or a folder of images with a file of JSON each: img/a.jpg and key/a.json or
    a.txt, wherever below the folder of a split they lie."""

    name: ClassVar[str] = "extraction"
    max_new_tokens: ClassVar[int] = 512

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        hub_id: str | None = None,
        subset: str | None = None,
        images: str | None = None,
        image: str | None = None,
        question_text: str | None = None,
        answer: str | None = None,
        json_schema: str | None = None,
        split_names: Mapping[str, str] | None = None,
    ) -> None:
        """`question_text`: null asks for JSON and names the keys. The others are as of `Columns`."""
        super().__init__(
            path=path,
            revision=revision,
            hub_id=hub_id,
            subset=subset,
            images=images,
            image=image,
            question_text=question_text or QUESTION,
            answer=answer,
            answer_format="json",
            json_schema=json_schema,
            split_names=split_names,
        )
        self.asked = question_text

    def _load(self) -> Loaded:
        root = Path(self.path).expanduser() if self.path is not None else None
        if root is None or not root.is_dir() or not (found := _rows(root, known_names(self.split_names))):
            return super()._load()
        self.named["answer"] = "answer"
        tables = {split: table_in_memory([found[split]], root) for split in SPLITS if split in found}
        origins = {split: f"{len(found[split])} images, a file of JSON each" for split in tables}
        return Loaded(tables, origins, declared=len(tables) > 1)

    def _read_as(self, loaded: Loaded) -> dict[Split, Table]:
        tables = super()._read_as(loaded)
        assert self._json is not None
        if self.asked is None and (keys := ", ".join(self._json.order.get((), ()))):
            self.question_text = f"{QUESTION} Keys: {keys}."
            self._description.roles["question"] = f"the text {self.question_text!r}"
        return tables

    def _answers(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        if NO_FILE in record:
            raise BadRowError(f"Expected a file of JSON, got {record[NO_FILE]}; write it, or remove the image")
        try:
            return super()._answers(record)
        except BadRowError as error:
            raise BadRowError(f"{error}; the image is {shown(record.get(self._column['image']))}") from error


def _rows(root: Path, names: Names) -> dict[str, list[dict[str, Any]]]:
    """Split -> {"image", "answer"} of each image; {} where less than half of them have a file of JSON."""
    files = [file for file in sorted(root.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    beside: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix.lower() in (".json", ".txt") and _begins_an_object(file):  # SROIE's boxes are .txt, too
            beside.setdefault(file.stem, []).append(file)
    rows: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        split = split_of(file.relative_to(root), names) or "train"
        if file.suffix.lower() in IMAGE_SUFFIXES and split != LEFT_OUT:
            rows.setdefault(split, []).append(_row(file, root, beside.get(file.stem, [])))
    answered = [row["answer"] is not None for some in rows.values() for row in some]
    return rows if 2 * sum(answered) >= len(answered) else {}


def _begins_an_object(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _row(image: Path, root: Path, files: Sequence[Path]) -> dict[str, Any]:
    """With the file that lies nearest: train and test may number their images alike."""
    shared = [len(Path(os.path.commonpath((image, file))).parts) for file in files]
    best = [file for file, parts in zip(files, shared, strict=True) if parts == max(shared)]
    name = image.relative_to(root).as_posix()
    if len(best) != 1:
        found = f"{len(best)}: {', '.join(file.relative_to(root).as_posix() for file in best)}" if best else "none"
        return {"image": name, "answer": None, NO_FILE: f"{found} of the name {image.stem}"}
    return {"image": name, "answer": read_text(best[0]).text}
