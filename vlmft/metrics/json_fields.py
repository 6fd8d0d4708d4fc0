"""JSON answers field by field: what is right, wrong, missing and invented, with the records of lists aligned first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmft.metrics.json_match import read_json, read_reference, unfenced
from vlmft.metrics.json_values import Kind, kind_of, shown_as, similarity
from vlmft.metrics.score import Score, expect_references
from vlmft.metrics.table import Row, Table, expect_rows

DEEPEST = 50
"""Levels of nesting; deeper ones are what a looping model prints."""
ROOT = "(whole answer)"
_NUMBER_IN_LIST = re.compile(r"\[\d+\]")


@dataclass(frozen=True)
class Field:
    """One value that the reference has, the answer has, or both. A null is no value: a field that is not there."""

    place: str
    """Such as "lines[1].price", counted as in the reference, or in the answer where that alone has it."""
    gold: str | None
    """As text; None: not there."""
    answer: str | None
    kind: Kind
    """Of the reference's value, or of an invented one."""
    similarity: float
    """0..1; 1 is right."""

    @property
    def name(self) -> str:
        """The place without numbers: "lines.price"."""
        return _NUMBER_IN_LIST.sub("", self.place)


@dataclass
class Totals:
    """Counts over fields; the texts that are partly right count by their similarity."""

    gold: int = 0
    answered: int = 0
    similar: float = 0.0
    right: int = 0
    """Similarity 1."""
    missing: int = 0
    """In the reference, not in the answer."""
    invented: int = 0
    """In the answer, not in the reference."""

    def add(self, fields: Sequence[Field]) -> Totals:
        """Returns itself."""
        for field in fields:
            self.gold += field.gold is not None
            self.answered += field.answer is not None
            self.similar += field.similarity
            self.right += field.similarity == 1
            self.missing += field.answer is None
            self.invented += field.gold is None
        return self

    @property
    def precision(self) -> float | None:
        """None where nothing was answered."""
        return self.similar / self.answered if self.answered else None

    @property
    def recall(self) -> float | None:
        """None where there is nothing to be found."""
        return self.similar / self.gold if self.gold else None

    @property
    def f1(self) -> float:
        """2 similar / (gold + answered); 1 where both have nothing."""
        return 2 * self.similar / (self.gold + self.answered) if self.gold + self.answered else 1.0

    @property
    def right_f1(self) -> float:
        """The same with nothing partly right."""
        return 2 * self.right / (self.gold + self.answered) if self.gold + self.answered else 1.0


def json_fields(prediction: str, references: Sequence[str]) -> Score:
    """F1 over the fields of a JSON answer, the best over the references; 0 where it is no JSON.

    A number, date or truth value is right or wrong by its value, a text is worth its ANLS (`json_values.similarity`).
    Lists are aligned by the assignment that agrees most (Kuhn 1955, as in the scores of records of DocILE, Simsa et al.
    2023), so the order of records does not count; a record stands for a list of one. Keys in any order, a Markdown
    fence aside, as in `json_match`. Raises ValueError without references, or where one is no JSON.
    """
    fields, parsed = compared(prediction, references)
    return Score(Totals().add(fields).f1 if parsed is not None else 0.0, parsed)


def compared(prediction: str, references: Sequence[str]) -> tuple[list[Field], str | None]:
    """The fields of the reference that fits best with those of the answer, and the answer without its fence and line
    breaks; None, with all fields missing, where it is no JSON. Raises ValueError as `json_fields`."""
    expect_references(references)
    golds = [read_reference(text, "anls") for text in references]
    answer = unfenced(prediction)
    try:
        value = read_json(answer)
        found = [list(_fields(gold, value, "")) for gold in golds]
    except ValueError:
        return list(_fields(golds[0], None, "")), None
    return max(found, key=lambda fields: Totals().add(fields).f1), " ".join(answer.split())


def field_totals(rows: Sequence[Row]) -> Table:
    """Share of valid JSON; precision, recall and F1 over all fields together (micro) and as the mean over fields
    (macro); F1 without partly right texts; missing fields as a share of the references', invented ones of the answers'.

    `lists["fields"]`: the same for each field, the worst first. Raises ValueError without rows, or as `json_fields`.
    """
    expect_rows(rows)
    return totals_of([compared(prediction, references) for prediction, references in rows])


