"""What was measured, as the report's content: rows with the answers of all arms, their pictures, and curves."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import PIL.Image

from vlmft.evaluation.evaluate import Evaluation
from vlmft.metrics import Metric
from vlmft.report.content import Curve, FieldLine, ReportAnswer, ReportRow
from vlmft.sample import Sample

THUMBNAIL_PIXELS = 480
"""Longer side at most, so that a chart can still be read when its picture is enlarged."""


def report_rows(evaluation: Evaluation, metric: Metric) -> list[ReportRow]:
    """A row each, without pictures; where they have different numbers of images, with that number as a tag."""
    counts = [str(len(sample.prompt.images)) for sample in evaluation.samples]
    tags = [{"number of images": count} if len(set(counts)) > 1 else {} for count in counts]
    return [_report_row(sample, evaluation, metric, tag) for sample, tag in zip(evaluation.samples, tags, strict=True)]


def with_pictures(
    rows: Sequence[ReportRow], samples: Sequence[Sample], pictured: Collection[int]
) -> tuple[ReportRow, ...]:
    """The rows, those at the places `pictured` with thumbnails of their images."""
    pairs = enumerate(zip(rows, samples, strict=True))
    return tuple(_with_thumbnails(row, sample) if place in pictured else row for place, (row, sample) in pairs)


def _report_row(sample: Sample, evaluation: Evaluation, metric: Metric, more_tags: Mapping[str, str]) -> ReportRow:
    answers = tuple(
        ReportAnswer(arm, rows[sample.id].text, rows[sample.id].score.value, rows[sample.id].score.parsed)
        for arm, rows in evaluation.rows.items()
    )
    question, tags = sample.prompt.messages[-1].text, {**sample.tags, **more_tags}
    truth = metric(sample.references[0], sample.references).parsed
    group = evaluation.groups.get(sample.id, "")
    texts = {answer.arm: answer.text for answer in answers}
    fields: tuple[FieldLine, ...] = ()
    if evaluation.fields is not None:
        from vlmft.report.fields import field_lines  # for few runs

        fields = field_lines(texts, sample.references)
    size = sample.prompt.images[-1].size if sample.prompt.marks and sample.prompt.images else None
    return ReportRow(sample.id, question, tuple(sample.references), answers, (), tags, truth, group, fields, size)


def _with_thumbnails(row: ReportRow, sample: Sample) -> ReportRow:
    thumbnails = []
    for image in sample.prompt.images:
        picture = PIL.Image.fromarray(image.pixels)
        picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=75)
        thumbnails.append(data.getvalue())
    return dataclasses.replace(row, thumbnails=tuple(thumbnails))


def remarks_of(evaluation: Evaluation) -> tuple[str, ...]:
    """Notes that are no warning about the result: on the arms that it is held against, on answers stored before, and on
    where those of a server come from."""
    pairs = [one.comparison for one in evaluation.comparisons]
    baselines = {pair.first for pair in pairs} - {pair.second for pair in pairs[:1]}
    notes, origins = evaluation.notes, [served.note for served in evaluation.servers.values()]
    return tuple(
        note
        for note in notes
        if note.partition(": ")[0] in baselines or note.endswith(" stored already") or note in origins
    )


CURVES = ("train/loss", "val/loss", "train/lr", "train/gradient_norm")


def curves(lines: Sequence[Mapping[str, Any]]) -> tuple[Curve, ...]:
    """Loss, learning rate, gradient norm and every validation metric over steps."""
    names = [
        n
        for line in lines
        for n in line
        if n in CURVES or (n.startswith("val/") and not n.endswith(("/n", "/unparsed")))
    ]
    found = []
    for name in dict.fromkeys(names):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        found.append(Curve(name, tuple(int(step) for step, _ in points), tuple(float(value) for _, value in points)))
    return tuple(found)
