"""The examples of few-shot prompts for one model and one dataset: drawn from train, nearest by what the model sees, or
written by hand; what a draw's prompts begin with is computed once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmft.config.check import ConfigError
from vlmft.config.evaluation_schema import EvaluationConfig, ShotChoice
from vlmft.data.images import image_from_file
from vlmft.evaluation.few_shot import draw, images_of, nearest, question_after, turns_of
from vlmft.evaluation.predict import Answerer, in_eval_mode
from vlmft.models.prefix import Prefix, make_prefix
from vlmft.run.build import Built
from vlmft.sample import BadRowError, EncodedRow, Message, Prompt, Question, Sample

CHECKED_ROWS = 4
"""Rows that are asked with and without the shared prefix; if an answer differs, it is not used."""


@dataclass(frozen=True)
class Draw:
    """One choice of examples."""

    ids: list[str]
    """Of the examples, where all questions have the same."""
    questions: list[Question]
    prefix: Prefix | None = None


@dataclass
class FewShot:
    key: dict[str, Any]
    """What chose the examples."""
    draws: list[Draw] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def few_shot_draws(built: Built, settings: EvaluationConfig, answerer: Answerer, samples: Sequence[Sample]) -> FewShot:
    """As many draws as are asked for, one where there is nothing to draw, none where there are no examples.

    Raises:
        ConfigError: the file of examples cannot be read, or shows what is asked about.
    """
    with in_eval_mode(built.base):
        return _drawn(built, settings, answerer, samples)


def _drawn(built: Built, settings: EvaluationConfig, answerer: Answerer, samples: Sequence[Sample]) -> FewShot:
    config = settings.few_shot
    found = FewShot({"k": config.k, "choose": config.choose.name, "max_length_tokens": built.family.max_length_tokens})
    if config.choose == ShotChoice.nearest:
        pool = _usable(built, config.pool_rows, images_of(samples), 0)
        pool = [sample for sample in pool if sample.prompt.images]
        if pool:
            found.draws.append(Draw([], _nearest(built, pool, config.k, samples)))
        else:
            found.notes.append("fewshot: not run: train has no images that are not among the rows")
        return found
    forbidden = images_of(samples)
    for number in range(config.draws if config.choose == ShotChoice.random else 1):
        if config.choose == ShotChoice.file:
            shots = read_shots(Path(str(config.file)), config.k)
            if tested := [shot.id for shot in shots if images_of([shot]) & forbidden]:
                raise ConfigError(
                    f"evaluation.few_shot.file: Expected examples of other images than those that are asked about, got "
                    f"{tested[0]}, whose answer would stand in the prompts; take another example"
                )
        else:
            shots = _usable(built, config.k, forbidden, number)
        if not shots:
            found.notes.append("fewshot: not run: train has no examples that are not among the rows")
            return found
        if len(shots) < config.k:
            found.notes.append(f"few-shot: {len(shots)} examples instead of {config.k}: there are no more")
        questions = [question_after(shots, sample) for sample in samples]
        prefix = make_prefix(built.family, built.base, Prompt(turns_of(shots, samples[0])))
        if prefix is not None and not _same_answers(built, answerer, questions[:CHECKED_ROWS], prefix):
            found.notes.append(
                "few-shot: the shared examples changed an answer when computed once; each row had its own"
            )
            prefix = None
        found.draws.append(Draw([shot.id for shot in shots], questions, prefix))
    return found


def _same_answers(built: Built, answerer: Answerer, questions: Sequence[Question], prefix: Prefix) -> bool:
    rows = []
    for question in questions:
        try:
            rows.append(built.family.encode_prompt(question.id, question.prompt))
        except BadRowError:  # too long with all examples: it is asked with fewer
            continue
    rows = [row for row in rows if prefix.begins(row)]
    if not rows:
        return False
    whole = answerer.answer_rows(rows)
    answerer.prefix, before = prefix, answerer.prefix
    try:
        return answerer.answer_rows(rows) == whole
    finally:
        answerer.prefix = before


def _usable(built: Built, n: int, forbidden: set[str], number: int) -> list[Sample]:
    """Training rows that the model can be shown with their answers: one that it refuses would drag the others out."""

    def read(row_id: str) -> Sample:
        sample = built.data.sample(row_id)
        built.family.encode(sample)
        return sample

    return draw(built.data.ids["train"], read, n, forbidden, (built.data.seed, number))


def _nearest(built: Built, pool: Sequence[Sample], k: int, samples: Sequence[Sample]) -> list[Question]:
    vectors = {}
    for sample in samples:
        with contextlib.suppress(BadRowError):  # the ledger hears of it when the row is asked
            vectors[sample.id] = image_vector(built, sample)
    chosen = nearest(pool, np.stack([image_vector(built, sample) for sample in pool]), vectors, k)
    return [question_after(chosen.get(sample.id, list(pool[:k])), sample) for sample in samples]


def image_vector(built: Built, sample: Sample) -> np.ndarray:
    """(d_model,) float32: what the language part sees of the row's first image, averaged over its tokens.

    Raises:
        BadRowError: there is none, or one that the processor refuses.
    """
    if not sample.prompt.images:
        raise BadRowError("Expected an image to be like, got none; choose examples at random")
    row: EncodedRow = built.family.encode_prompt(sample.id, Prompt((Message("user", (sample.prompt.images[0], "?")),)))
    with torch.inference_mode():
        feature = built.family.image_features(built.base, row.images[:1], grad=False)[0]
    return np.asarray(feature.float().mean(dim=0).cpu())


def read_shots(file: Path, k: int) -> list[Sample]:
    """The first k examples of a JSONL file: {"question", "answer", and "image" or "images" below the file's folder}.

    Raises:
        ConfigError: no such file, or a line that is no example.
    """
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"evaluation.few_shot.file: {error}; name a JSONL file of examples") from error
    return [_shot(file, number, line) for number, line in enumerate(lines, start=1) if line.strip()][:k]


def _shot(file: Path, number: int, line: str) -> Sample:
    try:
        record: Mapping[str, Any] = json.loads(line)
        names = record.get("images", [record["image"]] if "image" in record else [])
        images = [image_from_file(file.expanduser().parent, str(name)) for name in names]
        prompt = Prompt((Message("user", (*images, str(record["question"]))),))
        return Sample(f"{file.name}:{number}", prompt, str(record["answer"]), (str(record["answer"]),))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"evaluation.few_shot.file: line {number}: Expected question, answer and image, got {line[:60]!r} ({error})"
        ) from error
