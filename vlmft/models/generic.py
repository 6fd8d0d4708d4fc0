"""The family that serves most models, by public doors of transformers alone.

Those are the processor's own template and image expansion, `get_image_features` for what the language part sees,
`mm_encoder_outputs` to hand it in, `logits_to_keep` masks to get the supervised logits alone (which keeps each model's
own soft-capping and scaling).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import get_worker_info
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.models.collate import collate, seen_before
from vlmft.models.control_tokens import control_texts, decoded, refuse_control, require_allowed
from vlmft.models.coordinates import Coordinates, coordinates_of, marked_size
from vlmft.models.feature_cache import code_of, processor_key
from vlmft.models.features import Features, See, encoder_outputs, image_features, see
from vlmft.models.greedy import greedy, own_settings_set_aside
from vlmft.models.last_layer import last_layer_at
from vlmft.models.lora import as_loaded
from vlmft.models.processor_calls import ProcessorCalls
from vlmft.models.refusals import processor_refusals, refuse_length
from vlmft.models.resolution import KEY, most_visual_tokens, settings_of
from vlmft.models.shared_images import MASKED_ATTENTION, SharedRow, attention_of, can_share, collate_shared, shared
from vlmft.sample import BadRowError, Batch, EncodedImage, EncodedRow, Image, Layout, Prompt, Sample

PROBES = tuple(PIL.Image.new("RGB", size) for size in ((64, 64), (1000, 300)))
"""Pictures that show whether a model takes as many tokens for any image."""
ONE_IMAGE = ("llava_onevision",)
"""Model types whose processor cuts an image otherwise where it is not alone in its row."""


class GenericFamily(ProcessorCalls):
    """Any decoder VLM of transformers with a chat template, an image token and `get_image_features`."""

    see: See = staticmethod(see)
    """Features of some images by a model's own means."""
    max_images: int | None = None
    seeing: PreTrainedModel | None = None
    """Whose features of frozen images workers make, too, each as the main process would."""
    capabilities = frozenset({"text_only", "multi_image", "multi_turn", "prefix", "right", "left"})
    shares = frozenset({"shared_prefix"})
    """What is added where every layer attends to all tokens before."""
    suppressed_ids: Sequence[int] = ()
    """Ids that generation never chooses."""
    allowed_ids: frozenset[int] = frozenset()
    """Of special tokens that texts of rows may hold."""
    coordinates: Coordinates | None = None
    """How it writes boxes and points; None where it has no text for them."""
    answer_type_id = 0
    """What an answer's ids have in token_type_ids and its like."""

    def __init__(self, processor: Any, model_config: Any, max_length_tokens: int) -> None:
        if processor.chat_template is None:
            raise ConfigError("model.template: this model has no chat template; give one in Jinja")
        self.image_token_id = self.find_image_token_id(processor, model_config)
        if model_config.model_type in ONE_IMAGE:
            self.max_images = 1
        if can_share(model_config.get_text_config()):
            self.capabilities |= self.shares
        self.processor = processor
        self.coordinates = coordinates_of("auto", model_config.model_type, processor)
        self.max_length_tokens = max_length_tokens
        self.max_visual_tokens: int | None = None
        self.resolution = ""
        tokenizer = processor.tokenizer
        self.control_texts: Sequence[str] = control_texts(processor, self.image_token_id)
        self.end_id = self._find_end_id()
        self.end_text = tokenizer.convert_ids_to_tokens(self.end_id)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id)
        self.fingerprint_parts: Mapping[str, Any] = {
            "template": processor.chat_template,
            "image_processor": {k: v for k, v in processor.image_processor.to_dict().items() if not k.startswith("_")},
            "vocabulary": len(tokenizer),
            "end_id": self.end_id,
        }

    @property
    def processor_key(self) -> str:
        """Hash of what decides an image's pixels and its placeholder in a row."""
        return processor_key(self.processor, code_of(type(self)))

    def allow(self, tokens: Sequence[str]) -> None:
        """Takes these special tokens, such as a vendor's for boxes, in texts; raises as `require_allowed`."""
        probe = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}]
        answer = [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
        written = self._template([*probe, *answer], generation=False) + self._template(probe, generation=True)
        tokenizer = self.processor.tokenizer
        require_allowed(tokens, self.control_texts, tokenizer, written + self.end_text)
        self.control_texts = [text for text in self.control_texts if text not in tokens]
        self.allowed_ids = frozenset(int(i) for i in tokenizer.convert_tokens_to_ids(list(tokens)))

    def limit_images(self, most: int | None) -> None:
        """Holds every image to `most` tokens from now on, and says what an image takes at most.

        Raises:
            ConfigError: the model takes more for every image, or for some and has no setting for it.
        """
        self.max_visual_tokens, now = most, most_visual_tokens(self.processor)
        if now is not None:
            self.resolution = f"at most {now:,} tokens an image ({settings_of(self.processor)})"
            return
        found = {self._count(picture) for picture in PROBES}
        fixed = "one token for every image" if found == {1} else f"{max(found):,} tokens for every image"
        self.resolution = fixed if len(found) == 1 else "as many tokens for an image as its size asks for"
        if most is not None and max(found) > most:
            raise ConfigError(
                f"{KEY}: this model takes {max(found)} tokens for an image and has no setting for less, got {most}; "
                "leave it out"
            )

    def _count(self, picture: PIL.Image.Image) -> int:
        """Image tokens of a picture."""
        chat = [{"role": "user", "content": [{"type": "image"}]}]
        ids = self._process(self._template(chat, generation=True), [picture])["input_ids"]
        return int((ids == self.image_token_id).sum())

    def find_image_token_id(self, processor: Any, model_config: Any) -> int:
        """The id that stands for image features in a row.

        Raises:
            ConfigError: there is none.
        """
        if getattr(model_config, "image_token_id", None) is None:
            raise ConfigError("model.path: this model has no image token; choose a vision-language model")
        return int(model_config.image_token_id)

    def _find_end_id(self) -> int:
        question = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
        answer = [{"role": "assistant", "content": [{"type": "text", "text": "ANSWER"}]}]
        try:
            rest = self._template(question + answer, generation=False).rpartition("ANSWER")[2]
        except BadRowError as error:
            raise ConfigError(f"model.template: {error}") from error
        tokenizer = self.processor.tokenizer
        ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
        ends = [int(i) for i in ids if tokenizer.convert_ids_to_tokens(i) in self.control_texts]
        if not ends:
            raise ConfigError(
                f"model.template: Expected an end token after the assistant's text, got {rest!r}; "
                f"let it write {tokenizer.eos_token!r} there"
            )
        return ends[0]

    def _marked(self) -> Coordinates:
        if self.coordinates is None:
            raise ConfigError("model: Expected one that writes boxes and points in its text; moondream2 does not")
        return self.coordinates

    def _chat(self, prompt: Prompt) -> list[dict[str, Any]]:
        for message in prompt.messages:
            refuse_control(message.text, self.control_texts)  # as a whole: two pieces could make one token
        chat = []
        for message in (self._marked().prompt(prompt) if prompt.marks else prompt).messages:
            content = [
                {"type": "image"} if isinstance(piece, Image) else {"type": "text", "text": piece}
                for piece in message.content
            ]
            chat.append({"role": message.role, "content": content})
        return chat

    def image_tokens(self, width: int, height: int) -> int:
        """Ids that the processor puts in the place of the template's one image mark, for an image of this size.

        That is the image tokens, and what the processor itself writes around and between them (Idefics3: frames and
        tile names); not what the template writes around the mark (Qwen: vision_start and vision_end).

        Raises:
            BadRowError: the image processor refuses the size.
        """
        if not hasattr(self.processor, "_get_num_multimodal_tokens"):  # Idefics2: a picture of that size shows it
            return self._place(PIL.Image.new("RGB", (width, height)))
        return self._announced(width, height) + self._frame

    def _announced(self, width: int, height: int) -> int:
        with processor_refusals():
            counts = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        return int(counts["num_image_tokens"][0])

    @cached_property
    def _frame(self) -> int:
        """What the processor writes around an image and leaves out of its own count, as Gemma 3's does."""
        return self._place(PROBES[0]) - self._announced(*PROBES[0].size)

    def _place(self, picture: PIL.Image.Image) -> int:
        """Ids that stand in the place of the template's mark once the processor has seen the picture."""
        text = self._template([{"role": "user", "content": [{"type": "image"}]}], generation=True)
        return int(self._process(text, [picture])["input_ids"].shape[1]) - self.marked_tokens(text) + 1

    def text_tokens(self, sample: Sample) -> int:
        """Tokens of the row that `encode` makes, but with one for each image: it decodes none.

        Raises:
            BadRowError: as `encode`, for the model's control tokens in a text and turns that the template refuses.
        """
        return self.prompt_tokens(sample.prompt) + len(self.answer_ids(sample.prompt, sample.answer))

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Tokens of the prompt alone, with one for each image; raises as `text_tokens`."""
        return self.marked_tokens(self._template(self._chat(prompt), generation=True))

    def marked_tokens(self, text: str) -> int:
        """Tokens of what the template wrote, each image mark as one."""
        return len(self.processor.tokenizer(text, **self._start(text))["input_ids"])

    def encode_prompt(self, row_id: str, prompt: Prompt) -> EncodedRow:
        """Prompt ids exactly as generation sees them: `supervised` is all False. Next: `collate`.

        Raises:
            BadRowError: more tokens or images than the model takes, images that its processor refuses, or its control
                tokens in the text.
        """
        if self.max_images is not None and len(prompt.images) > self.max_images:
            found = len(prompt.images)
            raise BadRowError(f"Expected at most {self.max_images} images, got {found}; leave some out")
        text = self._template(self._chat(prompt), generation=True)
        inputs, images = self._with_images(text, prompt.images)
        if self.seeing is not None and get_worker_info() is not None:
            images = tuple(image if image.features_stored else self._with_feature(image) for image in images)
        ids = inputs["input_ids"][0].astype(np.int64)
        refuse_length(self.max_length_tokens, len(ids) + 1, "with room for an answer")
        self._refuse_resolution(int((ids == self.image_token_id).sum()), len(images))
        token_arrays = {k: v[0].astype(np.int64) for k, v in inputs.items() if k.endswith("type_ids")}
        return EncodedRow(row_id, ids, np.zeros(len(ids), bool), len(ids), token_arrays, images, marked_size(prompt))

    def _refuse_resolution(self, n_tokens: int, n_images: int) -> None:
        if self.max_visual_tokens is not None and n_tokens > self.max_visual_tokens * n_images:  # a flat strip may
            raise BadRowError(
                f"Expected at most {self.max_visual_tokens} tokens an image, got {n_tokens} for {n_images}; "
                f"crop what is so flat, or raise {KEY}"
            )

    def encode(self, sample: Sample) -> EncodedRow:
        """Prompt ids + answer ids + end token, tokenised apart and concatenated: training sees generation's prompt.

        Raises:
            BadRowError: as `encode_prompt`, or a row that does not fit with its answer. Nothing is ever cut.
        """
        if sample.prompt.marks and not sample.prompt.images:
            raise BadRowError("Expected an image for boxes or points to lie in, got none; leave the row out")
        prompt = self.encode_prompt(sample.id, sample.prompt)
        answer = np.asarray(self.answer_ids(sample.prompt, sample.answer), np.int64)
        refuse_length(self.max_length_tokens, prompt.length + len(answer), "with the answer")
        types = np.full(len(answer), self.answer_type_id, np.int64)
        return EncodedRow(
            sample.id,
            np.concatenate([prompt.input_ids, answer]),
            np.concatenate([prompt.supervised, np.ones(len(answer), bool)]),
            prompt.prompt_length,
            {name: np.concatenate([array, types]) for name, array in prompt.token_arrays.items()},
            prompt.images,
            prompt.marked_size,
        )

    def answer_ids(self, prompt: Prompt, answer: str) -> list[int]:
        """Ids of the answer as the template writes it after the generation prompt, up to and with the end token."""
        refuse_control(answer, self.control_texts)
        if (size := marked_size(prompt)) is not None:
            answer = self._marked().answer(answer, size)
        chat = self._chat(prompt)
        before = self._template(chat, generation=True).removesuffix(self._thought)
        turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        whole = self._template([*chat, turn], generation=False)
        if not whole.startswith(before):
            raise ConfigError("model.template: the text before an answer differs with and without it; fix the template")
        completion = whole[len(before) :]
        completion = completion[: completion.rindex(self.end_text) + len(self.end_text)]
        return self.completion_ids(completion)

    @cached_property
    def _thought(self) -> str:
        """What a template writes behind the assistant's header where an answer is asked for, and not where one stands:
        an empty thought (Gemma 4). It is part of the prompt, in training as in generation; "" for most templates."""
        chat = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
        turn = {"role": "assistant", "content": [{"type": "text", "text": "ANSWER"}]}
        start = len(self._template(chat, generation=False))
        header = self._template([*chat, turn], generation=False)[start:].partition("ANSWER")[0]
        asked = self._template(chat, generation=True)[start:]
        return asked.removeprefix(header) if header.strip() and asked.startswith(header) else ""

    def completion_ids(self, completion: str) -> list[int]:
        """Ids of what the template writes behind a prompt."""
        return [int(i) for i in self.processor.tokenizer(completion, add_special_tokens=False)["input_ids"]]

    def share(
        self, rows: Sequence[EncodedRow], model: PreTrainedModel, most_rows: int, most_tokens: int
    ) -> tuple[list[EncodedRow], list[SharedRow]]:
        """Rows that stay alone, and those with the same images that can be one row of layout `shared_prefix`."""
        if "shared_prefix" not in self.capabilities or attention_of(model) not in MASKED_ATTENTION:
            return list(rows), []
        return shared(rows, self.image_token_id, most_rows, min(most_tokens, self.max_length_tokens))

    def collate_shared(self, units: Sequence[SharedRow], model: PreTrainedModel) -> Batch:
        """Layout `shared_prefix`: a row for each unit. Next: `forward`."""
        return collate_shared(units, self.pad_id, model)

    def collate(self, rows: Sequence[EncodedRow], layout: Layout, model: PreTrainedModel) -> Batch:
        """Rows padded to the longest, on the `right` for training or the `left` for generation. Next: `forward`."""
        if layout == "shared_prefix":
            raise ValueError(f"Expected layout right or left, got {layout!r}; see collate_shared")
        return collate(rows, layout, self.pad_id, model)

    def image_features(self, model: PreTrainedModel, images: Sequence[EncodedImage], *, grad: bool) -> Features:
        """What the language part sees of each image, (n_image_tokens, d_model) in the model's dtype."""
        cache = self.cache if not grad and self.cache is not None and self.cache.serves(model) else None
        if cache is None:
            images = [self.with_pixels(image) for image in images]
        with as_loaded(model):
            return image_features(model, images, grad=grad, see=self._see_missing, cache=cache)

    def _with_feature(self, image: EncodedImage) -> EncodedImage:
        assert self.seeing is not None
        (feature,) = image_features(self.seeing, [image], grad=False, see=self.see)
        return replace(image, feature=feature.numpy())

    def _see_missing(self, model: PreTrainedModel, images: Sequence[EncodedImage]) -> Features:
        """What is not, or no longer, in the cache."""
        if model is self.seeing and all(image.feature is not None for image in images):
            return [torch.from_numpy(image.feature) for image in images]
        return self.see(model, [self.with_pixels(image) for image in images])

    def seen(
        self, model: PreTrainedModel, batch: Batch, features: Features, *, generation: bool = False
    ) -> dict[str, Any]:
        """The features as this model's `forward`, or its `generate`, takes them."""
        outputs = encoder_outputs(model, features)
        return {"mm_encoder_outputs": outputs if generation else outputs or None}

    def _called(
        self, model: PreTrainedModel, batch: Batch, features: Features, keep: torch.Tensor | int, *, use_cache: bool
    ) -> Any:
        return model(
            input_ids=batch.input_ids,
            **seen_before(batch, "shared_prefix" in self.capabilities),
            logits_to_keep=keep,
            use_cache=use_cache,
            **self.seen(model, batch, features),
            **batch.token_arrays,
            **batch.image_arrays,
        )

    def forward(self, model: PreTrainedModel, batch: Batch, features: Features, keep: torch.Tensor) -> torch.Tensor:
        """Logits at the positions where `keep` (B, T) bool is True: (n_kept, vocabulary)."""
        with as_loaded(model), last_layer_at(model, keep):
            return self._called(model, batch, features, keep, use_cache=False).logits  # type: ignore[no-any-return]

    def prefill(self, model: PreTrainedModel, batch: Batch, features: Features) -> Any:
        """The cache of keys and values that `generate` can go on from; features and ids as for `forward`."""
        with as_loaded(model), last_layer_at(model, None):
            return self._called(model, batch, features, 1, use_cache=True).past_key_values

    def generate(
        self, model: PreTrainedModel, batch: Batch, features: Features, max_new_tokens: int, past: Any = None
    ) -> torch.Tensor:
        """Greedy continuation of a left-padded batch: (B, <= max_new_tokens) int64, padded after the end token.

        With `past`, the cache of each row's first ids, `features` are those of the images behind them.
        """
        inner: Any = model.base_model
        if hasattr(inner, "rope_deltas"):
            inner.rope_deltas = None  # trap: a text-only batch would take over the last batch's offsets
        with own_settings_set_aside(model), as_loaded(model), last_layer_at(model, None):
            output = model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                generation_config=greedy(max_new_tokens, self.end_id, self.pad_id, self.suppressed_ids),
                past_key_values=past,
                **self.seen(model, batch, features, generation=True),
                **batch.token_arrays,
                **batch.image_arrays,
            )
        return output[:, batch.input_ids.shape[1] :]  # type: ignore[no-any-return]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids without special tokens (but those that rows may hold) and surrounding white space."""
        return decoded(self.processor.tokenizer, ids, self.allowed_ids)

    @cached_property
    def _mark_ids(self) -> frozenset[int]:
        """Of the special tokens that boxes and points are written with."""
        own = sorted(set(self._marked().syntax.tokens) & set(self.control_texts))
        return frozenset(int(self.processor.tokenizer.convert_tokens_to_ids(token)) for token in own)

    def decode_marks(self, ids: Sequence[int], size: tuple[int, int]) -> tuple[str, str]:
        """An answer of boxes or points in pixels of an image of this (width, height), and as the model wrote it."""
        raw = decoded(self.processor.tokenizer, ids, self.allowed_ids | self._mark_ids)
        return self._marked().pixels(raw, size), raw

    def show(self, ids: Sequence[int]) -> str:
        """Text of ids with every special token in it, for people and for the leak canary."""
        return str(self.processor.tokenizer.decode(list(ids), skip_special_tokens=False))
