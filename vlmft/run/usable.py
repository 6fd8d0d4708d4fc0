"""Rows that a model will not take, found before the first step: among all rows, without encoding them all.

Most rows cannot fail, and facts of them show it: a text without "<" holds no special token that has one, one of few
bytes is not too long, and turns of roles that the template took once it takes again. Only the others are looked at
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vlmft.data.survey.facts import Facts, marks_in
from vlmft.data.survey.survey import Survey
from vlmft.models.family import Family
from vlmft.models.refusals import refuse_length
from vlmft.sample import BadRow, BadRowError, Sample, Split

SLACK_TOKENS = 64
"""A tokenizer may add a token at the beginning of each piece of a text."""

ImageTokens = Callable[[int, int], int]


def refuse_unusable(survey: Survey, family: Family, image_tokens: ImageTokens, poll: Callable[[], None]) -> int:
    """Sends rows that the model does not take to the ledger, all splits' together; returns how many.

    Raises:
        BadRowError: as the ledger says, with how many, the first ids and what goes on without them.
    """
    bad_rows = [bad for split in survey.looked_at for bad in _of_split(survey, family, image_tokens, split, poll)]
    survey.rows.ledger.refuse_all(bad_rows)
    return len(bad_rows)


def _of_split(
    survey: Survey, family: Family, image_tokens: ImageTokens, split: Split, poll: Callable[[], None]
) -> list[BadRow]:
    ids, facts = survey.looked_at[split]
    sample_of = survey.rows.sample
    places = _suspects(facts, family, image_tokens, lambda place: sample_of(ids[place]))
    bad_rows = []
    for place, sizes in zip(places.tolist(), facts.take(places).sizes(), strict=True):
        poll()
        sample = sample_of(ids[place])
        try:
            require_fit(family, sample, sizes_of(sample, sizes), image_tokens)
        except BadRowError as error:
            bad_rows.append(BadRow(sample.id, str(error)))
    return bad_rows


def _suspects(
    facts: Facts, family: Family, image_tokens: ImageTokens, sample_of: Callable[[int], Sample]
) -> np.ndarray:
    """Indices of rows that have to be encoded whole, ascending."""
    good = ~np.isin(np.arange(len(facts)), list(facts.bad))
    if not good.any():
        return np.zeros(0, np.int64)
    marks = [marks_in([token]) for token in family.control_texts]
    suspect = np.full(len(facts), 0 in marks)  # a token without any of the marks may occur in every text
    for own in set(marks):
        suspect |= (facts.rows["marked"] & own) == own
    most = family.max_images
    suspect |= np.zeros(len(facts), bool) if most is None else facts.rows["images"] > most
    overhead = 0
    for form in np.unique(facts.rows["form"][good]):  # the template gets one row of each; its own text is overhead
        places = np.flatnonzero(good & (facts.rows["form"] == form))
        try:
            overhead = max(overhead, family.text_tokens(sample_of(int(places[0]))))
        except BadRowError:
            suspect[places] = True
    largest = _largest(facts, image_tokens)
    bound = facts.rows["text_bytes"] + facts.rows["images"] * largest + overhead + SLACK_TOKENS
    return np.flatnonzero(good & (suspect | (bound > family.max_length_tokens)))


def _largest(facts: Facts, image_tokens: ImageTokens) -> int:
    """Tokens of the image that takes most; so many that every row is looked at where one is refused."""
    looks, _ = facts.pictures()
    sizes = np.unique(np.column_stack([looks["width"], looks["height"]]), axis=0).tolist()
    try:
        return max((image_tokens(int(width), int(height)) for width, height in sizes), default=0)
    except BadRowError:
        return 1 << 30


def sizes_of(sample: Sample, known: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """(width, height) of each image of the row, from those of its different ones: decoded only where it repeats one."""
    return known if len(known) == len(sample.prompt.images) else [i.load().size for i in sample.prompt.images]


def row_tokens(family: Family, sample: Sample, sizes: Sequence[tuple[int, int]], image_tokens: ImageTokens) -> int:
    """Tokens of prompt and answer as `family.encode` makes them; of Idefics2 within one an image.

    Raises:
        BadRowError: the model does not take such texts, so many images, or images of such a size.
    """
    if family.max_images is not None and len(sizes) > family.max_images:
        raise BadRowError(f"Expected at most {family.max_images} images, got {len(sizes)}; leave some out")
    images = sum(image_tokens(*size) for size in sizes)
    return family.text_tokens(sample) - len(sizes) + images


def require_fit(family: Family, sample: Sample, sizes: Sequence[tuple[int, int]], image_tokens: ImageTokens) -> None:
    """Raises BadRowError as `row_tokens`, and for a row that is longer than the model takes."""
    n_tokens = row_tokens(family, sample, sizes, image_tokens)
    refuse_length(family.max_length_tokens, n_tokens, "with the answer")
