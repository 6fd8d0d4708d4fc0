"""python train.py, from settings to report, on the small random model."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from vlmft.config.check import ConfigError
from vlmft.config.evaluation_schema import EvaluationConfig
from vlmft.data.make import make_dataset
from vlmft.evaluation.predict import Answerer
from vlmft.models.load import Source, load_model, load_source
from vlmft.models.processor import load_processor
from vlmft.run.folder import config_hash, read_run
from vlmft.run.results import Summary
from vlmft.training.checkpoint import read_checkpoint, steps_in


def test_what_lies_in_a_run_folder(trained: Any) -> None:
    files = {path.relative_to(trained.folder).as_posix() for path in trained.folder.rglob("*") if path.is_file()}
    here = {file for file in files if not file.startswith(("adapter/", "checkpoints/"))}
    assert here == {
        "config.yaml",
        "data_card.json",
        "environment.json",
        "metrics.jsonl",
        "report.html",
        "report.json",
        "report.md",
        "splits.json",
        "summary.json",
        "predictions/untuned.jsonl",
        "predictions/tuned.jsonl",
        "predictions/blank.jsonl",
        ".lock",
    }
    adapter = {file.removeprefix("adapter/") for file in files if file.startswith("adapter/")}
    assert {"adapter_config.json", "adapter_model.safetensors", "fingerprint.json", "tokenizer.json"} <= adapter
    assert not [file for file in files if file.endswith((".pt", ".bin", ".pkl", ".ckpt", ".partial"))]
    assert steps_in(trained.folder / "checkpoints") == ["step-0000004", "step-0000008"]
    assert trained.folder.parts[-2:] == ("tiny_qwen2vl-shapes", "standard")


def test_the_report_says_what_its_numbers_hang_on(trained: Any) -> None:
    text = (trained.folder / "report.md").read_text(encoding="utf-8").replace("\\", "")
    prints = json.loads((trained.folder / "adapter" / "fingerprint.json").read_text(encoding="utf-8"))
    assert f"settings: {config_hash(read_run(str(trained.folder)))}" in text
    assert all(f"{name}: {value}" in text for name, value in prints.items())
    assert f"adapter_sha256: {trained.summary['adapter_sha256']}" in text and trained.summary["sentence"] in text
    assert "count_accuracy/last-number-en-ru@1" in text
    assert "p (Holm)" in text and "## Counts" in text and "## By group" not in text  # its one tag is the count


def test_summary_holds_the_documented_keys(trained: Any) -> None:
    assert set(trained.summary) == {field.name for field in dataclasses.fields(Summary)}
    summary = trained.summary
    assert (summary["model"], summary["data"], summary["metric"]) == ("tiny_qwen2vl", "shapes", "count_accuracy")
    assert (summary["steps"], summary["skipped_windows"], summary["bad_rows"]) == (8, 0, 0)
    assert summary["rows"] == {"train": 32, "val": 16, "test": 24}
    assert [arm["arm"] for arm in summary["arms"]] == ["untuned", "tuned", "blank"]
    assert {arm["n"] for arm in summary["arms"]} == {24}
    assert [(c["first"], c["second"]) for c in summary["comparisons"]] == [("untuned", "tuned"), ("tuned", "blank")]
    assert summary["leak_canary"]["ok"] and summary["leak_canary"]["n"] == 4
    assert list(summary["phases"]) == ["load", "splits", "preflight", "train", "evaluate"]
    assert summary["best_checkpoint"] in ("step-0000004", "step-0000008")
    assert summary["sentence"] in trained.output or summary["sentence"].startswith(
        "Tuning tiny_qwen2vl on shapes moved"
    )


def test_what_is_printed(trained: Any) -> None:
    for text in (
        "  chosen for you: train.lr=0.0015, ",
        "trained: 32,768 parameters of the language part (LoRA on 14 layers)",
        "preflight: all 7 checks passed (learns, first loss, gradients, images arrive, longest row, learning rate, ",
        "count_accuracy on 24 rows",
        "always giving the most frequent reference would score",
        "untuned -> tuned:",
        "With 24 rows a difference below",
    ):
        assert text in trained.output
    assert "FAIL" not in trained.output


def test_the_adapter_is_the_best_checkpoint(trained: Any) -> None:
    state = read_checkpoint(trained.folder / "checkpoints" / trained.summary["best_checkpoint"])["state_dict"]
    adapter = load_file(trained.folder / "adapter" / "adapter_model.safetensors")
    assert len(state) == len(adapter) == 28
    for name, value in state.items():
        assert torch.equal(adapter[name.replace(".default.", ".")], value)


def test_a_checkpoint_holds_no_base(trained: Any) -> None:
    adapter = load_file(trained.folder / "adapter" / "adapter_model.safetensors")
    whole = 3 * sum(value.nbytes for value in adapter.values())  # with AdamW's two moments
    for step in steps_in(trained.folder / "checkpoints"):
        assert (trained.folder / "checkpoints" / step / "tensors.safetensors").stat().st_size < 1.2 * whole


def test_the_config_can_be_read_again(trained: Any, compose: Callable[..., Any]) -> None:
    config = read_run(str(trained.folder))
    assert config.train.lr == 0.0015 and config.trainer.max_epochs == 2 and config.train.rows_per_batch == 8
    assert config.evaluation.arms == ["untuned", "tuned", "blank"] and config.trainer.precision == "32-true"
    assert make_dataset(config.data).index()["test"]
    other = dataclasses.replace(config, name="x", output_root="y", logger=compose("logger=wandb").logger)
    assert config_hash(config) == config_hash(other) != config_hash(dataclasses.replace(config, seed=1))


def test_the_same_settings_again_are_refused_in_one_line(trained: Any, train_small: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*")}
    with pytest.raises(ConfigError, match="holds a finished run") as raised:
        train_small(trained.folder.parents[1], "name=standard", "evaluation.arms=[untuned,tuned,blank]")
    assert "\n" not in str(raised.value)
    assert {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*")} == before


def test_a_finished_run_is_not_resumed(trained: Any, train_small: Any) -> None:
    arguments = ("name=standard", "evaluation.arms=[untuned,tuned,blank]", "resume=true")
    again = train_small(trained.folder.parents[1], *arguments)
    assert again.folder == trained.folder and "finished already" in again.output
    with pytest.raises(ConfigError, match="other settings"):
        train_small(trained.folder.parents[1], *arguments, "train.lr=1e-4")


@pytest.mark.slow
def test_the_same_settings_give_the_same_bytes(trained: Any, train_small: Any, tmp_path: Path) -> None:
    again = train_small(tmp_path, "evaluation.arms=[untuned,tuned,blank]")  # another name: a hash of the settings
    assert len(again.folder.name) == 10
    for arm in ("untuned", "tuned", "blank"):
        assert again.predictions(arm) == trained.predictions(arm)
    assert again.summary["adapter_sha256"] == trained.summary["adapter_sha256"]
    file = "adapter/adapter_model.safetensors"
    assert (again.folder / file).read_bytes() == (trained.folder / file).read_bytes()
    other = train_small(tmp_path, "seed=1", "test=false", "preflight=false")
    assert other.summary["adapter_sha256"] != trained.summary["adapter_sha256"]


def test_the_adapter_works_with_peft_alone(trained: Any) -> None:
    config = read_run(str(trained.folder))
    source, hf_config = load_source(config.model)
    base = load_model(config.model, source, hf_config, torch.device("cpu"), config.seed)
    model = PeftModel.from_pretrained(base, str(trained.folder / "adapter"))
    assert model.peft_config["default"].base_model_name_or_path == "package:tiny_qwen2vl"
    processor = load_processor(Source(str(trained.folder / "adapter"), None, "x"), "qwen2_vl")
    assert processor.chat_template and processor.tokenizer("7")["input_ids"]
    fingerprint = json.loads((trained.folder / "adapter" / "fingerprint.json").read_text())
    assert set(fingerprint) >= {"template", "image_processor", "prompt_ids", "base"}
    stored = [json.loads(line) for line in trained.predictions("tuned").splitlines()]
    assert _answers(config, model.get_base_model()) == {row["id"]: row["text"] for row in stored}
    with model.disable_adapter():
        untuned = _answers(config, model.get_base_model())
    assert untuned == {row["id"]: row["text"] for row in map(json.loads, trained.predictions("untuned").splitlines())}


def _answers(config: Any, model: Any) -> dict[str, str]:
    from vlmft.data.datamodule import VLMDataModule
    from vlmft.data.ledger import Ledger
    from vlmft.models.family import make_family

    source, hf_config = load_source(config.model)
    family = make_family(config.model, source, hf_config)
    ledger = Ledger(None, config.data.on_bad_row, 0.0)
    data = VLMDataModule(make_dataset(config.data), config.data, family.encode, ledger, 1, config.seed)
    evaluation: EvaluationConfig = config.evaluation
    answerer = Answerer(family, model, evaluation.rows_per_batch, data.max_new_tokens, ledger.refuse)
    batches = answerer.batches(data.questions(data.ids["test"]), skip=lambda ids: False)
    return {row_id: answer.text for batch in batches for row_id, answer in batch.items()}


def test_arms_differ_where_they_should(trained: Any) -> None:
    rows = {
        arm: [json.loads(line) for line in trained.predictions(arm).splitlines()]
        for arm in ("untuned", "tuned", "blank")
    }
    assert [row["text"] for row in rows["untuned"]] != [row["text"] for row in rows["tuned"]]
    assert [row["id"] for row in rows["untuned"]] == [row["id"] for row in rows["blank"]]
    assert {row["adapter_sha256"] for row in rows["untuned"]} == {"none"}
    assert {row["adapter_sha256"] for row in rows["tuned"] + rows["blank"]} == {trained.summary["adapter_sha256"]}
    assert [row["prompt_sha256"] for row in rows["untuned"]] == [row["prompt_sha256"] for row in rows["tuned"]]
    assert len({tuple(row["image_sha256"]) for row in rows["blank"]}) == 1  # all black, all of one size
    assert len({tuple(row["image_sha256"]) for row in rows["tuned"]}) == 24


@pytest.mark.slow
def test_no_secret_is_written(train_small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", canary)
    monkeypatch.setenv("HF_TOKEN", "hf_" + canary)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train_small(tmp_path, "logger=wandb", "preflight=false", "trainer.max_steps=2")
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files) and len(files) > 15
    assert [path for path in files if canary.encode() in path.read_bytes()] == []
    assert canary not in run.output and "wandb      " in run.output


@pytest.mark.slow
def test_a_broken_tracker_changes_no_result(
    train_small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def broken(**_: Any) -> Any:
        raise RuntimeError("no tracker today")

    monkeypatch.setattr(wandb, "init", broken)
    settings = ("preflight=false", "trainer.max_steps=2")
    with_it = train_small(tmp_path, "name=with", "logger=wandb", *settings)
    without = train_small(tmp_path, "name=without", "logger=none", *settings)
    assert capsys.readouterr().err.count("no tracker today; going on with metrics.jsonl alone") == 1
    assert with_it.predictions("tuned") == without.predictions("tuned")
    assert [line["val/loss"] for line in with_it.metrics if "val/loss" in line] == [
        line["val/loss"] for line in without.metrics if "val/loss" in line
    ]


# --- settings of the trainer: each does what its line in the schema says. 32 rows, 8 a step: 4 windows an epoch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "steps", "validated"),
    [
        ((), 8, [3, 7]),
        (("trainer.max_steps=3",), 3, []),
        (("trainer.max_steps=5", "trainer.max_epochs=null"), 5, [3]),
        (("trainer.limit_train_batches=0.5",), 4, [1, 3]),
        (("trainer.limit_train_batches=3",), 6, [2, 5]),
        (("trainer.limit_train_batches=1",), 2, [0, 1]),
        (("trainer.limit_val_batches=0",), 8, []),
        (("trainer.limit_val_batches=1",), 8, [3, 7]),
        (("trainer.val_check_interval=0.5",), 8, [1, 3, 5, 7]),
        (("trainer.val_check_interval=2",), 8, [1, 3, 5, 7]),
        (("trainer.val_check_interval=3",), 8, [2, 5]),  # over the end of the first epoch
        (("trainer.val_check_interval=6",), 8, [5]),  # more windows than an epoch has
        (("trainer.check_val_every_n_epoch=2",), 8, [7]),
        (("data.limit_train=30",), 8, [3, 7]),  # the last window of an epoch is a short one
        (("data.limit_train=4",), 2, [0, 1]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, tuple) else None,
)
def test_trainer_settings(overrides: tuple[str, ...], steps: int, validated: list[int], fit_small: Any) -> None:
    run = fit_small(*overrides)
    assert run.summary["steps"] == steps == len(run.steps("train/loss"))
    assert run.steps("val/loss") == validated
    rates = [line["train/lr"] for line in run.metrics if "train/lr" in line]
    # so the schedule ends where training does
    assert rates[-1] == pytest.approx(0.0015 / max(1, steps - round(0.05 * steps)), rel=1e-6)
    best = run.summary["best_checkpoint"]
    assert (best is None) == (validated == [])
    assert (run.folder / "checkpoints" / (best or f"step-{steps:07d}")).is_dir()


def test_limit_val_batches_is_the_n_that_is_logged(fit_small: Any) -> None:
    run = fit_small("trainer.limit_val_batches=1", "trainer.max_steps=4")
    assert [line["val/shapes/n"] for line in run.metrics if "val/shapes/n" in line] == [8.0]


@pytest.mark.slow
def test_early_stopping(fit_small: Any) -> None:
    run = fit_small("train.early_stopping_patience=2", "trainer.max_epochs=9", "train.lr=1e-9")
    values = [line["val/shapes/count_accuracy"] for line in run.metrics if "val/shapes/count_accuracy" in line]
    assert len(values) == 3 and run.summary["steps"] == 12  # nothing is learnt at 1e-9, so the first stays the best
    assert run.summary["best_checkpoint"] == "step-0000004"


def test_early_stopping_between_two_ends_of_epochs(fit_small: Any) -> None:
    settings = ("trainer.val_check_interval=1", "trainer.max_epochs=9", "train.lr=1e-9")
    run = fit_small("train.early_stopping_patience=2", *settings)
    assert run.summary["steps"] == 3 and run.steps("val/loss") == [0, 1, 2]


@pytest.mark.slow
def test_fast_dev_run_goes_all_the_way(train_small: Any, tmp_path: Path) -> None:
    run = train_small(tmp_path, "trainer.fast_dev_run=true", "logger=wandb")
    assert run.summary["steps"] == 1 and run.summary["rows"]["test"] == 16
    assert [arm["n"] for arm in run.summary["arms"]] == [16, 16]
    assert (run.folder / "report.html").is_file() and not (run.folder / "checkpoints").exists()
    assert not (run.folder / "wandb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["train.rows_per_batch=3", "train.tokens_per_batch=100", "data.workers=2"])
def test_settings_that_change_nothing_but_rounding(setting: str, trained: Any, fit_small: Any) -> None:
    run = fit_small("model.quantization.mode=nf4", "data.max_new_tokens=null", setting)
    one = [line["train/loss"] for line in trained.metrics if "train/loss" in line]
    other = [line["train/loss"] for line in run.metrics if "train/loss" in line]
    # 1e-4: rounding of 1e-7 in a gradient is carried through eight steps of AdamW, which divides by its size.
    assert other == pytest.approx(one, rel=1e-4)
    if setting == "data.workers=2":
        assert other == one


# --- training of whole parts


@pytest.fixture(scope="module")
def full(train_small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All three parts trained in full."""
    parts = ("model.train.language=full", "model.train.connector=full", "model.train.vision=full")
    settings = ("model.quantization.mode=none", "train.lr=3e-3", "name=full")
    return train_small(tmp_path_factory.mktemp("full"), *parts, *settings)


