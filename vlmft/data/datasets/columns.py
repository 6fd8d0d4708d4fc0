"""Any table: which column holds the image, the question, the answer. The base of every dataset that is a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlmft.config.check import ConfigError
from vlmft.data.dataset import Dataset, Description, Ids, Record
from vlmft.data.sources import fields
from vlmft.data.sources.answers import READINGS, answers_of, notes_of, reading_of
from vlmft.data.sources.declared_splits import by_column, by_image_folder, split_column
from vlmft.data.sources.hub import class_names
from vlmft.data.sources.locate import ImageFolders
from vlmft.data.sources.roles import NONE, column_named, fold, image_columns, roles_of, shown, some_of, unread_of
from vlmft.data.sources.split_names import LEFT_OUT, SPLIT_NAMES, known_names
from vlmft.data.sources.structured import MOST_NEW_TOKENS, JsonAnswers, check_format, read_schema
from vlmft.data.sources.table import Table, no_rows, rows_where
from vlmft.data.sources.tables import Loaded, load_tables, with_images
from vlmft.data.survey.cache import stamps
from vlmft.sample import CLASS, GROUP, BadRowError, Image, Message, Prompt, Sample, Split


class Columns(Dataset):
    """One row, one question. `references` default to the answer; `answers` sets how lists of answers are read."""

    name: ClassVar[str] = "columns"
    metric: ClassVar[str] = "exact_match"
    max_new_tokens: ClassVar[int] = 64
    fills_splits: ClassVar[bool] = True

    _class_names: list[str] | None = None
    _json: JsonAnswers | None = None

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        hub_id: str | None = None,
        subset: str | None = None,
        encoding: str | None = None,
        images: str | None = None,
        image: str | None = None,
        question: str | None = None,
        question_text: str | None = None,
        answer: str | None = None,
        answers: str | None = None,
        answer_format: str | None = None,
        json_schema: str | None = None,
        references: str | None = None,
        group: str | None = None,
        class_column: str | None = None,
        split: str | None = None,
        split_names: Mapping[str, str] | None = None,
        where: Mapping[str, str] | None = None,
        answer_pattern: str | None = None,
        instruction: str | None = None,
        system: str | None = None,
        allow_tokens: Sequence[str] = (),
    ) -> None:
        """`question_text` is asked of every row instead of a column's text; `instruction` follows on its own line.

        `images`: the folder in which names of images begin. `image=none`: rows of text alone. `answers`: one of
        `READINGS` in `sources/answers.py`, where the rows are read wrongly. `answer_format=json`: answers are JSON, or
        texts of it, and written in one way; `json_schema`: file of a JSON Schema for them. Rows of one `group` stay in
        one split. `split_names`: a source's name for a split -> train, val, test or none, which leaves it out. `where`:
        column -> regular expression that its text must contain. `answer_pattern`: its first group is the answer.
        `system` goes before rows without a system text of their own. `allow_tokens`: special tokens of the model that
        texts may hold, such as those of boxes. `encoding`: of text files; `subset`: of a Hub dataset that has several.

        Raises:
            ValueError: settings that exclude each other, or an invalid regular expression.
            ConfigError: a revision of a local file.
        """
        if path is not None and revision is not None:
            raise ConfigError(f"data.revision: Expected none beside data.path, got {revision!r}; a local file has none")
        if question is not None and question_text is not None:
            raise ValueError("Expected question (a column) or question_text (a fixed text), got both; leave one out")
        if unknown := set((split_names or {}).values()) - {*SPLIT_NAMES.values(), LEFT_OUT}:
            raise ValueError(f"Expected split_names with values train, val, test or none, got {sorted(unknown)}")
        if answers is not None and answers not in READINGS:
            raise ValueError(f"Expected answers of {', '.join(READINGS)}, got {answers!r}")
        if answers is not None and answer_format is not None:
            raise ValueError("Expected answers or answer_format, got both; leave one out")
        self.path, self.revision, self.hub_id, self.subset = path, revision, hub_id, subset
        self.encoding, self.images, self.answers = encoding, images, answers
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
        self.allow_tokens = tuple(allow_tokens)
        self._tables: dict[Split, Table] = {}
        self._column: dict[str, str] = {}
        self._reading = "text"
        self._description = Description()
        self.answer_format, self.json_schema = check_format(answer_format, json_schema)
        if answer_format is not None:
            self.metric, self.max_new_tokens = "json_fields", MOST_NEW_TOKENS  # type: ignore[misc]

    def answer_schema(self) -> Mapping[str, Any] | None:
        return None if self.json_schema is None else read_schema(self.json_schema)

    def __getstate__(self) -> dict[str, Any]:
        # A worker reads lists of rows again; what `datasets` has loaded is a reference, and may be the Hub's.
        travels = self.path is None or all(hasattr(table.rows, "column_names") for table in self._tables.values())
        return {**self.__dict__, "_tables": self._tables if travels else {}}

    @property
    def tables(self) -> dict[Split, Table]:
        """Loaded at first use; raises ConfigError where there is no such table or column."""
        if not self._tables:
            loaded = self._load()
            self._description = Description(dict(loaded.origins), notes=list(loaded.notes))
            self._tables = self._read_as(loaded)
        return self._tables

    def _load(self) -> Loaded:
        return load_tables(
            self.path, self.hub_id, self.revision, self.split_names, self.images, self.encoding, self.subset
        )

    @property
    def _one_file(self) -> bool:
        return self.path is not None and Path(self.path).expanduser().is_file()

    def describe(self) -> Description:
        assert self.tables
        return self._description

    def _read_as(self, loaded: Loaded) -> dict[Split, Table]:
        """Decides what each column is, where images are and which rows are of which split; and describes it."""
        tables = loaded.tables
        rows = [row for table in tables.values() for row in table.sample()]
        there = list(dict.fromkeys(column for table in tables.values() for column in table.columns))
        if not there:
            raise no_rows(tables, next(iter(self._description.splits.values()), "the source"))
        self._column = roles_of(self.named, there, rows, asks=self.question_text is None)
        if "image" not in self._column and self.named["image"] != NONE:
            self._column |= self._image_by_id(loaded, there)
        self.where = {column_named("data.options.where", c, there): pattern for c, pattern in self.where.items()}
        self._require_in_each(tables)
        loaded = with_images(loaded, self._image_names, self._one_file)
        self._description.notes = list(loaded.notes)
        self._read_answers(loaded.tables, rows)
        tables = self._kept(rows_where(loaded.tables, self.where), loaded.declared)
        self._describe(there, rows)
        return tables

    def _image_by_id(self, loaded: Loaded, there: Sequence[str]) -> dict[str, str]:
        """The column of ids that names the images, as in Kaggle's train.csv; a fixed question needs one."""
        for column in [name for name in there if ID_COLUMN.search(fold(name)) and name not in self._column.values()]:
            self._column["image"] = column
            numbers = all(str(row.get(column)).isdigit() for table in loaded.tables.values() for row in table.sample(9))
            if numbers and self.question_text is None:
                continue  # row numbers: names of unrelated images end in numbers, too
            found = with_images(loaded, self._image_names, beside=False)
            first = next(iter(found.tables.values()))
            folders = first.folders[0]
            if folders is not None and any(folders.has(row.get(column)) for row in first.sample(9)):
                return {"image": column}
        self._column.pop("image", None)
        if self.question_text is not None:
            raise ConfigError(
                f"data.options.image: Expected a column of images, one of {some_of(there)}, got none: every row would "
                "ask the same question without an image; name it, and data.options.images if they lie elsewhere"
            )
        return {}

    def _require_in_each(self, tables: Mapping[Split, Table]) -> None:
        for split, table in tables.items():
            columns = table.columns
            for role in ("image", "question", "answer"):
                column = self._column.get(role)
                if column is not None and columns and column not in columns:
                    origin = self._description.splits.get(split, split)
                    raise ConfigError(
                        f"data.options.{role}: Expected the column {column!r} in {origin}, got {', '.join(columns)}; "
                        f"add it, or leave that file out (data.options.split_names={{{split}: none}})"
                    )

    def _image_names(self, row: Mapping[str, Any]) -> list[Any]:
        values = fields.listed_images(row.get(self._column["image"])) if "image" in self._column else ()
        return fields.names_among(
            [v.get("path") if isinstance(v, Mapping) and not v.get("bytes") else v for v in values]
        )

    def _read_answers(self, tables: Mapping[Split, Table], rows: Sequence[Mapping[str, Any]]) -> None:
        column = self._column["answer"]
        parts = [part for table in tables.values() for part in table.parts]
        names = {tuple(class_names(part, column) or ()) for part in parts}
        if len(names) > 1:
            raise ConfigError(f"data.options.answer: Expected one list of classes in {column!r}, got several; fix them")
        self._class_names = list(names.pop()) or None
        asked = [
            (self._named_class(row[column], lenient=True), self._cell(row, "choices"), str(self._cell(row, "question")))
            for row in rows
            if row.get(column) is not None
        ]
        if self.answer_format is not None:
            self._json, self._reading = JsonAnswers.of(self.json_schema), "json"
            self._json.learn(value for value, _, _ in asked)
            return
        self._reading = self.answers or reading_of(fold(column), asked)
        named = self._reading if self._class_names is None else "classes"
        self._description.notes += notes_of(column, [row[column] for row in rows if row.get(column) is not None], named)

    def _describe(self, there: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        description, column = self._description, self._column
        description.roles = {role: repr(name) for role, name in column.items() if role not in ("choices",)}
        reading = "the names of its classes" if self._class_names else READINGS[self._reading]
        reading = reading if self._json is None else self._json.said()
        description.roles["answer"] += f": {reading}"
        if self._reading not in ("text",):
            value = next(
                (row[column["answer"]] for row in rows if isinstance(row.get(column["answer"]), (list, dict, int))),
                None,
            )
            description.roles["answer"] += f", such as {shown(value)}" if value is not None else ""
        if self.question_text is not None:
            description.roles["question"] = f"the text {self.question_text!r}"
        if "image" not in column:
            description.notes.append("no column holds images: rows of text alone (data.options.image names one)")
        read = {name for role, name in column.items() if role != "choices" or self._reading == "choice"}
        description.unread = unread_of(there, rows, {*read, *self.where, "id"})
        if description.unread and self._reading == "text" and "choices" in column:
            description.notes.append(
                f"the choices in {column['choices']!r} are not shown to the model; write them into the questions"
            )
        if others := image_columns(there, rows, read):
            description.notes.append(f"more columns look like images and are not read: {', '.join(others)}")

    def _kept(self, tables: dict[Split, Table], declared: bool) -> dict[Split, Table]:
        """Divided by a split column or by folders of images; `declared`: names of files or folders give the splits."""
        names, setting = known_names(self.split_names), self.named["split"]
        if setting is not None and setting != NONE and len(tables) > 1:
            raise ConfigError(f"data.options.split: Expected one table to divide, got {len(tables)}; leave it out")
        column = self._column.get("split")
        if column is None and setting is None:
            column = split_column(tables, self._column.values(), names)
        if column is not None:
            self._column["split"] = column
            return by_column(tables, column, names, self._description)
        if declared or "image" not in self._column:
            return tables
        return by_image_folder(tables, self._column["image"], self._image_names, names, self._description)

    def index(self) -> Mapping[Split, Sequence[str]]:
        """Split -> ids such as "columns/test/000012": the row's number in its table, from 0."""
        return {s: Ids(f"{self.name}/{s}/{{:06d}}".format, table.numbers) for s, table in self.tables.items()}

    def comes_from(self) -> tuple[str, ...] | None:
        """The tables' files, where all rows and images are in them."""
        sources = [(split, table.sources) for split, table in self.tables.items()]
        schema = () if self.json_schema is None else stamps([Path(self.json_schema).expanduser()])
        if schema is None or any(of is None for _, of in sources):
            return None
        return (*(f"{split} {of}" for split, of in sources), *schema)

    def read(self, row_id: str) -> Record:
        """The row as it is stored, and its "id"; raises BadRowError for one that cannot be read."""
        table, number, _ = self._at(row_id)
        return self.record_of(table.row(number), row_id)

    def record_of(self, row: Mapping[str, Any], row_id: str) -> Record:
        """A row as it is stored, and its "id"."""
        own = {OWN_ID: row["id"]} if "id" in self._column.values() else {}
        return {**row, **own, "id": row_id}

    def _at(self, row_id: str) -> tuple[Table, int, int]:
        """Table, number of the row in it, and number within the row ("messages/train/000012/1"), else 0."""
        match = re.fullmatch(rf"{self.name}/(\w+)/(\d{{6,}})(?:/(\d+))?", row_id)
        if match is None or match[1] not in self.tables:
            raise BadRowError(
                f"Expected an id such as '{self.name}/train/000012', got {row_id!r}; take ids from index()"
            )
        return self.tables[match[1]], int(match[2]), int(match[3] or 0)  # type: ignore[index]

    def _folders(self, row_id: str) -> ImageFolders | None:
        table, number, _ = self._at(row_id)
        return table.folders_of(number)

    def to_sample(self, record: Record) -> Sample:
        """Images, question and instruction in one message; raises BadRowError where a field is missing or unfit."""
        column = self._column
        stored = self._cell(record, "image")
        images = fields.images_of(stored, self._folders(record["id"]), record["id"]) if "image" in column else ()
        if "image" in column and not images:
            raise BadRowError(f"Expected an image in column {column['image']!r}, got none; fill it in or drop the row")
        answer, *references = self._answers(record)
        tags = {
            tag: fields.text_of(column[role], self._cell(record, role))
            for role, tag in TAGGED.items()
            if role in column
        }
        prompt = self.prompt(fields.placed(self.question(record), images), record)
        return Sample(record["id"], prompt, answer, tuple(references), tags=tags, question=self.bare_question(record))

    def _cell(self, record: Record, role: str) -> Any:
        """None where no column has that role."""
        column = self._column.get(role)
        return None if column is None else record.get(OWN_ID if column == "id" and OWN_ID in record else column)

    def _answers(self, record: Record) -> tuple[str, ...]:
        """What to train on, then all correct answers."""
        column = self._column["answer"]
        if self._json is not None:
            stored = self._cell(record, "answer")
            stored = self._bare(stored) if isinstance(stored, str) else stored
            return self._json.with_references(column, stored, self._cell(record, "references"))
        value = self._named_class(self._cell(record, "answer"))
        choices = self._cell(record, "choices")
        answer, *right = map(self._bare, answers_of(column, value, self._reading, choices))
        if "references" not in self._column:
            return answer, *right
        stored = fields.listed_text(self._cell(record, "references"))
        if stored in (None, "", [], ()):
            return answer, *right
        also = fields.texts_of(self._column["references"], stored)
        return (answer, *also) if answer in also else (answer, answer, *also)

    def _named_class(self, value: Any, lenient: bool = False) -> Any:
        """The name of a class that the table holds as a number; `lenient`: the number itself where it is none."""
        if self._class_names is None or value is None:
            return value
        if isinstance(value, (list, tuple)):
            return [self._named_class(one, lenient) for one in value]
        if not isinstance(value, int) or not 0 <= value < len(self._class_names):
            if lenient:
                return str(value)
            raise BadRowError(
                f"Expected the number of one of {len(self._class_names)} classes, got {value!r}; fix the row"
            )
        return self._class_names[value]

    def question(self, record: Record) -> str:
        """The fixed text, or the text of the question's column; with the instruction below it."""
        asked = self._asked(record)
        return asked if self.instruction is None else f"{asked}\n{self.instruction}"

    def bare_question(self, record: Record) -> str:
        """The question alone."""
        return self._asked(record).replace(fields.MARK, "").strip()

    def _asked(self, record: Record) -> str:
        if self.question_text:
            return self.question_text
        asked = fields.text_of(self._column["question"], self._cell(record, "question"))
        more = self._cell(record, "input")  # Alpaca's second half of a question
        return f"{asked}\n{more.strip()}" if isinstance(more, str) and more.strip() else asked

    def prompt(self, content: tuple[str | Image, ...], record: Record) -> Prompt:
        """System text, earlier turns, question."""
        own = self._cell(record, "system")
        system = fields.text_of("system", own) if own else self.system
        turns = [] if system is None else [Message("system", (system,))]
        return Prompt((*turns, *self._earlier(record), Message("user", content)))

    def _earlier(self, record: Record) -> list[Message]:
        """Turns of a column `history`: pairs of question and answer."""
        found = []
        for pair in fields.listed_text(self._cell(record, "history")) or ():  # type: ignore[attr-defined]
            if not isinstance(pair, (list, tuple)) or len(pair) != 2 or any(fields.MARK in str(text) for text in pair):
                raise BadRowError(f"Expected pairs of texts in history, got {str(pair)[:80]!r}; set data=messages")
            asked, answered = (fields.text_of("history", text) for text in pair)
            found += [Message("user", (asked,)), Message("assistant", (answered,))]
        return found

    def _bare(self, answer: str) -> str:
        if self.answer_pattern is None:
            return answer
        match = self.answer_pattern.search(answer)
        if match is None:
            raise BadRowError(f"Expected an answer like {self.answer_pattern.pattern!r}, got {answer!r}; fix the row")
        return match[1].strip()


OWN_ID = "id of the row"
"""Key of a record for the source's own `id` where a role has that column."""
ID_COLUMN = re.compile(r"(^|_)(id|uid|key|name|code)(_|$)")
TAGGED: Mapping[str, str] = {"group": GROUP, "class_column": CLASS}
"""Role of a column -> the tag that its text becomes."""


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"Expected a regular expression, got {text!r} ({error}); fix it") from error
