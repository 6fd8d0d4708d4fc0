"""Whole numbers in running text: digits, and number words of English and Russian from 0 to 100."""

from __future__ import annotations

import re
import unicodedata

_ENGLISH = (
    (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen"
    ),
    "twenty thirty forty fifty sixty seventy eighty ninety",
)
_RUSSIAN = (
    (
        "ноль один два три четыре пять шесть семь восемь девять десять одиннадцать двенадцать тринадцать четырнадцать "
        "пятнадцать шестнадцать семнадцать восемнадцать девятнадцать"
    ),
    "двадцать тридцать сорок пятьдесят шестьдесят семьдесят восемьдесят девяносто",
)
_RUSSIAN_GENDERS = {"одна": 1, "одно": 1, "две": 2}


def _number_words() -> dict[str, int]:
    words = {"hundred": 100, "one hundred": 100, "a hundred": 100, "сто": 100, "нуль": 0, **_RUSSIAN_GENDERS}
    for small_words, tens_words in (_ENGLISH, _RUSSIAN):
        small = {word: value for value, word in enumerate(small_words.split())}
        tens = {word: 10 * value for value, word in enumerate(tens_words.split(), start=2)}
        units = {word: value for word, value in (small | _RUSSIAN_GENDERS).items() if 1 <= value <= 9}
        words |= small | tens
        words |= {f"{ten} {unit}": tens[ten] + units[unit] for ten in tens for unit in units}
    return words


NUMBER_WORDS: dict[str, int] = _number_words()
"""Casefolded words to values, compounds with a space: "forty two"."""

# Thousands of digits are what a looping model prints, and int() refuses them: no number has more than 15 here.
_DIGITS = r"(?:\d{1,3}(?:[ ,]\d{3}){1,4}|\d{1,15})"
# Not the 2 of "2.5", of "B2" or of "2nd", and no share ("50%"); the minus of "3-4" is a dash.
_INTEGER = rf"(?:(?<!\w)-)?(?<![a-z\d.,]){_DIGITS}(?![.,]?\d)(?!(?:st|nd|rd|th|d)\b)(?! ?%)"
# Longest first, or "twenty one" is read as 20. Not the "one" of "stone" nor the "two" of "two-tone".
_WORD = "|".join(word.replace(" ", "[ -]") for word in sorted(NUMBER_WORDS, key=len, reverse=True))
_NUMBER = re.compile(rf"{_INTEGER}|(?<!\w)(?<!\w-)(?:{_WORD})(?!-?\w)")
_WHOLE = re.compile(rf"(-?{_DIGITS})(?:\.0+)?")


def folded(text: str) -> str:
    """NFKC (full-width digits, no-break spaces), casefold, a plain minus, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("\N{MINUS SIGN}", "-").split())


def whole_number(text: str) -> int | None:
    """The number that `text` is, quotes, markdown and a full stop aside; None where it is anything else or more."""
    number = folded(text).strip("\"'`* .!")
    digits = _WHOLE.fullmatch(number)
    return _value(digits[1]) if digits else NUMBER_WORDS.get(number.replace("-", " "))


def numbers_in(text: str) -> list[int]:
    """Every whole number of `text`, in reading order."""
    return [_value(number) for number in _NUMBER.findall(folded(text))]


def _value(number: str) -> int:
    word = NUMBER_WORDS.get(number.replace("-", " "))
    return int(number.replace(",", "").replace(" ", "")) if word is None else word
