"""Which rows a step trains on is a function of (seed, epoch) and of nothing else, under Lightning too."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Sampler

from vlmft.data.order import WindowSampler, epoch_order


@pytest.mark.parametrize(("n_rows", "rows_per_step"), [(1, 1), (7, 3), (8, 4), (5, 9), (100, 16)])
def test_every_row_once_an_epoch(n_rows: int, rows_per_step: int) -> None:
    sampler = WindowSampler(n_rows, rows_per_step, seed=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        windows = list(sampler)
        assert len(windows) == len(sampler)
        assert [row for window in windows for row in window] == epoch_order(n_rows, 3, epoch).tolist()
        assert sorted(row for window in windows for row in window) == list(range(n_rows))
        assert all(len(window) == rows_per_step for window in windows[:-1])
        assert 1 <= len(windows[-1]) <= rows_per_step


def test_order_is_the_same_on_every_machine() -> None:
    # Written down once: another numpy or processor that orders differently would train another model from one seed.
    assert epoch_order(6, 0, 0).tolist() == [3, 2, 5, 4, 0, 1]
    assert epoch_order(6, 0, 1).tolist() == [1, 4, 3, 0, 2, 5]


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


GROUPS = np.array([0, 1, 0, 2, 1, 0, 3, 4, 4, 4, 4, 5])


def test_rows_of_a_group_come_one_after_another() -> None:
    """Each row once; groups, and rows of a group, in another order in each epoch; a group is cut by at most the end of
    a window, and goes on in the next."""
    orders = [epoch_order(12, 3, epoch, groups=GROUPS) for epoch in range(20)]
    for order in orders:
        assert sorted(order) == list(range(12))
        runs = 1 + int((np.diff(GROUPS[order]) != 0).sum())
        assert runs == len(set(GROUPS)), "no group comes in two pieces"
    assert len({tuple(order) for order in orders}) == 20
    assert len({tuple(dict.fromkeys(GROUPS[order])) for order in orders}) > 15
    assert len({tuple(row for row in order if GROUPS[row] == 4) for order in orders}) > 8
    sampler = WindowSampler(12, 4, 3, groups=GROUPS)
    assert [row for window in sampler for row in window] == orders[0].tolist()


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ranks_get_neighbours_of_a_grouped_window(n_ranks: int) -> None:
    whole = list(WindowSampler(12, 5, 3, groups=GROUPS))
    hands = [list(WindowSampler(12, 5, 3, rank, n_ranks, groups=GROUPS)) for rank in range(n_ranks)]
    assert [[row for hand in window for row in hand] for window in zip(*hands, strict=True)] == whole


def test_iterating_changes_nothing() -> None:
    sampler = WindowSampler(10, 4, seed=0)
    state = torch.get_rng_state()
    assert list(sampler) == list(sampler)
    assert torch.equal(torch.get_rng_state(), state)


class Recorder(L.LightningModule):
    """Trains nothing and records which rows came."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.windows: list[list[int]] = []

    def training_step(self, rows: torch.Tensor, index: int) -> None:
        self.windows.append(rows.tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.layer.parameters(), 0.1)


def trained_on(sampler: Sampler[list[int]], tmp_path: Any, workers: int = 0) -> list[list[int]]:
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    loader = DataLoader(range(10), batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)  # type: ignore[arg-type]
    trainer.fit(recorder, loader)
    return recorder.windows


def windows_of(epoch: int) -> list[list[int]]:
    order = epoch_order(10, 0, epoch).tolist()
    return [order[:4], order[4:8], order[8:]]


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_sets_the_epoch(workers: int, tmp_path: Any) -> None:
    assert trained_on(WindowSampler(10, 4, seed=0), tmp_path, workers) == windows_of(0) + windows_of(1)


class Unreachable(WindowSampler):
    """The defect: no `sampler`, so Lightning finds no `set_epoch` and every epoch repeats the first."""

    @property
    def sampler(self) -> Any:
        return None


def test_the_check_above_sees_an_epoch_that_is_never_set(tmp_path: Any) -> None:
    assert trained_on(Unreachable(10, 4, seed=0), tmp_path) == windows_of(0) + windows_of(0)
