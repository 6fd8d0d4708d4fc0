"""Arms, the columns of a comparison, by their names: which weights answer, to which prompt, with which images."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

CONTROLS = {
    "blank": "black images in place of its own",
    "shuffled": "another row's images in place of its own",
    "textonly": "no image at all",
}
"""Arms whose images are changed: what is still answered was not seen."""
SIXTEEN_BIT = "untuned16"


@dataclass(frozen=True)
class Arm:
    name: str
    adapter: str | None
    """Name of the adapter that is on; None: the untuned model."""
    asked: str = "train"
    """The dataset's prompt, which training used; or `vendor`, the model vendor's own; or `bare`, the question alone."""
    control: str | None = None
    """Of `CONTROLS`."""
    few_shot: bool = False
    model: str | None = None
    """Name of the whole model that answers, such as "untuned16"; None: the one that is loaded."""
    server: str | None = None
    """Name of the server that answers; None: a model that is loaded here."""


def arms_of(
    names: Sequence[str],
    prompts: Sequence[str],
    adapters: Sequence[str],
    models: Sequence[str] = (SIXTEEN_BIT,),
    servers: Collection[str] = (),
) -> list[Arm]:
    """The arms that these names mean, in order; then untuned and every adapter under each further prompt.

    `adapters` and `models` are the names of those that there are, such as "tuned" and "untuned16"; the settings' check
    has seen to the names. `servers` are asked no further prompts unless they are named, such as "big@bare".
    """
    found = {name: _arm(name, adapters, models, servers) for name in names}
    weights = [arm for arm in found.values() if arm.name == "untuned" or arm.name in (*adapters, *models)]
    for asked in prompts:
        for arm in weights if asked != "train" else ():
            name = f"{arm.name}@{asked}"
            found.setdefault(name, dataclasses.replace(arm, name=name, asked=asked))
    return list(found.values())


def _arm(name: str, adapters: Sequence[str], models: Sequence[str], servers: Collection[str]) -> Arm:
    what, _, asked = name.partition("@")
    if what in servers:
        return Arm(name, None, asked or "train", server=what)
    if what in CONTROLS:
        return Arm(name, "tuned" if "tuned" in adapters else None, control=what)
    if what in ("untuned", "fewshot", *models):
        return Arm(name, None, asked or "train", None, what == "fewshot", what if what in models else None)
    return Arm(name, what, asked or "train")


def pairs_of(arms: Sequence[str]) -> list[tuple[str, str]]:
    """(first, second) of each comparison, whatever the order of the arms; untuned with tuned first of all."""
    pairs = [(first, arm) for arm in arms for first in _baselines(arm, arms)]
    return sorted(pairs, key=lambda pair: pair != ("untuned", "tuned"))


def _baselines(arm: str, arms: Sequence[str]) -> Iterator[str]:
    """What an arm is compared with, of those that there are."""
    what, _, asked = arm.partition("@")
    if asked and what != "untuned":
        yield from (f"untuned@{asked}",) if f"untuned@{asked}" in arms else ()
    elif what in CONTROLS:
        yield from [one for one in ("tuned", "untuned") if one in arms][:1]
    elif arm != "untuned":
        first = ("untuned",) if asked or what in ("fewshot", SIXTEEN_BIT) else ("untuned", "fewshot", "tuned")
        yield from (one for one in first if one in arms and one != arm)
