"""What follows from the answers of all arms: scores, paired comparisons, and what a reader must know beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmft.evaluation.arms import Arm, pairs_of
from vlmft.evaluation.compare import adjusted, compare
from vlmft.evaluation.gains import best_tuned, format_and_skill, prompt_matrix, skill_pair
from vlmft.evaluation.rows import EvaluationRows, labels_of, repeated_rows, units_of
from vlmft.evaluation.score import cut_off, summarise, summarise_draws, too_few, unequal_treatment, warnings
from vlmft.evaluation.without_looking import alarm, without_looking
from vlmft.metrics import metric_named

if TYPE_CHECKING:
    from vlmft.evaluation.evaluate import Evaluation


def conclude(result: Evaluation, arms: Sequence[Arm], rows: EvaluationRows) -> None:
    """Scores and comparisons of the arms that answered, what explains a score without images, and what went wrong."""
    result.rows = {arm.name: result.rows[arm.name] for arm in arms}
    _score(result, arms, rows)
    train = rows.baseline_rows() if rows.split != "train" else []
    result.blind = without_looking(train, result.samples, metric_named(rows.metric_name), result.comparisons)
    sentence = alarm(rows.split, result.blind.readable.to_dict())
    result.alarms += [sentence] if sentence is not None else []
    canaries = [result.canary, *(served.canary for served in result.servers.values())]
    result.notes += [one.sentence for one in canaries if one is not None and not one.ok]
    if result.invariance is not None and result.invariance.changed:
        result.notes.append(result.invariance.sentence)


def _score(result: Evaluation, arms: Sequence[Arm], asked: EvaluationRows) -> None:
    """Summaries of the rows that every arm has answered, and the comparisons of arms."""
    references = {sample.id: sample.references for sample in result.samples}
    result.groups, kind = units_of(result.samples)
    groups = result.groups
    labels = labels_of(result.samples)
    for arm in arms:
        rows = {row_id: result.rows[arm.name][row_id] for row_id in references}
        seconds, is_drawn = result.seconds[arm.name] or None, arm.name in result.draws or None
        summary = summarise(
            arm.name, rows, references, asked.metric_name, seconds, labels, groups, kind, is_share=is_drawn
        )
        if arm.name in result.servers:
            summary = dataclasses.replace(summary, answered_by=result.servers[arm.name].label)
        if arm.name in result.draws:
            summary = summarise_draws(summary, result.draws[arm.name], references, labels)
        result.arms[arm.name] = summary
        result.notes += warnings(summary)
    result.cautions += [*repeated_rows(result.samples), *cut_off(result.arms.values())]
    result.notes += too_few(next(iter(result.arms.values())))
    scores = {arm.name: {i: result.rows[arm.name][i].score.value for i in references} for arm in arms}
    values = {arm: summary.value for arm, summary in result.arms.items()}
    pairs, skill = pairs_of(list(scores)), skill_pair(values)
    pairs += [skill] if skill is not None and skill not in pairs else []
    result.comparisons = adjusted(
        [compare(one, scores[one], other, scores[other], groups, kind) for one, other in pairs]
    )
    result.gains, result.matrix = format_and_skill(values, result.comparisons), prompt_matrix(values)
    for one, other in pairs:
        result.cautions += unequal_treatment(one, result.rows[one], other, result.rows[other], groups)
    result.best = best_tuned({name: own for name, own in scores.items() if name not in result.servers}, groups)
    result.cautions += [result.best.sentence] if result.best is not None else []
    if asked.metric_name == "json_fields":
        from vlmft.evaluation.fields import fields_of  # for few runs

        result.fields = fields_of(result, asked)