def untuned_of(config_folder: Path) -> dict[str, str]:
    config = read_run(str(config_folder))
    source, hf_config = load_source(config.model)
    return _answers(config, load_model(config.model, source, hf_config, torch.device("cpu"), config.seed))


def test_full_training_keeps_the_untuned_answers(full: Any) -> None:
    # The untuned model is gone when training ends: its answers must be from before.
    stored = {row["id"]: row["text"] for row in map(json.loads, full.predictions("untuned").splitlines())}
    assert stored == untuned_of(full.folder)
    assert full.predictions("untuned") != full.predictions("tuned")
    assert not [note for note in full.summary["notes"] if "stored" in note]  # it was this run that answered them
    assert full.summary["arms"][0]["answers_per_second"] > 0


def test_full_training_stores_the_model_that_it_evaluated(full: Any, evaluate_small: Any, tmp_path: Path) -> None:
    arguments = (f"model.path={full.folder}/adapter", "model.init=pretrained", "model.quantization.mode=none")
    again = evaluate_small(
        "model=tiny_qwen2vl",
        "data=shapes",
        "data.limit_test=24",
        "evaluation.rows_per_batch=8",
        f"output_root={tmp_path}",
        *arguments,
    )
    tuned = {row["id"]: row["text"] for row in map(json.loads, full.predictions("tuned").splitlines())}
    assert {row["id"]: row["text"] for row in map(json.loads, again.predictions("untuned").splitlines())} == tuned


