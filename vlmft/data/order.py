"""In which order rows come in an epoch: a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mix:
    """How often rows come in an epoch where some come oftener than others."""

    part: np.ndarray
    """(n_rows,) the number of each row's part."""
    weights: Mapping[str, float]
    """Name of each part -> how often each of its rows comes. Of 1.5, half of the rows come twice, others in each
    epoch."""

    def rows(self) -> list[int]:
        """Rows of an epoch, part by part."""
        sizes = np.bincount(self.part, minlength=len(self.weights)).tolist()
        return [round(size * weight) for size, weight in zip(sizes, self.weights.values(), strict=True)]

    def sentence(self) -> str:
        """Such as "an epoch has 20 rows of shapes (10 x 2), 5 rows of mine (5 x 1)"."""
        sizes = np.bincount(self.part, minlength=len(self.weights)).tolist()
        parts = zip(self.rows(), self.weights.items(), sizes, strict=True)
        said = (f"{n:,} rows of {name} ({size:,} x {weight:g})" for n, (name, weight), size in parts)
        return f"an epoch has {', '.join(said)}"

    def drawn(self, chance: np.random.Generator) -> np.ndarray:
        found = []
        for number, n_rows in enumerate(self.rows()):
            rows = np.flatnonzero(self.part == number)
            whole = n_rows // max(1, len(rows))
            found += [np.repeat(rows, whole), chance.permutation(rows)[: n_rows - whole * len(rows)]]
        return np.concatenate(found)


def epoch_order(n_rows: int, seed: int, epoch: int, mix: Mix | None = None) -> np.ndarray:
    """(n_rows,) int64 permutation for one epoch, the same on every machine; with `mix`, of as many rows as it says."""
    chance = np.random.Generator(np.random.PCG64([seed, epoch]))
    return chance.permutation(n_rows if mix is None else mix.drawn(chance))
