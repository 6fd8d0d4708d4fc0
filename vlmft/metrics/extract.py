"""The answer inside a model's text: from a slot, as an option's letter, as the last number.

Metrics that look for the answer themselves (`count_accuracy`, `relaxed_accuracy`) need none of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from vlmft.metrics.exact_match import normalised
from vlmft.metrics.final_answer import PHRASE, answer_slot
from vlmft.metrics.numerals import folded
from vlmft.metrics.words import words

_OTHER_SLOTS = re.compile(
    r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|\Z)|<(?:final_answer|conclusion)>(.*?)(?:</(?:final_answer|conclusion)>"
    r"|\Z)|^####[ \t]*(.+)$",
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
_THINK_END = re.compile(r"</think(?:ing)?>|◁/think▷", re.IGNORECASE)
_THINK_START = re.compile(r"<think(?:ing)?>|◁think▷", re.IGNORECASE)
_SPECIAL = re.compile(
    r"(?:\s*(?:<\|(?:im_end|endoftext|eot_id|end|end_of_text|eom_id)\|>|</s>|<eos>|<end_of_utterance>|<end_of_turn>"
    r"|<pad>|\[/?INST\]))+\s*$"
)
"""Tokens that end a turn, as a tool leaves them that decodes with special tokens."""
_TURN = re.compile(r"(?:<\|im_start\|>|<start_of_turn>|\n|^)\s*(?:assistant|model)\s*(?::|\n)", re.IGNORECASE)
"""The model's turn, as a tool leaves it that decodes the prompt too."""
_LIST_OF_ONE = re.compile(r"""\s*\[\s*(['"])([^'"]*)\1\s*\]\s*""")
"""What a model says that was trained on lists of one answer."""
_ANSWER_KEYS = ("answer", "final_answer", "prediction", "response")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}")

_YES_NO = {"yes": "yes", "no": "no", "да": "yes", "нет": "no"}
LETTERS = "ABCDEFGHIJ"
"""The options that benchmarks have, at most."""
_ONE_LETTER = re.compile(rf"[\s\"'*`(\[{{]*([{LETTERS}{LETTERS.lower()}])[\s\"'*`)\]}}.:,]*")
_ANNOUNCED = re.compile(
    r"(?:(?:\b(?:answer|ответ)\b|\bcorrect (?:option|choice|letter)\b|答案)[\s*]*(?:(?:is|would be|should be|must be)\b"
    r"|[:=—：是为為-]|(?=\())[\s*:]*(?:(?:the )?(?:correct )?(?:option|choice|answer|letter)\b[\s*:]*)?"
    r"|[选選][择擇项項]?\s*)"
    r"[\"'*`(\[]*([A-J])(?![\w'])",
    re.IGNORECASE,
)
"""An option that is only spoken of ("Option A is red") is not announced."""
_STANDING = re.compile(r"(?<![\w.])[A-J](?![\w'’]\w)(?!\w)")
_SEVERAL = re.compile(r"[\s\"'*`)\].]*(?:or|and|,|/|&|и|или)[\s\"'*`(\[]*(?:option\s+)?[A-J](?![\w'])")
_SMALL_WORD = re.compile(r" (?!(?:or|and|is|или|и)\b)[a-zà-ÿ]")
_NOT = re.compile(r"\b(?:not|isn't|neither|nor|except|не)\b", re.IGNORECASE)
_REFERENCE_LETTER = re.compile(rf"\(?([{LETTERS}{LETTERS.lower()}])[).:]{{0,2}}")

_NUMBER = re.compile(
    r"(?:(?<![\w)])-)?(?<![^\W\d_])(?<![\d.,])(?:\d{1,3}(?:,\d{3})+|\d{1,30})(?:\.\d{1,30})?(?:/\d{1,15}(?![\d./]))?"
)
"""Not the 2 of "B2"; "140°", "12cm" and "5%" are 140, 12 and 5; "1/2" is one number."""


def tagged_answer(text: str) -> str | None:
    """What the text itself marks as its answer; None where it marks none.

    By the first that applies: the last `<answer>`, `\\boxed{}` or other slot; `answer` in a JSON object; what follows
    "The answer is" after the reasoning; all that follows the reasoning, a prompt that was decoded too ("Assistant:"),
    and before the token that ends a turn. Reasoning that never ends leaves the empty string: no answer.
    """
    slot = _slot(text)
    if slot is not None:
        return slot
    behind = _SPECIAL.sub("", _TURN.split(_THINK_END.split(text)[-1])[-1])
    unended = _THINK_START.split(behind)[0]
    phrases = PHRASE.findall(unended)
    if phrases:
        return str(phrases[-1]).strip().removesuffix("**").strip()
    return unended.strip() if unended != text else None


def _slot(text: str) -> str | None:
    boxed = _boxed(text)
    if boxed is None:
        found = answer_slot(text)
        others = _OTHER_SLOTS.findall(text) if found is None else []
        inner = "".join(others[-1]) if others else found
        return _in_json(text) if inner is None else inner.strip()
    return _LATEX_TEXT.sub(r"\1", boxed).strip()


def _in_json(text: str) -> str | None:
    """The answer of `{"reason": ..., "answer": "4"}` or `['4']`; None where the text is something else."""
    alone = _LIST_OF_ONE.fullmatch(text)
    if alone:
        return alone[2]
    plain = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if not plain.startswith("{"):
        return None
    try:
        value = json.loads(plain)
    except (ValueError, RecursionError):
        return None
    found = [
        value[key] for key in _ANSWER_KEYS if isinstance(value, dict) and isinstance(value.get(key), (str, int, float))
    ]
    return str(found[0]) if found else None


