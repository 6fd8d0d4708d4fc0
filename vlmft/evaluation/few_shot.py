"""Few-shot prompts: worked examples as earlier turns, from train, and none shares an image with a question.

They are drawn by a seed, nearest by the model's image features, or written by hand. What a draw's prompts begin with is
computed once.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from vlmft.config.check import ConfigError
from vlmft.config.evaluation_schema import FewShotConfig, ShotChoice
from vlmft.evaluation.predict import Answerer, EncodedQuestions, in_eval_mode
from vlmft.evaluation.rows import EvaluationRows
from vlmft.models.loaded import LoadedModel
from vlmft.models.prefix import Prefix, make_prefix
from vlmft.models.sharding import without_gradients
from vlmft.sample import BadRowError, EncodedRow, Message, Prompt, Question, Sample

CHECKED_ROWS, CHECKED_TOKENS = 4, 8
"""Rows of the first draw, one of each other, and tokens of their answers that show whether examples can be shared."""


@dataclass(frozen=True)
class Draw:
    """One choice of examples."""

    ids: list[str]
    """Of the examples, where all questions have the same."""
    questions: list[Question]
    turns: list[tuple[Message, ...]] = field(default_factory=list)
    """What prompts begin with: all examples, and fewer and fewer of them, as in `Question.shorter`."""
    n_checked: int = 0
    """Questions that are asked with and without their examples computed once; if an answer differs, they are not. A
    function of the draw alone: an evaluation that goes on after a kill decides as one that was not killed."""


@dataclass
class FewShot:
    key: dict[str, Any]
    """What chose the examples."""
    draws: list[Draw] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def few_shot_draws(
    model: LoadedModel, config: FewShotConfig, samples: Sequence[Sample], rows: EvaluationRows
) -> FewShot:
    """As many draws as are asked for, one where there is nothing to draw, none where there are no examples.

    Raises:
        ConfigError: the file of examples cannot be read, or shows what is asked about.
    """
    with in_eval_mode(model.base):
        if config.choose == ShotChoice.nearest:
            return _nearest_shots(model, config, samples, rows)
        return _drawn(model, config, samples, rows)


def _key(model: LoadedModel, config: FewShotConfig) -> dict[str, Any]:
    return {"k": config.k, "choose": config.choose.name, "max_length_tokens": model.family.max_length_tokens}


def _nearest_shots(
    model: LoadedModel, config: FewShotConfig, samples: Sequence[Sample], rows: EvaluationRows
) -> FewShot:
    pool = _usable(model, rows, config.pool_rows, images_of(samples), 0)
    pool = [sample for sample in pool if sample.prompt.images]
    few_shot = FewShot(_key(model, config))
    if pool:
        few_shot.draws.append(Draw([], _nearest(model, pool, config.k, samples)))
    else:
        few_shot.notes.append("fewshot: not run: train has no images that are not among the rows")
    return few_shot


def _drawn(model: LoadedModel, config: FewShotConfig, samples: Sequence[Sample], rows: EvaluationRows) -> FewShot:
    few_shot, forbidden = FewShot(_key(model, config)), images_of(samples)
    for number in range(config.draws if config.choose == ShotChoice.random else 1):
        if config.choose == ShotChoice.file:
            shots = rows.written_shots()
            if tested := [shot.id for shot in shots if images_of([shot]) & forbidden]:
                raise ConfigError(
                    f"evaluation.few_shot.file: Expected examples of other images than those that are asked about, got "
                    f"{tested[0]}, whose answer would occur in the prompts; take another example"
                )
        else:
            shots = _usable(model, rows, config.k, forbidden, number)
        if not shots:
            few_shot.notes.append("fewshot: not run: train has no examples that are not among the rows")
            return few_shot
        if len(shots) < config.k:
            few_shot.notes.append(f"few-shot: {len(shots)} examples instead of {config.k}: there are no more")
        questions = [question_after(shots, sample) for sample in samples]
        turns = [turns_of(shots[dropped:], samples[0]) for dropped in range(len(shots))]
        few_shot.draws.append(Draw([shot.id for shot in shots], questions, turns, 1 if number else CHECKED_ROWS))
    return few_shot


def shared_prefix(model: LoadedModel, answerer: Answerer, draw: Draw) -> tuple[Prefix | None, bool]:
    """The examples that most of a draw's first questions are asked behind, fewer than all where all are too long;
    and whether the first tokens of answers behind them stay the same when they are computed once. None where not, and
    where there is nothing to share."""
    if not draw.turns:
        return None, True
    asked = EncodedQuestions(model.family, draw.questions[:CHECKED_ROWS])
    encoded = [asked[number] for number in range(len(asked))]
    drops = Counter(dropped for row, dropped in encoded if isinstance(row, EncodedRow))
    ((dropped, _),) = drops.most_common(1) or ((len(draw.turns), 0),)
    if dropped == len(draw.turns):
        return None, True
    with in_eval_mode(model.base):
        prompt = replace(draw.questions[0].prompt, messages=draw.turns[dropped])
        prefix = make_prefix(model.family, model.base, prompt)
    rows = [row for row, _ in encoded if isinstance(row, EncodedRow) and prefix is not None and prefix.begins(row)]
    if prefix is None or not rows:
        return None, True
    is_exact = _same_answers(answerer, rows[: draw.n_checked], prefix)
    return prefix if is_exact else None, is_exact


def _same_answers(answerer: Answerer, rows: Sequence[EncodedRow], prefix: Prefix) -> bool:
    """Whether they begin with the same tokens. Not more of them: what is rounded otherwise shows in long ones anyway,
    in bf16 as it does for another batch size; a wrong prefix shows in the first."""
    briefly = replace(answerer, max_new_tokens=min(CHECKED_TOKENS, answerer.max_new_tokens))
    return replace(briefly, prefix=prefix).answer_rows(rows) == briefly.answer_rows(rows)


def _usable(model: LoadedModel, rows: EvaluationRows, n: int, forbidden: set[str], number: int) -> list[Sample]:
    """Training rows that the model can be shown with their answers: a refused one would remove the others, too."""

    def read(row_id: str) -> Sample:
        sample = rows.train_sample(row_id)
        row = model.family.encode(sample)
        if model.family.cache is not None:  # each prompt would decode and resize it again
            with without_gradients(model.base):
                model.family.image_features(model.base, row.images, grad=False)
        return sample

    return draw(rows.train_ids, read, n, forbidden, (rows.seed, number))


def _nearest(model: LoadedModel, pool: Sequence[Sample], k: int, samples: Sequence[Sample]) -> list[Question]:
    vectors = {}
    for sample in samples:
        with contextlib.suppress(BadRowError):  # it enters the ledger when the row is asked
            vectors[sample.id] = image_vector(model, sample)
    chosen = nearest(pool, np.stack([image_vector(model, sample) for sample in pool]), vectors, k)
    return [question_after(chosen.get(sample.id, list(pool[:k])), sample) for sample in samples]


def image_vector(model: LoadedModel, sample: Sample) -> np.ndarray:
    """(d_model,) float32: the language part's input for the row's first image, averaged over its tokens.

    Raises:
        BadRowError: there is none, or one that the processor refuses.
    """
    if not sample.prompt.images:
        raise BadRowError("Expected an image to be like, got none; choose examples at random")
    row: EncodedRow = model.family.encode_prompt(sample.id, Prompt((Message("user", (sample.prompt.images[0], "?")),)))
    with torch.inference_mode():
        feature = model.family.image_features(model.base, row.images[:1], grad=False)[0]
    return np.asarray(feature.float().mean(dim=0).cpu())


def turns_of(shots: Iterable[Sample], sample: Sample) -> tuple[Message, ...]:
    """What comes before the row's own turns: its system message, where it has one, then each example's turns and its
    answer, without theirs."""
    messages = [message for message in sample.prompt.messages if message.role == "system"]
    for shot in shots:
        turns = [message for message in shot.prompt.messages if message.role != "system"]
        messages += [*turns, Message("assistant", (shot.answer,))]
    return tuple(messages)


def question_after(shots: Sequence[Sample], sample: Sample) -> Question:
    """The row's question behind the examples; and behind fewer and fewer of them, where all are too long. Examples go
    from the front, so that the ones next to the question stay."""
    prompts = []
    for n in range(len(shots), -1, -1):
        own = [message for message in sample.prompt.messages if message.role != "system"]
        prompts.append(replace(sample.prompt, messages=(*turns_of(shots[len(shots) - n :], sample), *own)))
    return Question(sample.id, prompts[0], tuple(prompts[1:]))


def images_of(samples: Iterable[Sample]) -> set[str]:
    """Content hashes of all images; the group where a row has none."""
    hashes: set[str] = set()
    for sample in samples:
        hashes |= {image.sha256 for image in sample.prompt.images} or {sample.group}
    return hashes


def draw(
    candidates: Sequence[str], read: Callable[[str], Sample], n: int, forbidden: set[str], seed: tuple[int, int]
) -> list[Sample]:
    """The first `n` rows of a shuffle by `seed` that can be read and show nothing in `forbidden`; fewer where there are
    no more."""
    drawn: list[Sample] = []
    for position in np.random.default_rng(seed).permutation(len(candidates)):
        if len(drawn) == n:
            break
        try:
            sample = read(candidates[position])
            if not images_of([sample]) & forbidden:
                drawn.append(sample)
        except BadRowError:  # it enters the ledger where the row is trained on
            continue
    return drawn


def nearest(
    pool: Sequence[Sample], pool_vectors: np.ndarray, vectors: Mapping[str, np.ndarray], k: int
) -> dict[str, list[Sample]]:
    """Row id -> the k examples whose image is most like the row's by cosine, the most alike last, next to the question.

    Args:
        pool_vectors: (len(pool), d) float.
        vectors: row id -> (d,) float.
    """
    unit = pool_vectors / np.linalg.norm(pool_vectors, axis=1, keepdims=True)
    examples = {}
    for row_id, vector in vectors.items():
        order = np.argsort(-(unit @ vector), kind="stable")[:k]
        examples[row_id] = [pool[i] for i in reversed(order.tolist())]
    return examples
