"""IDEFICS (the first) as a family: pictures between texts, seen through cross-attention and not as tokens.

An image is one token in the row, and each token sees the last image before it. Its prompts are lists of texts and
pictures for a processor of their own; the loss must be made outside, for the library's own miscounts the two ids that
stand behind the vocabulary. Source of the prompt: the fine-tuning notebook of huggingface.co/HuggingFaceM4/idefics-9b.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.models.features import Features, vision_dtype
from vlmft.models.generic import GenericFamily
from vlmft.models.refusals import processor_refusals
from vlmft.sample import Batch, EncodedImage, EncodedRow, Layout

IMAGE, FRAME = "<image>", "<fake_token_around_image>"
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% for piece in message['content'] if piece['type'] == 'image' %}<image>{% endfor %}Question: "
    "{% for piece in message['content'] if piece['type'] == 'text' %}{{ piece['text'] }}{% endfor %} Answer:"
    "{% else %}{% for piece in message['content'] %}{% if message['role'] == 'assistant' %} {% endif %}"
    "{{ piece['text'] }}{% endfor %}{% if message['role'] == 'assistant' and loop.last %}EOS"
    "{% else %}{{ '\\n' }}{% endif %}{% endif %}{% endfor %}"
)
"""It has none of its own. An answer ends with the end token, an earlier one with a line break: behind the end token no
image is seen."""


def _see(model: PreTrainedModel, images: Sequence[EncodedImage]) -> Features:
    """What cross-attention sees of each image: (n_latents, d_vision)."""
    pixels = torch.from_numpy(np.concatenate([image.arrays["pixel_values"] for image in images]))
    inner: Any = model.base_model
    states = inner.vision_model(pixel_values=pixels.to(model.device, vision_dtype(model))).last_hidden_state
    return list(inner.perceiver_resampler(states) if model.config.use_resampler else states)


class IdeficsFamily(GenericFamily):
    """Questions about pictures, with earlier questions and answers before them."""

    see = staticmethod(_see)
    shares = frozenset()  # images are no part of the row
    capabilities = GenericFamily.capabilities - {"prefix"}  # a row's images are handed in together, for all its ids

    def __init__(self, processor: Any, model_config: Any, max_length_tokens: int) -> None:
        processor.chat_template = processor.chat_template or TEMPLATE.replace("EOS", processor.tokenizer.eos_token)
        tokenizer = processor.tokenizer
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token  # its processor asks
        super().__init__(processor, model_config, max_length_tokens)
        self.suppressed_ids = sorted({int(mark) for mark in tokenizer.convert_tokens_to_ids([FRAME, IMAGE])})
        if len(self.suppressed_ids) < 2:  # both unknown: every unknown word would be an image
            raise ConfigError(
                f"model.path: Expected {IMAGE} and {FRAME} in the tokenizer, got none; add its added tokens"
            )
        self.control_texts = sorted({*self.control_texts, IMAGE, FRAME})

    def find_image_token_id(self, processor: Any, model_config: Any) -> int:
        """Its config does not say."""
        return int(processor.tokenizer.convert_tokens_to_ids(IMAGE))

    def image_tokens(self, width: int, height: int) -> int:
        """An image and the two marks around it, whatever its size."""
        return 3

    def marked_tokens(self, text: str) -> int:
        """With the start token that the processor writes; images side by side share a mark."""
        side_by_side = sum(not piece for piece in text.split(IMAGE)[1:-1])
        return super().marked_tokens(text) + 1 - side_by_side

    def _process(self, text: str, pictures: list[PIL.Image.Image]) -> dict[str, np.ndarray]:
        """The processor wants a list of texts and pictures; it writes the start token itself."""
        waiting, items = iter(pictures), list[Any]()
        for position, piece in enumerate(text.split(IMAGE)):
            items += [next(waiting)] if position else []
            items += [piece] if piece else []
        with processor_refusals():
            inputs = self.processor(text=[items], return_tensors="pt", add_special_tokens=False)
        arrays = {"input_ids": inputs["input_ids"].numpy()}
        return arrays | {"pixel_values": inputs["pixel_values"][0].numpy()} if pictures else arrays

    def completion_ids(self, completion: str) -> list[int]:
        """Without the space that the template writes: the tokenizer puts one before each text."""
        return super().completion_ids(completion.lstrip(" "))

    def collate(self, rows: Sequence[EncodedRow], layout: Layout, model: PreTrainedModel) -> Batch:
        """`image_arrays` holds which image each token sees: (B, T, most images of a row), at least one."""
        batch = super().collate(rows, layout, model)
        most = max(1, *(len(row.images) for row in rows))
        number = (batch.input_ids == self.image_token_id).cumsum(-1)
        ended = (batch.input_ids == self.end_id) & (batch.attention_mask == 1)
        behind = ended.cumsum(-1) - ended.long() > 0  # all that stands behind the end
        sees = torch.nn.functional.one_hot(number, most + 1)[..., 1:]
        batch.image_arrays = {"image_attention_mask": sees * (~behind & (batch.attention_mask == 1))[..., None]}
        return batch

    def seen(
        self, model: PreTrainedModel, batch: Batch, features: Features, *, generation: bool = False
    ) -> dict[str, Any]:
        """Features of a row's images side by side, zeros where it has fewer: (B, most images, n_latents, d_vision)."""
        counts = (batch.input_ids == self.image_token_id).sum(-1).tolist()
        latents, width = features[0].shape if features else _shape_of_features(model)
        rows = torch.zeros(len(counts), max(1, *counts), latents, width, dtype=model.dtype, device=model.device)
        places = [(row, place) for row, count in enumerate(counts) for place in range(count)]
        if features:
            at = tuple(torch.tensor(place, device=model.device) for place in zip(*places, strict=True))
            rows = rows.index_put(at, torch.stack(features).to(model.dtype))
        if generation:
            return {"image_hidden_states": rows}
        return {"perceiver_embeddings" if model.config.use_resampler else "image_encoder_embeddings": rows}


def _shape_of_features(model: PreTrainedModel) -> tuple[int, int]:
    """For a batch without images, whose cross-attention needs something to look away from."""
    vision = model.config.vision_config
    if model.config.use_resampler:
        return model.config.perceiver_config.resampler_n_latents, vision.embed_dim
    return (vision.image_size // vision.patch_size) ** 2 + 1, vision.embed_dim
