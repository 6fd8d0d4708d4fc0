"""What hangs together in a test set, and what a run prints of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from rich.console import Console

from vlmft.evaluation.compare import adjusted, compare
from vlmft.evaluation.evaluate import Evaluation
from vlmft.evaluation.rows import repeated_rows, units_of
from vlmft.evaluation.score import ScoredRow, score_answers, summarise
from vlmft.metrics import metric_named
from vlmft.report import console as printed
from vlmft.report.console import headline, print_evaluation, say
from vlmft.sample import Answer, Image, Message, Prompt, Sample


def sample(name: str, shades: Sequence[int], question: str = "How many?", **more: str) -> Sample:
    images = [Image(lambda shade=shade: np.full((2, 2, 3), shade, np.uint8), f"image {shade}") for shade in shades]  # type: ignore[misc]
    tags = {"group": more["tag"]} if "tag" in more else {}
    prompt = Prompt((Message("user", (*images, question)),))
    return Sample(name, prompt, "3", ("3",), more.get("conversation", ""), tags)


def together(samples: Sequence[Sample]) -> tuple[set[frozenset[str]], str]:
    groups, kind = units_of(samples)
    return {frozenset(row for row in groups if groups[row] == name) for name in groups.values()}, kind


def test_rows_of_one_image_are_one_unit() -> None:
    rows = [sample("a", [1]), sample("b", [2]), sample("c", [1], "What colour?")]
    assert together(rows) == ({frozenset("ac"), frozenset("b")}, "images")


def test_units_are_chains() -> None:
    """The defect: the set of its images named a row's group, and rows with one in common passed for independent; so
    did rows of one patient, who is a tag."""
    rows = [sample("a", [1, 2]), sample("b", [2, 3]), sample("c", [3]), sample("d", [4])]
    assert len({row.group for row in rows}) == 4
    assert together(rows) == ({frozenset("abc"), frozenset("d")}, "groups")
    patients = [sample("a", [1], tag="x"), sample("b", [2], tag="x"), sample("c", [3], tag="y")]
    assert together(patients) == ({frozenset("ab"), frozenset("c")}, "groups")
    turns = [
        sample("a", [], "Hello", conversation="1"),
        sample("b", [], "And?", conversation="1"),
        sample("c", [], "Hi"),
    ]
    assert together(turns) == ({frozenset("ab"), frozenset("c")}, "groups")


def test_copies_are_named() -> None:
    rows = [sample(f"{shade} {copy}", [shade]) for shade in range(6) for copy in range(20)]
    (sentence,) = repeated_rows(rows)
    assert sentence.startswith(
        "114 of 120 rows repeat another one (the same prompt, images and references): 6 different"
    )
    assert repeated_rows([sample("a", [1]), sample("b", [1], "What colour?")]) == []


def evaluation(texts: Mapping[str, Sequence[str]], n_images: int) -> Evaluation:
    """Arms whose answers are these; the right one is 3."""
    rows = [sample(str(i), [i % n_images], f"How many {i}?") for i in range(len(next(iter(texts.values()))))]
    references = {row.id: row.references for row in rows}
    found = Evaluation("test", rows)
    found.groups, kind = units_of(rows)
    scored: dict[str, dict[str, ScoredRow]] = {}
    for arm, said in texts.items():
        answers = {row.id: Answer(text, "stop", 1) for row, text in zip(rows, said, strict=True)}
        scored[arm] = score_answers(answers, references, metric_named("count_accuracy"))
        found.arms[arm] = summarise(arm, scored[arm], references, "count_accuracy", groups=found.groups, kind=kind)
    values = {arm: {i: row.score.value for i, row in own.items()} for arm, own in scored.items()}
    pairs = [("untuned", arm) for arm in texts if arm != "untuned"]
    found.comparisons = adjusted([compare(a, values[a], b, values[b], found.groups, kind) for a, b in pairs])
    return found


def test_one_comparison_is_printed_and_the_others_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluation({"untuned": ["4"] * 40, "tuned": ["3"] * 40, "later": ["4"] * 40}, 40)
    found.cautions = ["something first"]
    print_evaluation(found)
    shown = capsys.readouterr().out
    assert shown.startswith("caution: something first") and shown.count(" -> ") == 1
    assert "untuned -> tuned: +100.0 points" in shown and "40 rows fixed, 0 broken, n = 40: better" in shown
    assert "1 more comparison in the report, or here by evaluation.verbose=true" in shown
    print_evaluation(found, verbose=True)
    shown = capsys.readouterr().out
    assert shown.count(" -> ") == 2 and "untuned -> later: +0.0 points" in shown and "evaluation.verbose" not in shown


def test_no_printed_number_contradicts_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """20 questions on each of 6 images, and one image where tuning changed all answers."""
    tuned = ["3" if i % 6 == 0 else "4" for i in range(120)]
    found = evaluation({"untuned": ["4"] * 120, "tuned": tuned}, 6)
    print_evaluation(found)
    shown = capsys.readouterr().out
    assert "count_accuracy on 120 rows, 6 images" in shown
    assert "intervals: Wilson by group, for rows that share images are no independent evidence" in shown
    assert "p = 1" in shown and "n = 120 rows, 6 images: not distinguishable" in shown
    said = headline("a", "b", found.arms, found.comparisons)
    assert "p = 1, n = 120 rows, 6 images): not distinguishable: this test set cannot tell the two apart." in said


def test_holm_is_named_where_it_decides(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"untuned": ["4"] * 40, "tuned": ["3"] * 6 + ["4"] * 34, "same": ["4"] * 40}
    found = evaluation(texts, 40)
    print_evaluation(found)
    shown = capsys.readouterr().out
    assert "p = 0.031 (Holm for 2: 0.062)" in shown
    assert "n = 40: not distinguishable as one of 2 comparisons" in shown


def test_on_a_terminal_lines_break_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "  chosen for you: train.lr=0.002, device=cpu, trainer.precision=32-true"
    say(text)
    monkeypatch.setattr(printed, "console", lambda: Console(width=40, force_terminal=True))
    say(text, "short")
    whole, *broken = capsys.readouterr().out.splitlines()
    assert whole == text and all(len(line) <= 40 for line in broken)
    assert broken[:2] == ["  chosen for you: train.lr=0.002,", "    device=cpu,"] and broken[-1] == "short"
