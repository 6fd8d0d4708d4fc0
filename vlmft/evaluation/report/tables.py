"""The report's tables, from the dicts of `ArmSummary` and `Comparison`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmft.evaluation.report.markup import Markup, element, joined
from vlmft.evaluation.report.units import DASH, Unit, count, count_of, number, p_value, share

_SIGNS = {"better": "\u25b2", "worse": "\u25bc", "not distinguishable": "\u2248"}
_MOODS = {"better": "good", "worse": "bad"}


def verdict(comparison: Mapping[str, Any]) -> str:
    """The verdict with a sign, so that it does not hang on colour."""
    word = str(comparison["verdict"])
    return f"{_SIGNS.get(word, '')} {word}".strip()


def mood(comparison: Mapping[str, Any]) -> str:
    """good, bad or plain: a class of the style sheet."""
    return _MOODS.get(str(comparison["verdict"]), "plain")


def arm_table(arms: Sequence[Mapping[str, Any]], unit: Unit) -> Markup:
    """One line for each arm of one metric: value, interval, and what may lie behind them."""
    metric = metric_words(str(arms[0]["metric"]))
    heads = ["Arm", "n", metric, "95\u00a0% interval", "Parse failures", "Cut answers", "Verbatim answers"]
    heads += ["Most frequent answer", "Its share", "Majority baseline", "Answers/s"]
    lines = [
        [
            str(arm["arm"]),
            count(arm["n"]),
            element("strong", {}, unit.value(arm["value"])),
            unit.interval(arm["interval"]),
            count_of(arm["parse_failures"], arm["n"]),
            count_of(arm["truncated"], arm["n"]),
            count_of(arm["verbatim"], arm["n"]),
            _answer(arm["top_answer"]),
            share(arm["top_share"]),
            share(arm["majority_share"]),
            number(arm["answers_per_second"], 2),
        ]
        for arm in arms
    ]
    return data_table(f"Arms by {metric}", heads, lines, text_columns=(0, 7))


def comparison_table(comparisons: Sequence[Mapping[str, Any]], unit: Unit) -> Markup:
    """One line for each pair of arms."""
    heads = ["Comparison", "n", "First", "Second", "Difference", "95\u00a0% interval", "p"]
    heads += ["Only first right", "Only second right"] if unit.is_share else ["First higher", "Second higher"]
    lines = [
        [
            _pair(pair),
            _rows_and_groups(pair),
            unit.value(pair["first_value"]),
            unit.value(pair["second_value"]),
            element("strong", {}, unit.difference(pair["difference"])),
            unit.interval(pair["interval"]),
            joined([p_value(pair["p_value"]), element("span", {"class": "small"}, str(pair["p_test"]))]),
            count(pair["only_first"]),
            count(pair["only_second"]),
            element("span", {"class": f"verdict {mood(pair)}"}, verdict(pair)),
        ]
        for pair in comparisons
    ]
    return data_table("Paired comparison", [*heads, "Verdict"], lines, text_columns=(0, 9))


def definitions(values: Mapping[str, str]) -> Markup:
    """Names with what is said of them."""
    if not values:
        return Markup()
    pairs = (
        element("div", {}, element("dt", {}, name), element("dd", {}, str(value))) for name, value in values.items()
    )
    return element("dl", {"class": "definitions"}, *pairs)


def tree(values: Mapping[str, Any]) -> Markup:
    """Nested mappings as nested folds, closed at first; leaves as name and value."""
    if not values:
        return Markup()
    leaves = {name: _leaf(value) for name, value in values.items() if not isinstance(value, Mapping)}
    folds = (
        element(
            "details",
            {},
            element("summary", {}, str(name), " ", element("span", {"class": "small"}, _size(value))),
            tree(value),
        )
        for name, value in values.items()
        if isinstance(value, Mapping)
    )
    return element("div", {"class": "tree"}, definitions(leaves), *folds)


def data_table(name: str, heads: Sequence[str], lines: Iterable[Sequence[str]], text_columns: Sequence[int]) -> Markup:
    """The first cell of a line heads it. A narrow page scrolls the table inside a region that the keyboard reaches."""
    kinds = ["text" if column in text_columns else "number" for column in range(len(heads))]
    head = (element("th", {"scope": "col", "class": kind}, text) for kind, text in zip(kinds, heads, strict=True))
    body = (
        element(
            "tr",
            {},
            element("th", {"scope": "row"}, line[0]),
            *(element("td", {"class": kind}, cell) for kind, cell in zip(kinds[1:], line[1:], strict=True)),
        )
        for line in lines
    )
    table = element("table", {}, element("thead", {}, element("tr", {}, *head)), element("tbody", {}, *body))
    return element(
        "div", {"class": "scroller", "role": "region", "tabindex": "0", "aria-label": f"{name}, table"}, table
    )


def _pair(pair: Mapping[str, Any]) -> Markup:
    return joined([str(pair["first"]), element("span", {"class": "arrow"}, " \u2192 "), str(pair["second"])])


def _rows_and_groups(pair: Mapping[str, Any]) -> Markup:
    """Rows, and the independent units that they make where these are fewer, such as images."""
    groups = f"{count(pair['n_groups'])} groups" if pair["n_groups"] != pair["n"] else ""
    return joined([count(pair["n"]), element("span", {"class": "small"}, groups)])


def _answer(text: object) -> str:
    if text is None:
        return DASH
    return element("q", {}, text if len(text) <= 40 else text[:39] + "\u2026") if isinstance(text, str) else str(text)


def metric_words(name: str) -> str:
    """count_accuracy -> Count accuracy."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _leaf(value: object) -> str:
    if isinstance(value, str):
        return value or "(empty)"
    return json.dumps(value, ensure_ascii=False, default=str)


def _size(values: Mapping[str, Any]) -> str:
    return "1 entry" if len(values) == 1 else f"{len(values)} entries"
