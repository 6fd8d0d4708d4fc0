"""JSON field by field: against pairs worked out by hand, and alignment against all orders."""

from __future__ import annotations

import itertools
import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmft.metrics import beside, corpus_metric_named, metric_named
from vlmft.metrics.json_fields import DEEPEST, Totals, compared, field_totals, json_fields
from vlmft.metrics.json_values import kind_of, similarity

PAIRS = yaml.safe_load((Path(__file__).parent / "json_pairs.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["what"])
def test_pairs_worked_out_by_hand(pair: dict[str, Any]) -> None:
    fields, parsed = compared(pair["answer"], [pair["gold"]])
    totals = Totals().add(fields)
    assert (totals.gold, totals.answered) == (pair["n_gold"], pair["n_answered"])
    assert (totals.missing, totals.invented) == (pair["missing"], pair["invented"])
    assert totals.similar == pytest.approx(float(Fraction(pair["similar"])))
    assert json_fields(pair["answer"], [pair["gold"]]).value == pytest.approx(float(Fraction(pair["f1"])))
    assert (parsed is None) == (pair["what"] == "no JSON")


def test_their_totals_by_hand() -> None:
    """37 values in the references, 33 in the answers, 24 and 6/7 of them agree."""
    table = field_totals([(pair["answer"], [pair["gold"]]) for pair in PAIRS])
    assert len(PAIRS) == 20
    similar = Fraction(174, 7)
    assert table.values["f1_micro"] == pytest.approx(float(2 * similar / 70))
    assert table.values["precision"] == pytest.approx(float(similar / 33))
    assert table.values["recall"] == pytest.approx(float(similar / 37))
    assert table.values["f1_right"] == pytest.approx(48 / 70)
    assert table.values["missing"] == pytest.approx(9 / 37)
    assert table.values["invented"] == pytest.approx(5 / 33)
    assert table.values["valid_json"] == 19 / 20
    by_name = {line["field"]: line for line in table.lists["fields"]}
    assert by_name["l.p"]["gold"] == 8 and by_name["l.p"]["missing"] == 2 and by_name["l.p"]["invented"] == 1
    assert by_name["d"]["f1"] == 0.5
    assert "menu[0].nm" not in by_name and by_name["menu.nm"]["f1"] == 1
    scores = [line["f1"] for line in table.lists["fields"]]
    assert scores == sorted(scores)
    assert table.values["f1_macro"] == pytest.approx(sum(scores) / len(scores))


def _records(draw: random.Random) -> list[dict[str, Any]]:
    return [{"n": draw.choice("ab"), "p": draw.randint(1, 3)} for _ in range(draw.randint(1, 4))]


def test_lists_are_aligned_as_the_best_of_all_orders() -> None:
    draw = random.Random(0)
    for _ in range(150):
        gold, answer = (
            [{"n": draw.choice("ab"), "p": draw.randint(1, 3)} for _ in range(draw.randint(1, 4))] for _ in "12"
        )
        wide = max(len(gold), len(answer))
        padded = [*answer, *[{}] * (wide - len(answer))]
        most = max(
            sum(one[key] == other.get(key) for one, other in zip(gold, order, strict=False) for key in "np")
            for order in itertools.permutations(padded, wide)
        )
        fields, _ = compared(json.dumps(answer), [json.dumps(gold)])
        assert Totals().add(fields).similar == most


def test_equally_good_partners_keep_their_order() -> None:
    fields, _ = compared('[{"n":"x"},{"n":"y"}]', ['[{"n":"a"},{"n":"b"}]'])
    assert [(field.place, field.gold, field.answer) for field in fields] == [("[0].n", "a", "x"), ("[1].n", "b", "y")]


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("1,234.50", 1234.5, True),
        ("1.234,50", "1234.50", True),
        ("$9.00", "9", True),
        ("$9.00", "€9.00", False),
        ("RM 9.00", "9.00", True),
        ("45.500", "45500", False),  # 45.5 unless it is said to be Indonesian
        ("007", "7", False),  # a code
        ("5", "5.01", False),
        (True, "true", True),
        (True, 1, False),
        ("Tea", "TEA", True),
        ("12/31/2018", "31.12.2018", True),
        ("2 Jan 2019", "02/01/2019", True),
        ("03/04/2018", "2018-04-03", True),
        ("03/04/2018", "2018-03-04", True),
        ("2018-13-45", "2018-13-46", False),
    ],
)
def test_values(gold: object, answer: object, same: bool) -> None:
    assert (similarity(gold, answer) == 1) == same


def test_kinds() -> None:
    kinds = {"5": "number", "007": "text", "2018-12-25": "date", "9" * 16: "text", "B12": "text", "": "text"}
    assert {text: kind_of(text) for text in kinds} == kinds
    assert kind_of(False) == "truth value"
    assert kind_of(5) == "number"


def test_the_best_reference_counts() -> None:
    assert json_fields('{"a":2}', ['{"a":1}', '{"a":2}']).value == 1


def test_what_no_metric_can_use() -> None:
    with pytest.raises(ValueError, match="Expected JSON as reference"):
        json_fields("{}", ["red"])
    with pytest.raises(ValueError, match="at least one reference"):
        json_fields("{}", [])


@pytest.mark.parametrize(
    "prediction", ["[" * 100_000, "[" * (DEEPEST + 5) + "]" * (DEEPEST + 5), "", "{'a': 1}", "NaN"]
)
def test_what_is_no_json_is_not_parsed(prediction: str) -> None:
    assert json_fields(prediction, ['{"a":1}']) == metric_named("json_fields")(prediction, ['{"a":1}'])
    assert json_fields(prediction, ['{"a":1}']).parsed is None


def test_an_empty_reference_is_met_by_an_empty_answer() -> None:
    assert json_fields("{}", ["{}"]).value == 1
    assert json_fields('{"a":1}', ["{}"]).value == 0


def test_it_stands_beside_its_totals() -> None:
    found = beside("json_fields", [('{"a":1}', ['{"a":1,"b":2}'])])
    assert found["field_totals/aligned-values-anls@1: missing"] == 0.5
    assert corpus_metric_named("field_totals") is field_totals
