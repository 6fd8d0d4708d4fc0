"""Prompts with their images blacked out: what a model that looks at its images cannot answer from."""

from __future__ import annotations

import functools

import PIL.Image

from vlmft.sample import Image, Message, Prompt


def blanked(prompt: Prompt) -> Prompt:
    """The same text and image sizes, every image black."""
    messages = (
        Message(message.role, tuple(piece if isinstance(piece, str) else _black(piece) for piece in message.content))
        for message in prompt.messages
    )
    return Prompt(tuple(messages))


def _black(image: Image) -> Image:
    height, width, _ = image.pixels.shape
    return Image(functools.partial(PIL.Image.new, "RGB", (width, height)), f"black for {image.name}")
