"""Answers that are JSON: equal values, whatever their spelling."""

from __future__ import annotations

import pytest

from vlmft.metrics.exact_match import exact_match
from vlmft.metrics.json_match import is_json_container, json_match


@pytest.mark.parametrize(
    ("gold", "prediction", "right"),
    [
        ('{"a": 1, "b": "x"}', '{"b":"x",\n "a":1.0}', True),
        ('{"a": {"c": [1, 2], "d": null}}', '{"a": {"d": null, "c": [1, 2]}}', True),
        ("[1, 2]", "[2, 1]", False),  # a list has an order
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ('{"a": 1}', '{"a": true}', False),  # equal in Python
        ('{"a": [0]}', '{"a": [false]}', False),
        ('{"a": "1"}', '{"a": 1}', False),
        ('{"a": "Red"}', '{"a": "red"}', False),
        ('{"a": 0.1}', '{"a": 0.10}', True),
        ('{"a": 10000000000000001}', '{"a": 10000000000000000}', False),  # equal as floats
        ('{"a": 1e400}', '{"a": 1e500}', False),  # both infinite as floats
        ('{"a": "é"}', '{"a": "\\u00e9"}', True),
        ('{"a": 1}', '```json\n{"a": 1}\n```', True),
        ('{"a": 1}', 'Here it is: {"a": 1}', False),
        ("4", "4.0", True),
    ],
)
def test_values_are_compared(gold: str, prediction: str, right: bool) -> None:
    assert json_match(prediction, [gold]).value == right


@pytest.mark.parametrize("prediction", ["", "red", "{'a': 1}", '{"a": NaN}', '{"a": 1', "[" * 100_000, "9" * 5000])
def test_what_is_no_json_is_not_parsed(prediction: str) -> None:
    found = json_match(prediction, ['{"a": 1}'])
    assert (found.value, found.parsed) == (0.0, None)


def test_best_of_the_references_and_unusable_ones() -> None:
    assert json_match("[2]", ["[1]", "[2]"]).value == 1
    with pytest.raises(ValueError, match="Expected JSON as reference, got 'red'; score texts with exact_match"):
        json_match("[2]", ["[2]", "red"])
    with pytest.raises(ValueError, match="at least one reference"):
        json_match("[2]", [])


def test_exact_match_is_the_defect() -> None:
    assert exact_match('{"a": 1, "b": 2}', ['{"b": 2, "a": 1}']).value == 0


def test_containers() -> None:
    assert is_json_container(' {"a": 1}') and is_json_container("[]")
    assert not any(map(is_json_container, ["4", '"red"', "red", "[red]", "{'a': 1}", "[" * 100_000]))