def test_a_full_run_is_not_evaluated_as_if_it_had_an_adapter(full: Any, evaluate_small: Any) -> None:
    with pytest.raises(ConfigError, match=r"trained language, connector, vision in full"):
        evaluate_small(f"run={full.folder}")


@pytest.mark.slow
def test_a_full_connector_beside_adapters(train_small: Any, evaluate_small: Any, tmp_path: Path) -> None:
    run = train_small(tmp_path, "model.train.connector=full", "model.quantization.mode=none", "train.lr=3e-3")
    stored = {row["id"]: row["text"] for row in map(json.loads, run.predictions("untuned").splitlines())}
    assert stored == untuned_of(run.folder)  # switching the adapters off leaves the trained connector on
    parts = load_file(run.folder / "adapter" / "full_parts.safetensors")
    assert parts and all("merger" in name for name in parts)
    checkpoint = read_checkpoint(run.folder / "checkpoints" / run.summary["best_checkpoint"])["state_dict"]
    assert all(torch.equal(checkpoint[name], value) for name, value in parts.items())
    with pytest.raises(ConfigError, match="trained connector in full"):
        evaluate_small(f"run={run.folder}")


# --- bad rows


def test_bad_rows_are_named_counted_and_left_out(train_small: Any, tmp_path: Path) -> None:
    # Rows of more than 36 tokens: those whose answer is "10", which takes one more.
    settings = ("model.max_length_tokens=37", "data.on_bad_row=skip", "data.bad_row_ceiling=1.0")
    run = train_small(tmp_path, *settings, "evaluation.arms=[untuned,tuned]")
    bad = [json.loads(line) for line in (run.folder / "bad_rows.jsonl").read_text().splitlines()]
    assert 0 < len(bad) == run.summary["bad_rows"] == len({row["id"] for row in bad})
    assert all("Expected at most 37 tokens with the answer, got 38" in row["reason"] for row in bad)
    assert all(math.isfinite(line["train/loss"]) for line in run.metrics if "train/loss" in line)


def test_a_bad_row_stops_a_run_in_one_line(train_small: Any, tmp_path: Path) -> None:
    from vlmft.sample import BadRowError

    with pytest.raises(BadRowError, match=r"row shapes/A/\w+/\d+: .*data\.on_bad_row=skip") as raised:
        train_small(tmp_path, "model.max_length_tokens=37")
    assert "\n" not in str(raised.value)


def test_no_row_that_fits_is_reported(train_small: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of 32 training rows fits"):
        train_small(tmp_path, "model.max_length_tokens=30", "data.on_bad_row=skip", "data.bad_row_ceiling=1.0")


def test_an_endless_run_is_refused(fit_small: Any) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs: Expected an end"):
        fit_small("trainer.max_epochs=-1")


def test_a_copy_of_a_run_can_be_moved(trained: Any, evaluate_small: Any, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(trained.folder, moved)
    again = evaluate_small(f"run={moved}", "evaluation.arms=[tuned]")
    assert again.predictions("tuned") == trained.predictions("tuned")
    assert os.path.commonpath([again.folder, moved]) == str(moved)
