"""python evaluate.py: a run again, or an untuned model; the same bytes, or a reason why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmft.config.check import ConfigError
from vlmft.evaluation.arms import pairs_of

ALONE = ("model=tiny_qwen2vl", "data=shapes", "data.limit_test=24", "evaluation.rows_per_batch=8")


@pytest.fixture
def run(trained: Any, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    shutil.copytree(trained.folder, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_again_gives_the_same_bytes(trained: Any, run: Path, evaluate_small: Any) -> None:
    again = evaluate_small(f"run={run}", "evaluation.arms=[untuned,tuned,blank]")
    assert again.folder == run / "evaluations" / "test"
    for arm in ("untuned", "tuned", "blank"):
        assert again.predictions(arm) == trained.predictions(arm)
    ours, theirs = again.summary, trained.summary
    assert ours["comparisons"] == theirs["comparisons"] and ours["adapter_sha256"] == theirs["adapter_sha256"]
    same = [{key: value for key, value in arm.items() if key != "answers_per_second"} for arm in ours["arms"]]
    assert same == [{k: v for k, v in arm.items() if k != "answers_per_second"} for arm in theirs["arms"]]
    assert (again.folder / "report.html").is_file() and ours["sentence"] == theirs["sentence"]


@pytest.mark.slow
def test_stored_answers_are_used_and_said_so(run: Path, evaluate_small: Any) -> None:
    first = evaluate_small(f"run={run}")
    before = first.predictions("tuned")
    assert not [note for note in first.summary["notes"] if "stored" in note]
    second = evaluate_small(f"run={run}")
    assert second.predictions("tuned") == before
    notes = second.summary["notes"]
    assert [note for note in notes if "stored" in note] == [
        "untuned: 24 of 24 answers were stored already",
        "tuned: 24 of 24 answers were stored already",
    ]
    assert [arm["answers_per_second"] for arm in second.summary["arms"]] == [None, None]  # and no made-up speed
    third = evaluate_small(f"run={run}", "fresh=true")
    assert not [note for note in third.summary["notes"] if "stored" in note]
    assert third.predictions("tuned") == before


@pytest.mark.slow
def test_partly_stored_answers_give_no_speed(run: Path, evaluate_small: Any) -> None:
    first = evaluate_small(f"run={run}")
    whole = first.predictions("tuned")
    path = first.folder / "predictions" / "tuned.jsonl"
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:20]))
    second = evaluate_small(f"run={run}")
    assert second.predictions("tuned") == whole
    assert "tuned: 20 of 24 answers were stored already" in second.summary["notes"]
    assert second.summary["arms"][1]["answers_per_second"] is None  # 24 answers in the time of 4 would be no speed


@pytest.mark.slow
def test_answers_of_another_adapter_are_refused(
    run: Path, evaluate_small: Any, train_small: Any, tmp_path: Path
) -> None:
    evaluate_small(f"run={run}")
    other = train_small(tmp_path, "seed=3", "test=false", "preflight=false")
    shutil.copy(other.folder / "adapter" / "adapter_model.safetensors", run / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"tuned\.jsonl: Expected answers with adapter_sha256=.*fresh=true"):
        evaluate_small(f"run={run}")
    evaluate_small(f"run={run}", "fresh=true")


def test_another_fingerprint_is_an_error_unless_asked_for(run: Path, evaluate_small: Any) -> None:
    path = run / "adapter" / "fingerprint.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "image_processor": "0" * 16}))
    with pytest.raises(ConfigError, match="trained under another image_processor than this evaluation has"):
        evaluate_small(f"run={run}")
    allowed = evaluate_small(f"run={run}", "allow_fingerprint_mismatch=true")
    assert "run: the adapter was trained under another image_processor" in allowed.summary["notes"]
    assert "note: run: the adapter was trained under another image_processor" in allowed.output
    path.unlink()
    with pytest.raises(ConfigError, match=r"another base, .*template"):
        evaluate_small(f"run={run}")


def test_another_seed_of_random_weights_is_another_base(run: Path, evaluate_small: Any) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("\nseed: 0", "\nseed: 1"))
    assert text.count("\nseed: 0") == 1
    with pytest.raises(ConfigError, match="another base than"):
        evaluate_small(f"run={run}")


@pytest.mark.slow
def test_other_data_options(run: Path, evaluate_small: Any) -> None:
    same = evaluate_small(f"run={run}", "evaluation.arms=[tuned]")
    other = evaluate_small(f"run={run}", "evaluation.arms=[tuned]", "data_options.condition=B")
    assert other.folder == run / "evaluations" / "test-condition=B"
    ids = [json.loads(line)["id"] for line in other.predictions("tuned").splitlines()]
    assert len(ids) == 24 and all(row_id.startswith("shapes/B/test/") for row_id in ids)
    assert other.predictions("tuned") != same.predictions("tuned")
    with pytest.raises(ConfigError, match=r"data\.options\.conditoin.*did you mean 'condition'"):
        evaluate_small(f"run={run}", "data_options.conditoin=B")


@pytest.mark.slow
def test_another_split(run: Path, evaluate_small: Any) -> None:
    found = evaluate_small(f"run={run}", "split=val", "evaluation.arms=[tuned]")
    assert found.folder.name == "val" and found.summary["split"] == "val"
    assert found.summary["arms"][0]["n"] == 16 and found.summary["rows"]["val"] == 16


def test_one_arm_makes_no_claim_about_two(run: Path, evaluate_small: Any) -> None:
    found = evaluate_small(f"run={run}", "evaluation.arms=[tuned]")
    assert found.summary["comparisons"] == []
    assert found.summary["sentence"].startswith("tiny_qwen2vl (tuned) reaches ")


@pytest.mark.slow
@pytest.mark.parametrize("arms", ["[tuned,untuned]", "[blank,tuned,untuned]"])
def test_the_order_of_arms_turns_no_result_round(arms: str, run: Path, trained: Any, evaluate_small: Any) -> None:
    found = evaluate_small(f"run={run}", f"evaluation.arms={arms}").summary
    assert [arm["arm"] for arm in found["arms"]] == arms.strip("[]").split(",")
    (ours,) = [pair for pair in found["comparisons"] if pair["second"] == "tuned"]
    (theirs,) = [pair for pair in trained.summary["comparisons"] if pair["second"] == "tuned"]
    assert ours == theirs and found["sentence"] == trained.summary["sentence"]


@pytest.mark.slow
def test_a_comparison_with_blank_is_no_headline(run: Path, evaluate_small: Any) -> None:
    found = evaluate_small(f"run={run}", "evaluation.arms=[tuned,blank]").summary
    assert [(pair["first"], pair["second"]) for pair in found["comparisons"]] == [("tuned", "blank")]
    assert found["sentence"].startswith("tiny_qwen2vl (tuned) reaches ")  # not "Tuning moved it from tuned to blank"


def test_pairs() -> None:
    assert pairs_of(["untuned", "tuned", "blank"]) == [("untuned", "tuned"), ("tuned", "blank")]
    assert pairs_of(["blank", "tuned", "untuned"]) == [("untuned", "tuned"), ("tuned", "blank")]
    assert pairs_of(["untuned", "blank"]) == [("untuned", "blank")]
    assert pairs_of(["tuned"]) == pairs_of(["untuned"]) == pairs_of(["blank"]) == []


def test_the_untuned_model_alone(trained: Any, evaluate_small: Any, tmp_path: Path) -> None:
    found = evaluate_small(*ALONE, f"output_root={tmp_path}")
    assert found.folder == tmp_path / "tiny_qwen2vl-shapes" / "untuned-test"
    assert [arm["arm"] for arm in found.summary["arms"]] == ["untuned"]
    assert found.summary["adapter_sha256"] == "none" and found.summary["leak_canary"]["ok"]
    assert found.predictions("untuned") == trained.predictions("untuned")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("model.quantization.mode=none", "numerics="),
        ("model.quantization.double_quant=false", "numerics="),
        ("model.attention=eager", "numerics="),
        ("seed=1", "fingerprint_sha256="),
        ("data.max_new_tokens=2", "generation="),
        ("evaluation.rows_per_batch=7", "generation="),
    ],
)
def test_answers_of_another_model_are_not_taken_for_this_one_s(
    change: str, named: str, evaluate_small: Any, tmp_path: Path
) -> None:
    # The folder is the same, so that only the key of the stored answers tells them apart.
    settings = ("model=tiny_qwen2vl", "data=shapes", "data.options.test_rows=8", f"output_root={tmp_path}")
    evaluate_small(*settings)
    with pytest.raises(ConfigError, match=rf"Expected answers with {named}.*fresh=true"):
        evaluate_small(*settings, change)


def test_other_questions_under_the_same_ids_are_refused(evaluate_small: Any, tmp_path: Path) -> None:
    settings = ("model=tiny_qwen2vl", "data=shapes", "data.options.test_rows=8", f"output_root={tmp_path}")
    evaluate_small(*settings)
    with pytest.raises(ConfigError, match="was asked another question"):
        evaluate_small(*settings, "data.options.seed=5")


def test_json_output_is_the_summary_and_nothing_else(run: Path, evaluate_small: Any) -> None:
    found = evaluate_small(f"run={run}", "json=true", "evaluation.arms=[tuned]")
    assert json.loads(found.output) == found.summary


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run=/nowhere",), "run: there is no folder '/nowhere'"),
        ((), "run: Expected run=<run folder>"),
        (("model=tiny_qwen2vl",), "run: Expected run=<run folder>"),
        (("run=x", "model=tiny_qwen2vl", "data=shapes"), "run: Expected run= without model="),
    ],
)
def test_what_cannot_be_evaluated(
    arguments: tuple[str, ...], sentence: str, evaluate_small: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        evaluate_small(*arguments)


def test_a_run_whose_training_did_not_end(run: Path, evaluate_small: Any) -> None:
    shutil.rmtree(run / "adapter")
    with pytest.raises(ConfigError, match="run: "):
        evaluate_small(f"run={run}")


def test_an_empty_split_is_reported(evaluate_small: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split: test has no rows"):
        evaluate_small("model=tiny_qwen2vl", "data=shapes", "data.options.test_rows=0", f"output_root={tmp_path}")
