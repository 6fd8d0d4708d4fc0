"""Small models of the published experiments' families, random weights, in Hub layout: real classes, own tokenizer.

What they show is that shapes, ids and positions meet; not that a published checkpoint answers well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from benchmarks.tiny.models import train_tokenizer
from vlmft.models.processor import image_only

TEXTS = ["How many items are there? Which has more: red or blue?", "Это 4. Сколько красных?", "Count the second."]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}IMAGE{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
QWEN_TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
QWEN_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TILES = tuple(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


@dataclass(frozen=True)
class Tiny:
    """One architecture, small: what its config class and its processor are given."""

    name: str
    """As people say it."""
    model_type: str
    config_class: str
    text: dict[str, Any]
    vision: dict[str, Any]
    config: dict[str, Any]
    """Further fields of the whole config; a value `id:<token>` becomes that token's id, also in a list."""
    image_processor: tuple[str, dict[str, Any]]
    image_mark: str
    """What the chat template writes in an image's place."""
    marks: tuple[str, ...] = ()
    """Further special tokens."""
    named: tuple[tuple[str, str], ...] = ()
    """Tokens that the tokenizer knows by name, such as ("image_token", "<image>")."""
    processor: tuple[tuple[str, Any], ...] = ()
    """Further arguments of the processor."""
    has_template: bool = True
    added: tuple[str, ...] = ()
    """Tokens behind the vocabulary."""
    targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj")
    """Linear layers that the checks put adapters on."""


QWEN_IDS = {
    "image_token_id": "id:<|image_pad|>",
    "video_token_id": "id:<|video_pad|>",
    "vision_start_token_id": "id:<|vision_start|>",
    "vision_end_token_id": "id:<|vision_end|>",
}
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_NAMED = (("image_token", "<|image_pad|>"), ("video_token", "<|video_pad|>"))

IDEFICS3_NAMED = (
    ("image_token", "<image>"),
    ("fake_image_token", "<fake_token_around_image>"),
    ("end_of_utterance_token", "<end_of_utterance>"),
    ("global_image_token", "<global-img>"),
)
IDEFICS3_PIXELS = ("Idefics3ImageProcessor", {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}})
IDEFICS3_TOWER = {**TOWER, "image_size": 32, "patch_size": 8}
SMOLVLM = Tiny(
    "SmolVLM / Idefics3",
    "idefics3",
    "Idefics3Config",
    {"model_type": "llama", **LLAMA},
    IDEFICS3_TOWER,
    {"scale_factor": 2, "image_token_id": "id:<image>"},
    IDEFICS3_PIXELS,
    "<image>",
    TILES,
    IDEFICS3_NAMED,
    (("image_seq_len", 4),),
)

QWEN2_VL = Tiny(
    "Qwen2-VL",
    "qwen2_vl",
    "Qwen2VLConfig",
    {**LLAMA, "rope_parameters": MROPE},
    {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64, "patch_size": 14},
    QWEN_IDS,
    ("Qwen2VLImageProcessor", {"size": {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}}),
    QWEN_IMAGE,
    QWEN_MARKS,
    QWEN_NAMED,
)

