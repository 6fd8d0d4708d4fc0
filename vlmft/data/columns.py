"""Any table: which column holds the image, the question, the answer. The base of every dataset that is a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from vlmft.config.check import ConfigError
from vlmft.data.dataset import CLASS, GROUP, Dataset, Ids, Record
from vlmft.data.fields import images_of, text_of, texts_of
from vlmft.data.tables import SPLIT_NAMES, Table, load_tables
from vlmft.sample import BadRowError, Message, Prompt, Sample, Split

USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "images", "file_name", "filename", "image_path", "img", "photo"),
    "question": ("question", "query", "problem", "prompt", "instruction"),
    "answer": ("answer", "answers", "label", "labels", "solution", "caption", "captions", "text"),
}
"""Columns that are taken where the config names none, the first that is there."""


class Columns(Dataset):
    """One row, one question. `references` default to the answer; of a list of answers the first is trained on."""

    name: ClassVar[str] = "columns"
    metric: ClassVar[str] = "exact_match"
    max_new_tokens: ClassVar[int] = 64
    fills_splits: ClassVar[bool] = True

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        hub_id: str | None = None,
        image: str | None = None,
        question: str | None = None,
        question_text: str | None = None,
        answer: str | None = None,
        references: str | None = None,
        group: str | None = None,
        class_column: str | None = None,
        split: str | None = None,
        split_names: Mapping[str, str] | None = None,
        where: Mapping[str, str] | None = None,
        answer_pattern: str | None = None,
        instruction: str | None = None,
        system: str | None = None,
    ) -> None:
        """`question_text` is asked of every row instead of a column's text; `instruction` follows on its own line.

        Rows of one `group` stay in one split. `where`: column -> regular expression that its text must contain.
        `answer_pattern`: its first group is the answer.

        Raises:
            ValueError: settings that exclude each other, or a pattern that is none.
        """
        if question is not None and question_text is not None:
            raise ValueError("Expected question (a column) or question_text (a fixed text), got both; leave one out")
        if unknown := set((split_names or {}).values()) - set(SPLIT_NAMES.values()):
            raise ValueError(f"Expected split_names with values train, val or test, got {sorted(unknown)}")
        self.path, self.revision, self.hub_id = path, revision, hub_id
        self.named = {
            "image": image,
            "question": question,
            "answer": answer,
            "references": references,
            "group": group,
            "class_column": class_column,
            "split": split,
        }
        self.question_text, self.instruction, self.system = question_text, instruction, system
        self.split_names = dict(split_names or {})
        self.where = {column: _pattern(text) for column, text in (where or {}).items()}
        self.answer_pattern = None if answer_pattern is None else _pattern(answer_pattern)
        self._tables: dict[Split, Table] = {}
        self._column: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A worker reads local files again; a Hub table is a reference, and loading it again would ask the network.
        return {**self.__dict__, "_tables": {} if self.path is not None else self._tables}

    @property
    def tables(self) -> dict[Split, Table]:
        """Loaded at first use; raises ConfigError where there is no such table or column."""
        if not self._tables:
            tables = self._load()
            self._column = self._columns(next(iter(tables.values())).columns)
            self._tables = self._kept(tables)
        return self._tables

    def _load(self) -> dict[Split, Table]:
        return load_tables(self.path, self.hub_id, self.revision, self.split_names)

    def _columns(self, there: Sequence[str]) -> dict[str, str]:
        """Role -> column, named by the config or found by its usual name."""
        found = {role: column for role, column in self.named.items() if column is not None}
        for role, usual in USUAL_NAMES.items():
            first = next((column for column in usual if column in there), None)
            if first is not None and role not in found and (role != "question" or self.question_text is None):
                found[role] = first
        for role, column in [*found.items(), *(("where", column) for column in self.where)]:
            if column not in there:
                raise ConfigError(f"data.options.{role}: Expected a column of {', '.join(there)}, got {column!r}")
        if "answer" not in found:
            raise ConfigError(f"data.options.answer: Expected the answers' column, one of {', '.join(there)}, got none")
        if "question" not in found and self.question_text is None:
            raise ConfigError("data.options.question: Expected a column, got none; or set data.options.question_text")
        return found

    def _kept(self, tables: dict[Split, Table]) -> dict[Split, Table]:
        """Without the rows that `where` leaves out; with `split`, divided by that column's values."""
        for column, pattern in self.where.items():
            for split, table in tables.items():
                numbers = [n for n, cell in zip(table.numbers, table.cells(column), strict=True) if _has(cell, pattern)]
                tables[split] = replace(table, numbers=numbers)
        if "split" not in self._column:
            return tables
        names: Mapping[str, Any] = {**SPLIT_NAMES, **self.split_names}
        by_split: dict[Split, list[int]] = {}
        if len(tables) > 1:
            raise ConfigError(f"data.options.split: Expected one table to divide, got {len(tables)}; leave it out")
        (table,) = tables.values()
        for number, cell in zip(table.numbers, table.cells(self._column["split"]), strict=True):
            if str(cell) not in names:
                raise ConfigError(f"data.options.split: Expected {', '.join(names)}, got {cell!r}; set split_names")
            by_split.setdefault(names[str(cell)], []).append(number)
        return {split: replace(table, numbers=numbers) for split, numbers in by_split.items()}

    def index(self) -> Mapping[Split, Sequence[str]]:
        """Split -> ids such as "columns/test/000012": the row's number in its table, from 0."""
        return {s: Ids(f"{self.name}/{s}/{{:06d}}".format, table.numbers) for s, table in self.tables.items()}

    def comes_from(self) -> tuple[str, ...] | None:
        """The tables' files, where they hold all that there is."""
        found = [(split, table.sources) for split, table in self.tables.items()]
        return None if any(told is None for _, told in found) else tuple(f"{split} {told}" for split, told in found)

    def read(self, row_id: str) -> Record:
        """The row as it is stored, and its "id"; raises BadRowError for one that cannot be read."""
        table, number, _ = self._at(row_id)
        return {**table.row(number), "id": row_id}

    def _at(self, row_id: str) -> tuple[Table, int, int]:
        """Table, number of the row in it, and number within the row ("messages/train/000012/1"), else 0."""
        match = re.fullmatch(rf"{self.name}/(\w+)/(\d{{6,}})(?:/(\d+))?", row_id)
        if match is None or match[1] not in self.tables:
            raise BadRowError(
                f"Expected an id such as '{self.name}/train/000012', got {row_id!r}; take it from index()"
            )
        return self.tables[match[1]], int(match[2]), int(match[3] or 0)  # type: ignore[index]

    def to_sample(self, record: Record) -> Sample:
        """Images, question and instruction in one message; raises BadRowError where a field is missing or unfit."""
        root = self._at(record["id"])[0].root
        column = self._column
        images = images_of(record.get(column["image"]), root, record["id"]) if "image" in column else ()
        if "image" in column and not images:
            raise BadRowError(f"Expected an image in column {column['image']!r}, got none; fill it in or drop the row")
        answers = self._answers(record)
        tags = {tag: text_of(column[role], record.get(column[role])) for role, tag in TAGGED.items() if role in column}
        prompt = self.prompt((*images, self.question(record)))
        references = tuple(dict.fromkeys(answers))
        return Sample(record["id"], prompt, answers[0], references, tags=tags, question=self.bare_question(record))

    def _answers(self, record: Record) -> tuple[str, ...]:
        """What to train on, then what else is right."""
        column = self._column
        answers = tuple(map(self._bare, texts_of(column["answer"], record.get(column["answer"]))))
        if "references" not in column:
            return answers
        return answers[0], *texts_of(column["references"], record.get(column["references"]))

    def question(self, record: Record) -> str:
        """The fixed text, or the text of the question's column; with the instruction below it."""
        asked = self._asked(record)
        return asked if self.instruction is None else f"{asked}\n{self.instruction}"

    def bare_question(self, record: Record) -> str:
        """The question alone."""
        return self._asked(record)

    def _asked(self, record: Record) -> str:
        column = self._column.get("question", "")
        return self.question_text or text_of(column, record.get(column))

    def prompt(self, content: tuple[Any, ...]) -> Prompt:
        user = Message("user", content)
        return Prompt((user,) if self.system is None else (Message("system", (self.system,)), user))

    def _bare(self, answer: str) -> str:
        if self.answer_pattern is None:
            return answer
        match = self.answer_pattern.search(answer)
        if match is None:
            raise BadRowError(f"Expected an answer like {self.answer_pattern.pattern!r}, got {answer!r}; mend the row")
        return match[1].strip()


TAGGED: Mapping[str, str] = {"group": GROUP, "class_column": CLASS}
"""Role of a column -> the tag that its text becomes."""


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"Expected a regular expression, got {text!r} ({error}); mend it") from error


def _has(cell: object, pattern: re.Pattern[str]) -> bool:
    """A cell that cannot be read stays in: the row is refused by name, not left out in silence."""
    texts = cell if isinstance(cell, list) else [cell]
    return cell is None or any(pattern.search(str(text)) for text in texts)
