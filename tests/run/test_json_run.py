"""A whole small run whose answers are JSON: the summary and the report have its fields."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_runs import called
from vlmft.config.schema import TrainConfig
from vlmft.run.build import resolved
from vlmft.run.train import train

pytestmark = pytest.mark.slow  # a whole run


def test_receipts_from_end_to_end(compose: Callable[..., TrainConfig], tmp_path: Path) -> None:
    limits = [f"data.limit_{split}={n}" for split, n in (("train", 24), ("val", 4), ("test", 12))]
    settings = ("trainer.max_steps=2", "data.max_new_tokens=0", "preflight=false", "logger=none", "trainer=cpu")
    arms = "evaluation.arms=[untuned,fewshot,tuned]"
    few = ("evaluation.few_shot.k=1", "evaluation.few_shot.draws=2", "evaluation.canary_rows=2")
    config = compose("model=tiny", "data=receipts", *limits, *settings, arms, *few, f"output_root={tmp_path}")
    run = called(lambda: train(resolved(config).config))
    summary = run.summary
    assert summary["metric"] == "json_fields"
    found = summary["fields"]
    assert {field["name"] for field in found["fields"]} == {
        "lines.item",
        "lines.count",
        "lines.price",
        "total",
        "paid",
    }
    assert found["references_fit"] == 1
    assert found["schema"]["properties"]["paid"]["type"] == ["null", "string"]
    assert set(found["whole"]) == {"untuned", "fewshot", "tuned"}
    first = found["fields"][0]
    assert first["comparison"]["first"] == "untuned" and set(first["arms"]) == set(found["whole"])
    assert "data.max_new_tokens = " in run.output and "fields, the worst first" in run.output
    page, text = ((run.folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert "Missing and invented" in page and '"fields":[[' in page
    assert "## Fields" in text and "lines.price" in text
