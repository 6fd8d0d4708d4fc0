"""What hides behind a mean: groups, counts, confusions. Every row must be counted somewhere, and once."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vlmft.metrics import METRICS
from vlmft.report import Report, ReportAnswer, ReportRow, Section
from vlmft.report.breakdown import breakdowns

COUNTING = (
    Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "fixtures/counting_predictions"
)
ARMS = ("untuned", "tuned", "third")

Given = tuple[str, Sequence[str], Mapping[str, str]]
"""Reference, the answer of each arm, tags."""


def sections(given: Sequence[Given], metric: str = "exact_match") -> dict[str, Section]:
    """The breakdowns of a report with these rows, by title."""
    score = METRICS[metric]
    rows = []
    for number, (reference, texts, tags) in enumerate(given):
        answers = []
        for arm, text in zip(ARMS, texts, strict=False):
            found = score(text, (reference,))
            answers.append(ReportAnswer(arm, text, found.value, found.parsed))
        truth = score(reference, (reference,)).parsed
        rows.append(ReportRow(str(number), "?", (reference,), tuple(answers), (), tags, truth))
    arms: tuple[Any, ...] = tuple({"arm": arm} for arm in ARMS[: len(given[0][1])])
    pairs: tuple[Any, ...] = tuple({"first": "untuned", "second": "tuned"} for _ in arms[1:])
    whole = Report("t", "s", arms, pairs, (), (), {}, tuple(rows), {}, {}, {}, "")
    return {section.title: section for section in breakdowns(whole)}


def table_of(section: Section) -> list[list[str]]:
    """The lines of its table, without small print."""
    assert section.table is not None
    return [[cell.split("\n")[0] for cell in line] for line in section.table.lines]


def parts_of(section: Section) -> dict[str, Section]:
    return {part.title: part for part in section.parts}


def test_by_group() -> None:
    given: list[Given] = [("a", ("a", "a"), {"source": "human"})] * 3 + [("b", ("a", "b"), {"source": "machine"})] * 5
    given += [("b", ("a", "a"), {})] * 2
    section = parts_of(sections(given)["By group"])["By source"]
    assert section.table is not None and section.table.heads == ("Source", "n", "untuned", "tuned")
    assert table_of(section) == [
        ["machine", "5", "0.0\u00a0%", "100.0\u00a0%"],
        ["human", "3", "100.0\u00a0%", "100.0\u00a0%"],
        ["(none)", "2", "0.0\u00a0%", "0.0\u00a0%"],
    ]
    # Wilson of 5 of 5: 1 / (1 + 1.96**2 / 5)
    assert section.table.lines[0][3].endswith("\n[56.6, 100.0]")
    assert section.table.heat[0] == (None, None, 0, 1)


def test_many_groups_are_summed_up_and_none_is_lost() -> None:
    given: list[Given] = [("a", ("a", "b"), {"class": f"class {i % 30}"}) for i in range(90)]
    given += [("a", ("a", "a"), {"class": "large"})] * 4
    given += [("a", ("a", "a"), {"class": f"unmoved {i % 3}"}) for i in range(9)]
    (section,) = sections(given)["By group"].parts
    lines = table_of(section)
    assert section.title == "By class, 34 groups" and section.is_folded
    assert len(lines) == 21 and lines[0][:2] == ["large", "4"] and lines[-1][:2] == ["14 other groups", "42"]
    assert sum(int(line[1]) for line in lines) == len(given)
    assert not [line for line in lines if line[0].startswith("unmoved")]
    assert "The 20 largest of 34 groups" in section.sentences[0]


def test_groups_whose_names_begin_alike_stay_apart() -> None:
    given: list[Given] = [("a", ("a",), {"kind": "x" * 70 + str(i % 2)}) for i in range(8)]
    (section,) = sections(given)["By group"].parts
    assert [line[1] for line in table_of(section)] == ["4", "4"]


def test_a_tag_that_groups_nothing_is_not_shown() -> None:
    given: list[Given] = [("a", ("a",), {"id": str(i), "same": "x"}) for i in range(8)]
    assert "By group" not in sections(given)


def test_the_counting_model_that_never_says_8() -> None:
    """998 answers of a published notebook: accuracy by count 1.00 .98 .71 .42 .04 .00 .99 .95."""
    if not COUNTING.exists():
        pytest.skip(f"no reference data at {COUNTING}")
    columns = []
    for name in ("zero_shot", "tuned"):
        with (COUNTING / f"{name}.csv").open(encoding="utf-8") as file:
            columns.append(list(csv.DictReader(file)))
    given: list[Given] = [
        (untuned["Correct Answer"], (untuned["Model Prediction"], tuned["Model Prediction"]), {})
        for untuned, tuned in zip(*columns, strict=True)
    ]
    found = sections(given, "count_accuracy")
    counts = found["Counts"]
    assert table_of(counts)[0][:3] == ["untuned", "85.2\u00a0%", "0.52"]
    assert table_of(counts)[1][:3] == ["tuned", "58.6\u00a0%", "1.57"]
    by_count = table_of(parts_of(counts)["By true count"])
    assert [line[0] for line in by_count] == [str(n) for n in range(3, 11)]
    shares = [float(line[2].removesuffix("\u00a0%")) for line in by_count]
    assert shares == pytest.approx([100, 98, 71, 42, 4, 0, 99, 95], abs=0.51)
    matrix = table_of(parts_of(found["Confusions"])["untuned: answers to each reference"])
    assert sum(int(cell) for line in matrix for cell in line[1:]) == 998
    assert sum(int(line[6]) for line in matrix) == 0  # never says 8
    assert sum(int(line[7]) for line in matrix) == 389  # says 9 for 389 images
    assert sum(int(line[i + 1]) for i, line in enumerate(matrix)) == 648


def test_bias_has_a_sign() -> None:
    given: list[Given] = [("3", ("2", "5"), {}), ("4", ("4", "many"), {}), ("4", ("3", "4"), {})] * 2
    counts = sections(given, "count_accuracy")["Counts"]
    assert [line[3:] for line in table_of(counts)] == [["\u22120.67", "0"], ["+1.00", "2"]]
    assert table_of(parts_of(counts)["Bias by true count"]) == [
        ["3", "\u22121.00", "+2.00"],
        ["4", "\u22120.50", "0.00"],
    ]


def test_a_tag_that_is_the_count_is_told_once() -> None:
    given: list[Given] = [(str(i % 3), ("1",), {"count": str(i % 3), "palette": "AB"[i % 2]}) for i in range(12)]
    found = sections(given, "count_accuracy")
    assert list(parts_of(found["By group"])) == ["By palette"]
    assert "By true count" in parts_of(found["Counts"])


def test_amounts_are_no_scale_of_counts() -> None:
    given: list[Given] = [(str(1_000 + i), ("1000",), {}) for i in range(60)]
    assert sections(given) == {}


def test_confusions() -> None:
    given: list[Given] = [("cat", ("Cat.", "dog", "cat"), {})] * 3 + [("dog", ("fox", "", "cat"), {})] * 4
    section = sections(given)["Confusions"]
    assert table_of(section) == [
        ["dog", "fox", "4", "0", "0"],
        ["dog", "(none read)", "0", "4", "0"],
        ["dog", "cat", "0", "0", "4"],
        ["cat", "dog", "0", "3", "0"],
    ]
    titles = [(part.title.split(":")[0], part.is_folded) for part in section.parts]
    assert titles == [("untuned", False), ("tuned", False), ("third", True)]
    untuned, tuned = section.parts[:2]
    assert untuned.table is not None and tuned.table is not None
    assert untuned.table.heads[1:] == ("cat", "dog", "(other)") and tuned.table.heads[1:] == (
        "cat",
        "dog",
        "(none read)",
    )
    assert table_of(untuned) == [["cat", "3", "0", "0"], ["dog", "0", "0", "4"]]
    assert table_of(tuned) == [["cat", "0", "3", "0"], ["dog", "0", "0", "4"]]
    assert untuned.table.heat == ((None, 1, 0, 0), (None, 0, 0, 1))


def test_many_classes_have_no_matrix_and_free_text_no_confusions() -> None:
    many: list[Given] = [(f"class {i % 40}", ("class 1",), {}) for i in range(160)]
    section = sections(many)["Confusions"]
    assert len(table_of(section)) == 10 and not section.parts and "10 of 39" in section.sentences[0]
    assert sections([(f"text {i}", ("text",), {}) for i in range(20)]) == {}


def test_where_all_is_right_nothing_is_confused() -> None:
    given: list[Given] = [("yes", ("Yes",), {}), ("no", ("no",), {})] * 5
    assert "Confusions" not in sections(given)
