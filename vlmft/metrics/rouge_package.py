"""The numbers of the package `rouge` 1.0.1 (https://github.com/pltrdy/rouge), to compare with who published those.

They are no ROUGE: words count once however often they occur, case and punctuation count, texts are cut at every full
stop (also that of "91.1"), and ROUGE-L is of sets of words, of a common subsequence per pair of such sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmft.metrics.rouge import Overlap, mean_overlaps
from vlmft.metrics.table import Row, Table, expect_rows


def rouge_package(rows: Sequence[Row]) -> Table:
    """Means of r, p and f as the package's `get_scores(..., avg=True)`, the best F where there are several references.

    An empty prediction, also one of full stops alone, scores 0 and is counted in a note; the package raises there, or
    drops the row.
    """
    expect_rows(rows)
    table = mean_overlaps([_best(prediction, references) for prediction, references in rows])
    empty = sum(not _sentences(prediction) for prediction, _ in rows)
    table.notes.append("as the package rouge 1.0.1 counts; not comparable with rouge")
    if empty:
        table.notes.append(f"{empty} empty predictions count as 0, where the package raises or drops them")
    return table


def _best(prediction: str, references: Sequence[str]) -> dict[str, Overlap]:
    each = [_scores(_sentences(prediction), _sentences(reference)) for reference in references]
    return {name: max((one[name] for one in each), key=lambda found: found.f) for name in each[0]}


def _sentences(text: str) -> list[list[str]]:
    return [part.split() or [""] for part in text.split(".") if part]


def _scores(prediction: list[list[str]], reference: list[list[str]]) -> dict[str, Overlap]:
    predicted, expected = ([word for sentence in text for word in sentence] for text in (prediction, reference))
    scores = {}
    for n in (1, 2):
        runs, gold_runs = (set(zip(*(text[i:] for i in range(n)), strict=False)) for text in (predicted, expected))
        scores[f"rouge{n}"] = _overlap(len(runs & gold_runs), len(runs), len(gold_runs))
    common = {word for gold in reference for answer in prediction for word in _common(gold, answer)}
    scores["rougeL"] = _overlap(len(common), len(set(predicted)), len(set(expected)))
    return scores


def _overlap(shared: int, n_predicted: int, n_reference: int) -> Overlap:
    recall = shared / n_reference if n_reference else 0.0
    precision = shared / n_predicted if n_predicted else 0.0
    return Overlap(recall, precision, 2 * precision * recall / (precision + recall + 1e-8))


def _common(first: list[str], second: list[str]) -> list[str]:
    """The words of a longest common subsequence; of several the one that walking back by `second` finds first."""
    lengths = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, word in enumerate(first):
        for j, other in enumerate(second):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if word == other else max(lengths[i][j + 1], lengths[i + 1][j])
    found, i, j = [], len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.append(first[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found
