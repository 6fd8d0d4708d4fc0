"""Results of a sweep: jobs ranked on validation, importance of settings, sweep.json and sweep.html. No torch."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmft.evaluation.intervals import NORMAL_QUANTILE_975, student_quantile, wilson_interval
from vlmft.evaluation.numbers import SHARE, console, percent
from vlmft.run.folder import CARD_FILE, SUMMARY_FILE, command_line, groups_of, is_installed_command, write_json
from vlmft.sweep.page import as_number, write_sweep_page
from vlmft.training.metrics_file import METRICS_FILE, read_metrics

SWEEP_FILE = "sweep.json"
VALIDATION = re.compile(r"val/[^/]+/(?!n$|unparsed$)[^/]+")
STOPPED = (143, 130, -15, -2)


@dataclass
class Job:
    """One row of sweep.json."""

    number: int
    overrides: list[str]
    """All settings of this job, as on a command line."""
    values: dict[str, str]
    """Swept setting -> its value here."""
    state: str = "waiting"
    """finished, failed, pruned, interrupted, running or waiting."""
    exit_code: int | None = None
    folder: str | None = None
    metric: str | None = None
    value: float | None = None
    """Validation metric of the job's best checkpoint; for a job that did not finish, the best value so far."""
    n: int | None = None
    """Validation rows."""
    interval: tuple[float, float] | None = None
    """95 % Wilson interval of `value`, of `n_groups` rows; null where the rows' scores are not all 0 or 1."""
    n_groups: int | None = None
    """Independent units of the validation rows, such as images, by the run's data card: as if one's rows were one, for
    the answers are not stored."""
    seconds: float = 0.0
    message: str = ""
    """Last line that a failed job printed."""
    rank: int | None = None
    """1 is the best; finished jobs alone have one."""
    standing: str = ""
    """best, not distinguishable (interval overlaps the best one's), below, or empty where that cannot be known."""

    def read_validation(self) -> None:
        """Takes over what the job's folder says of its validation."""
        points = validations(Path(self.folder)) if self.folder else []
        if not points:
            return
        self.metric, self.n = points[-1].metric, points[-1].n
        self.value = max(point.value for point in points)
        summary = Path(self.folder or "") / SUMMARY_FILE
        if self.state == "finished" and summary.is_file():
            self.value = json.loads(summary.read_text(encoding="utf-8"))["best_value"]
        total = self.value * self.n if self.value is not None and self.n else 0.5
        if self.value is not None and self.n and abs(total - round(total)) < 0.01:  # a mean of zeros and ones
            card = Path(self.folder or "") / CARD_FILE
            n_groups = groups_of(json.loads(card.read_text(encoding="utf-8")), "val") if card.is_file() else None
            self.n_groups = min(self.n, n_groups or self.n)
            quantile = NORMAL_QUANTILE_975 if self.n_groups == self.n else student_quantile(self.n_groups - 1)
            self.interval = wilson_interval(round(total) * self.n_groups / self.n, self.n_groups, quantile)

    def swept(self) -> str:
        """The swept settings in a line."""
        return " ".join(f"{key}={value}" for key, value in self.values.items()) or f"job {self.number}"


@dataclass(frozen=True)
class Validation:
    step: int
    metric: str
    value: float
    n: int | None


def validations(folder: Path) -> list[Validation]:
    """The validations that a run has logged so far; a torn line is left out."""
    values = []
    for line in read_metrics(folder / METRICS_FILE):
        key = next((name for name in line if VALIDATION.fullmatch(name) and line[name] is not None), None)
        if key is not None:
            n = line.get(key.rpartition("/")[0] + "/n")
            values.append(Validation(int(line["step"]), key, line[key], int(n) if n else None))
    return values


def rank(jobs: Sequence[Job]) -> list[Job]:
    """Best first, those without a rank last; sets `rank` and `standing`."""
    finished = sorted(
        (j for j in jobs if j.state == "finished" and j.value is not None), key=lambda j: (-(j.value or 0.0), j.number)
    )
    others = [job for job in jobs if job not in finished]
    for job in others:
        job.rank, job.standing = None, ""
    for place, job in enumerate(finished, start=1):
        best = finished[0].interval
        job.rank, job.standing = place, "best" if place == 1 else ""
        if place > 1 and job.interval and best:
            job.standing = "below" if job.interval[1] < best[0] else "not distinguishable"
    return [*finished, *others]


@dataclass(frozen=True)
class Importance:
    """How much of the jobs' differences goes with one setting."""

    parameter: str
    measure: str
    share: float | None
    """0..1; null where there are too few jobs."""
    chance: float | None
    """What a setting without any effect is expected to reach with as many jobs and values."""
    n: int
    levels: int


