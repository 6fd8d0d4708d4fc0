"""Which split the name of a file, a folder or a cell means."""

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
"""Names of splits in sources, in any case."""
LEFT_OUT = "none"
"""The value of `split_names` for a split that is not used."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
"""A capital begins a word: PublicTest has two."""

Names = Mapping[str, str]
"""Lower-case name -> train, val, test or `LEFT_OUT`."""


def known_names(settings: Mapping[str, str]) -> Names:
    """`SPLIT_NAMES`, extended or overridden by the settings."""
    return {**SPLIT_NAMES, **{str(name).lower(): split for name, split in settings.items()}}


def splits_in(name: str, names: Names) -> set[str]:
    """The splits in a name: by the whole name, else by its first or last word, else by any: "pets_train",
    "v2_mscoco_train2014_annotations". Two of them mean none."""
    if name.lower() in names:
        return {names[name.lower()]}
    words = [word.lower() for word in WORD.findall(name)]
    ends = {names[word] for word in words[:1] + words[-1:] if word in names}
    return ends or {names[word] for word in words if word in names}


def split_of(file: PurePath, names: Names) -> str | None:
    """The split in a file's name, else in that of its nearest folder that has one; `file` is a path below the data
    folder. None where no name has exactly one."""
    for name in (file.name.partition(".")[0] if file.suffix else file.name, *reversed(file.parts[:-1])):
        found = splits_in(name, names)
        if found:
            return next(iter(found)) if len(found) == 1 else None
    return None
