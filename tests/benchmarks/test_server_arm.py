"""A real server on an export gives the answers of the tuned model; with `pip install 'transformers[serving]'`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import server_arm

pytestmark = pytest.mark.slow


def test_transformers_serve_answers_as_the_tuned_model(
    train_small: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    run = train_small(tmp_path, "model=tiny", "data.limit_train=160", "preflight=false").folder
    monkeypatch.setattr("sys.argv", ["server_arm.py", str(run), "--dtype", "float32", "--at-once", "2"])
    server_arm.main()
    found = capfd.readouterr().out.splitlines()
    assert "tuned and served: 0 of 24 answers differ" in found
    texts = {row["text"] for row in server_arm.answers(run / "evaluations/test", "served").values()}
    assert len(texts) > 1, "or any answer would do"
