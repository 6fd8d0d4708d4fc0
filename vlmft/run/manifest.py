"""Which rows stand in which split of a run: splits.json in its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.datamodule import VLMDataModule
from vlmft.run.folder import write_json

MANIFEST_FILE = "splits.json"
CONTENT_DIGITS = 16
"""Of a hash: enough to tell a hundred million images apart."""


def manifest(data: VLMDataModule) -> dict[str, Any]:
    """Per split: n, the sha256 of its ids one a line; the ids themselves where the splits were made here."""
    found: dict[str, Any] = {}
    for split, ids in data.ids.items():
        digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
        found[split] = {"n": len(ids), "sha256": digest, **({"ids": list(ids)} if data.divided else {})}
    return found


def keep_manifest(path: Path, data: VLMDataModule) -> None:
    """Stores the manifest, and what each split shows, for whoever evaluates the adapter on other rows.

    For a resumed run, raises ConfigError as `require_same_rows`.
    """
    require_same_rows(path, data)
    found = manifest(data)
    for split in data.ids:
        if (contents := data.contents(split)) is not None:
            found[split]["contents"] = contents
    write_json(path, found)


def require_same_rows(path: Path, data: VLMDataModule) -> None:
    """
    Raises:
        ConfigError: the run whose manifest lies at `path` had other rows: the source has changed.
    """
    if not path.is_file():
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    for split, now in manifest(data).items():
        if stored[split]["sha256"] != now["sha256"]:
            raise ConfigError(
                f"data: Expected the {stored[split]['n']} {split} rows that {path} lists, got {now['n']} others or in "
                "another order; restore the data as they were, or start a new run"
            )
