"""WebDataset shards: tar files whose members come in groups of one name, an image and its text."""

from __future__ import annotations

import itertools
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.sources.hub import undecoded
from vlmft.data.sources.json_forms import IMAGE_SUFFIXES

TEXT_MEMBERS = frozenset(".txt .json .cls .caption .text".split())
PEEKED_MEMBERS = 50


def webdataset_shards(place: Path) -> list[Path]:
    """The tar files at `place` whose members come in groups of one name, an image and its text; [] for other tars."""
    tars = (
        [place]
        if place.suffix == ".tar" and place.is_file()
        else sorted(place.glob("*.tar")) or sorted(place.glob("*/*.tar"))
    )
    return tars if tars and _is_webdataset(tars[0]) else []


def _members(file: Path) -> list[PurePosixPath]:
    with tarfile.open(file) as tar:
        return [PurePosixPath(member.name) for member in itertools.islice(tar, PEEKED_MEMBERS) if member.isfile()]


def _is_webdataset(file: Path) -> bool:
    try:
        names = _members(file)
    except (tarfile.TarError, OSError):
        return False
    pictures = {name.with_suffix("") for name in names if name.suffix.lower() in IMAGE_SUFFIXES}
    texts = {name.with_suffix("") for name in names if name.suffix.lower() in TEXT_MEMBERS}
    return len(pictures & texts) > 0 and len(pictures & texts) >= len(texts) - 1


def fields(rows: Any) -> Any:
    """The fields of a member .json as columns of their own, where no other member has that name."""
    import datasets

    if "json" not in rows.column_names:
        return rows
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):  # trap: an undecoded one would be flattened, too
            rows = rows.cast_column(name, datasets.Image(decode=True))
    rows = undecoded(rows.flatten())
    inner = {name: name.removeprefix("json.") for name in rows.column_names if name.startswith("json.")}
    return rows.rename_columns({old: new for old, new in inner.items() if new not in rows.column_names})


def require_plain_names(shard: Path) -> None:
    """Raises ConfigError where members have dots in their keys, at which WebDataset would cut them."""
    texts = [name for name in _members(shard) if name.suffix.lower() in TEXT_MEMBERS]
    if len({name.name.partition(".")[0] for name in texts}) < len({name.stem for name in texts}):
        raise ConfigError(
            f"{shard}: Expected one dot in a member's name, where WebDataset ends its key, got {texts[0].name!r}; "
            "rename the members, or unpack it: images with texts beside them are data=imagefolder"
        )
