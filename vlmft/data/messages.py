"""Conversations in JSON Lines: the Hub's chat form, LLaVA's and ShareGPT's, told apart row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from vlmft.data.cache import Arrays, code_of, kept, sha256
from vlmft.data.columns import Columns
from vlmft.data.dataset import Ids, Record
from vlmft.data.fields import images_of, text_of
from vlmft.data.progress import Progress
from vlmft.data.tables import Table, load_tables
from vlmft.sample import BadRowError, Image, Message, Prompt, Role, Sample, Split

MARK = "<image>"
"""Stands in a text where the next image of the row's list belongs."""
TURNS = ("messages", "conversations", "conversation")
IMAGES = ("images", "image")
ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


BITS = 20
"""Of the number that stands for a row and one of its answers, so many tell the answer."""


@dataclass(frozen=True)
class Slot:
    """Where an image stands; `source` is its path or bytes, or None for the next one of the row's list."""

    source: Any = None


@dataclass(frozen=True)
class Turn:
    """One message as the row holds it, in one form for all forms."""

    role: Role
    pieces: tuple[str | Slot, ...]


@dataclass(frozen=True)
class Exchange:
    """One answer, and what stands before it. No mapping: the leak canary must not replace an earlier answer in it."""

    earlier: tuple[Turn, ...]
    images: tuple[Any, ...]
    """The row's list, of which the marks in `earlier` take the first ones."""
    conversation: bool
    """Whether the row has other exchanges."""


class Messages(Columns):
    """A row is {"messages": [{"role", "content"}], "images"} or {"conversations": [{"from", "value"}], "image"}.

    Each answer of the assistant is a sample, whose prompt is all that stands before it. Rows without images are text.
    """

    name: ClassVar[str] = "messages"
    max_new_tokens: ClassVar[int] = 128

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        hub_id: str | None = None,
        split_names: Mapping[str, str] | None = None,
        instruction: str | None = None,
        system: str | None = None,
    ) -> None:
        """`instruction` follows each question on its own line; `system` goes before rows that have no system text."""
        super().__init__(path=path, revision=revision, hub_id=hub_id, split_names=split_names)
        self.instruction, self.system = instruction, system

    @property
    def tables(self) -> dict[Split, Table]:
        """Loaded at first use; raises ConfigError where there are none."""
        if not self._tables:
            self._tables = load_tables(self.path, self.hub_id, self.revision, self.split_names)
        return self._tables

    def index(self) -> Mapping[Split, Sequence[str]]:
        """Split -> ids such as "messages/train/000012/1": the row from 0, and the answer in it, from 0."""
        return {split: Ids(partial(_spelled, f"{self.name}/{split}"), self._answers_of(split)) for split in self.tables}

    def _answers_of(self, split: Split) -> np.ndarray:
        """(n,) int64, for each answer the row and the answer in it, as `_spelled` takes them apart."""
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
        found: np.ndarray = (rows << BITS) + np.arange(len(first)) - first
        return found

    def _n_answers(self, table: Table, number: int) -> int:
        try:
            return len(self.exchanges(table.row(number)))
        except BadRowError:
            return 1  # an id by which the row is refused

    def read(self, row_id: str) -> Record:
        """{"id", "exchange", "answer"}; raises BadRowError where the row is no conversation with such an answer."""
        table, number, answer = self._at(row_id)
        found = self.exchanges(table.row(number))
        if answer >= len(found):
            raise BadRowError(f"Expected the id of one of {len(found)} answers, got {row_id!r}; take it from index()")
        exchange, text = found[answer]
        return {"id": row_id, "exchange": exchange, "answer": text}

    def exchanges(self, row: Record) -> list[tuple[Exchange, str]]:
        """Each answer with what stands before it.

        Raises:
            BadRowError: no turns, an unknown role, no answer, an answer with an image or before any question.
        """
        turns = _turns(row)
        images = next((row[key] for key in IMAGES if row.get(key)), ())
        listed = tuple(images) if isinstance(images, (list, tuple)) else (images,)
        marks = sum(piece == Slot() for turn in turns for piece in turn.pieces)
        if marks == 0 and listed:  # images without a place stand before the first question
            first = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
            turns[first] = Turn(turns[first].role, (Slot(),) * len(listed) + turns[first].pieces)
        elif marks != len(listed):
            raise BadRowError(f"Expected as many images as {MARK} marks, got {len(listed)} and {marks}; mend the row")
        ends = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        if not ends or not all(turns[i - 1].role == "user" for i in ends) or ends[0] == 0:
            found = ", ".join(turn.role for turn in turns)
            raise BadRowError(f"Expected each answer after a question, got turns of {found or 'none'}; mend the row")
        return [(Exchange(tuple(turns[:i]), listed, len(ends) > 1), _answer(turns[i])) for i in ends]

    def to_sample(self, record: Record) -> Sample:
        """The exchange as a prompt; all samples of a conversation have its row as `conversation`."""
        exchange: Exchange = record["exchange"]
        row_id, root = record["id"].rpartition("/")[0], self._at(record["id"])[0].root
        listed = iter(images_of(list(exchange.images), root, row_id))
        turns = exchange.earlier
        if self.system is not None and turns[0].role != "system":
            turns = (Turn("system", (self.system,)), *turns)
        messages = []
        for turn in turns:
            content: list[str | Image] = []
            for piece in turn.pieces:
                if isinstance(piece, str):
                    content.append(piece)
                else:
                    content += [next(listed)] if piece.source is None else images_of(piece.source, root, row_id)
            if self.instruction is not None and turn.role == "user":
                last = content.pop() if content and isinstance(content[-1], str) else ""
                content.append(f"{last}\n{self.instruction}")
            messages.append(Message(turn.role, tuple(content)))
        conversation = row_id if exchange.conversation else ""
        answer = text_of("answer", record["answer"])
        asked = messages[-1].text.removesuffix(f"\n{self.instruction}")
        return Sample(record["id"], Prompt(tuple(messages)), answer, (answer,), conversation, question=asked)


