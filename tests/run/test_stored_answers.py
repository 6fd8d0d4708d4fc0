"""The untuned model is asked once: other runs find its answers, and no answer of anything else."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.tool_schema import CacheToolConfig
from vlmft.evaluation.predict import Answerer
from vlmft.models import load as weights
from vlmft.run import stored_answers
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


ASKED = (
    "model=tiny_qwen2vl", "data=shapes", "data.limit_train=32", "data.limit_test=10", "evaluation.rows_per_batch=4",
    "evaluation.canary_rows=0", "evaluation.arms=[untuned]", "cache.answers=true", "trainer.threads=1",
)  # fmt: skip


@pytest.fixture
def ask(evaluate_small: Any, tmp_path: Path, cache: Path) -> Callable[..., bytes]:
    """ask("folder", "key=value", ...): the untuned model's predictions, with the answers of other folders."""

    def asked(folder: str, *overrides: str) -> bytes:
        found = evaluate_small(*ASKED, f"output_root={tmp_path / folder}", *overrides)
        return bytes(found.predictions("untuned"))

    return asked


@pytest.mark.parametrize(
    "change",
    [
        "data.limit_test=9",  # other batches
        "data.max_new_tokens=3",
        "evaluation.rows_per_batch=5",
        "model.quantization.mode=none",
        "model.quantization.double_quant=false",
        "model.attention=eager",
        "trainer.threads=2",
    ],
)
def test_whatever_decides_an_answer_is_in_the_key(change: str, ask: Callable[..., bytes], generated: list[str]) -> None:
    first = ask("first")
    assert counts(generated) == {"untuned": 10}
    ask("second", change)
    assert counts(generated)["untuned"] in (9, 10)
    assert ask("third") == first and counts(generated) == {}, "what was stored first is still there"


def test_the_files_of_a_model_are_in_the_key(ask: Callable[..., bytes], generated: list[str], tmp_path: Path) -> None:
    """The defect: two models of random weights, of one folder at two times, have one name."""
    shutil.copytree(Path(weights.__file__).parent / "weights" / "tiny_qwen2vl", tmp_path / "model")
    model = ("model=auto", f"model.path={tmp_path / 'model'}", "model.init=random")
    first = ask("first", *model)
    assert ask("second", *model) == first and counts(generated) == {"untuned": 10}
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["num_hidden_layers"] = 1
    config["text_config"]["layer_types"] = ["full_attention"]
    file.write_text(json.dumps(config))
    assert ask("third", *model) != first and counts(generated) == {"untuned": 10}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CODE", "other"),
        ("PACKAGES", ["peft 9"]),
        ("machine", lambda device: {"versions": ["torch 9"]}),
    ],
)
def test_other_code_and_other_libraries_are_another_key(
    name: str, value: Any, ask: Callable[..., bytes], generated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stored_answers, name, value)
        ask("first")
    ask("second")
    assert counts(generated) == {"untuned": 20}


def test_tokens_that_texts_may_hold_are_in_the_key(
    make_built: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stand in an answer's text, or are left out of it."""
    _, built = make_built()
    said = []
    for allowed in ((), (7,), ()):
        monkeypatch.setattr(built.family, "allowed_ids", frozenset(allowed))
        said.append(stored_answers.bits_of(built))
    assert said[0] == said[2] != said[1]


def test_answers_that_another_process_began_are_not_stored(ask: Callable[..., bytes], generated: list[str]) -> None:
    """The defect: the last two of six rows, answered in a batch of two, stored as those of a list of ten."""
    ask("begun", "data.limit_test=6")
    ask("begun")
    assert counts(generated)["untuned"] >= 6 + 4
    ask("other")
    assert counts(generated) == {"untuned": 10}


def test_batches_by_length_keep_their_order(ask: Callable[..., bytes], generated: list[str]) -> None:
    by_length = ("evaluation.tokens_per_batch=400",)
    first = ask("first", *by_length)
    assert ask("second", *by_length) == first and counts(generated) == {"untuned": 10}


def test_answers_that_are_not_trusted_are_gone_at_once(
    ask: Callable[..., bytes], generated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an evaluation with fresh=true that is interrupted in its first batch."""
    ask("first")
    counts(generated)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Answerer, "_generated", lambda self, rows: (_ for _ in ()).throw(KeyboardInterrupt))
        ask("first", "fresh=true")
    ask("first")
    assert counts(generated) == {"untuned": 10}


def test_a_row_that_cannot_be_read_is_refused_as_ever(
    ask: Callable[..., bytes], generated: list[str], tmp_path: Path
) -> None:
    for number in range(8):
        PIL.Image.new("RGB", (40, 30), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
    broken = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(broken[: len(broken) // 2])
    rows = [{"image": f"{n}.png", "question": "Which?", "answer": "red", "split": "test"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("data=columns", f"data.path={tmp_path / 'rows.jsonl'}", "data.on_bad_row=skip", "data.bad_row_ceiling=0.5")
    first = ask("first", *data, "data.limit_train=null", "data.limit_test=null")
    assert first.count(b"\n") == 7 and counts(generated) == {"untuned": 7}
    assert ask("second", *data, "data.limit_train=null", "data.limit_test=null") == first


def test_a_damaged_store_is_an_empty_one(ask: Callable[..., bytes], generated: list[str], cache: Path) -> None:
    first = ask("first")
    (file,) = cache.glob("kept-*.sqlite")
    with sqlite3.connect(file) as connection:
        changed = connection.execute("UPDATE kept SET value = x'00' WHERE CAST(key AS TEXT) LIKE 'answers-%'")
        assert changed.rowcount == 1
    assert ask("again") == first and counts(generated) == {"untuned": 20}


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
