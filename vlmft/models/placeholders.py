"""The text that a processor writes in an image's place, recorded once and used again without looking at the image.

In transformers, `ProcessorMixin.__call__` makes pixels and these texts in one step, `_process_images`; the rest, such
as tokens of its own around them, token types and checks, is each processor's. That one step is replaced for a call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from transformers import ProcessorMixin

NO_PIXELS = ("num_patches", "pixel_values")
"""Arrays that a processor rearranges after that step (InternVL)."""


def placeholders_known(processor: Any) -> bool:
    """Whether this processor makes them in that step; Idefics2, IDEFICS and moondream2 do it elsewhere."""
    return type(processor).replace_image_token is not ProcessorMixin.replace_image_token


@contextlib.contextmanager
def placeholders(processor: Any, known: Sequence[str] | None = None) -> Iterator[list[str]]:
    """Inside, the placeholders that the processor writes are recorded, one an image; with `known`, it writes these and
    looks at no picture, and its arrays are those of the text alone."""
    written: list[str] = []
    if not placeholders_known(processor):
        yield written
        return
    own = processor._process_images

    def process_images(images: Any, *args: Any, **settings: Any) -> tuple[dict[str, Any], list[str]]:
        if known is not None:
            return {name: np.zeros(len(known), np.int64) for name in NO_PIXELS}, list(known)
        arrays, texts = own(images, *args, **settings)
        written.extend(texts)
        return arrays, texts

    processor._process_images = process_images
    try:
        yield written
    finally:
        del processor._process_images
