"""Words of a text in any script."""

from __future__ import annotations

import unicodedata
from functools import lru_cache


@lru_cache(maxsize=65536)
def _kind(character: str) -> str:
    return unicodedata.category(character)[0]


def composed(text: str) -> str:
    """NFC and casefold. Without NFC a decomposed "й" is two characters, of which the second is no letter."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def words(text: str) -> list[str]:
    """Casefolded runs of letters, marks and digits.

    Marks belong to words: `\\w` leaves out the vowel signs of Hindi, and `[a-z0-9]`, which rouge-score takes, all that
    is not Latin: it finds "Чебурашка 1966" and "Гена 1966" identical.
    """
    return "".join(c if _kind(c) in "LMN" else " " for c in composed(text)).split()


def without_marks(text: str) -> list[str]:
    """Words as SQuAD cuts them: punctuation and symbols of any script deleted, then split at spaces, no a, an, the."""
    kept = "".join(c for c in composed(text) if _kind(c) not in "PS")
    return [word for word in kept.split() if word not in ("a", "an", "the")]
