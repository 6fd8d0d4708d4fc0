"""What a run prints of its settings, data and checks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from vlmft.config.schema import DataConfig
from vlmft.data.dataset import source_lines
from vlmft.evaluation.numbers import console as plain_signs
from vlmft.evaluation.numbers import share, shortened
from vlmft.evaluation.without_looking import alarms_of
from vlmft.report.card import findings
from vlmft.report.console import console, print_alarms
from vlmft.run.build import Inferred
from vlmft.run.preflight import Check
from vlmft.training.memory import peak_memory_bytes

MARKS = {True: "ok  ", False: "FAIL"}
SHOWN_ANSWERS = 3


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
        print("  no image can be in two splits here: all counts but the rows are from a seeded sample of each split")
    for name, split in card["splits"].items():
        top = itertools.islice(split["top_answers"].items(), SHOWN_ANSWERS)
        answers = ", ".join(
            f"{shortened(' '.join(answer.split()), 24)} ({plain_signs(share(part))})" for answer, part in top
        )
        print(f"  most frequent answers of {name}: {answers}")
    if n_bad:
        print(f"  {n_bad} rows cannot be used: bad_rows.jsonl names each and the reason")
    if card["divided"]:
        shares = ", ".join(f"data.{split}_rows={getattr(data, f'{split}_rows'):g}" for split in card["divided"])
        missing = " and no ".join(card["divided"])
        print(f"  the source declares no {missing}: taken from train by content ({shares})")
    for warning in card["warnings"]:
        print(f"  warning: {warning}")
    for name, sentence in findings(card).items():
        print(f"  {name.lower()}: {sentence[:1].lower()}{sentence[1:]}")


def _range(spread: Mapping[str, Any]) -> str:
    """Such as "64", or "64 - 320" with the median between."""
    low, middle, high = spread["min"], spread["median"], spread["max"]
    return str(low) if low == high else f"{low} .. {middle} .. {high}"


def print_parts(counts: Mapping[str, Mapping[str, int]], total: int) -> None:
    for part, count in counts.items():
        if n := count["trainable"]:
            modules = f" in {count['modules']} adapted layers" if count["modules"] else ""
            print(f"  {part}: {n:,} trained parameters{modules} ({100 * n / total:.2f} %)")


def print_checks(checks: Sequence[Check]) -> None:
    for check in checks:
        print(f"  {MARKS[check.ok]} {check.name}: {check.sentence}")


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
