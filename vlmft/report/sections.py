"""What the report says beside arms and differences: form and skill, other metrics, examples, and what n rows show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vlmft.evaluation.evaluate import Evaluation
from vlmft.evaluation.gains import detectable
from vlmft.evaluation.numbers import SHARE, number, share
from vlmft.evaluation.score import ArmSummary
from vlmft.evaluation.without_looking import WithoutLooking
from vlmft.report import Bar, Grid, Section
from vlmft.report.boxes import boxes_section


def sections_of(found: Evaluation) -> Iterator[Section]:
    """The sections that these arms allow."""
    if found.fields is not None:
        from vlmft.report.fields import fields_section  # for few runs

        yield fields_section(found.fields)
    if found.gains is not None or found.matrix:
        yield _format_and_skill(found)
    if any(sample.prompt.marks for sample in found.samples):
        yield boxes_section(found)
    if found.blind is not None:
        yield _without_looking(found.blind)
    draws = [arm for arm in found.arms.values() if len(arm.draws) > 1]
    if draws:
        yield _few_shot(draws)
    yield Section(
        "Other metrics of the same answers", _METRICS_SAID, _beside(list(found.arms.values())), is_folded=True
    )
    first = next(iter(found.arms.values()))
    said = [detectable(first.n, first.n_groups, first.kind)]
    said += [f"Batch size: {found.invariance.sentence}"] if found.invariance is not None else []
    yield Section("What this test set can show", tuple(said), is_folded=True)


_METRICS_SAID = (
    "Exact match asks for the reference's own words; where the metric above is higher, the rest is form, which a "
    "stricter reader would not have accepted.",
)


def _format_and_skill(found: Evaluation) -> Section:
    gains, said, bars, table = found.gains, list[str](), list[Bar](), None
    if gains is not None:
        said = [gains.sentence]
        bars = [
            Bar(label, value, SHARE.difference(value))
            for label, value in (
                ("whole gain", gains.tuned - gains.untuned),
                ("format: another prompt or examples", gains.format_gain),
                ("skill: the rest", gains.skill.comparison.difference),
            )
        ]
    if found.matrix:
        table = matrix_table(found.matrix)
        said.append("train: the dataset's prompt; vendor: the model maker's; bare: the question and nothing else.")
    return Section("Format and skill", tuple(said), table, tuple(bars), bars_end=1.0)


def _without_looking(found: WithoutLooking) -> Section:
    said = [f"Answers that stand in the prompt: {found.readable.sentence}.", *(f"{text}." for text in found.controls)]
    meaning = {
        "majority": "always the most frequent training answer",
        "majority by question": "that of the same kind of question",
        "copy": "what stands where training prompts have their answer",
    }
    lines = [
        (rule.name, share(rule.value), str(rule.answered), str(rule.kinds), meaning[rule.name])
        for rule in found.baselines
    ]
    heads = ("Rule", "Score", "Rows answered", "Kinds", "What it says")
    return Section("Without looking", tuple(said), Grid(heads, lines, (0, 4), (1,)) if lines else None, is_folded=True)


def matrix_table(matrix: Mapping[str, Mapping[str, float]]) -> Grid:
    """Arms by the prompt that they were asked with."""
    arms = list(dict.fromkeys(arm for values in matrix.values() for arm in values))
    lines = [(prompt, *(share(values.get(arm)) for arm in arms)) for prompt, values in matrix.items()]
    return Grid(("Prompt", *arms), lines)


def _few_shot(arms: Sequence[ArmSummary]) -> Section:
    said = "Each draw is another seeded choice of examples from train; the arm's value is their mean."
    bars = [Bar(f"{arm.arm}, draw {n}", value, share(value)) for arm in arms for n, value in enumerate(arm.draws, 1)]
    return Section("Examples before the question", (said,), bars=tuple(bars), bars_end=1.0, is_folded=True)


def _beside(arms: Sequence[ArmSummary]) -> Grid:
    names = list(dict.fromkeys(name for arm in arms for name in arm.beside))
    heads = ("Arm", arms[0].metric, *(_metric(name) for name in names))
    lines = [(arm.arm, share(arm.value), *(_number(name, arm.beside) for name in names)) for arm in arms]
    return Grid(heads, lines)


def _metric(name: str) -> str:
    """ "counting/last-number-en-ru@1: mae" -> "mae", its small print the whole."""
    metric, _, part = name.partition(": ")
    return part.replace("_", " ") or metric.partition("/")[0].replace("_", " ")


def _number(name: str, values: Mapping[str, float | None]) -> str:
    value = values.get(name)
    if value is None:
        return "withheld"
    is_share = not name.startswith(("counting", "bleu", "chrf", "cider")) or name.endswith("within_1")
    return share(value) if is_share else number(value, 2)
