"""JSON answers field by field: each arm's score on each field with its interval, and the difference of two arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vlmft.evaluation.compare import Adjusted, adjusted, arm_interval, compare
from vlmft.metrics.json_fields import Field, Totals, compared, totals_by_field, totals_of
from vlmft.metrics.json_schema import Schema, fits, schema_of

if TYPE_CHECKING:
    from vlmft.evaluation.evaluate import Evaluation
    from vlmft.evaluation.rows import EvaluationRows

MOST_FIELDS = 200
"""Fields that are compared; documents whose keys are texts of the image have thousands."""


@dataclass(frozen=True)
class FieldOfArm:
    """What one arm makes of one field."""

    value: float
    """Mean over the rows of the field's F1 in a row, 0..1."""
    interval: tuple[float, float]
    """95 % interval of `value`."""
    totals: Totals
    """Over all rows, those too whose reference does not have the field."""


@dataclass(frozen=True)
class FieldScores:
    """One field, in the rows whose reference has it."""

    name: str
    kinds: tuple[str, ...]
    """What its values are compared as, the most frequent first."""
    n: int
    majority: float
    """The share of its values in the references that are the most frequent one."""
    arms: Mapping[str, FieldOfArm]
    comparison: Adjusted | None
    """Of the two arms of the page's first comparison, judged as one of the fields; None for one arm."""


@dataclass(frozen=True)
class ByField:
    """All fields that some reference has, the worst first in the arm that the page is about."""

    fields: tuple[FieldScores, ...]
    whole: Mapping[str, Mapping[str, float | None]]
    """Arm -> `field_totals`, and `valid_schema`: the share of answers that fit the schema."""
    unknown: Mapping[str, Mapping[str, int]]
    """Arm -> fields that no reference has, and in how many places it writes them."""
    schema: Schema | None
    references_fit: float | None
    """The share of the rows' own references that fit the schema."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {**asdict(self), "fields": [asdict(field) for field in self.fields]}
        for line, field in zip(found["fields"], self.fields, strict=True):
            line["comparison"] = None if field.comparison is None else field.comparison.to_dict()
        return found


def fields_of(result: Evaluation, rows: EvaluationRows) -> ByField:
    """Of an evaluation's arms under `json_fields`; of a few-shot arm the answers of its first draw."""
    texts = {arm: {i: row.text for i, row in own.items()} for arm, own in result.rows.items()}
    references = {sample.id: sample.references for sample in result.samples}
    first = result.comparisons[0].comparison if result.comparisons else None
    pair = None if first is None else (first.first, first.second)
    schema = rows.schema or schema_of([sample.answer for sample in rows.baseline_rows()])
    kind = next(iter(result.arms.values())).kind
    return by_field(texts, references, result.groups, kind, pair, schema)


def by_field(
    texts: Mapping[str, Mapping[str, str]],
    references: Mapping[str, Sequence[str]],
    groups: Mapping[str, str],
    kind: str,
    pair: tuple[str, str] | None,
    schema: Schema | None,
) -> ByField:
    """`texts`: arm -> row id -> answer; `pair`: the arms whose difference is tested, as that of the whole score is.

    A field's score in a row is its F1 over the places where reference or answer has it; rows whose reference has none
    are not scored, their invented fields are counted. Raises ValueError as `json_fields`.
    """
    found = {arm: {i: compared(own[i], references[i]) for i in references} for arm, own in texts.items()}
    golds = {i: compared(several[0], several)[0] for i, several in references.items()}
    known = list(dict.fromkeys(field.name for fields in golds.values() for field in fields))
    names = known[:MOST_FIELDS]
    totals = {arm: totals_by_field(list(rows.values())) for arm, rows in found.items()}
    scores = {arm: _scores(golds, {i: fields for i, (fields, _) in rows.items()}) for arm, rows in found.items()}
    pairs = [compare(one, scores[one][n], two, scores[two][n], groups, kind) for n in names for one, two in _one(pair)]
    judged = adjusted(pairs) if pairs else [None] * len(names)
    fields = []
    for name, comparison in zip(names, judged, strict=True):
        arms = {}
        for arm in texts:
            own = scores[arm][name]
            value, (interval, _, _) = sum(own.values()) / len(own), arm_interval(own, groups)
            arms[arm] = FieldOfArm(value, interval, totals[arm].get(name, Totals()))
        here = [field for some in golds.values() for field in some if field.name == name]
        kinds = tuple(kind for kind, _ in Counter(field.kind for field in here).most_common())
        ((_, most),) = Counter(field.gold for field in here).most_common(1)
        n = len(scores[next(iter(texts))][name])
        fields.append(FieldScores(name, kinds, n, most / len(here), arms, comparison))
    shown = pair[1] if pair is not None else next(iter(texts))
    fields.sort(key=lambda field: (field.arms[shown].value, field.name))
    return ByField(
        tuple(fields),
        {arm: _whole(own, found[arm], schema) for arm, own in texts.items()},
        {arm: _unknown(rows.values(), set(known)) for arm, rows in found.items()},
        schema,
        None if schema is None else sum(fits(schema, several[0]) for several in references.values()) / len(references),
    )


def _one(pair: tuple[str, str] | None) -> list[tuple[str, str]]:
    return [] if pair is None else [pair]


def _scores(golds: Mapping[str, Sequence[Field]], found: Mapping[str, Sequence[Field]]) -> dict[str, dict[str, float]]:
    """Field -> id of a row whose reference has it -> its F1 there."""
    scores: dict[str, dict[str, float]] = {}
    for row_id, gold in golds.items():
        by_name: dict[str, list[Field]] = {}
        for field in found[row_id]:
            by_name.setdefault(field.name, []).append(field)
        for name in dict.fromkeys(field.name for field in gold):
            scores.setdefault(name, {})[row_id] = Totals().add(by_name.get(name, [])).f1 if name in by_name else 0.0
    return scores


def _whole(
    own: Mapping[str, str], found: Mapping[str, tuple[Sequence[Field], str | None]], schema: Schema | None
) -> dict[str, float | None]:
    table = totals_of(list(found.values()))
    valid = None if schema is None else sum(fits(schema, own[i]) for i in found) / len(found)
    return {"valid_json": table.values["valid_json"], "valid_schema": valid, **table.values}


def _unknown(found: Any, known: set[str]) -> dict[str, int]:
    counts = Counter(field.name for fields, _ in found for field in fields if field.name not in known)
    return dict(counts.most_common(10))
