"""The rows of a test set: what evaluation needs of their dataset, how they hang together, and their classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmft.metrics import Labels
from vlmft.sample import CLASS, GROUP, Sample, Split


@dataclass(frozen=True)
class EvaluationRows:
    """The rows of a split that are asked, and what evaluation needs to know of their dataset."""

    split: Split
    ids: Sequence[str]
    samples: list[Sample]
    """Of `ids`, without those that cannot be read."""
    metric_name: str
    with_answer: Callable[[str, str], tuple[Sample, bool]]
    """(row id, answer) -> the row as if this were its gold answer, and whether its source record contained it."""
    train_ids: Sequence[str]
    train_sample: Callable[[str], Sample]
    """Raises BadRowError."""
    written_shots: Callable[[], list[Sample]]
    """Examples that the settings name a file of; raises ConfigError."""
    baseline_rows: Callable[[], list[Sample]]
    """Training rows that rules without images are fitted on."""
    seed: int
    schema: Mapping[str, Any] | None = None
    """JSON Schema that answers are to fit; None: that of the training answers."""


def units_of(samples: Sequence[Sample]) -> tuple[dict[str, str], str]:
    """Row id -> its independent unit, and what the units are: rows that share an image, a conversation or the tag
    `GROUP` hang together, over any chain of rows; so do rows without an image that ask the same."""
    images = {sample.id: {image.sha256 for image in sample.prompt.images} for sample in samples}
    shared = {
        sample.id: [
            *(sorted(images[sample.id]) or [sample.prompt.sha256]),
            *([f"conversation {sample.conversation}"] if sample.conversation else []),
            *([f"{GROUP} {sample.tags[GROUP]}"] if sample.tags.get(GROUP) else []),
        ]
        for sample in samples
    }
    groups = connected_groups(shared)
    are_single = all(len(shown) == 1 for shown in images.values())
    are_images = are_single and len(set(groups.values())) == len(set().union(*images.values()))
    return groups, "images" if are_images else "groups"


def connected_groups(shared: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Row id -> the name of its group: rows hang together that share one of their names, over any chain of rows.

    Rows that show two images, of which each shares another one, are one group of three. A row without a name is one.
    A group has the smallest of its names.
    """
    from scipy.sparse import coo_array, csgraph  # slow to import

    own = {row_id: list(names) or [f"row {row_id}"] for row_id, names in shared.items()}
    names = sorted({name for several in own.values() for name in several})
    number = {name: i for i, name in enumerate(names)}
    edges = np.array([(number[several[0]], number[name]) for several in own.values() for name in several]).reshape(
        -1, 2
    )
    graph = coo_array((np.ones(len(edges), bool), edges.T), shape=(len(names), len(names)))
    _, labels = csgraph.connected_components(graph, directed=False)
    smallest = np.unique(labels, return_index=True)[1][labels]
    return {row_id: names[smallest[number[several[0]]]] for row_id, several in own.items()}


def repeated_rows(samples: Sequence[Sample]) -> list[str]:
    """A sentence where rows show, ask and accept what another one does; else nothing."""
    n, distinct = len(samples), len({(sample.prompt.sha256, sample.references) for sample in samples})
    if n == distinct:
        return []
    return [
        f"{n - distinct} of {n} rows repeat another one (the same prompt, images and references): {distinct} different "
        "rows, and a copy is no further evidence; intervals and p-values go by independent groups."
    ]


def labels_of(samples: Sequence[Sample]) -> Labels | None:
    """The classes that the rows are of, each with the spellings that count as right; None where rows have no class, or
    two classes share a spelling."""
    if not all(CLASS in sample.tags for sample in samples):
        return None
    with contextlib.suppress(ValueError):
        return Labels({sample.references[0]: sample.references[1:] for sample in samples})
    return None
