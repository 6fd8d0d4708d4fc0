"""Folders in Hub layout for the two tiny models: the tokenizer is trained here, the configs are the real classes'.

`tiny` is Idefics3 (SmolVLM's architecture) and gets weights by pretraining; `tiny_qwen2vl` keeps random ones.
Sizes and what was reached with them: 96 px, patch 12, 16 image tokens, 5.7 M parameters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

from vlmft.models.processor import image_only

VOCABULARY = 768

IDEFICS3_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for piece in message['content'] %}{% if piece['type'] == 'text' %}{{ piece['text'] }}"
    "{% else %}<image>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
QWEN2VL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for piece in message['content'] %}{% if piece['type'] == 'text' %}{{ piece['text'] }}"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str], special: list[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Byte-level BPE with single digits: a number is read and written digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_tiny(folder: Path, texts: Iterable[str]) -> None:
    """Writes config, tokenizer and processor of `tiny` into `folder`, without weights."""
    special = ["<|endoftext|>", "<|im_start|>", "<pad>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    special += ["<global-img>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(texts, special),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<pad>",
        model_max_length=1024,
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(
            size={"longest_edge": 96}, max_image_size={"longest_edge": 96}, do_image_splitting=False
        ),
        tokenizer,
        image_seq_len=16,
        chat_template=IDEFICS3_TEMPLATE,
    )
    text_config = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    vision_config = {
        "hidden_size": 192,
        "intermediate_size": 576,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": 96,
        "patch_size": 12,
    }
    ids = _special_ids(tokenizer)
    config = Idefics3Config(
        text_config={**text_config, **ids},
        vision_config=vision_config,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=True,
        **ids,
    )
    config.architectures = ["Idefics3ForConditionalGeneration"]
    _save(folder, config, processor, tokenizer)


def build_tiny_qwen2vl(folder: Path, texts: Iterable[str]) -> None:
    """Writes config, tokenizer and processor of `tiny_qwen2vl` into `folder`."""
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(texts, special),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    processor = image_only(Qwen2VLProcessor)(
        Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 84 * 84}),
        tokenizer,
        chat_template=QWEN2VL_TEMPLATE,
    )
    text_config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    vision_config = {
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
        "mlp_ratio": 2,
        "hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    names = ("vision_start", "vision_end", "image", "video")
    mark_ids = dict(zip((f"{n}_token_id" for n in names), tokenizer.convert_tokens_to_ids(marks), strict=True))
    ids = _special_ids(tokenizer)
    config = Qwen2VLConfig(text_config={**text_config, **ids}, vision_config=vision_config, **mark_ids, **ids)
    config.architectures = ["Qwen2VLForConditionalGeneration"]
    _save(folder, config, processor, tokenizer)


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _save(folder: Path, config: Any, processor: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    generation = {**_special_ids(tokenizer), "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
