"""BLEU and chrF as sacrebleu counts them, with its signature; torchmetrics' chrF scores a right "4" at 0.25."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from vlmft.metrics.score import Score, expect_references
from vlmft.metrics.table import Row, Table, expect_rows, short_answers


def bleu(rows: Sequence[Row]) -> Table:
    """Corpus BLEU (Papineni et al. 2002) on sacrebleu's defaults, 0..1; withheld where the answers are short."""
    from sacrebleu.metrics.bleu import BLEU  # here: it takes a second to import
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    expect_rows(rows)
    tokenise: Callable[[str], str] = Tokenizer13a()  # type: ignore[no-untyped-call]
    reason = short_answers(rows, lambda text: tokenise(text).split())
    if reason is not None:
        return Table({"bleu": None}, [f"bleu: {reason}"])
    return _corpus("bleu", BLEU(force=True), rows)


def chrf(rows: Sequence[Row]) -> Table:
    """Corpus chrF (Popović 2015) on sacrebleu's defaults, 0..1. Case counts, inflection costs a part only."""
    from sacrebleu.metrics.chrf import CHRF

    expect_rows(rows)
    return _corpus("chrf", CHRF(), rows)


def sentence_chrf(prediction: str, references: Sequence[str]) -> Score:
    """chrF of one row, 0..1; raises ValueError without references."""
    from sacrebleu.metrics.chrf import CHRF

    expect_references(references)
    text = _composed(prediction)
    found = CHRF().sentence_score(text, [_composed(reference) for reference in references])
    return Score(found.score / 100, " ".join(text.split()) or None)


def _corpus(name: str, metric: Any, rows: Sequence[Row]) -> Table:
    longest = max(len(references) for _, references in rows)
    # sacrebleu wants the first reference of every row, then the second of every row, None where there is none
    streams = [[_composed(refs[i]) if i < len(refs) else None for _, refs in rows] for i in range(longest)]
    found = metric.corpus_score([_composed(prediction) for prediction, _ in rows], streams)
    value = min(1.0, found.score / 100)  # its logarithms give 1.0000000000000004
    return Table({name: value}, [f"{name}: {metric.get_signature()}, 0 to 1 here, texts in NFC"])


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