def totals_of(found: Sequence[tuple[Sequence[Field], str | None]]) -> Table:
    """`field_totals` of rows that are compared already."""
    whole, by_field = Totals().add([field for fields, _ in found for field in fields]), totals_by_field(found)
    values = {
        "valid_json": sum(parsed is not None for _, parsed in found) / len(found),
        "precision": whole.precision,
        "recall": whole.recall,
        "f1_micro": whole.f1,
        "f1_macro": sum(one.f1 for one in by_field.values()) / len(by_field) if by_field else 1.0,
        "f1_right": whole.right_f1,
        "missing": whole.missing / whole.gold if whole.gold else 0.0,
        "invented": whole.invented / whole.answered if whole.answered else 0.0,
    }
    worst_first = sorted(by_field.items(), key=lambda item: (item[1].f1, item[0]))
    lines = [{"field": name, **vars(one), "f1": one.f1, "f1_right": one.right_f1} for name, one in worst_first]
    return Table(values, lists={"fields": lines})


def totals_by_field(found: Sequence[tuple[Sequence[Field], str | None]]) -> dict[str, Totals]:
    """Name of a field -> its counts, of the fields that some reference has, in their order."""
    by_name: dict[str, list[Field]] = {}
    for fields, _ in found:
        for field in fields:
            by_name.setdefault(field.name, []).append(field)
    known = {name: some for name, some in by_name.items() if any(field.gold is not None for field in some)}
    return {name: Totals().add(some) for name, some in known.items()}


def _fields(gold: Any, answer: Any, place: str, depth: int = 0) -> Iterator[Field]:
    if depth > DEEPEST:
        raise ValueError(f"Expected at most {DEEPEST} levels of JSON")
    if isinstance(gold, list) or isinstance(answer, list):
        yield from _listed(_as_list(gold), _as_list(answer), place, depth)
    elif isinstance(gold, Mapping) or isinstance(answer, Mapping):
        golds, answers = (value if isinstance(value, Mapping) else {} for value in (gold, answer))
        for key in {**golds, **answers}:
            inner = f"{place}.{key}" if place else key
            yield from _fields(golds.get(key), answers.get(key), inner, depth + 1)
        for is_gold, value in ((True, gold), (False, answer)):  # a value where the other has a record
            if value is not None and not isinstance(value, Mapping):
                yield from _fields(value if is_gold else None, None if is_gold else value, place, depth + 1)
    elif gold is not None or answer is not None:
        kind = kind_of(gold if gold is not None else answer)
        both = gold is not None and answer is not None
        yield Field(place or ROOT, shown_as(gold), shown_as(answer), kind, similarity(gold, answer) if both else 0.0)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _listed(golds: list[Any], answers: list[Any], place: str, depth: int) -> Iterator[Field]:
    partner = _aligned(golds, answers, lambda gold, answer: _agreement(gold, answer, depth))
    for number, gold in enumerate(golds):
        answer = answers[partner[number]] if number in partner else None
        yield from _fields(gold, answer, f"{place}[{number}]", depth + 1)
    for number in sorted(set(range(len(answers))) - set(partner.values())):
        yield from _fields(None, answers[number], f"{place}[{number}]", depth + 1)


def _agreement(gold: Any, answer: Any, depth: int) -> float:
    return sum(field.similarity for field in _fields(gold, answer, "", depth + 1))


def _aligned(golds: list[Any], answers: list[Any], agreement: Callable[[Any, Any], float]) -> dict[int, int]:
    """Place of a gold value -> place of its answer, so that they agree most; where they agree as much, in order."""
    if not golds or not answers:
        return {}
    if len(golds) == len(answers) == 1:
        return {0: 0}
    import numpy as np
    from scipy.optimize import linear_sum_assignment  # slow to import

    worth = np.array([[agreement(gold, answer) for answer in answers] for gold in golds])
    apart = abs(np.subtract.outer(np.arange(len(golds)), np.arange(len(answers))))
    rows, columns = linear_sum_assignment(worth - 1e-9 * apart, maximize=True)
    return dict(zip(rows.tolist(), columns.tolist(), strict=True))
