"""vlmft compare A B ...: are the others better than A, on the same rows? Seconds, and no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.config.tool_schema import CompareConfig
from vlmft.evaluation.compare import Adjusted, adjusted, compare, p_words
from vlmft.evaluation.gains import best_of_several
from vlmft.evaluation.score import unequal_treatment
from vlmft.predictions.read_otherwise import others_of
from vlmft.predictions.same_rows import aligned, unrelated
from vlmft.predictions.scoring import (
    OF_A_SET,
    Scored,
    ids_by_value,
    metrics_of,
    read_file,
    read_labels,
    readings_of,
    scored,
    scored_content,
    shown,
    units_of,
)


def compare_files(config: CompareConfig) -> None:
    """Prints every file against the first, under one metric. Raises ConfigError."""
    paths = [Path(name) for name in config.files]
    if len(paths) < 2 or len(set(paths)) < len(paths):
        raise ConfigError(f"vlmft compare: Expected two files or more, each once, got {len(paths)}")
    readings = readings_of(config, len(paths))
    files = [read_file(path, one, config.references) for path, one in zip(paths, readings, strict=True)]
    files, notes = aligned(files, by_order=config.by_order)
    if config.by is not None and files[0].first.by is None:
        raise ConfigError(f"--by: Expected a column called {config.by!r} in one of the files, got none; name another")
    metrics: list[str | None] = [*metrics_of(files[0], config.metric, config.extract)] or [None]
    if len(metrics) != 1 or metrics[0] in OF_A_SET:
        raise ConfigError(
            f"--metric: Expected one metric with a score for each row, got {', '.join(map(str, metrics))}"
        )
    labels = read_labels(config.classes)
    each = [scored(rows, metrics[0], labels, config.extract) for rows in files]
    others = others_of(each, metrics[0], labels, offers=config.extract == "auto")
    values = [one.value for one in each]
    changed = {
        other.option: _results(other.each) for other in others if [o.value for o in other.each] not in ([], values)
    }
    results, cautions = _results(each), _cautions(each)
    notes += unrelated(each)
    if config.json:
        arms = [{"file": str(one.rows.path), "form": one.rows.form, **scored_content(one)} for one in each]
        content: dict[str, Any] = {"metric": each[0].metric, "arms": arms}
        content["comparisons"] = [one.to_dict() for one in results]
        content["read_otherwise"] = [
            {"option": option, "comparisons": [one.to_dict() for one in pairs]} for option, pairs in changed.items()
        ]
        content["by_value"] = by_value_of(each)
        content |= {"cautions": cautions, "notes": notes}
        print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for caution in cautions:
        print(f"caution: {caution}")
    _print(each, results)
    for option, pairs in changed.items():
        print(f"with {option}:")
        for result in pairs:
            is_share = all(one.is_share for one in each)
            print(f"  {_values_of(result, is_share)}")
            print(f"  {sentence(result, is_share=is_share, several=len(pairs) > 1)}")
    _print_by(each)
    for note in notes:
        print(f"note: {note}")


def _results(each: Sequence[Scored]) -> list[Adjusted]:
    first, *others = each
    groups, kind = units_of(first.rows)
    return adjusted([compare(first.name, first.values, one.name, one.values, groups, kind) for one in others])


def _cautions(each: Sequence[Scored]) -> list[str]:
    """What to know before the figures."""
    first, *others = each
    groups, _ = units_of(first.rows)
    best = best_of_several({one.name: one.values for one in others}, groups)
    sentences = [best.sentence] if best is not None else []
    for one in others if first.answers else ():
        sentences += unequal_treatment(first.name, first.answers, one.name, one.answers, groups)
    return sentences


def _values_of(result: Adjusted, is_share: bool) -> str:
    pair, unit = result.comparison, " %" if is_share else ""
    return f"{shown(pair.first_value, is_share)}{unit} -> {shown(pair.second_value, is_share)}{unit}"


def by_value_of(each: Sequence[Scored]) -> dict[str, list[dict[str, Any]]]:
    """Value of the column of --by -> each other file against the first on its rows; without a test for each."""
    first, *others = each
    if first.rows.first.by is None:
        return {}
    groups, kind = units_of(first.rows)
    content: dict[str, list[dict[str, Any]]] = {}
    for name, ids in ids_by_value(first.rows).items():
        mine = {row_id: first.values[row_id] for row_id in ids}
        for one in others:
            theirs = {row_id: one.values[row_id] for row_id in ids}
            found = compare(first.name, mine, one.name, theirs, groups, kind).to_dict()
            kept = ("first", "second", "n", "first_value", "second_value", "difference", "interval")
            content.setdefault(name, []).append({key: found[key] for key in kept})
    return content


def _print_by(each: Sequence[Scored]) -> None:
    content, is_share = by_value_of(each), all(one.is_share for one in each)
    if content:
        print(f"by {each[0].rows.by_name}:")
    for name, comparisons in content.items():
        for part in comparisons:
            numbers = (part["difference"], *part["interval"])
            difference, low, high = (shown(number, is_share, "+") for number in numbers)
            before, after = (shown(part[key], is_share) for key in ("first_value", "second_value"))
            which = f" ({part['second']})" if len(comparisons) > 1 else ""
            print(f"  {name}, {part['n']} rows: {before} -> {after}, {difference} ({low} to {high}){which}")


def _print(each: Sequence[Scored], results: Sequence[Adjusted]) -> None:
    first = results[0].comparison
    print(f"{each[0].metric} on {first.rows_sentence}")
    is_share = all(one.is_share for one in each)
    for one in each:
        content = scored_content(one)
        value, low, high = (shown(number, is_share) for number in (content["value"], *content["interval"]))
        unit = " %" if is_share else ""
        print(f"  {value:>6}{unit}  ({low} to {high}, {content['interval_method']})  {one.rows.path}")
    for result in results:
        print(sentence(result, is_share=is_share, several=len(results) > 1))
    for remark in dict.fromkeys(remark for one in each for remark in one.remarks):
        print(remark)
    if len(results) > 1:
        print(f"p is Holm's for {len(results)} comparisons; the intervals are each its own")


def sentence(result: Adjusted, *, is_share: bool = True, several: bool = False) -> str:
    """The paired result, to be quoted alone."""
    pair = result.comparison
    difference, low, high = (shown(number, is_share, "+") for number in (pair.difference, *pair.interval))
    test = f"{pair.p_test}, Holm" if several else pair.p_test
    up, down = ("fixed", "broken") if pair.is_binary else ("up", "down")
    return (
        f"{pair.first} -> {pair.second}: {difference}{' points' if is_share else ''} (95 % interval {low} to "
        f"{high}), {test} {p_words(result.p_value)}, {pair.only_second} {up}, {pair.only_first} {down}: "
        f"{result.verdict_sentence}"
    )
