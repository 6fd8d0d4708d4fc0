"""The tables of arms and of comparisons, and their words: the same in console, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmft.evaluation.numbers import DASH, Unit, count, number, p_value, share, shortened
from vlmft.report.content import Grid, Report

_SIGNS = {"better": "\u25b2", "worse": "\u25bc", "not distinguishable": "\u2248"}
BUT = ", not to be believed: see the first warning"
"""After a verdict above which an alarm stands."""
MOODS = {"better": "good", "worse": "bad"}
CONSOLE_COLUMNS = 8
"""Of the table of arms, which is wider than a terminal."""


def verdict(comparison: Mapping[str, Any]) -> str:
    """The verdict with a sign, so that it does not hang on colour."""
    word = str(comparison["verdict"])
    return f"{_SIGNS.get(word, '')}\u00a0{word}".strip()


def verdict_words(report: Report) -> tuple[str, str]:
    """The verdict on the first comparison, and what it means."""
    if not report.comparisons:
        return ("One arm, nothing to compare" if len(report.arms) == 1 else "No comparison"), ""
    pair = report.comparisons[0]
    means = "the difference is larger than chance explains" if mood(pair) != "plain" else "the difference may be chance"
    return verdict(pair), f"{pair['second']} against {pair['first']}{BUT if report.alarms else f': {means}'}"


def mood(comparison: Mapping[str, Any]) -> str:
    """good, bad or plain: a class of the style sheet."""
    return MOODS.get(str(comparison["verdict"]), "plain")


def arm_table(arms: Sequence[Mapping[str, Any]], unit: Unit) -> Grid:
    """One line for each arm of one metric: value, interval, and what may lie behind them."""
    heads = ["Arm", "n", metric_words(str(arms[0]["metric"])), "95\u00a0% interval", "Not parsed", "Cut off"]
    heads += ["Most frequent answer", "Answers/s", "Equal to a reference", "Majority baseline"]
    lines = tuple(
        (
            "\n".join(filter(None, (str(arm["arm"]), arm.get("answered_by")))),
            rows_and_groups(arm),
            unit.value(arm["value"]),
            unit.interval(arm["interval"]),
            share(arm["parse_failures"] / arm["n"]),
            share(arm["truncated"] / arm["n"]),
            _answer(arm["top_answer"], arm["top_share"]),
            number(arm["answers_per_second"], 1) if arm["answers_per_second"] else "stored",
            share(arm["verbatim"] / arm["n"]),
            share(arm["majority_share"]),
        )
        for arm in arms
    )
    return Grid(heads, lines, text_columns=(0, 6), bold_columns=(2,))


def by_metric(arms: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The arms of each metric, which share a table."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for arm in arms:
        found.setdefault(str(arm["metric"]), []).append(arm)
    return list(found.values())


def arm_notes(arms: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the values of arms with several draws of examples are."""
    return tuple(
        f"{arm['arm']}: mean of {len(arm['draws'])} draws of examples ({', '.join(map(share, arm['draws']))}); its "
        "interval is over rows, for these draws. An answer that is shown of it is that of the first draw."
        for arm in arms
        if len(arm.get("draws", ())) > 1
    )


def comparison_table(comparisons: Sequence[Mapping[str, Any]], unit: Unit) -> Grid:
    """One line for each pair of arms; Holm's p-value above its own where there are several."""
    several = has_holm(comparisons)
    rights = ("Only first right", "Only second right") if unit.is_share else ("First higher", "Second higher")
    heads = ["Comparison", "n", "First", "Second", "Difference", "95\u00a0% interval"]
    heads += ["p (Holm)" if several else "p", *rights, "Verdict"]
    lines = tuple(
        (
            pair_name(pair),
            rows_and_groups(pair),
            unit.value(pair["first_value"]),
            unit.value(pair["second_value"]),
            unit.difference(pair["difference"]),
            f"{unit.difference_interval(pair['interval'])}\n{pair.get('interval_method', '')}".strip(),
            f"{p_value(pair['p_holm'])}\nalone {p_value(pair['p_value'])}, {pair['p_test']}"
            if several
            else f"{p_value(pair['p_value'])}\n{pair['p_test']}",
            count(pair["only_first"]),
            count(pair["only_second"]),
            verdict(pair),
        )
        for pair in comparisons
    )
    moods = tuple(mood(pair) for pair in comparisons)
    return Grid(heads, lines, text_columns=(0, len(heads) - 1), bold_columns=(4,), moods=moods)


def comparison_notes(comparisons: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the second p-value is; empty where there is none."""
    if not has_holm(comparisons):
        return ()
    return (
        f"p (Holm) is corrected for making {len(comparisons)} comparisons: among twenty equal arms, one would look "
        "different by chance. The verdicts go by it.",
    )


def has_holm(comparisons: Sequence[Mapping[str, Any]]) -> bool:
    return len(comparisons) > 1 and all("p_holm" in pair for pair in comparisons)


def pair_name(pair: Mapping[str, Any]) -> str:
    return f"{pair['first']} \u2192 {pair['second']}"


def rows_and_groups(counted: Mapping[str, Any]) -> str:
    """Rows, and the independent units that they make where these are fewer, such as images."""
    n, n_groups = counted["n"], counted.get("n_groups") or counted["n"]
    return count(n) + (f"\n{count(n_groups)} {counted.get('kind', 'groups')}" if n_groups != n else "")


def metric_words(name: str) -> str:
    """count_accuracy -> Count accuracy."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _answer(text: object, part: object) -> str:
    return DASH if text is None else f"\u201c{shortened(' '.join(str(text).split()), 24)}\u201d ({share(part)})"