def importance(jobs: Sequence[Job]) -> list[Importance]:
    """By setting, over finished jobs: eta squared where values repeat, else the squared rank correlation of numbers.

    Neither measures an effect that two settings have only jointly. Fewer than two jobs a value, or fewer than four jobs
    for a correlation, say nothing and get no figure.
    """
    done = [job for job in jobs if job.rank is not None]
    found = []
    for parameter in dict.fromkeys(key for job in jobs for key in job.values):
        labels = [job.values.get(parameter, "") for job in done]
        values = [job.value or 0.0 for job in done]
        n, levels = len(done), len(set(labels))
        numbers = [number for label in labels if (number := as_number(label)) is not None]
        measure, share, chance = "too few jobs", None, None
        if n >= 2 * levels and levels > 1:
            measure, share, chance = "eta squared", eta_squared(labels, values), (levels - 1) / (n - 1)
        elif n >= 4 and levels > 1 and len(numbers) == n:
            measure, share, chance = "squared rank correlation", _squared_rank_correlation(numbers, values), 1 / (n - 1)
        found.append(Importance(parameter, measure, share, chance, n, levels))
    return sorted(found, key=lambda item: -(item.share or 0.0))


def eta_squared(labels: Sequence[str], values: Sequence[float]) -> float:
    """Sum of squares between the groups of one label over the total sum of squares (Fisher 1925), 0 without spread."""
    groups = defaultdict(list)
    for label, value in zip(labels, values, strict=True):
        groups[label].append(value)
    mean = math.fsum(values) / len(values)
    total = math.fsum((value - mean) ** 2 for value in values)
    between = math.fsum(len(group) * (math.fsum(group) / len(group) - mean) ** 2 for group in groups.values())
    return min(1.0, between / total) if total > 0 else 0.0


def _squared_rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rho, squared; ties get their mean rank, and 0 where one of the two has no spread."""
    from scipy.stats import spearmanr  # half a second to import, once at a sweep's end

    return float(spearmanr(first, second).statistic ** 2) if len({*first}) > 1 < len({*second}) else 0.0


@dataclass
class Sweep:
    """A sweep's folder and its jobs."""

    folder: Path
    jobs: list[Job] = field(default_factory=list)

    def write(self) -> None:
        """sweep.json and sweep.html, each whole or not at all."""
        content = self.content()
        write_json(self.folder / SWEEP_FILE, content)
        write_sweep_page(content, self.folder / "sweep.html")

    def content(self) -> dict[str, Any]:
        ranked = rank(self.jobs)
        evaluate = "vlmft evaluate" if is_installed_command() else "python evaluate.py"
        winner = ranked[0] if ranked and ranked[0].rank == 1 else None
        return {
            "title": f"Sweep {self.folder.name}",
            "command": command_line(),
            "metric": next((job.metric for job in ranked if job.metric), None),
            "sentence": self.sentence(ranked),
            "warnings": self.warnings(ranked),
            "evaluate": f"{evaluate} run={shlex.quote(winner.folder or '')}" if winner else None,
            "jobs": [asdict(job) for job in ranked],
            "importance": [asdict(item) for item in importance(self.jobs)],
        }

    @staticmethod
    def sentence(ranked: Sequence[Job]) -> str:
        finished = [job for job in ranked if job.rank is not None]
        counts = ", ".join(f"{sum(j.state == s for j in ranked)} {s}" for s in dict.fromkeys(j.state for j in ranked))
        if not finished:
            return f"No job of {len(ranked)} has a validation value ({counts})."
        best = finished[0]
        alike = sum(job.standing == "not distinguishable" for job in finished)
        ends = f"; the intervals of {alike} other jobs overlap its own" if alike else ""
        return f"Best on validation: {best.swept()} with {shown(best)}, of {len(ranked)} jobs ({counts}){ends}."

    @staticmethod
    def warnings(ranked: Sequence[Job]) -> list[str]:
        kinds = {(job.metric, job.n) for job in ranked if job.rank is not None}
        if len(kinds) < 2:
            return []
        kinds_text = ", ".join(sorted(f"{metric} on {n} rows" for metric, n in kinds))
        return [f"The jobs were validated on different things ({kinds_text}): their ranks mean nothing across them."]

    def say(self) -> None:
        """The ranking in a few lines, and what to do with the winner."""
        content, ranked = self.content(), rank(self.jobs)
        print(f"\n{content['metric'] or 'no validation'}: best first")
        for job in ranked[:10]:
            print(f"  {job.rank or '-':>2}  {shown(job)}  {job.swept()}  {job.standing or job.state}")
        if len(ranked) > 10:
            print(f"  and {len(ranked) - 10} more in sweep.json")
        for warning in content["warnings"]:
            print(f"  warning: {warning}")
        print(f"  table  {self.folder / 'sweep.html'}")
        if content["evaluate"]:
            print(f"the winner on the test split:\n  {content['evaluate']}")

    def exit_code(self) -> int:
        return int(any(job.state in ("failed", "interrupted") for job in self.jobs))


def shown(job: Job) -> str:
    """Such as `42.1 % [37.9, 46.5], n = 500`."""
    if job.value is None:
        return "no value"
    if job.interval is None:
        return f"{job.value:.4g} (n = {job.n}, no interval: not all scores are 0 or 1)"
    groups = f" rows, {job.n_groups} groups" if job.n_groups != job.n else ""
    return f"{percent(job.value)} {console(SHARE.interval(job.interval))}, n = {job.n}{groups}"
