"""The untuned model is asked once: other runs find its answers, and no answer of anything else."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmft.config.tool_schema import CacheToolConfig
from vlmft.evaluation.predict import Answerer, PredictionFile
from vlmft.run import stored_answers
from vlmft.run.stored_answers import StoredAnswers
from vlmft.tools.cache import cache as show

pytestmark = pytest.mark.slow  # whole runs

STORED = ("cache.answers=true", "preflight=false", "evaluation.arms=[untuned,fewshot,tuned]", "evaluation.few_shot.k=1")
ARMS = ("untuned", "fewshot-1", "fewshot-2")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLMFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What answers have been generated for: the names in lines of progress, and for checks alone "answers"."""
    seen, generate = list[str](), Answerer._generated

    def noted(self: Answerer, rows: Any) -> Any:
        seen.extend([self.what] * len(rows))
        return generate(self, rows)

    monkeypatch.setattr(Answerer, "_generated", noted)
    return seen


@pytest.fixture
def run(train_small: Callable[..., Any], tmp_path: Path, cache: Path) -> Callable[..., Any]:
    def trained(name: str, *overrides: str) -> Any:
        return train_small(tmp_path / name, *STORED, "evaluation.few_shot.draws=2", *overrides)

    return trained


def counts(generated: list[str]) -> dict[str, int]:
    found = {name.removeprefix("answers of "): generated.count(name) for name in generated if " of " in name}
    generated.clear()
    return found


def test_a_run_of_another_adapter_asks_the_untuned_model_nothing(
    run: Callable[..., Any], generated: list[str], evaluate_small: Any
) -> None:
    first = run("first")
    assert counts(generated) == {"untuned": 24, "fewshot-1": 24, "fewshot-2": 24, "tuned": 24}
    second = run("second", "train.lr=1e-3", "model.lora.r=4", "trainer.max_epochs=1")
    assert counts(generated) == {"tuned": 24}
    assert all(second.predictions(arm) == first.predictions(arm) for arm in ARMS)
    assert second.predictions("tuned") != first.predictions("tuned")
    notes = [note for note in second.summary["notes"] if note.endswith("stored already")]
    assert notes == [f"{arm}: 24 of 24 answers were stored already" for arm in ARMS]
    arms = {arm["arm"]: arm for arm in second.summary["arms"]}
    assert arms["untuned"]["answers_per_second"] is None and arms["tuned"]["answers_per_second"] > 0
    whole = run("whole", "train.lr=1e-3", "model.lora.r=4", "trainer.max_epochs=1", "cache.answers=false")
    assert counts(generated) == {"untuned": 24, "fewshot-1": 24, "fewshot-2": 24, "tuned": 24}
    assert all(whole.predictions(arm) == second.predictions(arm) for arm in (*ARMS, "tuned"))
    evaluate_small(f"run={first.folder}", "cache.answers=true", "evaluation.arms=[untuned,tuned]")
    assert counts(generated) == {"tuned": 24}
    evaluate_small(f"run={first.folder}", "cache.answers=true", "evaluation.arms=[untuned]", "fresh=true")
    assert counts(generated) == {"untuned": 24}


@pytest.mark.parametrize(
    "change",
    [
        "data.limit_test=20",  # other batches
        "data.max_new_tokens=3",
        "evaluation.rows_per_batch=4",
        "model.quantization.mode=none",
        "model.quantization.double_quant=false",
        "model.attention=eager",
    ],
)
def test_whatever_decides_an_answer_is_in_the_key(change: str, run: Callable[..., Any], generated: list[str]) -> None:
    arms = "evaluation.arms=[untuned,tuned]"
    run("first", arms)
    counts(generated)
    run("second", arms, change)
    assert counts(generated)["untuned"] in (20, 24)


def test_tokens_that_texts_may_hold_are_in_the_key(
    make_built: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stand in an answer's text, or are left out of it."""
    _, built = make_built()
    file, marks = PredictionFile(tmp_path / "none.jsonl", {"arm": "untuned"}), []
    for allowed in ((), (7,), ()):
        monkeypatch.setattr(built.family, "allowed_ids", frozenset(allowed))
        marks.append(StoredAnswers(built, [], file).mark)
    assert marks[0] == marks[2] != marks[1]


def test_other_code_and_other_libraries_are_another_key(
    run: Callable[..., Any], generated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("code_of", lambda family: "other code"),
        ("machine", lambda device: {"versions": ["torch 9"]}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(stored_answers, name, value)
            run(name, "evaluation.arms=[untuned,tuned]")
        assert counts(generated) == {"untuned": 24, "tuned": 24}


def test_a_damaged_store_is_an_empty_one(run: Callable[..., Any], generated: list[str], cache: Path) -> None:
    first = run("first", "evaluation.arms=[untuned,tuned]")
    counts(generated)
    (file,) = cache.glob("kept-*.sqlite")
    with sqlite3.connect(file) as connection:
        changed = connection.execute("UPDATE kept SET value = x'00' WHERE CAST(key AS TEXT) LIKE 'answers-%'")
        assert changed.rowcount == 1
    again = run("again", "evaluation.arms=[untuned,tuned]")
    assert counts(generated) == {"untuned": 24, "tuned": 24}
    assert again.predictions("untuned") == first.predictions("untuned")


def test_the_tool_says_what_there_is_and_empties_it(
    run: Callable[..., Any], generated: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("first", "evaluation.few_shot.draws=1")
    counts(generated)
    capsys.readouterr()
    show(CacheToolConfig())
    assert "answers of untuned models, 2 arms" in capsys.readouterr().out
    show(CacheToolConfig(clear=True))
    assert "and 2 arms' answers of untuned models" in capsys.readouterr().out
    show(CacheToolConfig())
    assert "answers" not in capsys.readouterr().out
    run("second", "evaluation.few_shot.draws=1")
    assert counts(generated) == {"untuned": 24, "fewshot-1": 24, "tuned": 24}
