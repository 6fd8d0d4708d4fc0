"""Classes of a closed list, read out of free text: aliases, macro-F1, confusions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

from vlmft.metrics.final_answer import final_answer
from vlmft.metrics.score import Metric, Score, expect_references
from vlmft.metrics.table import CorpusMetric, Row, Table, expect_rows
from vlmft.metrics.words import words

NONE, AMBIGUOUS = "__none__", "__ambiguous__"
"""Outcomes of their own: the answer names no class, or several. Both are wrong."""
SHOWN_CONFUSIONS = 10


class Labels:
    """Which class a text names. `classes` is the whole list: label -> its other spellings.

    Data sets misspell their labels ("canoe slamon"): the right spelling is an alias. Raises ValueError for an empty
    list, a spelling without letters, or one that two classes share.
    """

    def __init__(self, classes: Mapping[str, Sequence[str]]) -> None:
        if not classes:
            raise ValueError("Expected at least one class, got none; pass label -> aliases")
        self.names = list(classes)
        self._label: dict[str, str] = {}
        for label, aliases in classes.items():
            for spelling in (label, *aliases):
                written = " ".join(words(spelling))
                if not written or self._label.setdefault(written, label) != label:
                    raise ValueError(
                        f"Expected spellings that name one class, got {spelling!r} of {label!r} and of "
                        f"{self._label.get(written, 'none')!r}; give each its own"
                    )

    @cached_property
    def _spelling(self) -> re.Pattern[str]:
        longest_first = sorted(self._label, key=len, reverse=True)  # "tennis" stands in "table tennis"
        return re.compile(rf"(?<!\S)(?:{'|'.join(map(re.escape, longest_first))})(?!\S)")

    def read(self, text: str) -> str:
        """The label that `text` is, else the only one that it contains as whole words, else `NONE` or `AMBIGUOUS`.

        No edit distance: "luge" is not "judo". Reasoning and what stands before "The answer is" are not read.
        """
        answer = " ".join(words(final_answer(text)))
        if answer in self._label:
            return self._label[answer]
        found = {self._label[match] for match in self._spelling.findall(answer)}
        return found.pop() if len(found) == 1 else AMBIGUOUS if found else NONE

    def gold(self, references: Sequence[str]) -> str:
        """The class of the references; raises ValueError where they are not spellings of one class."""
        expect_references(references)
        found = {self._label.get(" ".join(words(reference))) for reference in references}
        label = found.pop()
        if label is None or found:
            raise ValueError(f"Expected references of one class of the list, got {list(references)!r}; mend the list")
        return label


def alias_accuracy(labels: Labels) -> Metric:
    """The metric that is 1 where the prediction names the references' class and no other."""

    def score(prediction: str, references: Sequence[str]) -> Score:
        label = labels.read(prediction)
        return Score(float(label == labels.gold(references)), None if label in (NONE, AMBIGUOUS) else label)

    return score


def macro_f1(labels: Labels) -> CorpusMetric:
    """The metric that gives `macro_f1` over the whole class list, `accuracy`, `unparsed`, `ambiguous`, confusions.

    F1 of a class is 2 TP / (2 TP + FP + FN), 0 where nothing was right (Opitz & Burst 2019, "Macro F1 and Macro F1").
    The divisor is the list: averaging over classes that occur would let the predictions choose it. An unread answer is
    a false negative of its own class and nobody's false positive.
    """

    def table(rows: Sequence[Row]) -> Table:
        expect_rows(rows)
        pairs = Counter((labels.gold(references), labels.read(prediction)) for prediction, references in rows)
        right, truth, predicted = Counter[str](), Counter[str](), Counter[str]()
        for (gold, label), count in pairs.items():
            truth[gold] += count
            predicted[label] += count
            right[gold] += count if gold == label else 0
        f1 = {name: 2 * right[name] / (truth[name] + predicted[name]) if right[name] else 0.0 for name in labels.names}
        wrong = sorted((-count, gold, label) for (gold, label), count in pairs.items() if gold != label)
        absent = sum(not truth[name] for name in labels.names)
        return Table(
            {
                "macro_f1": sum(f1.values()) / len(f1),
                "accuracy": right.total() / len(rows),
                "unparsed": predicted[NONE] / len(rows),
                "ambiguous": predicted[AMBIGUOUS] / len(rows),
            },
            [f"macro_f1: over all {len(f1)} classes of the list"]
            + ([f"macro_f1: {absent} of them have no row here and count as 0"] if absent else []),
            {
                "worst_confusions": [
                    {"reference": gold, "prediction": label, "n": -count}
                    for count, gold, label in wrong[:SHOWN_CONFUSIONS]
                ],
                "per_class": [{"class": name, "n": truth[name], "f1": f1[name]} for name in labels.names],
            },
        )

    return table
