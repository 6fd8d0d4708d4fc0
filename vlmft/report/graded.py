"""The report's section on answers that people and judges have graded, from the dict of `Grading`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmft.evaluation.numbers import SHARE, count, number, share
from vlmft.report.content import Grid, Section
from vlmft.report.tables import comparison_table

HOW = (
    "Each answer was shown alone with its images and question, without its arm's name, in an order of the rater's own; "
    "an answer that several arms gave was judged once and counts for each. p is Holm's over a rater's comparisons."
)


def graded_section(grading: Mapping[str, Any]) -> Section:
    """Acceptance, paired comparison and agreement; machine judges apart."""
    people = [rater for rater in grading["raters"] if not rater["is_judge"]]
    judges = [rater for rater in grading["raters"] if rater["is_judge"]]
    kappas = grading["kappas"]
    parts = [_acceptance("Accepted by people", people, grading["mean_of_people"]), _comparisons(people)]
    parts.append(_agreement("Agreement of people", kappas, people))
    if judges:
        alone = () if people else ("Not calibrated: no person has judged these answers.",)
        machines = [
            _acceptance("Accepted by machine judges", judges, {}),
            _agreement("Judges and people", kappas, judges),
        ]
        parts.append(Section("Machine judges", parts=_filled(machines), notes=alone))
    title = "Graded by people" if people else "Graded by machines"
    return Section(title, (HOW,) if people else (), parts=_filled(parts), notes=tuple(grading["notes"]))


def _filled(parts: Iterable[Section]) -> tuple[Section, ...]:
    return tuple(part for part in parts if part.parts or (part.table is not None and part.table.lines))


def _acceptance(name: str, raters: Sequence[Mapping[str, Any]], mean: Mapping[str, float]) -> Section:
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
    return Section(name, table=Grid(heads, lines, text_columns=(0, 1), bold_columns=(4,)))


def _comparisons(raters: Sequence[Mapping[str, Any]]) -> Section:
    """The table of comparisons with the rater before each line."""
    named = [(rater["rater"], pair) for rater in raters for pair in rater["comparisons"]]
    table = comparison_table([pair for _, pair in named], SHARE)
    lines = [(rater, *line) for (rater, _), line in zip(named, table.lines, strict=True)]
    texts = (0, *(column + 1 for column in table.text_columns))
    bold = [column + 1 for column in table.bold_columns]
    return Section("Paired comparison by people", table=Grid(("Rater", *table.heads), lines, texts, bold, table.moods))


def _agreement(name: str, kappas: Iterable[Mapping[str, Any]], raters: Sequence[Mapping[str, Any]]) -> Section:
    firsts = {rater["rater"] for rater in raters}
    lines = [
        [f"{one['first']} and {one['second']}", count(one["n"]), share(one["agreement"]), kappa_words(one)]
        for one in kappas
        if one["first"] in firsts
    ]
    return Section(name, table=Grid(["Raters", "Answers both judged", "Same verdict", "Cohen\u2019s kappa"], lines))


def kappa_words(kappa: Mapping[str, Any]) -> str:
    """The number, or why there is none."""
    if not kappa["n"]:
        return "no answer in common"
    if kappa["kappa"] is None:
        return "undefined: both gave one and the same verdict throughout"
    return number(kappa["kappa"], 2)
