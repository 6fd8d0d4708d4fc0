"""The report's section on answers that were judged by people, from the dict of `Grading`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmft.report.content import Grid
from vlmft.report.markup import Markup, element, joined
from vlmft.report.tables import data_table, mood, rows_and_groups, verdict
from vlmft.report.units import DASH, Unit, count, number, p_value, share

SHARE = Unit(is_share=True)
HOW = (
    "Each answer was shown alone with its images and question, without its arm's name, in an order of the rater's own; "
    "an answer that several arms gave was judged once and counts for each. p is Holm's over a rater's comparisons."
)


def graded_markup(grading: Mapping[str, Any]) -> Markup:
    """Acceptance, paired comparison and agreement; machine judges apart."""
    people = [rater for rater in grading["raters"] if not rater["is_judge"]]
    judges = [rater for rater in grading["raters"] if rater["is_judge"]]
    parts: list[str] = []
    if people:
        parts = [element("p", {}, HOW), _acceptance("Accepted by people", people, grading["mean_of_people"])]
        parts.append(_comparisons(people))
    parts.append(_agreement("Agreement of people", grading["kappas"], {rater["rater"] for rater in people}))
    if judges:
        parts += [element("h3", {}, "Machine judges"), _acceptance("Accepted by machine judges", judges, {})]
        parts.append(_agreement("Judges and people", grading["kappas"], {rater["rater"] for rater in judges}))
        if not people:
            parts.append(element("p", {"class": "note"}, "Not calibrated: no person has judged these answers."))
    return joined([*parts, *(element("p", {"class": "note"}, note) for note in grading["notes"])])


def _acceptance(name: str, raters: Sequence[Mapping[str, Any]], mean: Mapping[str, float]) -> Markup:
    heads = ["Rater", "Arm", "n", "Accepted", "Rate", "95\u00a0% interval"]
    lines = [
        [
            rater["rater"],
            arm["arm"],
            count(arm["n"]),
            count(arm["accepted"]),
            share(arm["value"]),
            SHARE.interval(arm["interval"]),
        ]
        for rater in raters
        for arm in rater["arms"]
    ]
    lines += [["mean of people", arm, "", "", share(value), ""] for arm, value in mean.items()]
    return _table(name, Grid(heads, lines, text_columns=(0, 1), bold_columns=(4,)))


def _comparisons(raters: Sequence[Mapping[str, Any]]) -> Markup:
    heads = [
        "Rater",
        "Comparison",
        "n",
        "Difference",
        "95\u00a0% interval",
        "p (Holm)",
        "Only first",
        "Only second",
    ]
    lines = [
        [
            rater["rater"],
            f"{pair['first']} \u2192 {pair['second']}",
            rows_and_groups(pair),
            SHARE.difference(pair["difference"]),
            SHARE.interval(pair["interval"]),
            f"{p_value(pair['p_holm'])}\n{pair['p_test']}",
            count(pair["only_first"]),
            count(pair["only_second"]),
            verdict(pair),
        ]
        for rater in raters
        for pair in rater["comparisons"]
    ]
    moods = [mood(pair) for rater in raters for pair in rater["comparisons"]]
    table = Grid([*heads, "Verdict"], lines, text_columns=(0, 1, 8), bold_columns=(3,), moods=moods)
    return _table("Paired comparison by people", table)


def _agreement(name: str, kappas: Iterable[Mapping[str, Any]], firsts: set[str]) -> Markup:
    lines = [
        [f"{one['first']} and {one['second']}", count(one["n"]), _or_dash(one["agreement"]), kappa_words(one)]
        for one in kappas
        if one["first"] in firsts
    ]
    heads = ["Raters", "Answers both judged", "Same verdict", "Cohen\u2019s kappa"]
    return _table(name, Grid(heads, lines))


def _table(name: str, table: Grid) -> Markup:
    return data_table(name, table) if table.lines else Markup()


def _or_dash(value: float | None) -> str:
    return DASH if value is None else share(value)


def kappa_words(kappa: Mapping[str, Any]) -> str:
    """The number, or why there is none."""
    if not kappa["n"]:
        return "no answer in common"
    if kappa["kappa"] is None:
        return "undefined: both gave one and the same verdict throughout"
    return number(kappa["kappa"], 2)
