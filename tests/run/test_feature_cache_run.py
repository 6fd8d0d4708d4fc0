"""Whole runs with stored features: the same bytes, and each image once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.small_runs import SMALL, Run
from vlmft.models import features
from vlmft.models.feature_cache import FeatureCache
from vlmft.run.train import train
from vlmft.sample import PIXEL_HASHES
from vlmft.training.module import VLMModule

pytestmark = pytest.mark.slow

ARMS = ("evaluation.arms=[untuned,fewshot,tuned,blank]", "evaluation.few_shot.draws=2", "evaluation.few_shot.k=2")
N_IMAGES = 32 + 16 + 24 + 1
"""Of the three splits, and a black one; shots are rows of train."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hashes of the images that go through vision tower and connector, one for each time."""
    found: list[str] = []
    before = features.see

    def counted(model: Any, images: Any) -> Any:
        found.extend(image.sha256 for image in images)
        return before(model, images)

    monkeypatch.setattr("vlmft.models.generic.GenericFamily.see", staticmethod(counted))
    return found


@pytest.fixture(scope="module")
def uncached(train_small: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_small(tmp_path_factory.mktemp("uncached"), *ARMS, "cache.enabled=false")


def same(run: Run, other: Run) -> bool:
    files = [
        "adapter/adapter_model.safetensors",
        *(f"predictions/{p.name}" for p in other.folder.glob("predictions/*")),
    ]
    assert len(files) == 1 + 5
    return all((run.folder / name).read_bytes() == (other.folder / name).read_bytes() for name in files)


def test_each_image_once_and_the_same_bytes(
    uncached: Run, train_small: Callable[..., Run], seen: list[str], tmp_path: Path
) -> None:
    """The second run is another job of a sweep: nothing is made again, in whatever process."""
    place = f"cache.folder={tmp_path / 'features'}"
    first = train_small(tmp_path / "first", *ARMS, place)
    assert same(first, uncached)
    n_seen, unique = len(seen), set(seen)
    assert len(unique) <= N_IMAGES and n_seen - len(unique) <= 40  # preflight looks at gradients of what is frozen
    seen.clear()
    PIXEL_HASHES.clear()  # as in a new process
    second = train_small(tmp_path / "second", *ARMS, place)
    assert same(second, uncached)
    assert len(seen) == n_seen - len(unique)
    seen.clear()
    train_small(tmp_path / "third", *ARMS, place, "train.lr=1e-3", "preflight=false")
    assert seen == []


def test_workers_that_see_and_the_same_bytes(train_small: Callable[..., Run], seen: list[str], tmp_path: Path) -> None:
    """With one thread, features come with the rows that another process encodes."""
    settings = (*ARMS, "trainer.threads=1", "preflight=false")
    alone = train_small(tmp_path / "alone", *settings, f"cache.folder={tmp_path / 'one'}")
    n_alone = len(seen)
    seen.clear()
    PIXEL_HASHES.clear()
    beside = train_small(tmp_path / "beside", *settings, f"cache.folder={tmp_path / 'two'}", "data.workers=1")
    assert same(beside, alone)
    assert len(seen) < n_alone / 4, "but for a few, whose rows are encoded here"
    assert n_alone > 50


def test_stopped_with_a_cache_and_resumed(
    uncached: Run, compose: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = VLMModule.on_train_batch_start

    def signalling(self: VLMModule, batch: object, batch_idx: int) -> None:
        before(self, batch, batch_idx)
        if self.trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = (*SMALL, *ARMS, f"output_root={tmp_path}", f"cache.folder={tmp_path / 'features'}", "name=run")
    with monkeypatch.context() as patch:
        patch.setattr(VLMModule, "on_train_batch_start", signalling)
        with pytest.raises(SystemExit):
            train(compose(*settings))
    resumed = train(compose(*settings, "resume=true"))
    assert same(Run(resumed, ""), uncached)


def test_a_cache_that_lies_changes_the_result(
    uncached: Run, train_small: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defect, so that the tests above are seen to fail on it: features of another image."""
    before = FeatureCache.put

    def wrong(self: FeatureCache, image: Any, feature: Any) -> None:
        before(self, image, feature.flip(0))

    monkeypatch.setattr(FeatureCache, "put", wrong)
    place = f"cache.folder={tmp_path / 'features'}"
    assert not same(train_small(tmp_path / "run", *ARMS, place, "preflight=false"), uncached)


def test_trained_vision_has_no_cache(train_small: Callable[..., Run], tmp_path: Path) -> None:
    place = tmp_path / "features"
    settings = ("model.train.connector=full", "model.quantization.mode=none", "trainer.max_epochs=1")
    run = train_small(tmp_path / "run", *settings, f"cache.folder={place}")
    assert "features: vision or connector is trained" in run.output and not place.exists()
