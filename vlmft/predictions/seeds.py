"""vlmft seeds RUN RUN ...: runs that differ in their seed alone, taken together. Seconds, and no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.config.schema import Init
from vlmft.config.tool_schema import SeedsConfig
from vlmft.evaluation.compare import Comparison, compare
from vlmft.evaluation.gains import seeds_apart, seeds_interval
from vlmft.evaluation.numbers import SHARE, console, p_words
from vlmft.predictions.rows import Reading
from vlmft.predictions.same_rows import aligned
from vlmft.predictions.scoring import metrics_of, read_file, read_labels, reads_json, scored, units_of
from vlmft.run.folder import read_run, settings_of_results

ARM_PAIR = ("untuned", "tuned")


@dataclass(frozen=True)
class Together:
    """Several training seeds of one experiment."""

    seeds: list[int]
    metric: str
    differences: list[float]
    """Tuned - untuned of each seed."""
    comparison: Comparison
    """Of each row's mean over the seeds: its interval is over rows, for these seeds."""

    @property
    def verdict(self) -> str:
        """The rows' verdict, where the interval over seeds does not hold 0 either."""
        low, high = seeds_interval(self.differences)
        return self.comparison.verdict if low > 0 or high < 0 else "not distinguishable"

    @property
    def sentence(self) -> str:
        of_rows = SHARE.difference_interval(self.comparison.interval)
        return console(
            f"{seeds_apart(self.differences)}; 95 % interval over the {self.comparison.rows_sentence} {of_rows}, "
            f"{p_words(self.comparison.p_value)}, over seeds "
            f"{SHARE.difference_interval(seeds_interval(self.differences))}: {self.verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        each = [{"seed": s, "difference": d} for s, d in zip(self.seeds, self.differences, strict=True)]
        content: dict[str, Any] = {"metric": self.metric, "seeds": each, "comparison": self.comparison.to_dict()}
        content["seeds_interval"] = list(seeds_interval(self.differences))
        return {**content, "verdict": self.verdict, "sentence": self.sentence}


def seeds(config: SeedsConfig) -> None:
    """Prints untuned against tuned over the runs. Raises ConfigError."""
    runs = [Path(run) for run in config.runs]
    each_seed = seeds_of(runs)
    scores: dict[str, list[Mapping[str, float]]] = {}
    reading = Reading(as_json=reads_json(config.metric))
    files = [
        read_file(run / "predictions" / f"{arm}.jsonl", reading, config.references) for arm in ARM_PAIR for run in runs
    ]
    files, _ = aligned(files, by_order=False)
    expect_same_questions(runs)
    metrics = metrics_of(files[0], config.metric)
    labels = read_labels(config.classes)
    each = [scored(rows, metrics[0], labels) for rows in files]
    for arm, one in zip([arm for arm in ARM_PAIR for _ in runs], each, strict=True):
        scores.setdefault(arm, []).append(one.values)
    together = taken_together(each_seed, each[0].metric, scores["untuned"], scores["tuned"], *units_of(files[0]))
    if config.json:
        print(json.dumps(together.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
        return
    for seed, difference in zip(together.seeds, together.differences, strict=True):
        print(f"  seed {seed}: {console(SHARE.difference(difference))} {together.metric}")
    print(together.sentence)
    if len(each_seed) < 3:
        print("note: a claim about training takes three seeds or more; one run's luck is not in the rows' interval")


def taken_together(
    seeds: Sequence[int],
    metric: str,
    untuned: Sequence[Mapping[str, float]],
    tuned: Sequence[Mapping[str, float]],
    groups: Mapping[str, str],
    kind: str = "groups",
) -> Together:
    """Scores by row id, a mapping for each seed, in the order of `seeds`."""
    differences = [
        sum(after[i] - before[i] for i in before) / len(before) for before, after in zip(untuned, tuned, strict=True)
    ]
    means = [{i: sum(one[i] for one in arm) / len(arm) for i in arm[0]} for arm in (untuned, tuned)]
    return Together(list(seeds), metric, differences, compare("untuned", means[0], "tuned", means[1], groups, kind))


def expect_same_questions(runs: Sequence[Path]) -> None:
    """Raises ConfigError where a run was asked another question than the first, or its model is of another base."""
    asked = [_asked(run) for run in runs]
    for run, mine in zip(runs[1:], asked[1:], strict=True):
        if odd := [row_id for row_id, sha in mine.items() if asked[0].get(row_id) != sha]:
            raise ConfigError(
                f"vlmft seeds: {run} was asked other questions, or another base, than {runs[0]} in {len(odd)} rows "
                f"({odd[0]}); only runs of the same data and base belong together"
            )


def _asked(run: Path) -> dict[str, tuple[str | None, str | None]]:
    """Row id -> hashes of its prompt and, where the base is not random, of what it was asked under."""
    is_random = read_run(str(run)).model.init == Init.random  # two seeds of random weights are two bases
    lines = (run / "predictions" / "untuned.jsonl").read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return {row["id"]: (row.get("prompt_sha256"), None if is_random else row.get("fingerprint_sha256")) for row in rows}


def seeds_of(runs: Sequence[Path]) -> list[int]:
    """Each run's seed.

    Raises:
        ConfigError: one run, a seed twice, or runs that differ in more than that.
    """
    settings = [settings_of_results(read_run(str(run))) for run in runs]
    seeds = [config.pop("seed") for config in settings]
    if len(set(seeds)) < max(2, len(seeds)):
        raise ConfigError(f"vlmft seeds: Expected two runs or more, each of another seed, got seeds {seeds}")
    for run, config in zip(runs[1:], settings[1:], strict=True):
        odd = [key for key in config if config[key] != settings[0][key]]
        if odd:
            raise ConfigError(f"vlmft seeds: {run} differs from {runs[0]} in {', '.join(odd)}, not in its seed alone")
    return seeds
