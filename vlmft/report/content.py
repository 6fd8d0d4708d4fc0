"""What a report says, as plain values: what report.json holds, all that `page.py` and `markdown.py` know of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

from vlmft.evaluation.numbers import finite

Outcome = Literal["fixed", "broken", "both_wrong", "both_right", "wrong", "right", "unpaired"]
PAIR_OUTCOMES: tuple[Outcome, ...] = ("fixed", "broken", "both_wrong", "both_right")
ARM_OUTCOMES: tuple[Outcome, ...] = ("wrong", "right")

RIGHT_SCORE = 0.5
"""An answer is called right from this score on. For scores of 0 and 1 that is no choice at all."""
MAX_PICTURED_ROWS = 300


@dataclass(frozen=True)
class ReportAnswer:
    """What one arm said to one question."""

    arm: str
    text: str
    score: float
    """0..1, higher is better."""
    parsed: str | None
    """What scoring read out of the text; None where it found no answer in it."""


@dataclass(frozen=True)
class FieldLine:
    """One field of a row whose answers are JSON."""

    place: str
    gold: str | None
    """None: the reference does not have it."""
    answers: Mapping[str, tuple[str | None, float]]
    """Arm -> what it wrote, None where it left the field out, and how right that is, 0..1."""


@dataclass(frozen=True)
class ReportRow:
    """One question with the answers of all arms."""

    id: str
    question: str
    references: tuple[str, ...]
    answers: tuple[ReportAnswer, ...]
    thumbnails: tuple[bytes, ...]
    """PNG, JPEG or WebP files, at most a few KB each; may be empty."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What the rows can be grouped by, such as {"source": "human"}."""
    truth: str | None = None
    """What scoring reads out of the first reference: the class that `ReportAnswer.parsed` is held against."""
    group: str = ""
    """The independent unit that the row stands in, such as its image; "" is the row itself."""
    fields: tuple[FieldLine, ...] = ()
    """Where answers are JSON: they are shown as a table, too."""
    marked_size: tuple[int, int] | None = None
    """(width, height) of its last picture where references and answers are boxes or points in that one's pixels."""

    def answer(self, arm: str) -> ReportAnswer | None:
        """What this arm said, None where it has no answer here."""
        return next((answer for answer in self.answers if answer.arm == arm), None)

    def score(self, arm: str) -> float | None:
        """This arm's score, None where it has no answer here."""
        answer = self.answer(arm)
        return None if answer is None else answer.score


