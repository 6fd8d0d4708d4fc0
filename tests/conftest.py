"""What all tests may ask for: a config that Hydra composed and `checked` accepted."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
