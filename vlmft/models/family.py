"""What differs between vision-language models, behind one protocol, and the generic family that serves most of them.

The generic family uses only public doors of transformers: the processor's own template and image expansion,
`get_image_features` for what the language part sees, `mm_encoder_outputs` to hand it in, `logits_to_keep` masks to get
the supervised logits alone (which keeps each model's own soft-capping and scaling).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlmft.config.check import ConfigError, import_allowed
from vlmft.config.schema import ModelConfig
from vlmft.models.load import Source, load_processor
from vlmft.sample import BadRowError, Batch, EncodedImage, EncodedRow, Image, Layout, Message, Prompt, Sample

Features = list[torch.Tensor]
"""One tensor an image, (n_image_tokens, d_model), in reading order."""


class Family(Protocol):
    """One object per architecture. `encode` and `encode_prompt` run in workers, the rest in the main process."""

    max_images: int | None
    """Most images in one row; None is no limit."""
    capabilities: frozenset[str]
    """Of: text_only, multi_image, multi_turn, and the layouts it can collate."""
    end_id: int
    pad_id: int
    fingerprint_parts: Mapping[str, Any]
    """What a fingerprint is the hash of: prompt format and processor."""

    def image_tokens(self, width: int, height: int) -> int: ...
    def encode(self, sample: Sample) -> EncodedRow: ...
    def encode_prompt(self, row_id: str, prompt: Prompt) -> EncodedRow: ...
    def collate(self, rows: Sequence[EncodedRow], layout: Layout, model: PreTrainedModel) -> Batch: ...
    def image_features(self, model: PreTrainedModel, images: Sequence[EncodedImage], *, grad: bool) -> Features: ...
    def forward(self, model: PreTrainedModel, batch: Batch, features: Features, keep: torch.Tensor) -> torch.Tensor: ...
    def generate(
        self, model: PreTrainedModel, batch: Batch, features: Features, max_new_tokens: int
    ) -> torch.Tensor: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def show(self, ids: Sequence[int]) -> str: ...


def make_family(config: ModelConfig, source: Source, model_config: Any) -> Family:
    """The family that `model.family` names: `generic`, or module.path:ClassName with the same constructor."""
    processor = load_processor(source, model_config.model_type)
    if config.template is not None:
        processor.chat_template = config.template
    cls = GenericFamily if config.family == "generic" else import_allowed("model.family", config.family)
    limit = config.max_length_tokens or _text_limit(model_config)
    family: Family = cls(processor, model_config, limit)
    return family


def _text_limit(model_config: Any) -> int:
    return int(getattr(model_config.get_text_config(), "max_position_embeddings", None) or 1 << 20)


class GenericFamily:
    """Any decoder VLM of transformers with a chat template, an image token and `get_image_features`."""

    max_images: int | None = None
    capabilities = frozenset({"text_only", "multi_image", "multi_turn", "right", "left"})

    def __init__(self, processor: Any, model_config: Any, max_length_tokens: int) -> None:
        if processor.chat_template is None:
            raise ConfigError("model.template: this model has no chat template; give one in Jinja")
        self.processor = processor
        self.max_length_tokens = max_length_tokens
        self.image_token_id = int(model_config.image_token_id)
        tokenizer = processor.tokenizer
        self.special_texts = sorted({*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_encoder)})
        self.end_id = self._find_end_id()
        self.end_text = tokenizer.convert_ids_to_tokens(self.end_id)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id)
        self.fingerprint_parts = {
            "template": processor.chat_template,
            "image_processor": {k: v for k, v in processor.image_processor.to_dict().items() if not k.startswith("_")},
            "vocabulary": len(tokenizer),
            "end_id": self.end_id,
        }

    def _find_end_id(self) -> int:
        question = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
        answer = [{"role": "assistant", "content": [{"type": "text", "text": "ANSWER"}]}]
        text = self._template(question + answer, generation=False)
        ids = self.processor.tokenizer(text.rpartition("ANSWER")[2], add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError("model.template: Expected an end token after the assistant's text, got none; add one")
        return int(ids[0])

    def _template(self, messages: list[dict[str, Any]], *, generation: bool) -> str:
        text = self.processor.apply_chat_template(messages, add_generation_prompt=generation, tokenize=False)
        return str(text)

    def _chat(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        chat = []
        for message in messages:
            content = []
            for piece in message.content:
                if isinstance(piece, Image):
                    content.append({"type": "image"})
                else:
                    self._refuse_special(piece)
                    content.append({"type": "text", "text": piece})
            chat.append({"role": message.role, "content": content})
        return chat

    def _refuse_special(self, text: str) -> None:
        for special in self.special_texts:
            if special in text:  # as text it would become a control token, or shift the images
                raise BadRowError(f"Expected plain text, got the model's own token {special!r} in it; remove it")

    def image_tokens(self, width: int, height: int) -> int:
        """Tokens that an image of this size takes in the prompt, its frame included."""
        counts = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        return int(counts["num_image_tokens"][0])

    def encode_prompt(self, row_id: str, prompt: Prompt) -> EncodedRow:
        """Prompt ids exactly as generation sees them: `supervised` is all False. Next: `collate`.

        Raises:
            BadRowError: more tokens or images than the model takes, or its control tokens in the text.
        """
        text = self._template(self._chat(prompt.messages), generation=True)
        pictures = [image.pixels for image in prompt.images]
        if self.max_images is not None and len(pictures) > self.max_images:
            raise BadRowError(f"Expected at most {self.max_images} images, got {len(pictures)}; use another model")
        inputs = self.processor(text=[text], images=[pictures] if pictures else None, return_tensors="np")
        ids = np.asarray(inputs.pop("input_ids"))[0].astype(np.int64)
        inputs.pop("attention_mask", None)
        if len(ids) >= self.max_length_tokens:
            raise BadRowError(f"Expected fewer than {self.max_length_tokens} prompt tokens, got {len(ids)}")
        token_arrays = {
            k: np.asarray(inputs.pop(k))[0].astype(np.int64) for k in list(inputs) if k.endswith("type_ids")
        }
        if len(pictures) > 1:  # one image a call, so that an image's pixels do not depend on its neighbours
            arrays = [self._pixels_alone(picture) for picture in pictures]
        else:
            arrays = [{name: np.asarray(value) for name, value in inputs.items()}] * len(pictures)
        images = tuple(EncodedImage(i.sha256, a) for i, a in zip(prompt.images, arrays, strict=True))
        return EncodedRow(row_id, ids, np.zeros(len(ids), bool), len(ids), token_arrays, images)

    def _pixels_alone(self, picture: np.ndarray) -> dict[str, np.ndarray]:
        inputs = self.processor(text=[self.processor.image_token], images=[[picture]], return_tensors="np")
        drop = ("input_ids", "attention_mask")
        return {k: np.asarray(v) for k, v in inputs.items() if k not in drop and not k.endswith("type_ids")}

    def encode(self, sample: Sample) -> EncodedRow:
        """Prompt ids + answer ids + end token, tokenised apart and concatenated: training sees generation's prompt.

        Raises:
            BadRowError: as `encode_prompt`, or a row that does not fit with its answer. Nothing is ever cut.
        """
        prompt = self.encode_prompt(sample.id, sample.prompt)
        answer = np.asarray(self.answer_ids(sample.prompt, sample.answer), np.int64)
        length = prompt.length + len(answer)
        if length > self.max_length_tokens:
            raise BadRowError(f"Expected at most {self.max_length_tokens} tokens with the answer, got {length}")
        zeros = np.zeros(len(answer), np.int64)
        return EncodedRow(
            sample.id,
            np.concatenate([prompt.input_ids, answer]),
            np.concatenate([prompt.supervised, np.ones(len(answer), bool)]),
            prompt.prompt_length,
            {name: np.concatenate([array, zeros]) for name, array in prompt.token_arrays.items()},
            prompt.images,
        )

    def answer_ids(self, prompt: Prompt, answer: str) -> list[int]:
        """Ids of the answer as the template writes it after the generation prompt, up to and with the end token."""
        self._refuse_special(answer)
        chat = self._chat(prompt.messages)
        before = self._template(chat, generation=True)
        turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        whole = self._template([*chat, turn], generation=False)
        if not whole.startswith(before):
            raise ConfigError("model.template: the text before an answer differs with and without it; fix the template")
        completion = whole[len(before) :]
        completion = completion[: completion.rindex(self.end_text) + len(self.end_text)]
        ids = self.processor.tokenizer(completion, add_special_tokens=False)["input_ids"]
        return [int(i) for i in ids]

    def collate(self, rows: Sequence[EncodedRow], layout: Layout, model: PreTrainedModel) -> Batch:
        """Rows padded to the longest, on the `right` for training or the `left` for generation. Next: `forward`."""
        if layout not in self.capabilities:
            raise NotImplementedError(f"Expected layout right or left, got {layout!r}; this family has no other yet")
        mask = _padded([np.ones(row.length, np.int64) for row in rows], 0, layout)
        batch = Batch(
            row_ids=tuple(row.id for row in rows),
            layout=layout,
            input_ids=_padded([row.input_ids for row in rows], self.pad_id, layout),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            supervised=_padded([row.supervised for row in rows], False, layout),
            token_arrays=_token_arrays(rows, layout),
            images=tuple(image for row in rows for image in row.images),
            image_arrays={},
        )
        batch.image_arrays = _language_facts(batch.images, model)
        batch.position_ids = _positions(batch, model)
        return batch

    def image_features(self, model: PreTrainedModel, images: Sequence[EncodedImage], *, grad: bool) -> Features:
        """What the language part sees of each image, (n_image_tokens, d_model) in the model's dtype.

        Frozen (`grad=False`): one image a call, without autograd or autocast. Batch composition changes bits, so a
        feature has one definition, whether computed now or read from a cache. With `grad`, images go together where
        their shapes allow it.
        """
        if not grad:
            with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
                return [_features(model, [image])[0] for image in images]
        together = len({tuple(v.shape[1:] for v in image.arrays.values()) for image in images}) == 1
        return _features(model, images) if together else [_features(model, [image])[0] for image in images]

    def forward(self, model: PreTrainedModel, batch: Batch, features: Features, keep: torch.Tensor) -> torch.Tensor:
        """Logits at the positions where `keep` (B, T) bool is True: (n_kept, vocabulary)."""
        output = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            mm_encoder_outputs=_encoder_outputs(features),
            logits_to_keep=keep,
            use_cache=False,
            **batch.token_arrays,
            **batch.image_arrays,
        )
        logits: torch.Tensor = output.logits
        return logits

    def generate(self, model: PreTrainedModel, batch: Batch, features: Features, max_new_tokens: int) -> torch.Tensor:
        """Greedy continuation of a left-padded batch: (B, <= max_new_tokens) int64, padded after the end token."""
        inner: Any = model.base_model
        if hasattr(inner, "rope_deltas"):
            inner.rope_deltas = None  # trap: a text-only batch would take over the last batch's offsets
        output = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            mm_encoder_outputs=_encoder_outputs(features) or {},
            generation_config=self.generation_config(max_new_tokens),
            **batch.token_arrays,
            **batch.image_arrays,
        )
        return output[:, batch.input_ids.shape[1] :]  # type: ignore[no-any-return]

    def generation_config(self, max_new_tokens: int) -> GenerationConfig:
        """Greedy whatever the model's own generation_config.json says: some sample by default."""
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.end_id,
            pad_token_id=self.pad_id,
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids without special tokens and surrounding white space."""
        return str(self.processor.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def show(self, ids: Sequence[int]) -> str:
        """Text of ids with every special token in it, for people and for the leak canary."""
        return str(self.processor.tokenizer.decode(list(ids), skip_special_tokens=False))


def _padded(arrays: Sequence[np.ndarray], value: Any, layout: Layout) -> torch.Tensor:
    longest = max(len(array) for array in arrays)
    padded = np.full((len(arrays), longest), value, dtype=arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        start = longest - len(array) if layout == "left" else 0
        row[start : start + len(array)] = array
    return torch.from_numpy(padded)


def _token_arrays(rows: Sequence[EncodedRow], layout: Layout) -> dict[str, torch.Tensor]:
    names = sorted({name for row in rows for name in row.token_arrays})
    blank = [np.zeros(row.length, np.int64) for row in rows]  # a text-only row may come without them
    return {n: _padded([r.token_arrays.get(n, b) for r, b in zip(rows, blank, strict=True)], 0, layout) for n in names}


def _language_facts(images: Sequence[EncodedImage], model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Per-image arrays that the whole model's forward names beside the pixels, such as image_grid_thw."""
    wanted = [n for n in inspect.signature(model.forward).parameters if images and n in images[0].arrays]
    facts = [name for name in wanted if not name.startswith("pixel")]
    return {name: torch.from_numpy(np.concatenate([image.arrays[name] for image in images])) for name in facts}


def _positions(batch: Batch, model: PreTrainedModel) -> torch.Tensor:
    inner: Any = model.base_model
    if not hasattr(inner, "get_rope_index"):
        return batch.position_ids
    if not batch.images:
        return batch.position_ids.expand(3, *batch.position_ids.shape)
    positions: torch.Tensor = inner.get_rope_index(
        batch.input_ids, attention_mask=batch.attention_mask, **batch.token_arrays, **batch.image_arrays
    )[0]
    return positions


def _features(model: PreTrainedModel, images: Sequence[EncodedImage]) -> Features:
    names = [n for n in inspect.signature(model.get_image_features).parameters if n in images[0].arrays]
    device = model.device
    arrays = {n: torch.from_numpy(np.concatenate([i.arrays[n] for i in images])).to(device) for n in names}
    arrays = {n: a.to(model.dtype) if a.is_floating_point() else a for n, a in arrays.items()}
    pooled = model.get_image_features(**arrays).pooler_output
    return [f.reshape(-1, f.shape[-1]) for f in pooled]


def _encoder_outputs(features: Features) -> dict[str, BaseModelOutputWithPooling] | None:
    return {"image": BaseModelOutputWithPooling(pooler_output=features)} if features else None