def _spelled(table: str, number: int) -> str:
    return f"{table}/{number >> BITS:06d}/{number & (1 << BITS) - 1}"


def _turns(row: Record) -> list[Turn]:
    stored = next((row[key] for key in TURNS if isinstance(row.get(key), list)), None)
    if stored is None:
        raise BadRowError(f"Expected a list in {' or '.join(TURNS)}, got fields {', '.join(row)}; mend the row")
    has_images = any(row.get(key) for key in IMAGES)
    return [_turn(message, has_images) for message in stored]


def _turn(message: Any, has_images: bool) -> Turn:
    if not isinstance(message, Mapping):
        raise BadRowError(f"Expected a message with role and content, got {message!r}; mend the row")
    role, content = (message.get(a, message.get(b)) for a, b in (("role", "from"), ("content", "value")))
    if role not in ROLES:
        raise BadRowError(f"Expected a role of {', '.join(ROLES)}, got {role!r}; mend or drop the row")
    pieces = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return Turn(ROLES[role], tuple(found for piece in pieces for found in _pieces(piece, has_images)))


def _pieces(piece: Any, has_images: bool) -> list[str | Slot]:
    """One part of a message's content: text, cut at its marks where the row has images, or an image."""
    kind = piece.get("type") if isinstance(piece, Mapping) else None
    if kind == "image":
        return [Slot(next((piece[key] for key in ("image", "path", "url") if piece.get(key)), None))]
    if kind != "text" or not isinstance(piece["text"], str):
        raise BadRowError(f"Expected a text or an image as content, got {str(piece)[:80]!r}; mend the row")
    if not has_images or MARK not in piece["text"]:
        return [piece["text"]]
    found: list[str | Slot] = []
    for number, text in enumerate(piece["text"].split(MARK)):
        found += ([Slot()] if number else []) + ([text.strip()] if text.strip() else [])
    return found


def _answer(turn: Turn) -> str:
    if any(isinstance(piece, Slot) for piece in turn.pieces):
        raise BadRowError("Expected an answer of text, got one with an image; drop the row")
    return "".join(piece for piece in turn.pieces if isinstance(piece, str))
