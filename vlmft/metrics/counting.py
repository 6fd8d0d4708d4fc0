"""How far off counts are, and which way."""

from __future__ import annotations

from collections.abc import Sequence

from vlmft.metrics.count_accuracy import extract_count, reference_count
from vlmft.metrics.table import Row, Table, expect_rows


def counting(rows: Sequence[Row]) -> Table:
    """`within_1` over all rows, `mae` and `bias` (prediction - truth) over those with a number, and a row per count.

    Of several references the nearest counts. Answering the middle of a narrow range does well in `within_1`: hold the
    accuracy beside it. A row without a number is wrong in `within_1` and in its count's accuracy. Raises ValueError
    without rows, or on a reference that is no whole number.
    """
    expect_rows(rows)
    errors: list[tuple[int, int | None]] = []
    for prediction, references in rows:
        golds, count = [reference_count(reference) for reference in references], extract_count(prediction)
        errors.append((golds[0], None if count is None else min((count - gold for gold in golds), key=abs)))
    read = [error for _, error in errors if error is not None]
    values: dict[str, float | None] = {
        "within_1": sum(abs(error) <= 1 for error in read) / len(rows),
        "mae": sum(map(abs, read)) / len(read) if read else None,
        "bias": sum(read) / len(read) if read else None,
    }
    notes = [f"mae and bias: over the {len(read)} of {len(rows)} rows in which a number was found"]
    return Table(values, notes, {"per_true_count": [_of_count(gold, errors) for gold in sorted(dict(errors))]})


def _of_count(gold: int, errors: Sequence[tuple[int, int | None]]) -> dict[str, float | int | None]:
    mine = [error for truth, error in errors if truth == gold]
    read = [error for error in mine if error is not None]
    return {
        "count": gold,
        "n": len(mine),
        "accuracy": sum(error == 0 for error in mine) / len(mine),
        "bias": sum(read) / len(read) if read else None,
    }
