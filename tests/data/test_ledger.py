"""Every row that is not used is named once, and too many of them stop the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlmft.config.schema import OnBadRow
from vlmft.data.ledger import FIRST_LOOKS, Ledger
from vlmft.sample import BadRow, BadRowError

RAISE, SKIP = OnBadRow["raise"], OnBadRow["skip"]


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_raise_names_the_row_and_writes_it_first(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "bad.jsonl", RAISE, 0.5)
    with pytest.raises(BadRowError, match=r"row r/7: no image.*data\.on_bad_row=skip"):
        ledger.refuse(BadRow("r/7", "no image"))
    assert lines(tmp_path / "bad.jsonl") == [{"id": "r/7", "reason": "no image"}]


def test_skip_counts_each_row_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "bad.jsonl", SKIP, 1.0)
    for _ in range(3):  # an epoch each
        ledger.refuse(BadRow("a", "дыра"))
        ledger.refuse(BadRow("b", "torn"))
    assert ledger.bad == {"a": "дыра", "b": "torn"}
    assert lines(tmp_path / "bad.jsonl") == [{"id": "a", "reason": "дыра"}, {"id": "b", "reason": "torn"}]


def test_ceiling_counts_rows_and_not_looks() -> None:
    ledger = Ledger(None, SKIP, 0.01)
    for _ in range(5):
        for number in range(1000):
            ledger.admit(f"good/{number}")
    for number in range(10):
        ledger.refuse(BadRow(f"bad/{number}", "x"))  # 10 of 1,010: just below 1 %
    with pytest.raises(BadRowError, match=r"11 of 1011 rows are bad, more than data\.bad_row_ceiling=0\.01.*bad/0: x"):
        ledger.refuse(BadRow("bad/10", "x"))


def test_first_looks_do_not_stop_a_run_for_one_row() -> None:
    ledger = Ledger(None, SKIP, 0.01)
    allowed = int(0.01 * FIRST_LOOKS)
    for number in range(allowed):
        ledger.refuse(BadRow(str(number), "x"))
    with pytest.raises(BadRowError, match="more than"):
        ledger.refuse(BadRow("one more", "x"))


def test_ceiling_zero_allows_none() -> None:
    with pytest.raises(BadRowError, match="1 of 1 rows"):
        Ledger(None, SKIP, 0.0).refuse(BadRow("a", "x"))


def test_repeated_evaluation_writes_no_row_twice(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    for _ in range(2):
        ledger = Ledger(path, SKIP, 1.0)
        ledger.refuse(BadRow("a", "x"))
        assert ledger.bad == {"a": "x"}  # what this process refused, whatever the file held
    assert lines(path) == [{"id": "a", "reason": "x"}]


def test_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"id": "a", "reason": "x"}\n{"id": "b", "rea')
    ledger = Ledger(path, SKIP, 1.0)
    for name in "ab":
        ledger.refuse(BadRow(name, "x"))
    assert [line["id"] for line in lines(path)] == ["a", "b"]


def test_a_pass_over_all_rows_counts_them_at_once() -> None:
    ledger = Ledger(None, OnBadRow["skip"], 0.01)
    ledger.admit("before")
    ledger.survey(1000, 1000)
    for number in range(10):
        ledger.refuse(BadRow(f"{number}", "why"))
        ledger.admit(f"row {number}")
    assert ledger.seen == set(), "a million ids would fill the memory"
    with pytest.raises(BadRowError, match="11 of 1000 rows are bad"):
        ledger.refuse(BadRow("one too many", "why"))
