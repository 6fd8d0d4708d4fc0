"""How much there is to read: lines by package, and what `python train.py` imports. Ceilings only ever fall."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vlmft"

MAX_LINES = {
    "config": 2_400,
    "data": 9_450,
    "evaluation": 3_570,
    "labels": 1_100,
    "metrics": 2_400,
    "models": 4_550,
    "pages": 300,
    "predictions": 2_100,
    "report": 2_300,
    "run": 3_350,
    "sample.py": 400,
    "servers": 600,
    "sweep": 950,
    "tools": 1_500,
    "training": 2_050,
}
"""Lines of Python in each package of vlmft/, blank lines, comments and docstrings counted. Raised twice on 2026-11-26
for what nothing did before: stored features, shared images, threads, progress, synonyms; then batches by tokens,
rows grouped by image, a training loop that does not wait for a GPU. Raised on 2026-11-27 for answers of JSON (their
one spelling, schema, scores by field, receipts), arms behind a server, boxes and points, ranks that all answer,
SLURM, sharding, streams, a page to try a model on, videos as frames, templates with empty thoughts, a last layer at
the tokens that count, compiled layers, checkpointing where it is needed, images in rows decoded by threads. Those
are in whole hundreds or fifties, so that a line of a comment fails nothing. Raised on 2026-11-28 for `run`,
stored answers, for `data`, rows that are read while PyTorch is imported, and for `models`, parts in two dtypes."""
MAX_MEDIAN_LINES = 120
MAX_FILES_OF_TRAINING = 184
MAX_LINES_OF_TRAINING = 24_400

IMPORTED = """
import json, pathlib, runpy, sys
listed = pathlib.Path(sys.argv.pop(1))
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
files = {module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "vlmft"}
listed.write_text(json.dumps(sorted(files)))
"""


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_lines_by_package(capsys: pytest.CaptureFixture[str]) -> None:
    files = {path: lines_of(path) for path in PACKAGE.rglob("*.py")}
    assert len(files) >= 100
    found: Counter[str] = Counter()
    for path, lines in files.items():
        found[path.relative_to(PACKAGE).parts[0]] += lines
    small = {"__init__.py", "__main__.py"}
    with capsys.disabled():
        print("\nlines of Python in vlmft/: " + ", ".join(f"{name} {n:,}" for name, n in sorted(found.items())))
        print(f"in all {sum(files.values()):,} in {len(files)} files, median {statistics.median(files.values()):g}")
    assert found.keys() - small == MAX_LINES.keys()
    assert {name: n for name, n in found.items() if name not in small and n > MAX_LINES[name]} == {}
    assert statistics.median(files.values()) <= MAX_MEDIAN_LINES


@pytest.mark.slow
def test_what_training_imports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole small run of train.py, evaluation and report included: the files that somebody follows who reads it."""
    listed = tmp_path / "imported.json"
    settings = ("data.options.train_rows=64", "data.limit_train=32", "data.limit_val=8", "data.limit_test=16")
    arguments = (*settings, "trainer.max_steps=2", "logger=none", f"output_root={tmp_path}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", IMPORTED, str(listed), *arguments]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    files = [Path(name) for name in json.loads(listed.read_text())]
    n_lines = sum(map(lines_of, files))
    with capsys.disabled():
        print(f"\npython train.py imports {len(files)} files of vlmft/, {n_lines:,} lines")
    assert any(path.name == "report.html" for path in tmp_path.rglob("*")), "the run went to its end"
    assert 40 <= len(files) <= MAX_FILES_OF_TRAINING
    assert n_lines <= MAX_LINES_OF_TRAINING
