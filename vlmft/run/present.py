"""What a run prints and the sentences that its report quotes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmft.config.schema import DataConfig
from vlmft.data.dataset import source_lines
from vlmft.evaluation.compare import Adjusted, Comparison, p_words
from vlmft.evaluation.evaluate import Evaluation
from vlmft.evaluation.numbers import SHARE, share, shortened
from vlmft.evaluation.numbers import console as plain_signs
from vlmft.evaluation.score import ArmSummary
from vlmft.evaluation.without_looking import alarms_of
from vlmft.report.card import findings
from vlmft.report.content import Grid
from vlmft.report.tables import CONSOLE_COLUMNS, arm_notes, arm_table
from vlmft.run.build import Inferred
from vlmft.run.preflight import Check
from vlmft.run.sections import matrix_table
from vlmft.training.memory import peak_memory_bytes

MARKS = {True: "ok  ", False: "FAIL"}
SHOWN_ANSWERS = 3


def console() -> Console:
    """Plain and wide where there is no terminal, so that a table never wraps in a log."""
    found = Console(highlight=False, soft_wrap=True)
    return found if found.is_terminal else Console(highlight=False, soft_wrap=True, width=140)


def print_inferred(inferred: Sequence[Inferred]) -> None:
    for item in inferred:
        value = f"{item.value:g}" if isinstance(item.value, float) else item.value
        print(f"  {item.key} = {value}  (from {item.origin})")


def print_card(card: Mapping[str, Any], n_bad: int, data: DataConfig) -> None:
    """The dataset in numbers, where its splits come from, and what was looked for in it; `card` is data_card.json."""
    for line in source_lines(card["source"]):
        print(line)
    sampled = any(split["looked_at"] < split["rows"] for split in card["splits"].values())
    table = Table(title=f"{data.name}: the rows as used")
    table.add_column("split", no_wrap=True)
    names = "rows", "bad", "repeated", "images", "questions/image", "tokens/image", "classes", "answers", "words"
    for name in (*names, "longest"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, split in card["splits"].items():
        asked, tokens, words = (split[key] for key in ("questions_per_image", "visual_tokens", "answer_words"))
        counts = [split[key] for key in ("rows", "bad", "repeated", "images")]
        per_image = [f"{asked['mean']:.1f}", _range(tokens)] if asked["n"] else ["-", "-"]
        rest = [split["classes"] or "-", split["answers"], words["median"], words["max"]]
        table.add_row(name, *map(str, (*counts, *per_image, *rest)))
    print_alarms(alarms_of(card["readable_answers"]))
    console().print(table)
    if sampled:
        print("  no image can stand in two splits here: all but the rows is counted from a seeded sample of each split")
    for name, split in card["splits"].items():
        top = itertools.islice(split["top_answers"].items(), SHOWN_ANSWERS)
        told = ", ".join(
            f"{shortened(' '.join(answer.split()), 24)} ({plain_signs(share(part))})" for answer, part in top
        )
        print(f"  most frequent answers of {name}: {told}")
    if n_bad:
        print(f"  {n_bad} rows cannot be used: bad_rows.jsonl names each and says why")
    if card["divided"]:
        shares = ", ".join(f"data.{split}_rows={getattr(data, f'{split}_rows'):g}" for split in card["divided"])
        missing = " and no ".join(card["divided"])
        print(f"  the source declares no {missing}: taken from train by content ({shares})")
    for warning in card["warnings"]:
        print(f"  warning: {warning}")
    for name, told in findings(card).items():
        print(f"  {name.lower()}: {told[:1].lower()}{told[1:]}")


def _range(spread: Mapping[str, Any]) -> str:
    """Such as "64", or "64 - 320" with the median between."""
    low, middle, high = spread["min"], spread["median"], spread["max"]
    return str(low) if low == high else f"{low} .. {middle} .. {high}"


def print_parts(counts: Mapping[str, Mapping[str, int]], total: int) -> None:
    for part, count in counts.items():
        if count["trainable"]:
            modules = f" in {count['modules']} adapted layers" if count["modules"] else ""
            print(f"  {part}: {count['trainable']:,} trained parameters{modules} ({count['trainable'] / total:.2%})")


def print_checks(checks: Sequence[Check]) -> None:
    for check in checks:
        print(f"  {MARKS[check.ok]} {check.name}: {check.sentence}")


def print_alarms(alarms: Sequence[str]) -> None:
    for sentence in alarms:
        print(f"WARNING: {sentence}")


def print_evaluation(found: Evaluation, *, verbose: bool = False) -> None:
    """What to know before the table of arms, the table, the paired differences, and what to know beside them.

    Of the differences the first, untuned to tuned where both are there; under `verbose` all of them.
    """
    print_alarms(found.alarms)
    for caution in found.cautions:
        print(f"caution: {caution}")
    _print_arms(found.arms)
    for line in found.blind.lines if found.blind is not None else ():
        print(line)
    shown = found.comparisons if verbose else found.comparisons[:1]
    for judged in shown:
        print(comparison_sentence(judged, len(found.comparisons)))
    if more := len(found.comparisons) - len(shown):
        print(f"{more} more comparison{'s' if more > 1 else ''} in the report, or here by evaluation.verbose=true")
    if found.matrix:
        print_grid("asked in several ways", matrix_table(found.matrix))
    if found.gains is not None:
        print(f"format and skill: {found.gains.sentence}")
    for note in found.notes:
        print(f"note: {note}")
    if found.canary is not None:
        print(f"leak canary {found.canary.sentence}")
    if found.invariance is not None:
        print(f"batch size: {found.invariance.sentence}")


def print_grid(title: str, grid: Grid, columns: int | None = None) -> None:
    """A table of the report in the terminal, or its first columns."""
    table = Table(title=title)
    for index, head in enumerate(grid.heads[:columns]):
        table.add_column(plain_signs(head), justify="left" if index in grid.text_columns else "right", no_wrap=True)
    for line in grid.lines:
        table.add_row(*(Text(plain_signs(cell.replace("\n", ", "))) for cell in line[:columns]))
    console().print(table)


def _print_arms(arms: Mapping[str, ArmSummary]) -> None:
    first = next(iter(arms.values()))
    summaries = [arm.to_dict() for arm in arms.values()]
    print_grid(f"{first.metric} on {first.rows_told}", arm_table(summaries, SHARE), CONSOLE_COLUMNS)
    if first.n_groups < first.n:
        methods = dict.fromkeys(arm.interval_method for arm in arms.values())
        print(f"intervals: {', '.join(methods)}, for rows that share {first.kind} are no independent evidence")
    print(f"always giving the most frequent reference would score {plain_signs(share(first.majority_share))}")
    for note in arm_notes(summaries):
        print(plain_signs(note))


def comparison_sentence(judged: Adjusted, n_comparisons: int) -> str:
    """The paired result of two arms, to be quoted alone; the verdict counts in how many were compared."""
    found = judged.comparison
    holm = f" (Holm for {n_comparisons}: {judged.p_value:.2g})" if n_comparisons > 1 else ""
    up, down = ("fixed", "broken") if found.is_binary else ("up", "down")
    return (
        f"{found.first} -> {found.second}: {_points(found)} (95 % interval {_interval(found)}), {found.p_test} "
        f"{p_words(found.p_value)}{holm}, {found.only_second} rows {up}, {found.only_first} {down}, "
        f"n = {n_told(found)}: {judged.verdict_told}"
    )


def _points(found: Comparison) -> str:
    return plain_signs(SHARE.difference(found.difference))


def _interval(found: Comparison) -> str:
    return plain_signs(SHARE.difference_interval(found.interval))


def n_told(found: Comparison) -> str:
    """ "500", or "120 rows, 6 images" """
    return found.rows_told if found.n_groups < found.n else str(found.n)


def headline(model: str, data: str, arms: Mapping[str, ArmSummary], comparisons: Sequence[Adjusted]) -> str:
    """The report's sentence: untuned against tuned where both were evaluated, else one arm's value."""
    judged = next(
        (one for one in comparisons if (one.comparison.first, one.comparison.second) == ("untuned", "tuned")), None
    )
    if judged is None:
        arm = arms.get("tuned", next(iter(arms.values())))
        value, interval = (plain_signs(text) for text in (share(arm.value), SHARE.interval(arm.interval)))
        return f"{model} ({arm.arm}) reaches {value} {arm.metric} {interval} on {arm.rows_told} of {data}."
    found, metric = judged.comparison, next(iter(arms.values())).metric
    cannot = ": this test set cannot tell the two apart" if judged.verdict == "not distinguishable" else ""
    before, after = (plain_signs(share(value)) for value in (found.first_value, found.second_value))
    return (
        f"Tuning {model} on {data} moved {metric} from {before} to {after} ({_points(found)}, 95 % interval "
        f"{_interval(found)}, {found.p_test} {p_words(found.p_value)}, n = {n_told(found)}): "
        f"{judged.verdict_told}{cannot}."
    )


def print_phases(phases: Mapping[str, Any]) -> None:
    """How long each phase of a run took, and the most memory that it held."""
    print("; ".join(f"{name} {duration(phase.seconds)}" for name, phase in phases.items()), end="; ")
    print(f"peak memory {peak_memory_bytes() / 2**30:.2f} GiB")


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def where(paths: Mapping[str, Any]) -> None:
    width = max(len(name) for name in paths)
    for name, path in paths.items():
        print(f"  {name.ljust(width)}  {path}")
