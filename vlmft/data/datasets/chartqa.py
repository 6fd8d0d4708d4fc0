"""ChartQA: questions on charts, by people and by a machine (Masry et al. 2022, https://arxiv.org/abs/2203.10244)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, cast

from vlmft.config.check import ConfigError
from vlmft.data.dataset import Dataset, Record
from vlmft.data.images import image_from_bytes, image_from_file
from vlmft.data.sources.fields import PRINTED_LIST
from vlmft.data.sources.files import json_value
from vlmft.data.sources.hub import load_undecoded
from vlmft.sample import SPLITS, BadRowError, Image, Message, Prompt, Sample, Split

Source = Literal["human", "augmented"]
SOURCES: tuple[Source, ...] = ("human", "augmented")
"""Who wrote the question, in the order of the Hub's `human_or_machine`: 0 human, 1 machine."""
HUB_SPLITS: Mapping[str, Split] = {"train": "train", "val": "val", "validation": "val", "test": "test"}
HUB_COLUMNS = ("image", "query", "label", "human_or_machine")

INSTRUCTION = "Answer the question using a single word or phrase."
"""Follows every question, on a line of its own; part of the dataset, in training and evaluation alike.

The short-answer instruction of LLaVA-1.5 (Liu et al. 2023, https://arxiv.org/abs/2310.03744), which many models know
from their own training: the untuned model is asked in a form that it understands, so that the gain is not all format.
"""

ROW_ID = re.compile(r"\w+/(train|val|test)/(human|augmented)/(\d{6,})")


@dataclass(frozen=True)
class Table:
    """The rows of one source in one split."""

    rows: Any
    """By number: a list of JSON objects, or a `datasets.Dataset` that holds both sources."""
    numbers: Collection[int]
    """Those of this source, in order."""


Tables: TypeAlias = dict[tuple[Split, Source], Table]


class ChartQA(Dataset):
    """One chart, one question, a word or number for an answer; `tags` say who wrote the question.

    From the Hub (`hub_id`), from a folder of the Hub's parquet files, or from the folder of the authors' repository:
    `path`/{train,val,test}/ with png/, {split}_human.json and {split}_augmented.json.
    """

    name: ClassVar[str] = "chartqa"
    metric: ClassVar[str] = "relaxed_accuracy"
    max_new_tokens: ClassVar[int] = 20

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        sources: Sequence[Source] = SOURCES,
        hub_id: str = "HuggingFaceM4/ChartQA",
    ) -> None:
        """
        Raises:
            ValueError: other sources than human and augmented, or none.
            ConfigError: a revision of a local folder.
        """
        if not sources or any(source not in SOURCES for source in sources):
            raise ValueError(f"Expected sources of {list(SOURCES)}, got {list(sources)!r}; name one or both")
        if path is not None and revision is not None:
            raise ConfigError(f"data.revision: Expected none beside data.path, got {revision!r}; a folder has none")
        self.path, self.revision, self.hub_id = path, revision, hub_id
        self.sources = tuple(source for source in SOURCES if source in sources)
        self._tables: Tables = {}

    def __getstate__(self) -> dict[str, Any]:
        # A worker reads JSON again; a Hub table is a reference to a file, and loading it again would ask the network.
        kept = {key: table for key, table in self._tables.items() if not isinstance(table.rows, list)}
        return {**self.__dict__, "_tables": kept}

    @property
    def tables(self) -> Tables:
        """Loaded at first use.

        Raises:
            ConfigError: there is no ChartQA at that place.
        """
        if not self._tables:
            self._tables = self._load()
        return self._tables

    def _load(self) -> Tables:
        if self.path is None:
            return parquet_tables(self.hub_id, self.revision, self.sources)
        root = Path(self.path).expanduser()
        if any(_json_file(root, split, source).is_file() for split in SPLITS for source in SOURCES):
            return json_tables(root, self.sources)
        if next(root.rglob("*.parquet"), None) is not None:
            return parquet_tables(str(root), None, self.sources)
        raise ConfigError(
            f"data.path: Expected {_json_file(root, 'test', 'human')} and its like, or parquet files as on the Hub, "
            f"got {_listing(root)}; point it at the folder that holds train, val and test"
        )

    def index(self) -> Mapping[Split, Sequence[str]]:
        """Split -> ids such as "chartqa/test/human/000012": the row's number in its JSON file or Hub split, from 0.

        Raises:
            ConfigError: there is no ChartQA at that place.
        """
        ids: dict[Split, list[str]] = {}
        for (split, source), table in self.tables.items():
            ids.setdefault(split, []).extend(f"{self.name}/{split}/{source}/{number:06d}" for number in table.numbers)
        return ids

    def read(self, row_id: str) -> Record:
        """The row as it is stored, and its "id".

        Raises:
            BadRowError: no such row, or one that is not an object.
        """
        split, source, number = parsed_id(row_id)
        table = self.tables.get((split, source))
        if table is None or number not in table.numbers:
            raise BadRowError(f"Expected the id of a row, got {row_id!r}; take ids from index()")
        row = table.rows[number]
        if not isinstance(row, Mapping):
            raise BadRowError(f"Expected an object with imgname, query and label, got {row!r}; mend the JSON file")
        return {**row, "id": row_id}

    def to_sample(self, record: Record) -> Sample:
        """The record's chart, question and `INSTRUCTION`; answer and references as `answer_of` its label.

        Raises:
            BadRowError: a field is missing or of another type, or there is no such image in the folder.
        """
        split, source, _ = parsed_id(record["id"])
        missing = [name for name in ("query", "label") if name not in record]
        if missing:
            raise BadRowError(f"Expected fields query and label, got {sorted(record)}; add {' and '.join(missing)}")
        query = _text("query", record["query"])
        answer, references = answer_of(record["label"])
        prompt = Prompt((Message("user", (self._image(record, split), f"{query}\n{INSTRUCTION}")),))
        return Sample(record["id"], prompt, answer, references, tags={"source": source}, question=query)

    def _image(self, record: Record, split: Split) -> Image:
        if "image" not in record:
            root, name = Path(self.path or "").expanduser(), _text("imgname", record.get("imgname"))
            return image_from_file(root, f"{split}/png/{name}")
        data = record["image"]["bytes"] if isinstance(record["image"], Mapping) else None
        if not isinstance(data, bytes):  # a path alone could name any file of this computer
            raise BadRowError("Expected an image stored in its row, got none; write the parquet file with its images")
        return image_from_bytes(data, record["id"])


