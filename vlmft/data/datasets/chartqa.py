"""ChartQA: questions on charts, by people and by a machine (Masry et al. 2022, https://arxiv.org/abs/2203.10244)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlmft.config.check import ConfigError
from vlmft.data.dataset import Record
from vlmft.data.datasets.columns import Columns
from vlmft.data.sources.fields import PRINTED_LIST
from vlmft.data.sources.files import json_value
from vlmft.data.sources.hub import load_undecoded
from vlmft.data.sources.split_names import SPLIT_NAMES
from vlmft.data.sources.table import Table, table_in_memory
from vlmft.data.sources.tables import Loaded, library_tables
from vlmft.sample import SPLITS, BadRowError, Sample, Split

Source = Literal["human", "augmented"]
SOURCES: tuple[Source, ...] = ("human", "augmented")
"""Who wrote the question, in the order of the Hub's `human_or_machine`: 0 human, 1 machine."""
MAKER = "human_or_machine"

INSTRUCTION = "Answer the question using a single word or phrase."
"""Follows every question, on a line of its own; part of the dataset, in training and evaluation alike.

The short-answer instruction of LLaVA-1.5 (Liu et al. 2023, https://arxiv.org/abs/2310.03744), which many models know
from their own training: the untuned model is asked in a form that it understands, so that the gain is not all format.
"""


class ChartQA(Columns):
    """One chart, one question, a word or number for an answer; the tag `source` says who wrote the question.

    From the Hub (`hub_id`), from a folder of the Hub's parquet files, or from the folder of the authors' repository:
    `path`/{train,val,test}/ with png/, {split}_human.json and {split}_augmented.json.
    """

    name: ClassVar[str] = "chartqa"
    metric: ClassVar[str] = "relaxed_accuracy"
    max_new_tokens: ClassVar[int] = 20
    fills_splits: ClassVar[bool] = False

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
        """
        if not sources or any(source not in SOURCES for source in sources):
            raise ValueError(f"Expected sources of {list(SOURCES)}, got {list(sources)!r}; name one or both")
        super().__init__(
            path=path, revision=revision, hub_id=hub_id, question="query", answer="label", instruction=INSTRUCTION
        )
        self.sources = tuple(source for source in SOURCES if source in sources)

    def _load(self) -> Loaded:
        if self.path is None:
            return self._library(str(self.hub_id))
        root = Path(self.path).expanduser()
        if any(_json_file(root, split, source).is_file() for split in SPLITS for source in SOURCES):
            return json_tables(root, self.sources)
        if next(root.rglob("*.parquet"), None) is not None:
            return self._library(str(root))
        raise ConfigError(
            f"data.path: Expected {_json_file(root, 'test', 'human')} and similar files, or parquet files of the Hub, "
            f"got {_listing(root)}; point it at the folder that holds train, val and test"
        )

    def _library(self, place: str) -> Loaded:
        """The tables of a Hub dataset or of a folder with its parquet files, without other sources' rows."""
        loaded = load_undecoded(place, None, self.revision)
        used = {split: rows for split, rows in loaded.items() if split in SPLIT_NAMES}
        if not used:
            raise ConfigError(f"data: Expected splits train, val and test in {place!r}, got {sorted(loaded)}")
        result = library_tables(used, SPLIT_NAMES, place, None)
        for split, table in result.tables.items():
            result.tables[split] = self._of_sources(table, f"{place}, split {split}")
        return result

    def _of_sources(self, table: Table, place: str) -> Table:
        columns = ("image", "query", "label", MAKER)
        if any(column not in table.columns for column in columns):
            there = ", ".join(table.columns)
            raise ConfigError(f"data: Expected columns {', '.join(columns)}, got {there} in {place}")
        makers = list(table.cells(MAKER))
        if not set(makers) <= {0, 1}:
            raise ConfigError(f"data: Expected {MAKER} of 0 or 1, got {sorted(map(str, set(makers)))} in {place}")
        wanted = {SOURCES.index(source) for source in self.sources}
        return dataclasses.replace(table, numbers=[number for number, maker in enumerate(makers) if maker in wanted])

    def _describe(self, there: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        super()._describe(there, rows)
        self._description.roles["answer"] = "'label': its text; several texts joined by commas"

    def to_sample(self, record: Record) -> Sample:
        """The record's chart, question and `INSTRUCTION`; answer and references as `answer_of` its label."""
        if missing := [name for name in ("query", "label") if name not in record]:
            raise BadRowError(f"Expected fields query and label, got {sorted(record)}; add {' and '.join(missing)}")
        return dataclasses.replace(super().to_sample(record), tags={"source": self._source(record)})

    def _source(self, record: Record) -> str:
        if MAKER in record:
            return SOURCES[record[MAKER]]
        table, number, _ = self._at(record["id"])  # the authors' files hold one source each
        return self.sources[table.part_of(number)]

    def _answers(self, record: Record) -> tuple[str, ...]:
        answer, references = answer_of(record["label"])
        return answer, *references


def answer_of(label: object) -> tuple[str, tuple[str, ...]]:
    """The text to train on and the references to score against.

    A text, or a list of one as on the Hub, is both as it is, brackets of ChartQA's own "[2003, 2009]" included.
    A list of several is one answer of several parts: "2003, 2009", with "[2003, 2009]" as a second reference, which
    `relaxed_accuracy` compares part by part.

    Raises:
        BadRowError: no text; or a list that was printed into a text, which would teach the model to answer "['91.1']".
    """
    texts = [_text(part) for part in (label if isinstance(label, list) else [label])]
    printed = next((text for text in texts if PRINTED_LIST.fullmatch(text)), None)
    if printed is not None:
        raise BadRowError(f"Expected the answer's own text, got a printed list {printed!r}; store the list's text")
    if not texts:
        raise BadRowError("Expected a label, got an empty list; drop the row or fill it in")
    joined = ", ".join(texts)
    return joined, (joined,) if len(texts) == 1 else (joined, f"[{joined}]")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(f"Expected a text as label, got {value!r}; drop the row or fill it in")
    return value.strip()


def _json_file(root: Path, split: Split, source: Source) -> Path:
    return root / split / f"{split}_{source}.json"


def json_tables(root: Path, sources: Sequence[Source]) -> Loaded:
    """The tables of the authors' folder; a split whose folder is not there has none.

    Raises:
        ConfigError: a folder or file is missing, or is not a JSON list.
    """
    loaded = Loaded(declared=True)
    for split in SPLITS:
        folder, images = root / split, root / split / "png"
        if not folder.is_dir():
            continue
        if not images.is_dir():
            raise ConfigError(f"data.path: Expected the images in {images}, got {_listing(folder)}")
        files = [_json_file(root, split, source) for source in sources]
        if absent := [file for file in files if not file.is_file()]:
            raise ConfigError(
                f"data.path: Expected {absent[0]}, got {_listing(folder)}; add it, or set data.options.sources"
            )
        loaded.tables[split] = table_in_memory([json_value(file, list) for file in files], images)
        loaded.origins[split] = ", ".join(file.name for file in files)
    return loaded


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}, which is not a folder"
    names = sorted(entry.name for entry in folder.iterdir())
    return f"{folder} with {', '.join(names[:8]) or 'nothing'}{' ...' if len(names) > 8 else ''}"