@dataclass(frozen=True)
class Curve:
    """One logged quantity, such as "train/loss". Curves with the same last name share a chart."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise ValueError(
                f"Expected as many values as steps in curve {self.name!r}, "
                f"got {len(self.values)} and {len(self.steps)}; log both together"
            )


@dataclass(frozen=True)
class Grid:
    """A table of texts. The first cell of a line names it; a line break in a cell begins its small print."""

    heads: Sequence[str]
    lines: Sequence[Sequence[str]]
    text_columns: Sequence[int] = (0,)
    """Columns of words; all others are numbers and stand to the right."""
    bold_columns: Sequence[int] = ()
    moods: Sequence[str] = ()
    """For each line good, bad or plain, which colours its last cell. Empty: all plain."""
    heat: Sequence[Sequence[float | None]] = ()
    """For each cell of each line how dark it is shaded, 0..1; None and 0 are not. Empty: no cell is."""

    def __post_init__(self) -> None:
        for line in (*self.lines, *self.heat):
            if len(line) != len(self.heads):
                raise ValueError(f"Expected {len(self.heads)} cells as in {self.heads!r}, got {line!r}; fill the line")

    def kind(self, column: int) -> str:
        """text or number: a class of the style sheet."""
        return "text" if column in self.text_columns else "number"

    def shade(self, line: int, column: int) -> str:
        """Another one, of ten steps; empty where the cell is not shaded."""
        heat = finite(self.heat[line][column]) if self.heat else None
        if heat is None:
            return ""
        return f"heat heat-{min(10, max(1, round(10 * heat)))}" if heat > 0 else "nil"


@dataclass(frozen=True)
class Bar:
    """One bar from zero, to the right or, below zero, to the left."""

    label: str
    value: float
    text: str
    """The value in words."""


@dataclass(frozen=True)
class Section:
    """A part of the report that any part of the program can add: what is there is shown, in this order."""

    title: str
    sentences: tuple[str, ...] = ()
    """A paragraph each."""
    table: Grid | None = None
    bars: tuple[Bar, ...] = ()
    parts: tuple[Section, ...] = ()
    is_folded: bool = False
    """Only its title shows until it is opened."""
    bars_end: float | None = None
    """Where the axis of the bars ends, such as 1 for shares; None at the largest."""
    notes: tuple[str, ...] = ()
    """Paragraphs below the table."""
    definitions: Mapping[str, Any] = field(default_factory=dict)
    """Name -> what is said of it; nested mappings are nested folds."""
    code: str = ""
    """Text to be typed."""


@dataclass(frozen=True)
class Report:
    """Everything that the page shows, in no particular order."""

    title: str
    sentence: str
    """The result in one sentence that can be quoted alone."""
    arms: tuple[Mapping[str, Any], ...]
    """Each `ArmSummary.to_dict()`."""
    comparisons: tuple[Mapping[str, Any], ...]
    """Each `Adjusted.to_dict()`: "p_holm" and the verdict are for the whole table. The first
    one gives the page its verdict."""
    warnings: tuple[str, ...]
    """What to know before the verdict is believed."""
    curves: tuple[Curve, ...]
    split_sizes: Mapping[str, int]
    rows: tuple[ReportRow, ...]
    checks: Mapping[str, str]
    """What was checked, such as "leak canary" -> what came out, as a sentence."""
    settings: Mapping[str, Any]
    """The composed config, nested. Secrets must be gone already: all of it is printed."""
    versions: Mapping[str, str]
    command: str
    alarms: tuple[str, ...] = ()
    """Those of the warnings that take its meaning from the verdict."""
    remarks: tuple[str, ...] = ()
    """What to know of the arms that the verdict's arm is held against, and of how its answers came about."""
    sections: tuple[Section, ...] = ()
    """Shown after the gallery; those that are folded below the training curves."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Hashes of what the numbers hang on: settings, prompt format, processor, base, adapter."""
    card: Mapping[str, Any] | None = None
    """data_card.json of the run, and `sheet`: where near_duplicates.html lies as seen from the page, or null."""
    run: Mapping[str, str] = field(default_factory=dict)
    """Date, duration, hardware, folder, W&B: one line. What begins with https:// is a link."""
    grading: Mapping[str, Any] | None = None
    """What raters have found, `Grading.to_dict()`; None before anybody has judged."""

    @property
    def is_graded(self) -> bool:
        """Whether some row scores neither 0 nor 1, so that the mean is no share of right answers. A mean over draws of
        examples is one."""
        drawn = {arm["arm"] for arm in self.arms if arm.get("draws")}
        answers = (answer for row in self.rows for answer in row.answers if answer.arm not in drawn)
        return any(answer.score not in (0.0, 1.0) for answer in answers)

    @property
    def arm_names(self) -> list[str]:
        """Each arm once, in the order of the table."""
        compared = (pair[side] for pair in self.comparisons for side in ("first", "second"))
        return list(dict.fromkeys(map(str, (*(arm["arm"] for arm in self.arms), *compared))))

    @property
    def view(self) -> View | None:
        """How the gallery is sorted at first: by the first comparison or, without any, by the first arm alone."""
        if self.comparisons:
            return View(str(self.comparisons[0]["first"]), str(self.comparisons[0]["second"]))
        return View(None, str(self.arms[0]["arm"])) if self.arms else None


@dataclass(frozen=True)
class View:
    """Two arms whose answers are set against each other, or one arm alone (`first` is None)."""

    first: str | None
    second: str

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The classes that a row can fall into, the most telling first."""
        return ARM_OUTCOMES if self.first is None else PAIR_OUTCOMES

    def outcome(self, row: ReportRow) -> Outcome:
        """The class of `row`; "unpaired" where an arm of this view has no answer to it."""
        second = row.score(self.second)
        first = second if self.first is None else row.score(self.first)
        if first is None or second is None:
            return "unpaired"
        was, now = first >= RIGHT_SCORE, second >= RIGHT_SCORE
        if self.first is None:
            return "right" if now else "wrong"
        if was == now:
            return "both_right" if now else "both_wrong"
        return "fixed" if now else "broken"


def rows_to_picture(rows: Sequence[ReportRow], view: View, limit: int = MAX_PICTURED_ROWS) -> tuple[int, ...]:
    """Positions of at most `limit` rows whose pictures tell most, in order of use: the outcomes take turns."""
    by_outcome: dict[Outcome, list[int]] = {outcome: [] for outcome in (*view.outcomes, "unpaired")}
    for position, row in enumerate(rows):
        by_outcome[view.outcome(row)].append(position)
    turns = (position for turn in zip_longest(*by_outcome.values()) for position in turn if position is not None)
    return tuple(turns)[:limit]
