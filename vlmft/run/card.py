"""The data card: what is known of the rows before training, under the run's own model. data_card.json, and a sheet.

Keys of data_card.json:

* `data`, `model`: their short names. `divided`: splits that the source does not declare, taken from train.
* `source`: what it was read as. `splits`: where each declared split comes from; `roles`: which column or field is what;
  `unread`: fields that no one reads, each with an example; `notes`. `warnings`: what is seldom meant.
* `groups`: of each split, how many `n` groups of rows share an image, a conversation or a group, and the rows of the
  `largest`.
* `splits.<split>`: `rows`; `looked_at`, the rows that all else is of; `bad`, `repeated`; how many different `images`,
  `answers`, `classes`.
  - `top_answers`: the most frequent answers, each with its share of the rows.
  - `answer_words`, `questions_per_image`, `visual_tokens`: each a spread, `n`, `mean`, `min`, `median`, `p95`, `max`
    and `counts` (value -> how often). Visual tokens are of each different image, and with what the model writes around
    and between its tiles.
* `answers`: the most frequent over all splits, each with its share of each split's rows (0 behind its thousandth).
* `rows_that_fit`: of a seeded sample of `looked_at` rows the `tokens` of those that fit into `limit_tokens` (a spread),
  how many are `too_long` or `refused`, and the `first` of these with the reason.
* `readable_answers.<split>`: of the `n` rows looked at, how many `rows` have their gold answer in their own prompt, the
  share's `interval`; `chance` and its `chance_interval`, what shuffled answers give; `places`, `first`, and whether it
  is `flagged` (evaluation/readable_answers.py).
* `near_duplicates`: `distance`, the bits that differ at most; `largest_group` of them in images, null where they are
  not grouped; `between`: for each pair of `splits` how many `images` of the second look like one of the first, and the
  nearest `pairs`; how many more are `mirrored`, left for right, and their `mirrored_pairs`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image

from vlmft.data.survey.card import SplitCard, Spread, suspicions
from vlmft.data.survey.near_duplicates import DISTANCE, NearPair, Shown
from vlmft.data.survey.survey import Survey
from vlmft.evaluation.readable_answers import MOST_ROWS, readable
from vlmft.models.family import Family
from vlmft.report.near_sheet import Twins, write_near_sheet
from vlmft.run.folder import CARD_FILE, write_json
from vlmft.run.usable import ImageTokens, row_tokens, sizes_of
from vlmft.sample import BadRowError, Split

SHEET_FILE = "near_duplicates.html"
LISTED_ANSWERS = 20
TEXT_ROWS = 500
"""Rows at most whose texts are tokenised to see whether they fit."""
LISTED_PAIRS, SHOWN_PAIRS = 100, 24
"""Near-duplicates of two splits that are named in the card, and that are shown on the sheet."""
THUMBNAIL_PIXELS = 240


def data_card(
    survey: Survey, family: Family, image_tokens: ImageTokens, model: str, poll: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """data_card.json as a dict, from what the survey has counted. Decodes no image."""
    return {
        "data": survey.rows.config.name,
        "model": model,
        "source": dataclasses.asdict(survey.rows.dataset.describe()),
        "warnings": suspicions(survey.cards),
        "divided": list(survey.rows.divided),
        "groups": {split: {"n": n, "largest": largest} for split, (n, largest) in survey.groups.items()},
        "splits": {split: _split(card, image_tokens) for split, card in survey.cards.items()},
        "answers": _answers(survey.cards),
        "rows_that_fit": _fit(survey, family, image_tokens, poll),
        "readable_answers": {
            split: readable([sample for sample, _ in survey.some(split, MOST_ROWS)]).to_dict() for split in survey.cards
        },
        "near_duplicates": _near_duplicates(survey),
    }


def keep_card(card: Mapping[str, Any], survey: Survey, folder: Path) -> Path | None:
    """Writes the card, and the sheet of near-duplicates where there are some; returns where the sheet is."""
    write_json(folder / CARD_FILE, card)
    twins = [
        Twins(
            (split, held_out),
            (pair.other.name, pair.held_out.name),
            (_thumbnail(survey, pair.other), _thumbnail(survey, pair.held_out)),
            pair.distance,
        )
        for (split, held_out), pairs in survey.near_duplicates.items()
        for pair in pairs[:SHOWN_PAIRS]
    ]
    if not twins:
        (folder / SHEET_FILE).unlink(missing_ok=True)  # of a run that was interrupted
        return None
    write_near_sheet(card, twins, folder / SHEET_FILE)
    return folder / SHEET_FILE


def read_card(folder: Path, page_folder: Path) -> dict[str, Any] | None:
    """The card of a run folder for a report that lies in `page_folder`; None where there is none."""
    path, sheet = folder / CARD_FILE, folder / SHEET_FILE
    if not path.is_file():
        return None
    card = json.loads(path.read_text(encoding="utf-8"))
    return {**card, "sheet": Path(os.path.relpath(sheet, page_folder)).as_posix() if sheet.is_file() else None}


def _split(card: SplitCard, image_tokens: ImageTokens) -> dict[str, Any]:
    tokens: Counter[int] = Counter()
    for size, n_images in card.sizes.items():
        with contextlib.suppress(BadRowError):  # its row does not fit, which `_fit` reports
            tokens[image_tokens(*size)] += n_images
    return {
        "rows": card.rows,
        "looked_at": card.looked_at,
        "bad": card.bad,
        "repeated": card.repeated,
        "images": card.images,
        "answers": card.answers,
        "classes": card.classes,
        "top_answers": dict(itertools.islice(card.top_answers.items(), LISTED_ANSWERS)),
        "answer_words": card.answer_words.to_dict(),
        "questions_per_image": card.questions_per_image.to_dict(),
        "visual_tokens": Spread(tokens).to_dict(),
    }


def _answers(cards: Mapping[Split, SplitCard]) -> dict[str, dict[str, float]]:
    rows: Counter[str] = Counter()
    for card in cards.values():
        for answer, share in card.top_answers.items():
            rows[answer] += round(share * card.looked_at)
    top = [answer for answer, _ in rows.most_common(LISTED_ANSWERS)]
    return {answer: {split: card.top_answers.get(answer, 0.0) for split, card in cards.items()} for answer in top}


def _fit(survey: Survey, family: Family, image_tokens: ImageTokens, poll: Callable[[], None]) -> dict[str, Any]:
    """Rows of a seeded sample that the model will not take, counted without decoding their images again."""
    n_rows = sum(card.looked_at for card in survey.cards.values())
    share = min(1.0, TEXT_ROWS / max(1, n_rows))
    tokens: Counter[int] = Counter()
    too_long, refused, looked_at = 0, 0, 0
    first: dict[str, str] | None = None
    for split, card in survey.cards.items():
        for sample, sizes in survey.some(split, max(1, int(share * card.looked_at))):
            poll()
            problem = None
            looked_at += 1
            try:
                n_tokens = row_tokens(family, sample, sizes_of(sample, sizes), image_tokens)
            except BadRowError as error:
                refused, problem = refused + 1, str(error)
            else:
                if n_tokens > family.max_length_tokens:
                    too_long, problem = too_long + 1, f"{n_tokens} tokens"
                else:
                    tokens[n_tokens] += 1
            if problem is not None and first is None:
                first = {"row": sample.id, "reason": problem}
    return {
        "limit_tokens": family.max_length_tokens,
        "looked_at": looked_at,
        "tokens": Spread(tokens).to_dict(),
        "too_long": too_long,
        "refused": refused,
        "first": first,
    }


def _near_duplicates(survey: Survey) -> dict[str, Any]:
    between = [
        {
            "splits": list(splits),
            "images": len(pairs),
            "pairs": [_named(pair) for pair in pairs[:LISTED_PAIRS]],
            "mirrored": len(survey.mirrored[splits]),
            "mirrored_pairs": [_named(pair) for pair in survey.mirrored[splits][:LISTED_PAIRS]],
        }
        for splits, pairs in survey.near_duplicates.items()
        if all(split in survey.cards for split in splits)
    ]
    rows = survey.rows
    largest = rows.splits.largest_group if rows.config.group_near_duplicates else None
    return {"distance": DISTANCE, "largest_group": largest, "between": between}


def _named(pair: NearPair) -> dict[str, Any]:
    names = {"row": pair.held_out.row_id, "image": pair.held_out.name}
    return {**names, "like_row": pair.other.row_id, "like_image": pair.other.name, "distance": pair.distance}


def _thumbnail(survey: Survey, shown: Shown) -> bytes:
    """Of the few pictures on the sheet; these are decoded once more."""
    images = (image for image in survey.rows.sample(shown.row_id).prompt.images if image.name == shown.name)
    picture: PIL.Image.Image = next(images).load()
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()
