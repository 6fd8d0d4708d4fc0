"""What is seen while a model trains: a bar on a terminal that nothing tears, lines in a log, and some answers."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vlmft.config import progress
from vlmft.config.progress import Progress
from vlmft.run.train import train

SETTINGS = (
    "model=tiny_qwen2vl", "data.limit_train=24", "data.limit_val=4", "data.limit_test=4", "train.rows_per_step=4",
    "trainer.max_epochs=2", "preflight=false", "test=false", "logger=none", "name=run",
)  # fmt: skip


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 200 columns would be sent."""
    shown = io.StringIO()
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0.0)
    monkeypatch.setattr(progress, "console", lambda: Console(file=shown, force_terminal=True, width=200))
    return shown


def test_a_bar_of_a_fit(
    compose: Callable[..., Any], terminal: io.StringIO, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(compose(*SETTINGS, f"output_root={tmp_path}"))
    shown = terminal.getvalue()
    assert "window 6 of 12 (epoch 1 of 2), loss " in shown and " rows/s, " in shown and " left" in shown
    assert ", val count_accuracy " in shown and " %, best " in shown and ", lr 0.00" in shown
    assert "v_num" not in shown and "Epoch" not in shown and "GPU" not in shown
    assert shown.rstrip().endswith("\x1b[?25h") or shown.endswith("\x1b[2K"), "the cursor is back"
    out = capsys.readouterr().out
    assert out.count("validation after window ") == 2 and re.search(r"padding was \d\.\d % of the tokens", out)
    samples = [line for line in out.splitlines() if " -> " in line and "(reference '" in line]
    assert len(samples) == 4 and samples[0].split("->")[0] == samples[2].split("->")[0], "two rows, always the same"


def test_lines_where_there_is_no_terminal(
    compose: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(compose(*SETTINGS, f"output_root={tmp_path}", "logger.samples=0"))
    out, err = capsys.readouterr()
    assert "  window 12 of 12 (epoch 2 of 2), loss " in err and "\x1b" not in err and "\r" not in err
    assert err.count("window ") < 12, "not a line a window"
    assert "(reference" not in out and out.count("validation after window ") == 2


def test_what_others_print_comes_above_the_bars(terminal: io.StringIO) -> None:
    with Progress("rows read", 4, quiet_seconds=0.0) as outer:
        outer.advance()
        print("The `srun` command is available", file=sys.stderr)
        with Progress("answers", 2, quiet_seconds=0.0) as inner:
            inner.advance()
        outer.advance(3)
    lines = terminal.getvalue().replace("\x1b[2K", "").replace("\r", "\n").split("\n")
    told = [line for line in lines if "srun" in line]
    assert told and not any("[####" in line for line in told)
    assert any("[########        ] 1 of 2 answers" in line for line in lines)
    assert progress._live is None and progress._bars == []


def test_short_passes_print_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with Progress("rows read", 2) as short:
        short.advance(2)
    assert capsys.readouterr().err == ""
    started = time.monotonic()
    with Progress("rows read", 2) as long:
        long.advance()
        monkeypatch.setattr(progress.time, "monotonic", lambda: started + 60)
        long.advance()
    assert capsys.readouterr().err == "  2 of 2 rows read, 0.0 per second, 60 s\n"
