"""What the prompts of a draw of examples begin with goes through the model once, also where not all examples fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import PIL.Image
import pytest

from vlmft.evaluation.few_shot import few_shot_draws, shared_prefix
from vlmft.evaluation.predict import EncodedQuestions
from vlmft.models.processor_calls import NO_PICTURE, ProcessorCalls
from vlmft.sample import EncodedRow

K = 3


@pytest.fixture
def built(compose: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Any]:
    from vlmft.run.build import build, resolved

    monkeypatch.setenv("VLMFT_CACHE", str(tmp_path / "cache"))  # no feature is stored yet
    settings = ("model=tiny", "model.quantization.mode=none", "data=shapes", "data.limit_train=40", "data.limit_test=6")
    config = resolved(compose(*settings)).config
    found = build(config.model, config.data, config.trainer, seed=0, cache=config.cache)
    assert found.family.cache is not None
    with found.family.cache:
        yield found


def draws_of(built: Any, compose: Callable[..., Any]) -> tuple[Any, Any]:
    """Two draws of examples for all test rows, and who answers."""
    settings = compose("evaluation.arms=[fewshot]").evaluation
    settings.few_shot.k, settings.few_shot.draws = K, 2
    answerer, rows = built.answerer(settings), built.rows("test", settings)
    found = few_shot_draws(built, settings.few_shot, rows.samples, rows)
    assert len(found.draws) == 2 and all(len(draw.ids) == K and len(draw.questions) == 6 for draw in found.draws)
    assert found.notes == [] and [draw.n_checked for draw in found.draws] == [4, 1]
    return found.draws, answerer


def asked(built: Any, draw: Any) -> list[tuple[EncodedRow, int]]:
    """The rows of a draw, each with the number of examples that were dropped."""
    encoded = EncodedQuestions(built.family, draw.questions)
    return [encoded[number] for number in range(len(encoded))]  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize("dropped", [0, 1])
def test_examples_that_fit_are_computed_once(dropped: int, built: Any, compose: Callable[..., Any]) -> None:
    """The defect: rows too long for all examples were each computed whole, and a note said that an answer changed."""
    whole, _ = draws_of(built, compose)
    lengths = [built.family.encode_prompt(q.id, q.prompt).length for draw in whole for q in draw.questions]
    example = lengths[0] // (K + 1)
    assert max(lengths) - min(lengths) < example // 2
    built.family.max_length_tokens = max(lengths) + 1 - dropped * example
    draws, answerer = draws_of(built, compose)
    for draw in draws:
        prefix, is_exact = shared_prefix(built, answerer, draw)
        rows = asked(built, draw)
        assert {n for _, n in rows} == {dropped}
        assert is_exact and prefix is not None and all(prefix.begins(row) for row, _ in rows)
        assert prefix.length > (K - dropped) * example // 2
        encoded = [row for row, _ in rows]
        expected = answerer.answer_rows(encoded)
        assert dataclasses.replace(answerer, prefix=prefix).answer_rows(encoded) == expected


def test_nothing_is_shared_where_no_example_fits(built: Any, compose: Callable[..., Any]) -> None:
    sample = built.rows("test", compose().evaluation).samples[0]
    built.family.max_length_tokens = built.family.encode(sample).length + 8
    draws, answerer = draws_of(built, compose)
    assert [shared_prefix(built, answerer, draw) for draw in draws] == [(None, True)] * 2
    assert {n for _, n in asked(built, draws[0])} == {K}


def test_each_image_is_resized_once(built: Any, compose: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The defect: the images of the examples for every prompt that shows them, until their features were stored."""
    process, seen = ProcessorCalls._process, list[PIL.Image.Image]()

    def counted(self: Any, text: str, pictures: list[PIL.Image.Image]) -> Any:
        seen.extend(picture for picture in pictures if picture is not NO_PICTURE)
        return process(self, text, pictures)

    monkeypatch.setattr(ProcessorCalls, "_process", counted)
    draws, answerer = draws_of(built, compose)
    prefixes = [shared_prefix(built, answerer, draw)[0] for draw in draws]
    of_examples = {image.sha256 for prefix in prefixes for image in prefix.row.images}
    of_checked = {row.images[-1].sha256 for row, _ in asked(built, draws[0])[:4]}
    assert len(of_examples) >= K + 1 and not of_examples & of_checked
    assert len(seen) == len(of_examples) + len(of_checked) + 2, "two rows were not checked, and asked for here"
