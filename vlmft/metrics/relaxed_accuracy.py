"""Relaxed accuracy of chart questions: numbers within 5 %, all else exact (Masry et al. 2022, ChartQA, section 5.1).

The paper's authors published no code, and a dozen implementations disagree on "1,200", "four" or a gold of 0. Here
stand `relaxed_accuracy_strict` to compare with published figures, `relaxed_accuracy` to judge the answer and not its
spelling, and `relaxed_accuracy_units`, to which "140°" is 140. Rows that the second alone takes are a model's format
debt. It is no difference of the two figures: the second also refuses, above all years that are wrong by less than 5 %,
and can be the lower one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias

from vlmft.metrics.final_answer import final_answer
from vlmft.metrics.numerals import NUMBER_WORDS, folded
from vlmft.metrics.score import Score, expect_references

TOLERANCE = Fraction(1, 20)
"""Of the gold value, never of the prediction. A fraction, because 1.05 is within 5 % of 1 and as floats it is not."""

YEAR = re.compile(r"1[89]\d\d|20\d\d|2100")
"""A gold of four bare digits in 1800..2100 is taken for a year and must be met exactly: 5 % of 2010 are 100 years.

The question is not known here, so this is a guess. Of 26 such golds in a sample of 450 ChartQA rows 25 are years. It
ends at 1800, because smaller ones are more often amounts ("1408"); "1,931" and "1931.0" are never taken for years.
"""

_MARKS = " \"'`*«»“”"
_ARTICLE = re.compile(r"^(?:the|an?) (?=\S)")
_CURRENCY = "[$€£¥₽₹₩₴]?"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?) ?{_CURRENCY} ?(?P<value>(?:\d{{1,3}}(?:[, ]\d{{3}})+|\d+)(?:\.\d+)?(?:e[-+]?\d{{1,2}})?|\.\d+"
    rf"|\d+/0*[1-9]\d*) ?{_CURRENCY} ?(?P<percent>%|percent|per cent|процент\w*)?"
)
_LONGEST_NUMBER = 40
_UNIT = re.compile(
    r"(?P<number>.*?\d(?:[\d., /]*\d)?(?:e[-+]?\d+)?) ?(?P<unit>\^? ?\{? ?\\circ ?\}?\$?|(?:square |sq\.? |cubic )?"
    r"[^\W\d_]{1,15}[23]?(?:(?:/| per )[^\W\d_]{1,10}[23]?)?|[°'\"′″](?: ?[cf])?)\.?"
)
"""A number with a unit behind it, as `folded` leaves it ("m²" is "m2"); what the number is, is read elsewhere."""
_CURRENCY_CODE = re.compile(r"(?:us|usd|eur|gbp|rub|rs|rm|inr|cny|jpy|krw)\.? ?(?=[\d$€£¥₽])")
_NO_UNIT = set(
    "hundred hundreds thousand thousands k million millions mn mln mio billion billions b bn bln trillion trillions tn "
    "dozen dozens lakh crore тысяча тысячи тысяч тыс миллион миллиона миллионов млн миллиард миллиарда миллиардов млрд "
    "and or to of in out x e th st nd rd percent pp и или из"
    "".split()
)
"""What changes a number, or says something else of it."""
_SAME_UNIT = {
    **dict.fromkeys(("°", "degree", "degrees", "deg", "o", "градус", "градуса", "градусов"), "°"),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres", "м"), "m"),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres", "см"), "cm"),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres", "мм"), "mm"),
    **dict.fromkeys(("km", "kilometer", "kilometers", "kilometre", "kilometres", "км"), "km"),
    **dict.fromkeys(("kg", "kilogram", "kilograms", "кг"), "kg"),
    **dict.fromkeys(("g", "gram", "grams", "г"), "g"),
    **dict.fromkeys(("s", "sec", "second", "seconds"), "s"),
    **dict.fromkeys(("h", "hr", "hour", "hours"), "h"),
    **dict.fromkeys(("usd", "dollar", "dollars", "$"), "$"),
}
_ITEM = re.compile(r"\s*('[^']*'|\"[^\"]*\"|[^,;]+)")
_LIST_AND = re.compile(r",? (?:and|и) | ?& ?")


def relaxed_accuracy_strict(prediction: str, references: Sequence[str]) -> Score:
    """1 where pix2struct's `relaxed_correctness` says so of the stripped texts; raises ValueError without references.

    https://github.com/google-research/pix2struct, pix2struct/metrics.py, whose oddities are kept: "14%" is 0.14,
    "1,200" is no number, a gold of 0 is compared as text, 2015 is right for the year 2010.
    """
    expect_references(references)
    answer = prediction.strip()
    right = bool(answer) and any(_pix2struct(answer, reference.strip()) for reference in references)
    return Score(float(right), answer or None)


def _pix2struct(answer: str, gold: str) -> bool:
    answer_value, gold_value = _pix2struct_float(answer), _pix2struct_float(gold)
    if answer_value is not None and gold_value:
        return abs(answer_value - gold_value) / abs(gold_value) <= 0.05
    return answer.lower() == gold.lower()


def _pix2struct_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed_accuracy(prediction: str, references: Sequence[str]) -> Score:
    """1 where a careful reader would accept the answer; raises ValueError without references.

    Looks for the answer behind "The answer is" or in an answer slot. Ignores case, quotes, a leading article and
    trailing punctuation. Reads thousands separators, currency signs, fractions, number words; a percentage for a plain
    number either way, "14%" for 14 and for 0.14. Years exact (see `YEAR`), a gold of 0 met by 0 alone, a gold list
    ("[2003, 2009]") item by item in its order. Units are not dropped: "12 million" is not 12.
    """
    return _relaxed(prediction, references, _read_number)


def relaxed_accuracy_units(prediction: str, references: Sequence[str]) -> Score:
    """`relaxed_accuracy`, where a unit that one side alone has does not count: "140°" is 140, "12 cm" is 12.

    Two units must be the same one: "12 mm" is not "12 cm". What multiplies a number is no unit ("12 million", "5k"),
    but "m" is metres. A unit is one word of any language, or two with "per", "/" or "square". For geometry and science
    sets, whose golds have units in some rows; no published figure is known to be of this variant.
    """
    return _relaxed(prediction, references, _read_measure)


def is_measure(text: str) -> bool:
    """Whether `text` is a number, with a unit or without."""
    return _read_measure(_tidy(text)) is not None


def _relaxed(prediction: str, references: Sequence[str], read: _Reader) -> Score:
    expect_references(references)
    answer = _tidy(final_answer(prediction))
    right = bool(answer) and any(_matches(answer, _tidy(reference), read) for reference in references)
    return Score(float(right), answer or None)


def _tidy(text: str) -> str:
    return _ARTICLE.sub("", folded(text).lstrip(_MARKS).rstrip(_MARKS + ".,;:!?"))


def _matches(answer: str, gold: str, read: _Reader) -> bool:
    if not _is_list(gold):
        # models trained on a list column answer "['91.1']"
        items = _items(answer) if _is_list(answer) else []
        return _same(items[0] if len(items) == 1 else answer, gold, read)
    gold_items = _items(gold)
    return any(_same_items(_items(text), gold_items, read) for text in (answer, _LIST_AND.sub(",", answer)))


def _is_list(text: str) -> bool:
    return text.startswith("[") and text.endswith("]")


def _items(text: str) -> list[str]:
    return [_tidy(item) for item in _ITEM.findall(text[1:-1] if _is_list(text) else text)]


def _same_items(answers: list[str], golds: list[str], read: _Reader) -> bool:
    return len(answers) == len(golds) and all(_same(*pair, read) for pair in zip(answers, golds, strict=True))


def _same(answer: str, gold: str, read: _Reader) -> bool:
    if answer == gold:
        return True
    answered, expected = read(answer), read(gold)
    if answered is None or expected is None or (answered.unit and expected.unit and answered.unit != expected.unit):
        return False
    if YEAR.fullmatch(gold):
        return answered == expected
    return any(abs(value - target) <= TOLERANCE * abs(target) for value, target in _readings(answered, expected))


@dataclass(frozen=True)
class _Number:
    value: Fraction
    is_percent: bool
    unit: str = ""


_Reader: TypeAlias = Callable[[str], _Number | None]


def _read_number(text: str) -> _Number | None:
    word = NUMBER_WORDS.get(text.replace("-", " "))
    if word is not None:
        return _Number(Fraction(word), False)
    # float() also reads "1_0", "nan" and "inf"; a looping model prints more digits than int() takes
    match = _NUMBER.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    if match is None:
        return None
    value = Fraction(match["value"].replace(",", "").replace(" ", ""))
    return _Number(-value if match["sign"] == "-" else value, match["percent"] is not None)


def _read_measure(text: str) -> _Number | None:
    """`_read_number`, also with a unit behind it or the code of a currency before it."""
    plain = _read_number(_CURRENCY_CODE.sub("", text))
    match = _UNIT.fullmatch(text) if plain is None and len(text) <= _LONGEST_NUMBER else None
    if match is None or set(re.split(r"[^\w]+", match["unit"])) & _NO_UNIT:
        return plain
    number = _read_number(_CURRENCY_CODE.sub("", match["number"]))
    unit = "°" if "circ" in match["unit"] else match["unit"].replace(" per ", "/").replace(" ", "")
    return number and replace(number, unit=_SAME_UNIT.get(unit, unit))


def _readings(answered: _Number, expected: _Number) -> list[tuple[Fraction, Fraction]]:
    """Pairs to compare. Only where one alone is a percentage is its value ambiguous: "1400%" never is "14%"."""
    plain = (answered.value, expected.value)
    if answered.is_percent == expected.is_percent:
        return [plain]
    return [plain, (answered.value / 100, plain[1]) if answered.is_percent else (plain[0], expected.value / 100)]
