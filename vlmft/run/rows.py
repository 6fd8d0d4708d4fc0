"""Which rows are in which split of a run, in splits.json of its folder; and test rows that an adapter was trained on.

A test row counts as trained on where its image, or its text if it has none, is in the run's training split,
whatever file or data set it comes from: the first 16 hex digits of its hash are in the manifest. Of generated data,
whose images are not all looked at, ids are compared, where the settings of the data are the run's own. A copy that was
saved again or mirrored is not found here.

An adapter that saw test rows is not refused: to see how well it knows them can be what one wants. But no table of it
says that a model got better, so that a warning stands above it, in front of the sentence, and at the verdict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.rows import Rows
from vlmft.data.survey.survey import Survey
from vlmft.evaluation.evaluate import Evaluation
from vlmft.run.folder import read_run, write_json
from vlmft.sample import SPLITS, Sample, Split

MANIFEST_FILE = "splits.json"
CONTENT_DIGITS = 16
"""Of a hash: enough to distinguish a hundred million images."""


def manifest(data: Rows) -> dict[str, Any]:
    """Per split: n, the sha256 of its ids one a line; the ids themselves where the splits were made here."""
    by_split: dict[str, Any] = {}
    for split, ids in data.ids.items():
        digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
        by_split[split] = {"n": len(ids), "sha256": digest, **({"ids": list(ids)} if data.divided else {})}
    return by_split


def keep_manifest(path: Path, survey: Survey, content: dict[str, Any]) -> None:
    """Stores the manifest `content`, and what each split shows, for whoever evaluates the adapter on other rows."""
    for split in survey.rows.ids:
        if (contents := survey.contents(split)) is not None:
            content = {**content, split: {**content[split], "contents": contents}}
    write_json(path, content)


def require_same_rows(path: Path, data: Rows) -> dict[str, Any]:
    """The manifest, hashed once; equal to the stored one if there is one.

    Raises:
        ConfigError: the run whose manifest lies at `path` had other rows: the source has changed.
    """
    content = manifest(data)
    if not path.is_file():
        return content
    stored = json.loads(path.read_text(encoding="utf-8"))
    for split, now in content.items():
        if stored[split]["sha256"] != now["sha256"]:
            raise ConfigError(
                f"data: Expected the {stored[split]['n']} {split} rows that {path} lists, got {now['n']} others or in "
                "another order; restore the data as they were, or start a new run"
            )
    return content


def run_of(place: str) -> Path | None:
    """The run folder that an adapter or checkpoint lies in, or that `place` is; None where there is none."""
    folder = Path(place).expanduser()
    return next((f for f in (folder, folder.parent, folder.parent.parent) if (f / MANIFEST_FILE).is_file()), None)


def rows_in(theirs: Split, rows: Rows, samples: Sequence[Sample], run: Path) -> int | None:
    """How many of the rows were in this split of the run; None where that is unknown."""
    stored: Mapping[str, Any] = json.loads((run / MANIFEST_FILE).read_text(encoding="utf-8"))[theirs]
    if not stored["n"]:
        return 0
    if "contents" in stored:
        known = set(stored["contents"])
        return sum(not known.isdisjoint(contents_of(sample)) for sample in samples)
    try:
        own, data = read_run(str(run)).data, rows.config
    except ConfigError:  # a run of another version
        return None
    if (own.dataset, own.path, own.options) != (data.dataset, data.path, data.options):
        return None
    ids = set(stored["ids"]) if "ids" in stored else set(rows.ids[theirs])
    return sum(sample.id in ids for sample in samples)


def contents_of(sample: Sample) -> set[str]:
    """What a row shows, or asks, as the manifest names it."""
    hashes = [image.sha256 for image in sample.prompt.images] or [sample.prompt.sha256]
    return {digest[:CONTENT_DIGITS] for digest in hashes}


def note_trained_rows(evaluation: Evaluation, rows: Rows, places: Mapping[str, str | None], base: str) -> None:
    """Puts into the evaluation which of its rows the arms' adapters were trained on; `places`: arm -> where it is from.

    `base` is where the untuned model comes from: it, too, may be what a run has trained.
    """
    given = {arm: place for arm, place in places.items() if place is not None and arm in evaluation.arms}
    if run_of(base) is not None:
        arm_of_base = "untuned" if "untuned" in evaluation.arms else next(iter(evaluation.arms))
        given = {arm_of_base: base, **given}
    for arm, place in given.items():
        run = run_of(place)
        trained, chosen = (
            rows_in(split, rows, evaluation.samples, run) if run is not None else None for split in SPLITS[:2]
        )
        alarms, notes = trained_on(arm, trained, chosen, len(evaluation.samples), evaluation.split)
        evaluation.alarms, evaluation.notes = evaluation.alarms + alarms, evaluation.notes + notes


def trained_on(
    arm: str, trained: int | None, chosen: int | None, n_rows: int, split: str
) -> tuple[list[str], list[str]]:
    """(alarms, notes) on one adapter, from how many of the rows it was trained on, and its checkpoint was chosen by."""
    if trained is None:
        return [], [f"{arm}: nothing shows which rows it was trained on, so they may be among these"]
    alarms = [
        f"{arm} was trained on {trained:,} of these {n_rows:,} {split} rows, or on what they show; that it does well "
        "on them says nothing of rows that it has not seen"
    ]
    notes = [f"{arm}: its checkpoint was chosen by {chosen:,} of these {n_rows:,} rows, which flatters it"]
    return alarms if trained else [], notes if chosen else []
