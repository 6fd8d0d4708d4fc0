"""What a dataset is to the rest of the project. Light: checking a config reads the constructors through this module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from vlmft.sample import Question, Sample, Split

Record: TypeAlias = Mapping[str, Any]
"""What the source holds for one row, untouched."""
GROUP, CLASS = "group", "class"
"""Tags of a Sample that mean something here: rows of one group stay in one split; splits and subsets have all classes
in proportion."""


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
    """True where no image can stand in two splits, so that hundreds of thousands need not be drawn to see it."""

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