def parsed_id(row_id: str) -> tuple[Split, Source, int]:
    """Split, source and number of an id; raises BadRowError for another form."""
    match = ROW_ID.fullmatch(row_id)
    if match is None:
        raise BadRowError(f"Expected an id such as 'chartqa/test/human/000012', got {row_id!r}; take ids from index()")
    return cast(Split, match[1]), cast(Source, match[2]), int(match[3])


def answer_of(label: object) -> tuple[str, tuple[str, ...]]:
    """The text to train on and the references to score against.

    A text, or a list of one as on the Hub, is both as it stands, brackets of ChartQA's own "[2003, 2009]" included.
    A list of several is one answer of several parts: "2003, 2009", with "[2003, 2009]" as a second reference, which
    `relaxed_accuracy` compares part by part.

    Raises:
        BadRowError: no text; or a list that was printed into a text, which would teach the model to answer "['91.1']".
    """
    texts = [_text("label", part) for part in (label if isinstance(label, list) else [label])]
    printed = next((text for text in texts if PRINTED_LIST.fullmatch(text)), None)
    if printed is not None:
        raise BadRowError(f"Expected the answer's own text, got a printed list {printed!r}; store the list's text")
    if not texts:
        raise BadRowError("Expected a label, got an empty list; drop the row or fill it in")
    joined = ", ".join(texts)
    return joined, (joined,) if len(texts) == 1 else (joined, f"[{joined}]")


def _text(field: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(f"Expected a text as {field}, got {value!r}; drop the row or fill it in")
    return value.strip()


def _json_file(root: Path, split: Split, source: Source) -> Path:
    return root / split / f"{split}_{source}.json"


def json_tables(root: Path, sources: Sequence[Source]) -> Tables:
    """The tables of the authors' folder; a split whose folder is not there has none.

    Raises:
        ConfigError: a folder or file is missing, or is not a JSON list.
    """
    tables: Tables = {}
    for split in SPLITS:
        if not (root / split).is_dir():
            continue
        if not (root / split / "png").is_dir():
            raise ConfigError(f"data.path: Expected the images in {root / split / 'png'}, got {_listing(root / split)}")
        for source in sources:
            file = _json_file(root, split, source)
            if not file.is_file():
                raise ConfigError(
                    f"data.path: Expected {file}, got {_listing(file.parent)}; add it, or set data.options.sources"
                )
            rows = json_value(file, list)
            tables[split, source] = Table(rows, range(len(rows)))
    return tables


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} that is no folder"
    names = sorted(entry.name for entry in folder.iterdir())
    return f"{folder} with {', '.join(names[:8]) or 'nothing'}{' ...' if len(names) > 8 else ''}"


def parquet_tables(place: str, revision: str | None, sources: Sequence[Source]) -> Tables:
    """The tables of a Hub dataset or of a folder with its parquet files, images not decoded.

    Raises:
        ConfigError: it cannot be loaded, or has other splits or columns.
    """
    tables: Tables = {}
    loaded = load_undecoded(place, None, revision)
    for split_name, rows in loaded.items():
        if split_name not in HUB_SPLITS:
            continue
        makers = _makers(rows, f"{place}, split {split_name}")
        for code, source in enumerate(SOURCES):
            if source in sources:
                numbers = dict.fromkeys(number for number, maker in enumerate(makers) if maker == code)
                tables[HUB_SPLITS[split_name], source] = Table(rows, numbers)
    if not tables:
        raise ConfigError(f"data: Expected splits train, val and test in {place!r}, got {sorted(loaded)}")
    return tables


def _makers(rows: Any, place: str) -> list[int]:
    missing = [column for column in HUB_COLUMNS if column not in rows.column_names]
    if missing:
        found = ", ".join(rows.column_names)
        raise ConfigError(f"data: Expected columns {', '.join(HUB_COLUMNS)}, got {found} in {place}")
    makers = list(rows["human_or_machine"])
    if not set(makers) <= {0, 1}:
        raise ConfigError(f"data: Expected human_or_machine of 0 or 1, got {sorted(map(str, set(makers)))} in {place}")
    return makers
