from __future__ import annotations

import pytest

from vlmft.metrics.exact_match import exact_match


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        (" Yes.\n", "yes", True),
        ("New  York", "new york", True),
        ("U.S.", "U.S", True),
        ("Чебурашка", "чебурашка", True),
        ("бои\u0306", "бой", True),  # decomposed
        ("STRASSE", "straße", True),
        ("1,200", "1200", False),
        ("four", "4", False),
        ("14%", "14", False),
        ("The blue", "Blue", False),
        ("Украина", "Україна", False),
        ("", "", False),  # no answer is never right
    ],
)
def test_exact_match(prediction: str, reference: str, right: bool) -> None:
    assert exact_match(prediction, ["something else", reference]).value == right


def test_parsed_and_references() -> None:
    assert exact_match(" A  Cat. ", ["x"]).parsed == "a cat"
    assert exact_match(" . ", ["x"]).parsed is None
    with pytest.raises(ValueError, match="at least one reference"):
        exact_match("7", [])
