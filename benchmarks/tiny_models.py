"""Tiny models with random weights of many architectures, in Hub layout: real classes, own tokenizer, no download.

What they show is that shapes, ids and positions meet; not that a published checkpoint answers well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.smoke.models import (
    IDEFICS,
    LLAMA,
    MROPE,
    QWEN2_VL,
    QWEN25_VL,
    QWEN_IDS,
    QWEN_IMAGE,
    QWEN_MARKS,
    QWEN_NAMED,
    QWEN_TOWER,
    SMOLVLM,
    TOWER,
    Tiny,
    save,
    save_moondream2,
)

__all__ = ["MODELS", "REFUSED", "Tiny", "make_louder", "save", "save_moondream2"]

SIGLIP = {**TOWER, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, "vision_use_head": False}
CLIP = {**TOWER, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 64}
GEMMA_NAMED = (
    ("image_token", "<image_soft_token>"),
    ("boi_token", "<start_of_image>"),
    ("eoi_token", "<end_of_image>"),
)

QWEN3_VL = Tiny(
    "Qwen3-VL",
    "qwen3_vl",
    "Qwen3VLConfig",
    {**LLAMA, "rope_parameters": {**MROPE, "mrope_interleaved": True}},
    {**QWEN_TOWER, "patch_size": 16, "num_position_embeddings": 36, "deepstack_visual_indexes": [0]},
    QWEN_IDS,
    ("Qwen2VLImageProcessor", {"size": {"shortest_edge": 64 * 64, "longest_edge": 96 * 96}, "patch_size": 16}),
    QWEN_IMAGE,
    QWEN_MARKS,
    QWEN_NAMED,
)

QWEN35_TEXT = {
    **LLAMA,
    "rope_parameters": {**MROPE, "mrope_interleaved": True, "mrope_section": [1, 1, 0]},
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
GLM = Tiny(
    "GLM-4.1V",
    "glm4v",
    "Glm4vConfig",
    {**LLAMA, "rope_parameters": MROPE},
    {**QWEN_TOWER, "hidden_size": 64, "image_size": 56, "patch_size": 14},
    {
        "image_token_id": "id:<|image|>",
        "video_token_id": "id:<|video|>",
        "image_start_token_id": "id:<|begin_of_image|>",
        "image_end_token_id": "id:<|end_of_image|>",
        "video_start_token_id": "id:<|begin_of_video|>",
        "video_end_token_id": "id:<|end_of_video|>",
    },
    ("Glm4vImageProcessor", {"size": {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 84 * 84}}),
    "<|begin_of_image|><|image|><|end_of_image|>",
    ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    (("image_token", "<|image|>"), ("video_token", "<|video|>")),
)

MODELS: tuple[Tiny, ...] = (
    SMOLVLM,
    replace(SMOLVLM, name="SmolVLM2", model_type="smolvlm", config_class="SmolVLMConfig"),
    Tiny(
        "Idefics2",
        "idefics2",
        "Idefics2Config",
        {"model_type": "mistral", **LLAMA, "sliding_window": None},
        {**TOWER, "image_size": 56, "patch_size": 14},
        {
            "image_token_id": "id:<image>",
            "perceiver_config": {
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 16,
                "num_key_value_heads": 1,
                "hidden_size": 64,
            },
        },
        (
            "Idefics2ImageProcessor",
            {"size": {"longest_edge": 56, "shortest_edge": 28}, "do_image_splitting": False},
        ),
        "<image>",
        ("<image>", "<fake_token_around_image>", "<end_of_utterance>"),
        (),
        (("image_seq_len", 4),),
    ),
    QWEN2_VL,
    QWEN25_VL,
    QWEN3_VL,
    replace(
        QWEN3_VL,
        name="Qwen3.5",
        model_type="qwen3_5",
        config_class="Qwen3_5Config",
        text=QWEN35_TEXT,
        vision={**QWEN_TOWER, "patch_size": 16, "num_position_embeddings": 36},
    ),
    replace(
        QWEN3_VL,
        name="Qwen3-VL-MoE",
        model_type="qwen3_vl_moe",
        config_class="Qwen3VLMoeConfig",
        text={
            **LLAMA,
            "rope_parameters": {**MROPE, "mrope_interleaved": True},
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
        targets=("q_proj", "v_proj"),
    ),
    replace(
        QWEN3_VL,
        name="Qwen3.5-MoE",
        model_type="qwen3_5_moe",
        config_class="Qwen3_5MoeConfig",
        text={
            **QWEN35_TEXT,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
        vision={**QWEN_TOWER, "patch_size": 16, "num_position_embeddings": 36},
    ),
    GLM,
    replace(GLM, name="GLM-4.6V", model_type="glm46v", config_class="Glm46VConfig"),
    replace(
        GLM,
        name="GLM-OCR",
        model_type="glm_ocr",
        config_class="GlmOcrConfig",
        processor=(("class", "Glm46VProcessor"),),
    ),
    Tiny(
        "PaddleOCR-VL",
        "paddleocr_vl",
        "PaddleOCRVLConfig",
        {**LLAMA, "rope_parameters": MROPE},
        {**TOWER, "image_size": 56, "patch_size": 14},
        QWEN_IDS,
        ("PaddleOCRVLImageProcessor", {"size": {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}}),
        QWEN_IMAGE,
        QWEN_MARKS,
        QWEN_NAMED,
    ),
    replace(
        QWEN3_VL,
        name="LFM3-VL",
        model_type="lfm3_vl",
        config_class="Lfm3VlConfig",
        text={**LLAMA, "sliding_window": 16, "layer_types": ["conv", "sliding_attention"]},
        vision={**TOWER, "num_key_value_heads": 2, "patch_size": 16, "layer_types": ["conv", "full_attention"]},
        config={**QWEN_IDS, "projector_hidden_size": 64},
        targets=("q_proj", "v_proj", "w2"),
    ),
    Tiny(
        "Gemma 3",
        "gemma3",
        "Gemma3Config",
        {**LLAMA, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
        SIGLIP,
        {
            "mm_tokens_per_image": 4,
            "image_token_index": "id:<image_soft_token>",
            "boi_token_index": "id:<start_of_image>",
            "eoi_token_index": "id:<end_of_image>",
        },
        ("Gemma3ImageProcessor", {"size": {"height": 32, "width": 32}}),
        "<start_of_image>",
        (),
        GEMMA_NAMED,
        (("image_seq_length", 4),),
    ),
    Tiny(
        "Gemma 4",
        "gemma4",
        "Gemma4Config",
        {
            **LLAMA,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 16,
        },
        {**TOWER, "num_key_value_heads": 4, "head_dim": 16, "patch_size": 4, "position_embedding_size": 64},
        {
            "audio_config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "subsampling_conv_channels": [4, 4],
                "output_proj_dims": 32,
            },
            "image_token_id": "id:<|image|>",
            "video_token_id": "id:<|video|>",
            "audio_token_id": "id:<|audio|>",
            "boi_token_id": "id:<|image>",
            "eoi_token_id": "id:<image|>",
            "boa_token_id": "id:<|audio>",
            "eoa_token_index": "id:<audio|>",
        },
        ("Gemma4ImageProcessor", {"max_soft_tokens": 70, "patch_size": 4}),
        "<|image|>",
        ("<|video|>",),
        (
            ("image_token", "<|image|>"),
            ("boi_token", "<|image>"),
            ("eoi_token", "<image|>"),
            ("audio_token", "<|audio|>"),
            ("boa_token", "<|audio>"),
            ("eoa_token", "<audio|>"),
        ),
        (("feature_extractor", None), ("video_processor", None), ("image_seq_length", 70)),
    ),
    Tiny(
        "PaliGemma",
        "paligemma",
        "PaliGemmaConfig",
        {"model_type": "gemma", **LLAMA},
        SIGLIP,
        {"image_token_index": "id:<image>", "projection_dim": 64},
        ("SiglipImageProcessor", {"size": {"height": 32, "width": 32}, "image_seq_length": 16}),
        "<image>",
        (),
        (("image_token", "<image>"),),
        has_template=False,
    ),
    Tiny(
        "InternVL",
        "internvl",
        "InternVLConfig",
        {"model_type": "qwen2", **LLAMA},
        {**TOWER, "image_size": [32, 32], "patch_size": [8, 8]},
        {"image_token_id": "id:<IMG_CONTEXT>", "image_seq_length": 4},
        ("GotOcr2ImageProcessor", {"size": {"height": 32, "width": 32}, "crop_to_patches": True, "max_patches": 4}),
        "<IMG_CONTEXT>",
        (),
        (
            ("context_image_token", "<IMG_CONTEXT>"),
            ("start_image_token", "<img>"),
            ("end_image_token", "</img>"),
            ("video_token", "<video>"),
        ),
        (("image_seq_length", 4),),
    ),
    Tiny(
        "LLaVA",
        "llava",
        "LlavaConfig",
        {"model_type": "llama", **LLAMA},
        CLIP,
        {"image_token_index": "id:<image>"},
        ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
        "<image>",
        (),
        (("image_token", "<image>"),),
        (("patch_size", 8), ("vision_feature_select_strategy", "default"), ("num_additional_image_tokens", 1)),
    ),
    Tiny(
        "LLaVA-OneVision",
        "llava_onevision",
        "LlavaOnevisionConfig",
        {"model_type": "qwen2", **LLAMA},
        SIGLIP,
        {
            "image_token_index": "id:<image>",
            "video_token_index": "id:<video>",
            "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32], [64, 64]],
        },
        (
            "LlavaOnevisionImageProcessor",
            {
                "size": {"height": 32, "width": 32},
                "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32], [64, 64]],
            },
        ),
        "<image>",
        (),
        (("image_token", "<image>"), ("video_token", "<video>")),
        (("num_image_tokens", 16), ("vision_feature_select_strategy", "full")),
    ),
    IDEFICS,
)
"""Every one of these trains and answers here; tests/models/test_auto.py and benchmarks/coverage.py see to it."""

REFUSED: dict[str, dict[str, Any]] = {
    "Florence-2": {"model_type": "florence2"},
    "LFM2-VL": {"model_type": "lfm2_vl"},
    "Llama 4": {"model_type": "llama4"},
    "Mistral 3": {"model_type": "mistral3"},
    "Pixtral": {"model_type": "llava", "vision_config": {"model_type": "pixtral"}},
    "Llama 3.2 Vision": {"model_type": "mllama"},
    "Llama 3 (text alone)": {"model_type": "llama"},
}
"""What a config.json says that is refused before anything else is read."""


def make_louder(model: torch.nn.Module) -> None:
    """Random weights are small, and Gemma's projector starts at zero: louder, images and positions show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4) if parameter.any() else parameter.normal_(std=0.1)