QWEN25_VL = replace(
    QWEN2_VL,
    name="Qwen2.5-VL",
    model_type="qwen2_5_vl",
    config_class="Qwen2_5_VLConfig",
    vision={**QWEN_TOWER, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
)

IDEFICS = Tiny(
    "IDEFICS",
    "idefics",
    "IdeficsConfig",
    {k: v for k, v in LLAMA.items() if k not in ("head_dim", "tie_word_embeddings")},
    {
        "embed_dim": 32,
        "image_size": 28,
        "patch_size": 14,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
    {
        "additional_vocab_size": 2,
        "cross_layer_interval": 1,
        "qk_layer_norms": True,
        "use_resampler": True,
        "alpha_initializer": "ones",
        "alpha_type": "float",
        "tie_word_embeddings": False,
        "freeze_text_layers": False,
        "freeze_vision_layers": False,
        "perceiver_config": {
            "use_resampler": True,
            "resampler_n_latents": 4,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "qk_layer_norms_perceiver": True,
        },
    },
    ("IdeficsImageProcessor", {"image_size": 28}),
    "",
    has_template=False,
    added=("<fake_token_around_image>", "<image>"),
)


def save(tiny: Tiny, folder: Path) -> None:
    """Writes config, tokenizer and processor; weights are made at load (model.init=random)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(tiny)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    known: Callable[[str], Any] = tokenizer.convert_tokens_to_ids
    fields = {name: _with_ids(value, known) for name, value in tiny.config.items()}
    text = {**tiny.text, "vocab_size": len(tokenizer), **ids}
    if "hidden_size_per_layer_input" in text:
        text["vocab_size_per_layer_input"] = len(tokenizer)
    parts: dict[str, Any] = {"text_config": text, "vision_config": tiny.vision, **ids}
    if tiny.model_type == "idefics":  # its text settings stand beside the others
        parts = {**text, "vision_config": tiny.vision, "vocab_size": len(tokenizer) - len(tiny.added)}
    config = getattr(transformers, tiny.config_class)(**parts, **fields)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": None}, default=str))
    class_name, settings = tiny.image_processor
    image_processor = getattr(transformers, f"{class_name}Pil", None) or getattr(transformers, class_name)
    image_processor = image_processor(**settings)
    if "image_seq_length" in settings:
        image_processor.image_seq_length = settings["image_seq_length"]
    arguments = dict(tiny.processor)
    name = arguments.pop("class", None) or PROCESSOR_MAPPING_NAMES[tiny.model_type]
    name = "Idefics3Processor" if name == "SmolVLMProcessor" else name
    template = CHATML.replace("IMAGE", tiny.image_mark) if tiny.has_template else None
    processor_class = getattr(transformers, name)
    if any("video" in attribute for attribute in processor_class.get_attributes()):
        processor_class = image_only(processor_class)
    if template is not None:
        arguments["chat_template"] = template
    processor = processor_class(image_processor=image_processor, tokenizer=tokenizer, **arguments)
    processor.save_pretrained(folder)


def _with_ids(value: Any, known: Callable[[str], Any]) -> Any:
    if isinstance(value, list):
        return [_with_ids(item, known) for item in value]
    return known(value[3:]) if isinstance(value, str) and value.startswith("id:") else value


def _tokenizer(tiny: Tiny) -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *tiny.marks, *(token for _, token in tiny.named)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(TEXTS, list(dict.fromkeys(special)), 256 + len(special) + 64),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
        extra_special_tokens=dict(tiny.named),
    )
    tokenizer.add_tokens(list(tiny.added), special_tokens=True)
    return tokenizer


def save_moondream2(folder: Path) -> None:
    """The same for moondream2, whose Hub repository looks otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {"dim": 64, "ff_dim": 96, "n_layers": 2, "n_heads": 2, "vocab_size": 16384}
    vision = {"enc_dim": 32, "enc_ff_dim": 48, "enc_n_layers": 2, "enc_n_heads": 2, "crop_size": 70}
    vision |= {"overlap_margin": 1, "max_crops": 4, "proj_inner_dim": 64, "proj_out_dim": 64}
    config = {"model_type": "moondream1", "config": {"text": text, "vision": vision}}
    (folder / "config.json").write_text(json.dumps(config))
    special = ["<|endoftext|>", *(f"<|md_reserved_{i}|>" for i in range(3))]
    PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(TEXTS, special)).save_pretrained(folder)


FAMILIES: Mapping[str, Callable[[Path], None]] = {
    "smolvlm256m": partial(save, SMOLVLM),
    "smolvlm": partial(save, SMOLVLM),
    "qwen2vl": partial(save, QWEN2_VL),
    "qwen25vl": partial(save, QWEN25_VL),
    "idefics9b": partial(save, IDEFICS),
    "moondream2": save_moondream2,
}
"""`model.name` of a config in conf/model -> what writes the small model of its family into a folder."""
