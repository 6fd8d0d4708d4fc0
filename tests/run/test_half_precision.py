"""As on a GPU: weights in bf16, training under autocast. On a CPU both are fp32, and no other test has two dtypes.

`storage_dtype` says bf16 here; all else is the code that a GPU runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.tiny_models import MODELS, save
from benchmarks.tiny_more import MORE
from vlmft.config.schema import TrainConfig
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.data.rows import Rows
from vlmft.evaluation.predict import Answerer
from vlmft.models.loaded import LoadedModel
from vlmft.run.folder import read_run
from vlmft.run.weights import load_base, load_tuned
from vlmft.sample import Question

FULL = (
    ("model.train.language=full",),
    ("model.train.vision=full", "model.train.language=frozen"),
    ("model.train.connector=full",),
    ("model.train.vision=full", "model.train.connector=full", "model.train.language=full"),
)


@pytest.fixture
def in_bf16(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The settings beside it. Workers of a CPU hand features over as numpy arrays, which know no bf16."""
    places = [m for name, m in sys.modules.items() if name.startswith("vlmft.") and hasattr(m, "storage_dtype")]
    assert len(places) >= 4
    for module in places:
        monkeypatch.setattr(module, "storage_dtype", lambda device: torch.bfloat16)
    return ("trainer.precision=bf16-mixed", "data.workers=0", "model.quantization.mode=none", "train.lr=3e-3")


def answers(config: TrainConfig, model: LoadedModel) -> dict[str, str]:
    """To the run's test rows."""
    rows = Rows(make_dataset(config.data), config.data, Ledger(None, config.data.on_bad_row, 1.0), config.seed)
    questions = [Question(sample.id, sample.prompt) for sample in rows.samples(rows.ids["test"])]
    answerer = Answerer(model.family, model.base, config.evaluation.rows_per_batch or 0, rows.max_new_tokens, print)
    found = answerer.batches(questions, skip=lambda ids: False)
    return {row_id: answer.text for batch in found for row_id, answer in batch.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny_qwen2vl"])
@pytest.mark.parametrize("parts", FULL, ids=" ".join)
def test_parts_that_are_trained_in_full(
    name: str, parts: tuple[str, ...], in_bf16: tuple[str, ...], train_small: Callable[..., Any], tmp_path: Path
) -> None:
    """What a run says of the untuned and of the tuned model is what they say when they are loaded again. They ended in
    an error of PyTorch: parts in fp32 and in bf16 do not compute together."""
    run = train_small(tmp_path, f"model={name}", *parts, *in_bf16)
    assert run.predictions("tuned") != run.predictions("untuned")
    said_again(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("SmolVLM2", FULL[0]),  # casts features to the dtype of its first weights, whatever its embeddings have
        ("SmolVLM2", FULL[1]),
        ("LLaVA", FULL[3]),  # makes no use of its last vision layers
        ("LLaVA-NeXT", FULL[0]),  # makes features with image_newline, which is no part of language
        ("IDEFICS", FULL[0]),
    ],
)
def test_other_architectures(
    name: str, parts: tuple[str, ...], in_bf16: tuple[str, ...], train_small: Callable[..., Any], tmp_path: Path
) -> None:
    save(next(tiny for tiny in (*MODELS, *MORE) if tiny.name == name), tmp_path / "model")
    model = ("model=auto", f"model.path={tmp_path / 'model'}", "model.init=random", "data.max_new_tokens=6")
    run = train_small(tmp_path, *model, *parts, *in_bf16)
    said_again(run)
    unused = "the model makes no use of the others (model.vision_tower." in run.output
    assert unused == (name == "LLaVA")


def said_again(run: Any) -> None:
    """Asserts that the models of a run answer after loading as in the run."""
    config = read_run(str(run.folder))
    said = {
        arm: {row["id"]: row["text"] for row in map(json.loads, run.predictions(arm).splitlines())}
        for arm in ("untuned", "tuned")
    }
    assert len(said["tuned"]) == 24
    base, tuned = load_base(config.model, config.trainer, config.seed), load_tuned(run.folder, config, config.trainer)
    assert {p.dtype for n, p in tuned.model.named_parameters() if ".lora_" not in n} == {torch.bfloat16}
    assert answers(config, base) == said["untuned"]
    assert answers(config, tuned) == said["tuned"]
