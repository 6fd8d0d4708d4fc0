"""Boxes in the report: what is drawn on the pictures is in their own pixels, and the table says what was found."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tests.report.test_report import driven
from vlmft.evaluation.evaluate import Evaluation
from vlmft.evaluation.score import ScoredRow
from vlmft.metrics import metric_named
from vlmft.metrics.score import Score
from vlmft.report import Report, ReportRow
from vlmft.report.boxes import boxes_section
from vlmft.report.gallery import gallery
from vlmft.report.measured import report_rows, with_pictures
from vlmft.report.page import page_text
from vlmft.report.sections import sections_of
from vlmft.report.stored import decoded, encoded
from vlmft.sample import Box, Image, Message, Point, Prompt, Sample, marks_text

CAT, DOG = Box(10, 20, 110, 60, "cat"), Box(0, 0, 30, 30, "</script><b>dog")
"""Of pictures of 200 x 100."""


def sample(number: int, *boxes: Box) -> Sample:
    image = Image(partial(PIL.Image.new, "RGB", (200, 100)), f"picture {number}")
    text = marks_text(boxes)
    return Sample(f"r{number}", Prompt((Message("user", (image, "Where?")),), "boxes"), text, (text,))


@pytest.fixture
def found() -> Evaluation:
    samples = [sample(0, CAT), sample(1, CAT, DOG)]
    texts = {"untuned": ["a cat", marks_text([Point(3, 4, "cat")])], "tuned": [marks_text([CAT]), marks_text([DOG])]}
    metric = metric_named("box_f1")
    rows = {
        arm: {s.id: ScoredRow(s.id, t, "stop", metric(t, s.references)) for s, t in zip(samples, some, strict=True)}
        for arm, some in texts.items()
    }
    return Evaluation("test", samples, rows=rows)


def report(rows: tuple[ReportRow, ...]) -> Report:
    arms = tuple(
        {"arm": arm, "metric": "box_f1", "n": 2, "value": 0.5, "interval": [0, 1]} for arm in ("untuned", "tuned")
    )
    pair: dict[str, Any] = {"first": "untuned", "second": "tuned", "n": 2, "n_groups": 2, "first_value": 0.0}
    pair |= {"second_value": 0.8, "difference": 0.8, "interval": [0, 1], "p_value": 1.0, "p_test": "exact McNemar"}
    pair |= {"only_first": 0, "only_second": 2, "verdict": "not distinguishable"}
    more = {"parse_failures": 0, "truncated": 0, "top_answer": None, "top_share": 0, "verbatim": 0, "majority_share": 0}
    arms = tuple({**arm, **more, "answers_per_second": None} for arm in arms)
    return Report("t", "s", arms, (pair,), (), (), {}, rows, {}, {}, {}, "c")


def test_gallery_has_the_numbers_in_pixels_of_the_picture(found: Evaluation) -> None:
    rows = with_pictures(report_rows(found, metric_named("box_f1")), found.samples, {0, 1})
    assert all(row.marked_size == (200, 100) for row in rows)
    first, second = json.loads(str(gallery(report(rows)).data).replace("\\u003c", "<"))["rows"]
    cat = [[10, 20, 110, 60], "cat"]
    assert first["marks"] == {"size": [200, 100], "reference": [cat], "answers": [[], [cat]]}
    assert second["marks"]["answers"][0] == [[[3, 4], "cat"]], "a point is one"
    assert second["marks"]["answers"][1][0][1] == DOG.label


def test_page_keeps_a_label_as_text(found: Evaluation) -> None:
    rows = with_pictures(report_rows(found, metric_named("box_f1")), found.samples, {0, 1})
    page = page_text(report(rows))
    assert "<b>dog" not in page and "</script><b>" not in page
    assert 'data-row="r0"' in page and "createElementNS" in page
    assert len(re.findall("<script", page)) == len(re.findall("</script>", page))


def test_rows_without_boxes_have_no_marks(found: Evaluation) -> None:
    plain = [dataclasses.replace(s, prompt=dataclasses.replace(s.prompt, marks="")) for s in found.samples]
    rows = report_rows(dataclasses.replace(found, samples=plain), metric_named("box_f1"))
    assert all(row.marked_size is None for row in rows)
    assert all(
        "marks" not in row for row in json.loads(str(gallery(report(tuple(rows))).data).replace("\\u003c", "<"))["rows"]
    )


def test_report_json_keeps_the_size(found: Evaluation) -> None:
    (row, _) = report_rows(found, metric_named("box_f1"))
    assert decoded(ReportRow, json.loads(json.dumps(encoded(row)))).marked_size == (200, 100)
    old = {k: v for k, v in encoded(row).items() if k != "marked_size"}
    assert decoded(ReportRow, old).marked_size is None


def test_section(found: Evaluation) -> None:
    section = boxes_section(dataclasses.replace(found, coordinates="percent"))
    assert section.table is not None and section.sentences[-1] == "The model writes them as percent."
    lines = {line[0]: dict(zip(section.table.heads, line, strict=True)) for line in section.table.lines}
    assert lines["tuned"]["Precision"] == "100.0\u00a0%" and lines["tuned"]["Recall"] == "66.7\u00a0%"
    assert lines["untuned"]["Nothing read"] == "1" and lines["untuned"]["Of them points"] == "1"
    (by_label,) = section.parts
    assert by_label.table is not None and next(line[:2] for line in by_label.table.lines) == ("cat", "2")
    assert any("no confidence" in note for note in section.notes)
    with_arms = dataclasses.replace(found, samples=[])
    assert all(one.title != "Boxes" for one in sections_of(_summed(with_arms)))


def _summed(found: Evaluation) -> Evaluation:
    from vlmft.evaluation.score import summarise

    rows = {"r": ScoredRow("r", "7", "stop", Score(1.0, "7"))}
    return dataclasses.replace(found, arms={"tuned": summarise("tuned", rows, {"r": ("7",)}, "exact_match")}, rows={})


PLACES = """
const place = (picture) => {
  const box = picture.querySelector("rect.mark-reference").getBoundingClientRect();
  const image = picture.querySelector("img").getBoundingClientRect();
  const scale = Math.min(image.width / 200, image.height / 100);
  const left = image.left + (image.width - 200 * scale) / 2, top = image.top + (image.height - 100 * scale) / 2;
  return [(box.left - left) / scale, (box.top - top) / scale, (box.right - left) / scale, (box.bottom - top) / scale];
};
const eager = (image) => { image.loading = "eager"; return image.decode(); };
const waiting = [...document.querySelectorAll("img")].map(eager);
Promise.all(waiting).then(() => {
  const small = [...document.querySelectorAll(".marked")].map(place);
  document.querySelector("#gallery-app .enlarge").click();
  return document.querySelector("dialog img").decode().then(() => {
    Object.assign(told, { small, large: place(document.querySelector("dialog .marked")) });
    document.title = JSON.stringify(told);
  });
});
"""


@pytest.mark.slow
def test_a_browser_draws_them_where_they_are(found: Evaluation, tmp_path: Path) -> None:
    """In thumbnails, in the examples at the top, and enlarged: a box of 10..110 x 20..60 of a picture of 200 x 100."""
    rows = with_pictures(report_rows(found, metric_named("box_f1")), found.samples, {0, 1})
    told = driven(report(rows[:1]), PLACES, tmp_path)
    assert len(told["small"]) >= 2
    for place in (*told["small"], told["large"]):
        assert place == pytest.approx([10, 20, 110, 60], abs=2), "the stroke is half a pixel of the screen wide"
