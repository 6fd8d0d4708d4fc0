"""What is printed of an evaluation, and the sentences that its report quotes."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmft.evaluation.compare import Adjusted
from vlmft.evaluation.evaluate import Evaluation
from vlmft.evaluation.numbers import SHARE, p_words, percent
from vlmft.evaluation.numbers import console as plain_signs
from vlmft.evaluation.score import ArmSummary
from vlmft.report.content import Grid
from vlmft.report.sections import matrix_table
from vlmft.report.tables import CONSOLE_COLUMNS, arm_notes, arm_table


def console() -> Console:
    """Plain and wide where there is no terminal, so that a table never wraps in a log."""
    found = Console(highlight=False, soft_wrap=True)
    return found if found.is_terminal else Console(highlight=False, soft_wrap=True, width=140)


def say(*sentences: str) -> None:
    """Prints each; on a terminal it breaks between words, and what follows is indented."""
    found = console()
    for text in sentences:
        lines = textwrap.wrap(text, found.width - 4, break_long_words=False, break_on_hyphens=False)
        print("\n    ".join(lines) if found.is_terminal else text, flush=True)


def print_evaluation(found: Evaluation, *, verbose: bool = False) -> None:
    """What to know before the table of arms, the table, the paired differences, and what to know beside them.

    Of the differences the first, untuned to tuned where both are there; under `verbose` all of them.
    """
    say(*(f"WARNING: {alarm}" for alarm in found.alarms), *(f"caution: {caution}" for caution in found.cautions))
    _print_arms(found.arms)
    if found.fields is not None:
        from vlmft.report.fields import narrow_scores  # for few runs

        print_grid("fields, the worst first", narrow_scores(found.fields))
    shown = [one for place, one in enumerate(found.comparisons) if verbose or not place or _asks_of_server(one, found)]
    say(*(found.blind.lines if found.blind is not None else ()), *(judged.sentence() for judged in shown))
    if more := len(found.comparisons) - len(shown):
        say(f"{more} more comparison{'s' if more > 1 else ''} in the report, or here by evaluation.verbose=true")
    if found.matrix:
        print_grid("asked in several ways", matrix_table(found.matrix))
    if found.gains is not None:
        say(f"format and skill: {found.gains.sentence}")
    say(*(f"note: {note}" for note in found.notes))
    if found.canary is not None:
        say(f"leak canary {found.canary.sentence}")
    if found.invariance is not None:
        say(f"batch size: {found.invariance.sentence}")


def _asks_of_server(judged: Adjusted, found: Evaluation) -> bool:
    """Whether the tuned model is compared with one behind a server: what that one was asked for."""
    return judged.comparison.first == "tuned" and judged.comparison.second in found.servers


def print_grid(title: str, grid: Grid, columns: int | None = None) -> None:
    """A table of the report in the terminal, or its first columns."""
    table = Table(title=title)
    for index, head in enumerate(grid.heads[:columns]):
        is_text = index in grid.text_columns
        wraps = is_text and index > 0  # such as a long answer, and never a number
        table.add_column(plain_signs(head), justify="left" if is_text else "right", no_wrap=not wraps, overflow="fold")
    for line in grid.lines:
        table.add_row(*(Text(plain_signs(cell.replace("\n", ", "))) for cell in line[:columns]))
    console().print(table)


def _print_arms(arms: Mapping[str, ArmSummary]) -> None:
    first = next(iter(arms.values()))
    summaries = [{**arm.to_dict(), "answered_by": ""} for arm in arms.values()]  # a note says it: no room for numbers
    print_grid(f"{first.metric} on {first.rows_sentence}", arm_table(summaries, SHARE), CONSOLE_COLUMNS)
    if first.n_groups < first.n:
        methods = dict.fromkeys(arm.interval_method for arm in arms.values())
        say(f"intervals: {', '.join(methods)}, for rows that share {first.kind} are no independent evidence")
    say(f"always giving the most frequent reference would score {percent(first.majority_share)}")
    say(*map(plain_signs, arm_notes(summaries)))


def headline(model: str, data: str, arms: Mapping[str, ArmSummary], comparisons: Sequence[Adjusted]) -> str:
    """The report's sentence: untuned against tuned where both were evaluated, else one arm's value."""
    judged = next(
        (one for one in comparisons if (one.comparison.first, one.comparison.second) == ("untuned", "tuned")), None
    )
    if judged is None:
        arm = arms.get("tuned", next(iter(arms.values())))
        value = f"{percent(arm.value)} {arm.metric} {plain_signs(SHARE.interval(arm.interval))}"
        return f"{model} ({arm.arm}) reaches {value} on {arm.rows_sentence} of {data}."
    found, metric = judged.comparison, next(iter(arms.values())).metric
    cannot = ": this test set cannot tell the two apart" if judged.verdict == "not distinguishable" else ""
    difference = plain_signs(SHARE.difference(found.difference))
    return (
        f"Tuning {model} on {data} moved {metric} from {percent(found.first_value)} to {percent(found.second_value)} "
        f"({difference}, 95 % interval {plain_signs(SHARE.difference_interval(found.interval))}, "
        f"{found.p_test} {p_words(found.p_value)}, {found.n_sentence}): {judged.verdict_sentence}{cannot}."
    )


def wandb_words(where: str) -> str:
    """The page of a W&B run, or the command that uploads an offline one."""
    return f"wandb sync {shlex.quote(where)}" if "offline-run-" in where else where
