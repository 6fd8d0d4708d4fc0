"""What a run prints and the sentences that its report quotes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from vlmft.config.schema import DataConfig
from vlmft.data.dataset import source_lines
from vlmft.evaluation.compare import Adjusted, Comparison, p_words
from vlmft.evaluation.evaluate import Evaluation
from vlmft.evaluation.score import ArmSummary
from vlmft.evaluation.without_looking import alarms_of
from vlmft.report.card import findings
from vlmft.run.build import Inferred
from vlmft.run.preflight import Check
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
        told = ", ".join(f"{_short(' '.join(answer.split()))} ({percent(share)})" for answer, share in top)
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


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def interval(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.1f} - {100 * bounds[1]:.1f}"


def print_evaluation(found: Evaluation, *, verbose: bool = False) -> None:
    """What to know before the table of arms, the table, the paired differences, and what to know beside them.

    Of the differences the first, untuned to tuned where both are there; under `verbose` all of them.
    """
    print_alarms(found.alarms)
    for caution in found.cautions:
        print(f"caution: {caution}")
    _print_table(found.arms)
    for line in found.blind.lines if found.blind is not None else ():
        print(line)
    shown = found.comparisons if verbose else found.comparisons[:1]
    for judged in shown:
        print(comparison_sentence(judged, len(found.comparisons)))
    if more := len(found.comparisons) - len(shown):
        print(f"{more} more comparison{'s' if more > 1 else ''} in the report, or here by evaluation.verbose=true")
    if found.matrix:
        _print_matrix(found.matrix)
    if found.gains is not None:
        print(f"format and skill: {found.gains.sentence}")
    for note in found.notes:
        print(f"note: {note}")
    if found.canary is not None:
        print(f"leak canary {found.canary.sentence}")
    if found.invariance is not None:
        print(f"batch size: {found.invariance.sentence}")


def _print_matrix(matrix: Mapping[str, Mapping[str, float]]) -> None:
    arms = dict.fromkeys(arm for values in matrix.values() for arm in values)
    table = Table(title="asked in several ways")
    table.add_column("prompt")
    for arm in arms:
        table.add_column(arm, justify="right")
    for prompt, values in matrix.items():
        table.add_row(prompt, *(percent(values[arm]) if arm in values else "-" for arm in arms))
    console().print(table)


def _print_table(arms: Mapping[str, ArmSummary]) -> None:
    first = next(iter(arms.values()))
    table = Table(title=f"{first.metric} on {first.rows_told}")
    for name in ("arm", "n", first.metric, "95 % interval", "not parsed", "cut", "most frequent answer", "answers/s"):
        table.add_column(name, justify="left" if name in ("arm", "most frequent answer") else "right", no_wrap=True)
    for arm in arms.values():
        table.add_row(
            arm.arm,
            str(arm.n),
            percent(arm.value),
            interval(arm.interval),
            percent(arm.parse_failures / arm.n),
            percent(arm.truncated / arm.n),
            f"{_short(arm.top_answer)} ({percent(arm.top_share)})",
            f"{arm.answers_per_second:.1f}" if arm.answers_per_second else "stored",
        )
    console().print(table)
    if first.n_groups < first.n:
        methods = dict.fromkeys(arm.interval_method for arm in arms.values())
        print(f"intervals: {', '.join(methods)}, for rows that share {first.kind} are no independent evidence")
    print(f"always giving the most frequent reference would score {percent(first.majority_share)}")
    for arm in arms.values():
        if len(arm.draws) > 1:
            told = ", ".join(map(percent, arm.draws))
            print(f"{arm.arm}: mean of {len(arm.draws)} draws of examples, {told}; intervals are over rows, for these")


def _short(text: str | None, length: int = 24) -> str:
    if text is None:
        return "none parsed"
    return text if len(text) <= length else text[: length - 1] + "…"


def comparison_sentence(judged: Adjusted, n_comparisons: int) -> str:
    """The paired result of two arms, to be quoted alone; the verdict counts in how many were compared."""
    found = judged.comparison
    low, high = (100 * bound for bound in found.interval)
    holm = f" (Holm for {n_comparisons}: {judged.p_value:.2g})" if n_comparisons > 1 else ""
    up, down = ("fixed", "broken") if found.is_binary else ("up", "down")
    return (
        f"{found.first} -> {found.second}: {100 * found.difference:+.1f} points "
        f"(95 % interval {low:+.1f} to {high:+.1f}), {found.p_test} {p_words(found.p_value)}{holm}, "
        f"{found.only_second} rows {up}, {found.only_first} {down}, n = {n_told(found)}: {judged.verdict_told}"
    )


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
        bounds = interval(arm.interval)
        return f"{model} ({arm.arm}) reaches {percent(arm.value)} {arm.metric} ({bounds}) on {arm.rows_told} of {data}."
    found, metric = judged.comparison, next(iter(arms.values())).metric
    cannot = ": this test set cannot tell the two apart" if judged.verdict == "not distinguishable" else ""
    return (
        f"Tuning {model} on {data} moved {metric} from {percent(found.first_value)} to {percent(found.second_value)} "
        f"({100 * found.difference:+.1f} points, 95 % interval {100 * found.interval[0]:+.1f} to "
        f"{100 * found.interval[1]:+.1f}, {found.p_test} {p_words(found.p_value)}, n = {n_told(found)}): "
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
