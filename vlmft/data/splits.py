"""What stands in which split, and that nothing stands in two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmft.config.check import ConfigError
from vlmft.sample import Split


def overlap(ids: Mapping[Split, Sequence[str]], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """ "train/test" -> ids of the later split whose group (the same images) stands in the earlier one too."""
    found: dict[str, list[str]] = {}
    names = [split for split in ("train", "val", "test") if ids.get(split)]  # type: ignore[call-overload]
    for position, first in enumerate(names):
        known = {groups[row_id] for row_id in ids[first] if row_id in groups}  # type: ignore[index]
        for second in names[position + 1 :]:
            rows = ids[second]  # type: ignore[index]
            shared = [row_id for row_id in rows if row_id in groups and groups[row_id] in known]
            if shared:
                found[f"{first}/{second}"] = shared
    return found


def assert_disjoint(ids: Mapping[Split, Sequence[str]], groups: Mapping[str, str]) -> None:
    """
    Raises:
        ConfigError: an id or an image stands in two splits, with the count and one row by name.
    """
    for pair, rows in overlap(ids, groups).items():
        raise ConfigError(
            f"data: {len(rows)} rows of {pair} show an image of both splits, such as {rows[0]!r}; "
            "mend the splits, for a model that has seen the test images cannot be tested on them"
        )
