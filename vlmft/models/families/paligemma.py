"""PaliGemma as a family: a prefix that sees all of itself, images first, and an answer behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image

from vlmft.models.generic import GenericFamily

TEMPLATE = (
    "{% if messages[0]['role'] != 'user' or messages | length > 2 %}"
    "{{ raise_exception('turns that PaliGemma was not trained on: it answers one prompt of a user') }}{% endif %}"
    "{% for piece in messages[0]['content'] if piece['type'] == 'image' %}<image>{% endfor %}"
    "{% for piece in messages[0]['content'] if piece['type'] == 'text' %}{{ piece['text'] }}{% endfor %}"
    "{% for message in messages[1:] %}{{ message['content'][0]['text'] }}EOS{% endfor %}"
)
"""It has none of its own. The processor puts <bos> behind the images and a line break behind the text."""


class PaliGemmaFamily(GenericFamily):
    """One prompt of a user about images."""

    capabilities = frozenset({"multi_image", "right", "left"})
    shares = frozenset()  # its prefix sees all of itself
    answer_type_id = 1
    """Trap: with 0, as elsewhere, an answer would be part of the prefix, and each of its tokens would see itself."""

    def __init__(self, processor: Any, model_config: Any, max_length_tokens: int) -> None:
        processor.chat_template = processor.chat_template or TEMPLATE.replace("EOS", processor.tokenizer.eos_token)
        super().__init__(processor, model_config, max_length_tokens)

    def marked_tokens(self, text: str) -> int:
        """With the start token and the line break that the processor writes."""
        return super().marked_tokens(text) + 2

    def _process(self, text: str, pictures: list[PIL.Image.Image]) -> dict[str, np.ndarray]:
        inputs = super()._process(text, pictures)
        return {name: array for name, array in inputs.items() if name != "labels"}  # the prompt's, all of them masked
