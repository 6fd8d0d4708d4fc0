"""Importing the light half of the package costs little and changes nothing: each module alone, in a clean process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vlmft.config.entry import conf_dir

PACKAGE = Path(__file__).parents[1] / "vlmft"
HEAVY = {"torch", "lightning", "torchmetrics", "transformers", "peft", "bitsandbytes", "datasets", "wandb"}

PROBE = """
import os, random, signal, socket, sys
import numpy

def refuse(*_):
    raise AssertionError("the network was asked for something")

for name in ("getaddrinfo", "create_connection"):
    setattr(socket, name, refuse)
socket.socket.connect = refuse

def state():
    caught = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return dict(os.environ), random.getstate(), str(numpy.random.get_state()), os.getcwd(), os.umask(0o22), caught

os.umask(0o22)
before = state()
module, *heavy = sys.argv[1:]
__import__(module)
assert module in sys.modules
assert state() == before, "environment, random state, folder or signal handlers changed"
assert not set(heavy) & set(sys.modules), sorted(set(heavy) & set(sys.modules))
print("clean")
"""


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def datasets_of_the_config() -> set[str]:
    """Modules whose constructors are read when a config is checked."""
    files = (conf_dir() / "data").glob("*.yaml")
    return {yaml.safe_load(file.read_text(encoding="utf-8"))["dataset"].split(":")[0] for file in files}


LIGHT = sorted(
    {dotted(path) for room in ("config", "metrics") for path in (PACKAGE / room).rglob("*.py")}
    - {"vlmft.metrics.mean_score"}
    | {"vlmft", "vlmft.sample", "vlmft.evaluation.score", "vlmft.evaluation.compare", "vlmft.evaluation.grading"}
    | datasets_of_the_config()
)


def imported(module: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{PACKAGE.parent}{os.pathsep}{folder}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROBE, module, *sorted(HEAVY)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_list_is_not_empty() -> None:
    assert len(LIGHT) >= 18
    assert {"vlmft.config.entry", "vlmft.metrics.relaxed_accuracy", "vlmft.data.datasets.shapes"} <= set(LIGHT)


@pytest.mark.slow
@pytest.mark.parametrize("module", LIGHT)
def test_import_changes_nothing(module: str, tmp_path: Path) -> None:
    done = imported(module, tmp_path)
    assert (done.stdout, done.stderr) == ("clean\n", "")
    assert not [*tmp_path.iterdir()]


def test_all_light_modules_together(tmp_path: Path) -> None:
    """The same in one process, fast enough for every run; the files that are written are the test's own."""
    (tmp_path / "everything.py").write_text("".join(f"import {module}\n" for module in LIGHT), encoding="utf-8")
    done = imported("everything", tmp_path)
    assert (done.stdout, done.stderr) == ("clean\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["everything.py"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import random; random.seed(1)", "environment, random state"),
        ("import numpy; numpy.random.seed(1)", "environment, random state"),
        ("import os; os.environ['X'] = '1'", "environment, random state"),
        ("import socket; socket.create_connection(('h', 1))", "the network was asked"),
        ("import sys; sys.modules['torch'] = sys", "['torch']"),
    ],
)
def test_the_probe_sees_a_side_effect(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "defect.py").write_text(line + "\n", encoding="utf-8")
    done = imported("defect", tmp_path)
    assert done.returncode != 0 and said in done.stderr
