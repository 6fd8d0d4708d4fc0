"""The data files that the card of a cloned Hub repository declares: the front matter of README.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vlmft.config.check import ConfigError


def declared_files(place: Path, subset: str | None, is_table: Callable[[Path], bool]) -> dict[Path, str | None]:
    """The data files that the card of a cloned Hub repository declares (`configs` in README.md), each with the name of
    its split, None where the card gives none; {} without such a card.

    Raises:
        ConfigError: several subsets, and none of them is named or the default; or none of the files is there.
    """
    card = place / "README.md"
    if not card.is_file():
        return {}
    _, _, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        front_matter = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    listed = front_matter.get("configs") if isinstance(front_matter, dict) else None
    configs = {str(c.get("config_name", "default")): c for c in listed or () if isinstance(c, dict)}
    configs = {name: c for name, c in configs.items() if c.get("data_files") or c.get("data_dir")}
    if not configs:
        return {}
    usual = [name for name, config in configs.items() if config.get("default") or name == "default"]
    chosen = subset or next(iter([*usual, *(configs if len(configs) == 1 else ())]), None)
    if chosen not in configs:
        raise ConfigError(
            f"data.options.subset: Expected one of {', '.join(configs)}, which {card} declares, got {subset!r}"
        )
    patterns = [*_patterns(configs[chosen])]
    found = {file: split for pattern, split in patterns for file in sorted(place.glob(pattern)) if is_table(file)}
    if not found:
        names = ", ".join(pattern for pattern, _ in patterns)
        raise ConfigError(f"{card}: Expected the files that it declares ({names}), got none of them; clone them, too")
    return found


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(pattern, split) of `data_files`: a pattern, a list of them, {split: pattern} or a list of {split, path}."""
    files = config.get("data_files") or "**/*"
    folder = f"{config['data_dir']}/" if config.get("data_dir") else ""
    if isinstance(files, dict) and "path" not in files:
        files = [{"split": split, "path": pattern} for split, pattern in files.items()]
    for one in files if isinstance(files, list) else [files]:
        inner, split = (one.get("path"), one.get("split")) if isinstance(one, dict) else (one, None)
        yield from ((f"{folder}{pattern}", split) for pattern in (inner if isinstance(inner, list) else [inner]))