def _boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{}`, braces in braces too; None without one, or where it is never closed."""
    start = text.rfind("\\boxed{")
    depth = 0
    for place in range(start + len("\\boxed"), len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : place]
    return None


def reference_letter(reference: str) -> str | None:
    """The option that a reference is ("B", "(B)", "b."); None where it is anything else."""
    found = _REFERENCE_LETTER.fullmatch(reference.strip())
    return found[1].upper() if found else None


def chosen_letter(text: str, letters: Sequence[str], options: Mapping[str, str]) -> str | None:
    """The one option of `letters` that the text chooses; None where it chooses none or several.

    By the first that applies: the text, or its slot, is a letter; "The answer is B", the last of them; its first or
    last line is a letter; one of the letters alone stands in it, and nothing is denied; it names the text of one of
    `options` alone (letter -> text). "A or B" chooses none, and neither does "not B". An "A" before a small word is an
    article.
    """
    slot = _slot(text)
    behind = _TURN.split(_THINK_END.split(text)[-1])[-1]
    answer = slot if slot is not None else _SPECIAL.sub("", _THINK_START.split(behind)[0])
    whole = _ONE_LETTER.fullmatch(answer)
    if whole:
        return whole[1].upper() if whole[1].upper() in letters else None
    announced = [found for found in _ANNOUNCED.finditer(answer) if _is_choice(found, letters)]
    if announced:
        several = _SEVERAL.match(answer, announced[-1].end())
        return None if several else announced[-1][1].upper()
    lines = [line for line in answer.splitlines() if line.strip()]
    ends = {found[1].upper() for line in (lines[:1] + lines[-1:]) if (found := _ONE_LETTER.fullmatch(line))}
    if len(ends & {*letters}) == 1:  # a letter, and then why; or the other way round
        return ends.pop() if len(ends) == 1 else None
    if _NOT.search(answer):
        return None
    standing = {found[0] for found in _STANDING.finditer(answer) if found[0] in letters and not _is_article(found, 0)}
    if standing:
        return standing.pop() if len(standing) == 1 else None
    return _by_text(answer, options)


def _is_choice(found: re.Match[str], letters: Sequence[str]) -> bool:
    """Whether the letter that was announced is an option: a small one ("answer: b") before a mark or the end alone."""
    if found[1].islower() and re.match(r"[\"'*`]*(?:[).:,]|\s*$)", found.string[found.end(1) :]) is None:
        return False
    return found[1].upper() in letters and not _is_article(found, 1)


def _is_article(found: re.Match[str], group: int) -> bool:
    """The "A" of "A red cube"; the "I" of "I am"."""
    return found[group] in "AI" and _SMALL_WORD.match(found.string, found.end(group)) is not None


def _by_text(answer: str, options: Mapping[str, str]) -> str | None:
    phrases = PHRASE.findall(answer)
    chosen = normalised(str(phrases[-1]) if phrases else answer)
    texts = {letter: normalised(text) for letter, text in options.items() if normalised(text)}
    equal = [letter for letter, text in texts.items() if text == chosen]
    inside = [letter for letter, text in texts.items() if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", chosen)]
    found = equal or inside
    return found[0] if len(found) == 1 else None


def gold_letter(reference: str, options: Mapping[str, str], first_index: int | None = None) -> str | None:
    """The option that a reference is: a letter, the text of one of `options`, or its number from `first_index` on."""
    letter = reference_letter(reference)
    if letter is not None:
        return letter
    by_text = [name for name, text in options.items() if normalised(text) == normalised(reference)]
    if by_text:
        return by_text[0] if len(by_text) == 1 else None
    place = int(reference) - first_index if first_index is not None and reference.strip().isdigit() else -1
    return list(options)[place] if 0 <= place < len(options) else None


def yes_or_no(text: str) -> str | None:
    """ "yes" or "no", where the marked answer begins with it or holds it alone ("Yes, there is a dog."); else None."""
    tagged = tagged_answer(text)
    spoken = words(text if tagged is None else tagged)
    found = [_YES_NO[word] for word in spoken if word in _YES_NO]
    if spoken and spoken[0] in _YES_NO and not {*spoken[1:2]} & {*_YES_NO, "or", "или"}:
        return found[0]
    return found[0] if len(set(found)) == 1 else None


def numerals_of(text: str) -> list[str]:
    """Every number of the text, in reading order and one spelling: "1,200.0" is "1200", "0.5" is "1/2"."""
    found = (_plain(number) for number in _NUMBER.findall(folded(text).replace("\N{FRACTION SLASH}", "/")))
    return [number for number in found if number is not None]


def _plain(number: str) -> str | None:
    try:
        return str(Fraction(number.replace(",", "")))
    except (ValueError, ZeroDivisionError):  # "1.5/2", "1/0"
        return None


def last_number(text: str) -> str | None:
    """The last number of the text's marked answer, without one of the text; None where there is none."""
    tagged = tagged_answer(text)
    numbers = numerals_of(text if tagged is None else tagged)
    return numbers[-1] if numbers else None


def only_number(reference: str) -> str | None:
    """The number that a reference holds ("140°", "12 cm", "$1,200"); None where it holds none or several."""
    numbers = numerals_of(reference)
    return numbers[0] if len(numbers) == 1 else None
