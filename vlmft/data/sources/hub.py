"""What the `datasets` library loads: the Hub, its caches on disk, parquet and arrow files. Images stay undecoded."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError


def load_undecoded(
    place: str,
    files: Sequence[str] | Mapping[str, Sequence[str]] | None,
    revision: str | None,
    subset: str | None = None,
) -> dict[str, Any]:
    """What `datasets.load_dataset` returns, by its own names of splits.

    Images are not decoded: with decoding by the library one corrupt image would end the iteration.

    Raises:
        ConfigError: it cannot be loaded.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        named = {"name": subset, "data_files": files}
        arguments = {key: value for key, value in named.items() if value is not None}
        loaded = datasets.load_dataset(place, revision=revision, **arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        what = files[0] if isinstance(files, list) else place
        raise ConfigError(f"data: {what!r} cannot be loaded ({reason}); check data.path or the connection") from error
    return {str(split): undecoded(rows) for split, rows in loaded.items()}


def load_saved(folder: Path) -> dict[str, Any]:
    """What `save_to_disk` wrote, by its own names of splits; "train" for a set without.

    Raises:
        ConfigError: it is damaged.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(f"{folder}: Expected what save_to_disk writes, got {error}; save it again") from error
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    return {str(split): undecoded(rows) for split, rows in splits.items()}


def undecoded(rows: Any) -> Any:
    import datasets

    for column, feature in rows.features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        elif isinstance(inner, datasets.Image):
            rows = rows.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return rows


def class_names(rows: Any, column: str) -> list[str] | None:
    """The names of a column of class numbers (`datasets.ClassLabel`, also in a list), which the rows do not hold."""
    features = getattr(rows, "features", None)
    feature = features.get(column) if features is not None else None
    feature = getattr(feature, "feature", None) or feature
    names = getattr(feature, "names", None)
    return list(names) if names is not None else None
