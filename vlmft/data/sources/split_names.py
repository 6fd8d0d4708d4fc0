"""Which split the name of a file, a folder or a cell says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

from vlmft.sample import Split

SPLIT_NAMES: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation", "valset", "devset"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "tst"), "test"),
}
"""What sources call their splits, in any case."""
LEFT_OUT = "none"
"""The value of `split_names` for a split that is not used."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
"""Capitals begin one: PublicTest has two."""

Names = Mapping[str, str]
"""Lower-case name -> train, val, test or `LEFT_OUT`."""


def known_names(said: Mapping[str, str]) -> Names:
    """`SPLIT_NAMES`, and what the settings say beside or against them."""
    return {**SPLIT_NAMES, **{str(name).lower(): split for name, split in said.items()}}


def splits_in(name: str, names: Names) -> set[str]:
    """The splits that a name says: as a whole, else in its first or last word, else in any: "pets_train",
    "v2_mscoco_train2014_annotations". Two of them say nothing."""
    if name.lower() in names:
        return {names[name.lower()]}
    words = [word.lower() for word in WORD.findall(name)]
    ends = {names[word] for word in words[:1] + words[-1:] if word in names}
    return ends or {names[word] for word in words if word in names}


def split_of(file: PurePath, names: Names) -> str | None:
    """The split that a file's name says, else that of its nearest folder which says one; `file` is a path below the
    data folder. None where no name says exactly one."""
    for name in (file.name.partition(".")[0] if file.suffix else file.name, *reversed(file.parts[:-1])):
        found = splits_in(name, names)
        if found:
            return next(iter(found)) if len(found) == 1 else None
    return None
