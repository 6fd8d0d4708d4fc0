"""Other users of a shared folder can read every file of a run that the umask lets them read, whatever wrote it."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from vlmft.config.tool_schema import ExportConfig
from vlmft.config.tools import compose_tool
from vlmft.tools.export import export
from vlmft.training.checkpoint import whole_folder

pytestmark = pytest.mark.slow  # whole runs

UNTUNED = ("model=tiny_qwen2vl", "data=shapes", "data.limit_test=4", "evaluation.arms=[untuned]", "logger=none")


def modes(folder: Path) -> dict[str, int]:
    """Path -> mode of every file."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): stat.S_IMODE(file.stat().st_mode) for file in files}


@pytest.fixture(params=[0o022, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [pytest.param(0o022, marks=pytest.mark.slow), 0o027], indirect=True)
def test_every_file_of_a_run(
    umask: int, train_small: Callable[..., Any], evaluate_small: Callable[..., Any], tmp_path: Path
) -> None:
    """A run with checkpoints, its evaluation, both forms of its export, and an evaluation without a run."""
    run = train_small(tmp_path, "name=shared", "trainer.max_epochs=1", "data.limit_test=4", "data.limit_val=4").folder
    evaluate_small(f"run={run}", "logger=none")
    evaluate_small(*UNTUNED, f"output_root={tmp_path}")
    for form in ("merged", "adapter"):
        to = tmp_path / f"export-{form}"
        settings = (f"run={run}", f"to={to}", f"form={form}", "check_rows=0")
        export(compose_tool("export", ExportConfig, settings))
    found = modes(tmp_path)
    names = {Path(name).name for name in found}
    assert {"model.safetensors", "adapter_model.safetensors", "tensors.safetensors", "splits.json"} <= names
    assert {"tuned.jsonl", "untuned.jsonl", "summary.json", "report.html", "report.md", "metrics.jsonl"} <= names
    assert len([name for name in found if name.endswith("report.json")]) == 3
    assert len(found) == 51, "count them anew where a file has come or gone"
    assert {name: oct(mode) for name, mode in found.items() if mode != 0o666 & ~umask} == {}
    folders = [folder for folder in (tmp_path, *tmp_path.rglob("*")) if folder.is_dir() and folder != tmp_path]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o777 & ~umask}


def test_the_cache(
    umask: int, evaluate_small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        picture = tmp_path / "pictures" / ("dark", "light")[number % 2] / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (8, 8), number * 30).save(picture)
        os.utime(picture, (1_700_000_000,) * 2)  # what changed just now is not kept
    monkeypatch.setenv("VLMFT_CACHE", str(tmp_path / "cache"))
    data = ("data=imagefolder", f"data.path={tmp_path / 'pictures'}")
    evaluate_small(*UNTUNED[:1], *UNTUNED[3:], *data, f"output_root={tmp_path / 'runs'}")
    found = modes(tmp_path / "cache")
    assert {re.split("[-/]", name)[0] for name in found} == {"features", "kept", "reading"} and len(found) == 3
    assert {oct(mode) for mode in found.values()} == {oct(0o666 & ~umask)}


def test_a_folder_made_with_less_is_opened(umask: int, tmp_path: Path) -> None:
    """safetensors by itself leaves 0600, and so does a copy of such a file; an older run's adapter is such a one."""
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    assert modes(tmp_path) == {"bare.safetensors": 0o600}, "safetensors honours the umask now: chmod can go"
    with whole_folder(tmp_path / "whole") as beside:
        (beside / "below").mkdir()
        shutil.copy2(tmp_path / "bare.safetensors", beside / "below" / "copied.safetensors")
    assert modes(tmp_path / "whole") == {"below/copied.safetensors": 0o666 & ~umask}
