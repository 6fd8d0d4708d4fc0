"""Conversations: the Hub's chat form, LLaVA's, ShareGPT's, OpenAI's and others, recognised row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from vlmft.config.check import ConfigError
from vlmft.config.progress import Progress
from vlmft.data.dataset import Ids, Record
from vlmft.data.datasets.columns import Columns
from vlmft.data.sources.conversations import (
    IMAGES,
    MESSAGE_KEYS,
    PAIRS,
    SYSTEM,
    VIDEOS,
    Exchange,
    Slot,
    Turn,
    exchanges_of,
    images_in,
    turns_of,
)
from vlmft.data.sources.fields import images_of, names_among, text_of
from vlmft.data.sources.json_forms import TURNS
from vlmft.data.sources.roles import fold, image_columns, unread_of
from vlmft.data.sources.structured import JsonAnswers
from vlmft.data.sources.table import Table
from vlmft.data.sources.tables import Loaded, with_images
from vlmft.data.sources.videos import frames_of
from vlmft.data.survey.cache import Arrays, code_of, kept, sha256
from vlmft.sample import BadRowError, Image, Message, Prompt, Sample, Split

BITS = 20
"""Of the number that stands for a row and one of its answers, so many are for the answer."""
READ = {*TURNS, *SYSTEM, *VIDEOS, "fps", "id"}
READ_OF_PAIRS = {"history", *(name for pair in PAIRS for name in pair)}


class Messages(Columns):
    """A row is {"messages": [{"role", "content"}], "images"} or {"conversations": [{"from", "value"}], "image"}, or of
    another form in `vlmft/data/sources/conversations.py`.

    Each answer of the assistant is a sample, whose prompt is all that comes before it. Rows without images are text.
    """

    name: ClassVar[str] = "messages"
    max_new_tokens: ClassVar[int] = 128

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        hub_id: str | None = None,
        subset: str | None = None,
        encoding: str | None = None,
        images: str | None = None,
        split: str | None = None,
        split_names: Mapping[str, str] | None = None,
        answer_format: str | None = None,
        json_schema: str | None = None,
        instruction: str | None = None,
        system: str | None = None,
        allow_tokens: Sequence[str] = (),
        frames_per_second: float | None = None,
        max_frames: int = 8,
    ) -> None:
        """`instruction` follows each question on its own line; `system` goes before rows that have no system text.
        A video is so many frames a second, else `max_frames` evenly, and never more. The others are as of `Columns`."""
        if max_frames < 1 or (frames_per_second is not None and frames_per_second <= 0):
            raise ConfigError("data.options: Expected max_frames of 1 or more and frames_per_second above 0; raise it")
        super().__init__(
            path=path,
            revision=revision,
            hub_id=hub_id,
            subset=subset,
            encoding=encoding,
            images=images,
            split=split,
            split_names=split_names,
            answer_format=answer_format,
            json_schema=json_schema,
            allow_tokens=allow_tokens,
        )
        self.instruction, self.system = instruction, system
        self.frames_per_second, self.max_frames = frames_per_second, max_frames

    def _read_as(self, loaded: Loaded) -> dict[Split, Table]:
        rows = [row for table in loaded.tables.values() for row in table.sample()]
        there = list(dict.fromkeys(name for row in rows for name in row))
        folded = {fold(name): name for name in reversed(there)}
        image = next(
            (folded[name] for name in IMAGES if name in folded and any(row.get(folded[name]) for row in rows)), None
        )
        self._column = {} if image is None else {"image": image}
        if self.named["split"] is not None:
            self._column["split"] = self.named["split"]
        loaded = with_images(loaded, _image_names, self._one_file)
        self._description.notes = list(loaded.notes)
        tables = self._kept(loaded.tables, loaded.declared)
        if self.answer_format is not None:
            self._json = JsonAnswers.of(self.json_schema)
            self._json.learn(answer for row in rows for answer in self._texts_of(row))
        turns = next((name for name in TURNS if name in folded), None)
        description = self._description
        description.roles = {"turns": repr(turns) if turns else "a question and an answer"}
        description.roles |= {role: repr(name) for role, name in self._column.items()}
        description.roles |= {"answer": self._json.said()} if self._json is not None else {}
        pairs = any(not {*TURNS} & {fold(name) for name in row} for row in rows)
        known = {*READ, *READ_OF_PAIRS} if pairs else READ
        read = {name for name in there if fold(name) in known}
        description.unread = unread_of(there, rows, {*read, *self._column.values()})
        if turns:
            description.unread |= _unread_of_turns(folded[turns], rows)
        if others := image_columns(there, rows, {*read, *self._column.values()}):
            description.notes.append(f"fields look like images and are not read: {', '.join(others)}")
        return tables

    def index(self) -> Mapping[Split, Sequence[str]]:
        """Split -> ids such as "messages/train/000012/1": the row from 0, and the answer in it, from 0."""
        return {split: Ids(partial(_spelled, f"{self.name}/{split}"), self._answers_of(split)) for split in self.tables}

    def _answers_of(self, split: Split) -> np.ndarray:
        """(n,) int64: the row and the answer in it, packed into one number for each answer; `_spelled` unpacks it."""
        table = self.tables[split]
        known = table.sources is not None and self.settings() is not None
        fingerprint = sha256(code_of(type(self)), *(table.sources or ())) if known else None
        name = f"answers-{sha256(self.settings(), split)}"

        def count() -> Arrays:
            counts = np.zeros(len(table.numbers), np.int64)
            with Progress("conversations counted", len(counts)) as progress:
                for place, number in enumerate(table.numbers):
                    counts[place] = self._n_answers(table, number)
                    progress.advance()
            return {"counts": counts}

        counts = kept(name, fingerprint, count)["counts"]
        first = np.repeat(np.cumsum(counts) - counts, counts)
        rows = np.repeat(np.asarray(table.numbers), counts)
        numbers: np.ndarray = (rows << BITS) + np.arange(len(first)) - first
        return numbers

    def _texts_of(self, row: Record) -> list[str]:
        """The answers of a row; none of a bad one."""
        try:
            return [text for _, text in self.exchanges(row)]
        except BadRowError:
            return []

    def _n_answers(self, table: Table, number: int) -> int:
        try:
            return len(self.exchanges(table.row(number)))
        except BadRowError:
            return 1  # one id, under which the row is refused

    def read(self, row_id: str) -> Record:
        """{"id", "exchange", "answer"}; raises BadRowError where the row is not a conversation with such an answer."""
        table, number, answer = self._at(row_id)
        pairs = self.exchanges(table.row(number))
        if answer >= len(pairs):
            raise BadRowError(f"Expected the id of one of {len(pairs)} answers, got {row_id!r}; take ids from index()")
        exchange, text = pairs[answer]
        return {"id": row_id, "exchange": exchange, "answer": text}

    def exchanges(self, row: Record) -> list[tuple[Exchange, str]]:
        """Each answer with what comes before it; raises BadRowError as `exchanges_of`."""
        return exchanges_of(row)

    def to_sample(self, record: Record) -> Sample:
        """The exchange as a prompt; all samples of a conversation have its row as `conversation`."""
        exchange: Exchange = record["exchange"]
        row_id, folders = record["id"].rpartition("/")[0], self._folders(record["id"])
        listed = iter(images_of(list(exchange.images), folders, row_id))
        turns = exchange.earlier
        if self.system is not None and turns[0].role != "system":
            turns = (Turn("system", (self.system,)), *turns)
        messages, times = [], list[str]()
        for turn in turns:
            content: list[str | Image] = []
            times.clear()
            for piece in turn.pieces:
                if isinstance(piece, str):
                    content.append(piece)
                elif piece.video:
                    shown = frames_of(piece.source, folders, piece.fps, self.frames_per_second, self.max_frames)
                    times += [text for text in shown if isinstance(text, str)]
                    content += shown
                else:
                    content += [next(listed)] if piece.source is None else images_of(piece.source, folders, row_id)
            if self.instruction is not None and turn.role == "user":
                last = content.pop() if content and isinstance(content[-1], str) else ""
                content.append(f"{last}\n{self.instruction}")
            messages.append(Message(turn.role, tuple(content)))
        conversation = row_id if exchange.conversation else ""
        answer = text_of("answer", record["answer"])
        answer = answer if self._json is None else self._json.written("answer", answer)
        asked = messages[-1].text.removesuffix(f"\n{self.instruction}")
        for time in times:  # of the frames, which are no part of the question
            asked = asked.replace(time, "", 1)
        return Sample(record["id"], Prompt(tuple(messages)), answer, (answer,), conversation, question=asked)


def _spelled(table: str, number: int) -> str:
    return f"{table}/{number >> BITS:06d}/{number & (1 << BITS) - 1}"


def _unread_of_turns(column: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Keys of messages that are not read, each with the first value that is there."""
    turns = [turn for row in rows if isinstance(row.get(column), list) for turn in row[column]]
    messages = [turn for turn in turns if isinstance(turn, Mapping)]
    there = list(dict.fromkeys(key for message in messages for key in message))
    return {f"{column}: {key}": value for key, value in unread_of(there, messages, MESSAGE_KEYS).items()}


def _image_names(row: Mapping[str, Any]) -> list[Any]:
    """Paths of images that a row names, in its list and in its turns."""
    try:
        inside = [
            piece.source
            for turn in turns_of(row)
            for piece in turn.pieces
            if isinstance(piece, Slot) and not piece.video
        ]
        named = [*images_in(row), *inside]
    except BadRowError:
        return []
    return names_among([name for name in named if isinstance(name, str)])
