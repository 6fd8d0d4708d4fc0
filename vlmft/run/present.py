"""What a run prints of its settings, data and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from vlmft.config.progress import duration
from vlmft.config.schema import DataConfig
from vlmft.data.dataset import source_lines
from vlmft.evaluation.numbers import console as plain_signs
from vlmft.evaluation.numbers import share, shortened
from vlmft.evaluation.without_looking import alarms_of
from vlmft.report.card import findings
from vlmft.report.console import console, say
from vlmft.run.build import Inferred
from vlmft.run.preflight import Check
from vlmft.training.memory import peak_memory_bytes


def print_inferred(inferred: Sequence[Inferred], *, verbose: bool = False) -> None:
    """In one line, but for the threads, which depend on what else the machine does; under `verbose` a line each."""
    values = {item.key: f"{item.value:g}" if isinstance(item.value, float) else str(item.value) for item in inferred}
    own_line = [item for item in inferred if verbose or item.key == "trainer.threads"]
    if short := [f"{item.key}={values[item.key]}" for item in inferred if item not in own_line]:
        say(f"  chosen for you: {', '.join(short)}")
    say(*(f"  {item.key} = {values[item.key]}  (from {item.origin})" for item in own_line))


def print_card(
    card: Mapping[str, Any], n_bad: int, data: DataConfig, resolution: str = "", *, verbose: bool = False
) -> None:
    """The dataset in numbers, where its splits come from, and what was looked for in it; `card` is data_card.json.

    Columns and findings that are no news, such as no bad rows, are left out unless `verbose`.
    """
    say(*source_lines(card["source"]), *(f"WARNING: {alarm}" for alarm in alarms_of(card["readable_answers"])))
    console().print(_table(card, data.name, verbose=verbose))
    splits = card["splits"].values()
    if any(split["looked_at"] < split["rows"] for split in splits):
        say("  no image can be in two splits here: all counts but the rows are from a seeded sample of each split")
    tokens = [split["visual_tokens"] for split in splits if split["visual_tokens"]["n"]]
    if tokens:
        low, high = min(each["min"] for each in tokens), max(each["max"] for each in tokens)
        count = f"{low}" if low == high else f"{low} to {high}"
        say(f"  images: {resolution}; with what the model writes around it, an image is {count} tokens of the prompt")
    if n_bad:
        say(f"  {n_bad} rows cannot be used: bad_rows.jsonl names each and the reason")
    if card["divided"]:
        shares = ", ".join(f"data.{split}_rows={getattr(data, f'{split}_rows'):g}" for split in card["divided"])
        missing = " and no ".join(card["divided"])
        say(f"  the source declares no {missing}: taken from train by content ({shares})")
    say(*(f"  warning: {warning}" for warning in card["warnings"]))
    for name, sentence in findings(card).items():
        if verbose or name in _news(card):
            say(f"  {name.lower()}: {sentence[:1].lower()}{sentence[1:]}")


def _table(card: Mapping[str, Any], name: str, *, verbose: bool) -> Table:
    """A row a split."""
    table = Table(title=f"{name}: the rows as used")
    rows = []
    for split, found in card["splits"].items():
        asked, words = found["questions_per_image"], found["answer_words"]
        answer, part = next(iter(found["top_answers"].items()), ("", 0.0))
        frequent = f"{shortened(' '.join(answer.split()), 24)} ({plain_signs(share(part))})"
        rows.append(
            {
                "split": split,
                "rows": found["rows"],
                "unusable": found["bad"],
                "repeated": found["repeated"],
                "images": found["images"],
                "questions/image": f"{asked['mean']:.1f}" if asked["n"] else "-",
                "classes": found["classes"] or "-",
                "different answers": found["answers"],
                "most frequent": frequent,
                "words/answer": _range(words),
            }
        )
    no_news = {"unusable": 0, "repeated": 0, "questions/image": "1.0", "classes": "-", "words/answer": "1"}
    heads = [head for head in rows[0] if verbose or any(row[head] != no_news.get(head) for row in rows)] if rows else []
    for head in heads:
        numbers = head not in ("most frequent", "words/answer")
        table.add_column(head, justify="left" if head == "split" else "right", no_wrap=numbers)
    for row in rows:
        table.add_row(*(str(row[head]) for head in heads))
    return table


def _range(spread: Mapping[str, Any]) -> str:
    """Such as "64", or "1 to 12, median 3"."""
    low, middle, high = spread["min"], spread["median"], spread["max"]
    return str(low) if low == high else f"{low} to {high}, median {middle}"


def _news(card: Mapping[str, Any]) -> set[str]:
    """Those of the findings that a user has to know."""
    fit, between = card["rows_that_fit"], card["near_duplicates"]["between"]
    news = {
        "Rows that fit": fit["too_long"] + fit["refused"] > 0,
        "Near-duplicates": any(pair["images"] or pair["mirrored"] for pair in between),
        "Answers in their own prompt": any(found["rows"] for found in card["readable_answers"].values()),
    }
    return {name for name, is_news in news.items() if is_news}


def print_parts(counts: Mapping[str, Mapping[str, int]], total: int) -> None:
    for part, count in counts.items():
        if count["trainable"]:
            how = f"LoRA on {count['modules']} layers" if count["modules"] else "in full"
            of_all = f"{100 * count['trainable'] / total:.2f} % of all"
            say(f"  trained: {count['trainable']:,} parameters of the {part} part ({how}), {of_all}")


def print_checks(checks: Sequence[Check], *, verbose: bool = False) -> None:
    """The checks that failed or say something to know; under `verbose` all."""
    failed, names = sum(not check.ok for check in checks), ", ".join(check.name for check in checks)
    found = f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed"
    say(f"preflight: {found} ({names})")
    for check in checks:
        if verbose or check.is_news or not check.ok:
            say(f"  {'' if check.ok else 'FAIL '}{check.name}: {check.sentence}")


def print_phases(phases: Mapping[str, Any]) -> None:
    """How long each phase of a run took, and the most memory that it held."""
    print("; ".join(f"{name} {duration(phase.seconds)}" for name, phase in phases.items()), end="; ")
    print(f"peak memory {peak_memory_bytes() / 2**30:.2f} GiB")


def where(paths: Mapping[str, Any]) -> None:
    width = max(len(name) for name in paths)
    for name, path in paths.items():
        print(f"  {name.ljust(width)}  {path}")
