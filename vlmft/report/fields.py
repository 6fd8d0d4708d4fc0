"""JSON answers in the report: the fields with their scores, the worst first, and what is missing and invented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmft.evaluation.fields import ByField, FieldScores
from vlmft.evaluation.numbers import SHARE, count, p_value, share
from vlmft.metrics.json_fields import compared
from vlmft.report.content import FieldLine, Grid, Section
from vlmft.report.tables import MOODS

_WHOLE = {
    "valid_json": "Valid JSON",
    "valid_schema": "Fits the schema",
    "precision": "Precision",
    "recall": "Recall",
    "f1_micro": "F1 over all",
    "f1_macro": "F1, mean of fields",
    "f1_right": "F1, nothing partly right",
    "missing": "Missing",
    "invented": "Invented",
}
MOST_LINES = 30


def fields_section(found: ByField) -> Section:
    """A line for each field, then all fields together, then what is missing and invented in each."""
    said = [
        "The mean F1 of each field over the rows whose reference has it, with its 95\u00a0% interval, the worst first. "
        "Numbers, dates and truth values are right or wrong by value, texts count by ANLS; the records of lists are "
        "paired before they are compared. Majority: the share of a field's values that are its most frequent one."
    ]
    if any(field.comparison is not None for field in found.fields):
        said.append("Differences are paired; p is Holm's for all fields.")
    return Section(
        "Fields", tuple(said), scores_by_field(found), parts=(_whole(found), _counts(found)), notes=_notes(found)
    )


def field_lines(texts: Mapping[str, str], references: Sequence[str]) -> tuple[FieldLine, ...]:
    """The fields of one row: those of the references, then what answers invent. `texts`: arm -> answer."""
    gold: dict[tuple[str, str | None], dict[str, tuple[str | None, float]]] = {}
    for field in compared(references[0], references)[0]:
        gold[field.place, field.gold] = {}
    for arm, text in texts.items():
        for field in compared(text, references)[0]:
            gold.setdefault((field.place, field.gold), {})[arm] = field.answer, field.similarity
    lines = sorted(gold.items(), key=lambda item: item[0][1] is None)  # stable
    return tuple(FieldLine(place, value, answers) for (place, value), answers in lines)


def scores_by_field(found: ByField) -> Grid:
    """The worst first."""
    arms = list(found.whole)
    pair = next((field.comparison for field in found.fields if field.comparison is not None), None)
    more = ("Difference", "p") if pair is not None else ()
    lines, heat, moods = [], [], []
    for field in found.fields[:MOST_LINES]:
        cells = [f"{SHARE.value(one.value)}\n{SHARE.interval(one.interval)}" for one in field.arms.values()]
        name = (field.name, " or ".join(field.kinds), count(field.n), share(field.majority))
        lines.append((*name, *cells, *_difference(field)))
        heat.append((*(None for _ in name), *(field.arms[arm].value for arm in arms), *(None for _ in more)))
        moods.append(MOODS.get(str(field.comparison.verdict), "plain") if field.comparison is not None else "plain")
    return Grid(("Field", "Kind", "n", "Majority", *arms, *more), lines, text_columns=(0, 1), moods=moods, heat=heat)


def narrow_scores(found: ByField) -> Grid:
    """The same for a terminal: without kinds and intervals."""
    whole = scores_by_field(found)
    lines = [[cell.partition("\n")[0] for cell in (line[0], *line[2:])] for line in whole.lines]
    return Grid((whole.heads[0], *whole.heads[2:]), lines)


def _difference(field: FieldScores) -> tuple[str, ...]:
    if field.comparison is None:
        return ()
    pair = field.comparison.comparison
    words = f"{SHARE.signed(pair.difference)}\n{SHARE.difference_interval(pair.interval)}"
    return words, p_value(field.comparison.p_value)


def _whole(found: ByField) -> Section:
    lines = [(arm, *(share(values.get(name)) for name in _WHOLE)) for arm, values in found.whole.items()]
    return Section("All fields together", table=Grid(("Arm", *_WHOLE.values()), lines))


def _counts(found: ByField) -> Section:
    """A line for each field and arm."""
    heads = ("Field", "Arm", "In references", "In answers", "Right", "Missing", "Invented", "Precision", "Recall")
    lines = []
    for field in found.fields[:MOST_LINES]:
        for arm, one in field.arms.items():
            all_of = one.totals
            numbers = (all_of.gold, all_of.answered, all_of.right, all_of.missing, all_of.invented)
            lines.append((field.name, arm, *map(count, numbers), share(all_of.precision), share(all_of.recall)))
    return Section("Missing and invented", table=Grid(heads, lines, text_columns=(0, 1)), is_folded=True)


def _notes(found: ByField) -> tuple[str, ...]:
    notes = []
    if (more := len(found.fields) - MOST_LINES) > 0:
        notes.append(f"{more} fields that do better are in summary.json.")
    for arm, names in found.unknown.items():
        if names:
            some = [f"{name} ({n})" for name, n in names.items()]
            notes.append(f"{arm} writes fields that no reference has: {', '.join(some[:5])}.")
    if found.references_fit is not None and found.references_fit < 1:
        notes.append(f"{share(found.references_fit)} of the references fit the schema themselves.")
    return tuple(notes)
