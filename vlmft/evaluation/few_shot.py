"""Few-shot prompts: worked examples as earlier turns, from train, and none shares an image with a question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from vlmft.sample import BadRowError, Message, Prompt, Question, Sample


def turns_of(shots: Iterable[Sample], sample: Sample) -> tuple[Message, ...]:
    """What comes before the row's own turns: its system message, where it has one, then each example's turns and its
    answer, without theirs."""
    found = [message for message in sample.prompt.messages if message.role == "system"]
    for shot in shots:
        turns = [message for message in shot.prompt.messages if message.role != "system"]
        found += [*turns, Message("assistant", (shot.answer,))]
    return tuple(found)


def question_after(shots: Sequence[Sample], sample: Sample) -> Question:
    """The row's question behind the examples; and behind fewer and fewer of them, where all are too long. Examples go
    from the front, so that the ones next to the question stay."""
    prompts = []
    for n in range(len(shots), -1, -1):
        own = [message for message in sample.prompt.messages if message.role != "system"]
        prompts.append(Prompt((*turns_of(shots[len(shots) - n :], sample), *own)))
    return Question(sample.id, prompts[0], tuple(prompts[1:]))


def images_of(samples: Iterable[Sample]) -> set[str]:
    """Content hashes of all images; the group where a row has none."""
    found: set[str] = set()
    for sample in samples:
        found |= {image.sha256 for image in sample.prompt.images} or {sample.group}
    return found


def draw(
    candidates: Sequence[str], read: Callable[[str], Sample], n: int, forbidden: set[str], seed: tuple[int, int]
) -> list[Sample]:
    """The first `n` rows of a shuffle by `seed` that can be read and show nothing in `forbidden`; fewer where there are
    no more."""
    found: list[Sample] = []
    for position in np.random.default_rng(seed).permutation(len(candidates)):
        if len(found) == n:
            break
        try:
            sample = read(candidates[position])
            if not images_of([sample]) & forbidden:
                found.append(sample)
        except BadRowError:  # the ledger hears of it where the row is trained on
            continue
    return found


def nearest(
    pool: Sequence[Sample], pool_vectors: np.ndarray, vectors: Mapping[str, np.ndarray], k: int
) -> dict[str, list[Sample]]:
    """Row id -> the k examples whose image is most like the row's by cosine, the most alike last, next to the question.

    Args:
        pool_vectors: (len(pool), d) float.
        vectors: row id -> (d,) float.
    """
    unit = pool_vectors / np.linalg.norm(pool_vectors, axis=1, keepdims=True)
    found = {}
    for row_id, vector in vectors.items():
        order = np.argsort(-(unit @ vector), kind="stable")[:k]
        found[row_id] = [pool[i] for i in reversed(order.tolist())]
    return found
