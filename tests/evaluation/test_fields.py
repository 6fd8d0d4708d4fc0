"""Scores by field: the same tests as the whole score, on each field's own rows, the worst field first."""

from __future__ import annotations

import json

import pytest

from vlmft.evaluation.compare import compare
from vlmft.evaluation.fields import ByField, by_field
from vlmft.metrics.json_schema import schema_of
from vlmft.report.fields import field_lines, fields_section, narrow_scores

N = 40


def rows_of(price: str, paid: bool) -> dict[str, str]:
    """Row id -> an answer, right but for what is said here; every second row has no `paid`."""
    found = {}
    for number in range(N):
        value = {"lines": [{"item": "tea", "price": number % 5}], "total": number % 5}
        value = {**value, **({"paid": "cash"} if number % 2 else {})}
        answer = json.loads(json.dumps(value))
        if price == "wrong":
            answer["lines"][0]["price"] = 9
        if not paid:
            answer.pop("paid", None)
        found[f"row/{number:02d}"] = json.dumps(answer)
    return found


REFERENCES = {row: (text,) for row, text in rows_of("right", paid=True).items()}
TEXTS = {"untuned": rows_of("wrong", paid=False), "tuned": rows_of("right", paid=False)}
GROUPS = {row: row for row in REFERENCES}


def found(texts: dict[str, dict[str, str]] = TEXTS, pair: tuple[str, str] | None = ("untuned", "tuned")) -> ByField:
    schema = schema_of([text for (text,) in REFERENCES.values()])
    return by_field(texts, REFERENCES, GROUPS, "groups", pair, schema)


def test_each_field_on_its_own_rows_the_worst_first() -> None:
    fields = {field.name: field for field in found().fields}
    assert [field.name for field in found().fields] == ["paid", "lines.item", "lines.price", "total"]
    assert fields["paid"].n == N / 2
    assert fields["paid"].arms["tuned"].value == 0
    assert fields["paid"].arms["tuned"].totals.missing == N / 2
    assert fields["lines.price"].arms["untuned"].value == 0
    assert fields["lines.price"].arms["tuned"].value == 1
    assert fields["lines.price"].kinds == ("number",)
    assert fields["lines.price"].majority == 1 / 5
    assert fields["lines.item"].majority == 1
    low, high = fields["lines.price"].arms["tuned"].interval
    assert low < 1 == high


def test_the_difference_of_a_field_is_the_paired_test_of_its_rows() -> None:
    field = next(field for field in found().fields if field.name == "lines.price")
    zeros, ones = (dict.fromkeys(REFERENCES, value) for value in (0.0, 1.0))
    alone = compare("untuned", zeros, "tuned", ones, GROUPS)
    assert field.comparison is not None
    assert field.comparison.comparison == alone
    assert field.comparison.p_value == pytest.approx(4 * alone.p_value)  # Holm's, of four fields
    assert field.comparison.verdict == "better"


def test_invented_fields_and_the_schema_are_told() -> None:
    odd = {row: json.dumps({**json.loads(text), "tip": 1}) for row, text in TEXTS["tuned"].items()}
    result = found({"tuned": odd, "broken": dict.fromkeys(odd, "no")}, None)
    assert result.unknown["tuned"] == {"tip": N}
    assert result.whole["tuned"]["valid_schema"] == 0
    assert result.whole["tuned"]["invented"] == pytest.approx(N / (N * 4))
    assert (result.whole["broken"]["valid_json"], result.whole["broken"]["valid_schema"]) == (0, 0)
    assert result.references_fit == 1
    assert all(field.comparison is None for field in result.fields)
    assert found().whole["tuned"]["valid_schema"] == 1
    json.dumps(result.to_dict())
    json.dumps(found().to_dict())


def test_the_report_has_a_line_for_each_field() -> None:
    section = fields_section(found())
    assert section.table is not None
    assert section.table.heads == ("Field", "Kind", "n", "Majority", "untuned", "tuned", "Difference", "p")
    assert [line[0] for line in section.table.lines] == ["paid", "lines.item", "lines.price", "total"]
    assert section.table.lines[2][4].startswith("0.0")
    assert section.table.lines[2][6].startswith("+100.0\n")
    assert section.table.moods == ["plain", "plain", "good", "plain"]
    narrow = narrow_scores(found())
    assert narrow.heads == ("Field", "n", "Majority", "untuned", "tuned", "Difference", "p")
    assert narrow.lines[2][:3] == ["lines.price", "40", "20.0\u00a0%"] and narrow.lines[2][5] == "+100.0"
    whole, counts = section.parts
    assert whole.table is not None and counts.table is not None
    assert whole.table.lines[1][0] == "tuned"
    assert counts.table.lines[1][:7] == ("paid", "tuned", "20", "0", "0", "20", "0")
    odd = {row: json.dumps({**json.loads(text), "tip": 1}) for row, text in TEXTS["tuned"].items()}
    notes = fields_section(found({"tuned": odd}, None)).notes
    assert notes == (f"tuned writes fields that no reference has: tip ({N}).",)


def test_the_fields_of_one_row_side_by_side() -> None:
    reference = '{"l":[{"n":"a","p":1}],"t":1}'
    texts = {"one": '{"l":[{"n":"a","p":2}],"x":3}', "two": "no JSON"}
    lines = field_lines(texts, (reference,))
    assert [(line.place, line.gold) for line in lines] == [("l[0].n", "a"), ("l[0].p", "1"), ("t", "1"), ("x", None)]
    assert [line.answers.get("one") for line in lines] == [("a", 1.0), ("2", 0.0), (None, 0.0), ("3", 0.0)]
    assert [line.answers.get("two") for line in lines] == [(None, 0.0), (None, 0.0), (None, 0.0), None]
