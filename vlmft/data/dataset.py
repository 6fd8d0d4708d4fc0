"""What a dataset is to the rest of the project. Light: checking a config reads the constructors through this module."""

from __future__ import annotations

import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np

from vlmft.sample import Question, Sample, Split

Record: TypeAlias = Mapping[str, Any]
"""What the source holds for one row, untouched."""
TAKEN: tuple[Split, ...] = ("test", "val")
"""What is taken from train where it is not declared, in this order."""


@dataclass
class Description:
    """What a source was read as, for people."""

    splits: dict[Split, str] = field(default_factory=dict)
    """Of each declared split: the files, their form, and why they are this split."""
    roles: dict[str, str] = field(default_factory=dict)
    """Image, question, answer and other roles -> the column or field, and how it is read."""
    unread: dict[str, str] = field(default_factory=dict)
    """Columns or fields that are not read, each with an example."""
    notes: list[str] = field(default_factory=list)
    """What else a reader should know, a sentence each."""

    def under(self, name: str) -> Description:
        """The same as one part of a mixture."""
        roles, unread = ({f"{name}: {key}": v for key, v in fields.items()} for fields in (self.roles, self.unread))
        splits: dict[Split, str] = {split: f"{name}: {origin}" for split, origin in self.splits.items()}
        return Description(splits, roles, unread, [f"{name}: {note}" for note in self.notes])


class Ids(Sequence[str]):
    """Row ids, each spelled from its number when asked for: a million texts would take ten times the memory."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, spell: Callable[[int], str], numbers: Sequence[int] | np.ndarray) -> None:
        self.spell, self.numbers = spell, np.asarray(numbers, np.int64)

    def take(self, places: np.ndarray) -> Ids:
        return Ids(self.spell, self.numbers[places])

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Ids(self.spell, self.numbers[place])
        return self.spell(int(self.numbers[place]))

    def __iter__(self) -> Iterator[str]:
        return map(self.spell, map(int, self.numbers))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        return f"Ids({list(self[:3])}, {len(self)} in all)"


def _repr(value: Any) -> str:
    """repr, but with the whole of a regular expression, whose own repr stops after 200 characters."""
    if isinstance(value, re.Pattern):
        return repr((value.pattern, value.flags))
    if isinstance(value, Mapping):
        return repr({key: _repr(item) for key, item in value.items()})
    return repr(value)


class Dataset(ABC):
    """One dataset: where its records are, how one becomes a Sample, and how it is scored. (Stages 0 to 2.)

    A subclass's constructor takes keyword-only, typed, defaulted arguments: its signature is the schema of
    `data.options`. It stores them and reads nothing. Objects pickle cheaply, because they travel to workers.
    """

    name: ClassVar[str]
    """What the config calls it."""
    metric: ClassVar[str]
    """The name of a metric in `vlmft/metrics`."""
    max_new_tokens: ClassVar[int]
    """Generation budget that fits the answers."""
    fills_splits: ClassVar[bool] = False
    """True where val and test are taken from train, by content, if the source does not declare them."""
    disjoint_by_construction: ClassVar[bool] = False
    """True where no image can be in two splits, so that hundreds of thousands need not be drawn to check it."""

    allow_tokens: Sequence[str] = ()
    """Special tokens of the model that texts may hold, such as those of boxes."""

    @abstractmethod
    def index(self) -> Mapping[Split, Sequence[str]]:
        """Declared split -> row ids, in a stable order. Ids are unique over all splits."""

    @abstractmethod
    def read(self, row_id: str) -> Record:
        """The record of one row.

        Raises:
            BadRowError: the row cannot be read.
        """

    @abstractmethod
    def to_sample(self, record: Record) -> Sample:
        """The question that one record asks; decodes no image.

        Raises:
            BadRowError: the record cannot become a question.
        """

    def describe(self) -> Description:
        """What the source was read as; empty where there is nothing to misread, as in generated scenes."""
        return Description()

    def comes_from(self) -> tuple[str, ...] | None:
        """What all rows come from and nothing else, such as files, each with its size and time.

        While this and the constructor's arguments stay the same, what was read from the rows is not read again at the
        next start. None, as here, where that is unknown.
        """
        return None

    def answer_schema(self) -> Mapping[str, Any] | None:
        """The JSON Schema that answers are to fit; None, as here, where the training answers show it, if any does."""
        return None

    def settings(self) -> str | None:
        """The constructor's arguments as text, from the public attributes; None where a value has no stable text."""
        args = repr(sorted((name, _repr(value)) for name, value in vars(self).items() if not name.startswith("_")))
        return None if " at 0x" in args else f"{type(self).__module__}:{type(self).__qualname__} {args}"

    def undeclared(self, index: Mapping[Split, Sequence[str]]) -> Mapping[tuple[Split, ...], np.ndarray]:
        """Splits that are to be taken from train -> places in the training split of the rows from which."""
        lacking = (
            tuple(split for split in TAKEN if split not in index) if self.fills_splits and "train" in index else ()
        )
        return {lacking: np.arange(len(index["train"]))} if lacking else {}

    def weights(self) -> Mapping[str, float]:
        """How often training rows come in an epoch, by the part of their ids before the first "/"; {}: once each."""
        return {}


@dataclass(frozen=True)
class Caption:
    """An accepted text about one image."""

    id: str
    """Of the question in `missing()`."""
    text: str
    source: Mapping[str, str]
    """Where it comes from: annotator, model, date, accepted_by."""


@runtime_checkable
class Annotatable(Protocol):
    """A dataset that knows which of its images have no text, and takes texts in its own form."""

    @property
    def drafts(self) -> Path:
        """File beside the data for texts that are not accepted yet; raises ConfigError where no folder is named."""

    def missing(self) -> Sequence[Question]:
        """What to ask about each image without a text, in a stable order; raises ConfigError for a broken folder."""

    def store(self, captions: Sequence[Caption]) -> None:
        """Adds the captions, all or none; an image that has a text by now keeps that one."""


def source_lines(source: Description | Mapping[str, Any]) -> list[str]:
    """What a source was read as, a line each, indented; none for generated rows."""
    summary = vars(source) if isinstance(source, Description) else source
    lines = [f"  {split}: {origin}" for split, origin in summary["splits"].items()]
    lines += [f"  {role}: {column}" for role, column in summary["roles"].items()]
    if summary["unread"]:
        unread = (f"{name} (such as {value})" for name, value in summary["unread"].items())
        lines.append(f"  not read: {', '.join(unread)}")
    return [*lines, *(f"  note: {note}" for note in summary["notes"])]
