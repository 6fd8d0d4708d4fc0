"""The report's tables: which values of `ArmSummary` and `Comparison` they show, and tables as HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlmft.report.content import Grid
from vlmft.report.markup import Markup, element
from vlmft.report.units import DASH, Unit, count, count_of, finite, number, p_value, share, shortened

_SIGNS = {"better": "\u25b2", "worse": "\u25bc", "not distinguishable": "\u2248"}
BUT = ", not to be believed: see the first warning"
"""After a verdict above which an alarm stands."""
_MOODS = {"better": "good", "worse": "bad"}


def verdict(comparison: Mapping[str, Any]) -> str:
    """The verdict with a sign, so that it does not hang on colour."""
    word = str(comparison["verdict"])
    return f"{_SIGNS.get(word, '')}\u00a0{word}".strip()


def mood(comparison: Mapping[str, Any]) -> str:
    """good, bad or plain: a class of the style sheet."""
    return _MOODS.get(str(comparison["verdict"]), "plain")


def arm_table(arms: Sequence[Mapping[str, Any]], unit: Unit) -> Grid:
    """One line for each arm of one metric: value, interval, and what may lie behind them."""
    heads = ["Arm", "n", metric_words(str(arms[0]["metric"])), "95\u00a0% interval", "Parse failures", "Cut answers"]
    heads += ["Verbatim answers", "Most frequent answer", "Its share", "Majority baseline", "Answers/s"]
    lines = tuple(
        (
            str(arm["arm"]),
            rows_and_groups(arm),
            unit.value(arm["value"]),
            unit.interval(arm["interval"]),
            count_of(arm["parse_failures"], arm["n"]),
            count_of(arm["truncated"], arm["n"]),
            count_of(arm["verbatim"], arm["n"]),
            _answer(arm["top_answer"]),
            share(arm["top_share"]),
            share(arm["majority_share"]),
            number(arm["answers_per_second"], 2),
        )
        for arm in arms
    )
    return Grid(heads, lines, text_columns=(0, 7), bold_columns=(2,))


def by_metric(arms: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The arms of each metric, which share a table."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for arm in arms:
        found.setdefault(str(arm["metric"]), []).append(arm)
    return list(found.values())


def comparison_table(comparisons: Sequence[Mapping[str, Any]], unit: Unit) -> Grid:
    """One line for each pair of arms; Holm's p-value beside its own where there are several."""
    several = len(comparisons) > 1 and all("p_holm" in pair for pair in comparisons)
    rights = ("Only first right", "Only second right") if unit.is_share else ("First higher", "Second higher")
    heads = ["Comparison", "n", "First", "Second", "Difference", "95\u00a0% interval", "p"]
    heads += [*(["p (Holm)"] if several else []), *rights, "Verdict"]
    lines = tuple(
        (
            pair_name(pair),
            rows_and_groups(pair),
            unit.value(pair["first_value"]),
            unit.value(pair["second_value"]),
            unit.difference(pair["difference"]),
            f"{unit.interval(pair['interval'])}\n{pair.get('interval_method', '')}".strip(),
            f"{p_value(pair['p_value'])}\n{pair['p_test']}",
            *((p_value(pair["p_holm"]),) if several else ()),
            count(pair["only_first"]),
            count(pair["only_second"]),
            verdict(pair),
        )
        for pair in comparisons
    )
    moods = tuple(mood(pair) for pair in comparisons)
    return Grid(heads, lines, text_columns=(0, len(heads) - 1), bold_columns=(4,), moods=moods)


def comparison_note(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """What the second p-value is; empty where there is none."""
    if len(comparisons) < 2 or not all("p_holm" in pair for pair in comparisons):
        return ""
    return (
        f"p (Holm) holds for the {len(comparisons)} comparisons together, for of twenty equal arms one looks "
        "different by chance. The verdicts go by it."
    )


def pair_name(pair: Mapping[str, Any]) -> str:
    return f"{pair['first']} \u2192 {pair['second']}"


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


def data_table(name: str, grid: Grid) -> Markup:
    """A narrow page scrolls the table inside a region that the keyboard reaches."""
    kinds = ["text" if column in grid.text_columns else "number" for column in range(len(grid.heads))]
    head = (element("th", {"scope": "col", "class": kind}, text) for kind, text in zip(kinds, grid.heads, strict=True))
    body = (_line(grid, index, kinds) for index in range(len(grid.lines)))
    table = element("table", {}, element("thead", {}, element("tr", {}, *head)), element("tbody", {}, *body))
    region = {"class": "scroller", "role": "region", "tabindex": "0", "aria-label": f"{name}, table"}
    return element("div", region, table)


def _line(grid: Grid, index: int, kinds: Sequence[str]) -> Markup:
    line = grid.lines[index]
    heat = grid.heat[index] if grid.heat else (None,) * len(line)
    cells = [element("th", {"scope": "row"}, *_pieces(line[0], False))]
    for column in range(1, len(line)):
        shade = _shade(heat[column])
        pieces = _pieces(line[column], column in grid.bold_columns)
        cells.append(element("td", {"class": f"{kinds[column]} {shade}".strip()}, *pieces))
    return element("tr", {"class": grid.moods[index]} if grid.moods else {}, *cells)


def _pieces(text: str, is_bold: bool) -> list[Markup | str]:
    first, _, small = text.partition("\n")
    pieces: list[Markup | str] = [element("strong", {}, first) if is_bold else first]
    return [*pieces, element("span", {"class": "small"}, small)] if small else pieces


def _shade(heat: float | None) -> str:
    """A class of the style sheet, which has ten steps."""
    known = finite(heat)
    if known is None:
        return ""
    return f"heat heat-{min(10, max(1, round(10 * known)))}" if known > 0 else "nil"


def rows_and_groups(told: Mapping[str, Any]) -> str:
    """Rows, and the independent units that they make where these are fewer, such as images."""
    n, n_groups = told["n"], told.get("n_groups") or told["n"]
    return count(n) + (f"\n{count(n_groups)} {told.get('kind', 'groups')}" if n_groups != n else "")


def _answer(text: object) -> str:
    return DASH if text is None else f"\u201c{shortened(' '.join(str(text).split()), 40)}\u201d"


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
