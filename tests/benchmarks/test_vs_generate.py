"""What benchmarks/vs_generate.py holds equal; never its times."""

from __future__ import annotations

import pytest

from benchmarks.vs_generate import ARMS, WAYS, Job, ask, different

pytestmark = pytest.mark.slow


def test_all_ways_give_the_same_answers() -> None:
    found = {way: ask(Job(way, "tiny", 4, count=True)) for way in WAYS}
    first = found[WAYS[0]]
    assert {name.split()[0] for name in first.answers} == set(ARMS) and len(first.answers) == 1 + 3 + 1
    assert all(len(by_id) == 4 for by_id in first.answers.values())
    assert first.answers["tuned 1"] != first.answers["untuned 1"], "the adapter must show"
    for asked in found.values():
        assert different(asked.answers, first.answers) == []
        assert asked.flops > 1e9
    assert found[WAYS[3]].flops < found[WAYS[2]].flops, "the checks ask rows again"


def test_a_different_answer_is_named() -> None:
    expected = {"tuned": {"a": "4", "b": "5"}}
    assert different({"tuned": {"a": "4", "b": "6"}}, expected) == ["tuned b: '6' instead of '5'"]
