"""The same questions in another form: without what the images show, or without what the dataset wrote around them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image

from vlmft.sample import Image, Message, Prompt, Sample


def blanked(prompt: Prompt) -> Prompt:
    """The same text and image sizes, every image black."""
    return _with_images(prompt, lambda image: (_black(image),))


def textless(prompt: Prompt) -> Prompt:
    """The text alone. (Its counterpart, the image alone, asks nothing.)"""
    return _with_images(prompt, lambda image: ())


def shuffled(samples: Sequence[Sample], seed: int) -> dict[str, Prompt]:
    """Row id -> prompt with the images of another row that has as many, but not the same ones.

    A row that no other can lend images to is left out. The same for the same rows and seed.
    """
    order = [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))]
    prompts = {}
    for n_images in {len(sample.prompt.images) for sample in order} - {0}:
        ring = [sample for sample in order if len(sample.prompt.images) == n_images]
        for position, sample in enumerate(ring):
            lenders = (*ring[position + 1 :], *ring[:position])
            lender = next((other for other in lenders if other.group != sample.group), None)
            if lender is not None:
                images = iter(lender.prompt.images)
                prompts[sample.id] = _with_images(sample.prompt, lambda _, images=images: (next(images),))  # type: ignore[misc]
    return prompts


def styled(sample: Sample, template: str) -> Prompt:
    """The prompt with `template` for the text of its question, "{question}" standing for the question without the
    dataset's instructions; images where they were, system messages gone, earlier turns as they are."""
    *before, last = sample.prompt.messages
    question = template.replace("{question}", sample.bare_question)
    images = tuple(piece for piece in last.content if isinstance(piece, Image))
    kept = tuple(message for message in before if message.role != "system")
    messages = (*kept, dataclasses.replace(last, content=(*images, question)))
    return dataclasses.replace(sample.prompt, messages=messages)


def _with_images(prompt: Prompt, change: Callable[[Image], tuple[Image, ...]]) -> Prompt:
    messages = []
    for message in prompt.messages:
        pieces = [(piece,) if isinstance(piece, str) else change(piece) for piece in message.content]
        messages.append(Message(message.role, tuple(piece for some in pieces for piece in some)))
    return dataclasses.replace(prompt, messages=tuple(messages))


def _black(image: Image) -> Image:
    height, width, _ = image.pixels.shape
    return Image(functools.partial(PIL.Image.new, "RGB", (width, height)), f"black for {image.name}")
