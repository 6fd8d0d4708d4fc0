"""What all tests may ask for: a config that Hydra composed and `checked` accepted."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes with two threads each wait for each other more than they work
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from vlmft.config.entry import register_schemas
from vlmft.config.schema import EvaluateConfig, TrainConfig
from vlmft.config.tools import compose_tool

pytest_plugins = ["tests.small_runs"]


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the tests stays in the user's cache folder, nor comes from there."""
    before = os.environ.get("VLMFT_CACHE")
    os.environ["VLMFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["VLMFT_CACHE"]
    else:
        os.environ["VLMFT_CACHE"] = before


class Compose(Protocol):
    def __call__(self, *overrides: str) -> TrainConfig: ...


class ComposeEvaluate(Protocol):
    def __call__(self, *overrides: str) -> EvaluateConfig: ...


@pytest.fixture(scope="session")
def compose() -> Compose:
    """compose("model=tiny", "train.lr=1e-4"): what train.py would get from this command line.

    Raises what a mistake raises: ConfigError, or Hydra's own exception, which `explained` puts into a line.
    """
    register_schemas()

    def composed(*overrides: str) -> TrainConfig:
        return compose_tool("train", TrainConfig, overrides)

    return composed


@pytest.fixture(scope="session")
def compose_evaluate() -> ComposeEvaluate:
    """The same for evaluate.py."""
    register_schemas()

    def composed(*overrides: str) -> EvaluateConfig:
        return compose_tool("evaluate", EvaluateConfig, overrides)

    return composed


ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import contextlib, io, json, os, runpy, sys
root, program, *commands = json.loads(sys.argv[1])
sys.path.insert(0, root)
found = []
for number, command in enumerate(commands):
    os.mkdir(str(number))
    os.chdir(str(number))
    sys.argv, out, err, code = [os.path.basename(program), *command], io.StringIO(), io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(os.path.join(root, program), run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    modules = sorted({name.split(".")[0] for name in sys.modules} | {n for n in sys.modules if n.startswith("vlmft.")})
    found.append([code, out.getvalue(), err.getvalue(), modules, os.listdir()])
    os.chdir("..")
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Called:
    """One command, as a user meets it."""

    code: int
    stdout: str
    stderr: str
    modules: set[str]
    """Packages that have been imported by now, and the modules of vlmft."""
    made: list[str]
    """What it left in the folder that it was called in."""


@pytest.fixture(scope="session")
def call_in_turn() -> Callable[[str, Sequence[Sequence[str]], Path], list[Called]]:
    """call_in_turn("train.py", commands, folder): each command with its arguments, one after the other in one process
    that has imported nothing, each in a new folder of its own below `folder`."""

    def called(program: str, commands: Sequence[Sequence[str]], folder: Path) -> list[Called]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "VLMFT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        environment.pop("HYDRA_FULL_ERROR", None)
        command = [sys.executable, "-c", PROBE, json.dumps([str(ROOT), program, *commands])]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return [Called(code, out, err, {*modules}, made) for code, out, err, modules, made in json.loads(done.stdout)]

    return called


@pytest.fixture(scope="session")
def room_for() -> Callable[[int], AbstractContextManager[None]]:
    """`with room_for(n_bytes):` the system refuses larger files, as a full disk does: Rust's writes and Python's."""

    @contextlib.contextmanager
    def limited(n_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
