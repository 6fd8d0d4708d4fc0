"""CIDEr-D of captions, without the Java tokeniser of its first implementation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from vlmft.metrics.table import Row, Table, expect_rows
from vlmft.metrics.words import words

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0
FEW_ROWS = 100

Run: TypeAlias = tuple[str, ...]


def cider_d(rows: Sequence[Row]) -> Table:
    """CIDEr-D, 0..10: clipped cosine of TF-IDF weighted runs of 1 to 4 words, with a penalty on the length.

    Vedantam et al. 2015, "CIDEr", sections 3 and 5; the numbers of https://github.com/salaniz/pycocoevalcap on texts in
    `words` (papers print them times 100). The weights come from the references of these very rows. Withheld for one
    row, where all weights are 0.
    """
    expect_rows(rows)
    if len(rows) < 2:
        return Table({"cider_d": None}, ["cider_d: withheld, because in one row no word is rarer than another"])
    cooked = [(_runs(prediction), [_runs(reference) for reference in references]) for prediction, references in rows]
    seen = Counter(run for _, references in cooked for run in {run for counts in references for run in counts})
    weights = {run: math.log(len(rows) / count) for run, count in seen.items()}
    unseen = math.log(len(rows))
    values = []
    for answer, references in cooked:
        vectors = [_Vectors(counts, weights, unseen) for counts in (answer, *references)]
        values.append(sum(_similarity(vectors[0], gold) for gold in vectors[1:]) / len(references))
    notes = [
        f"cider_d: 0 to 10, word weights from these {len(rows)} rows; not comparable with another set's or subset's"
    ]
    if len(rows) < FEW_ROWS:
        notes.append(f"cider_d: {len(rows)} rows give poor word weights; {FEW_ROWS} are few")
    return Table({"cider_d": 10 * sum(values) / len(values)}, notes)


def _runs(text: str) -> Counter[Run]:
    found = words(text)
    return Counter(tuple(found[i : i + n]) for n in ORDERS for i in range(len(found) - n + 1))


class _Vectors:
    """Weighted counts of one text, with their norm for each order."""

    def __init__(self, counts: Counter[Run], weights: dict[Run, float], unseen: float) -> None:
        self.weighted = {run: count * weights.get(run, unseen) for run, count in counts.items()}
        squares = Counter[int]()
        for run, weight in self.weighted.items():
            squares[len(run)] += weight * weight  # type: ignore[assignment]
        self.norms = {n: math.sqrt(squares[n]) for n in ORDERS}
        self.length = sum(count for run, count in counts.items() if len(run) == 1)


def _similarity(answer: _Vectors, gold: _Vectors) -> float:
    products = dict.fromkeys(ORDERS, 0.0)
    for run, weight in answer.weighted.items():
        expected = gold.weighted.get(run, 0.0)
        products[len(run)] += min(weight, expected) * expected
    norms = {n: answer.norms[n] * gold.norms[n] for n in ORDERS}
    cosine = sum(products[n] / norms[n] for n in ORDERS if norms[n]) / len(ORDERS)
    return cosine * math.exp(-((answer.length - gold.length) ** 2) / (2 * SIGMA**2))
