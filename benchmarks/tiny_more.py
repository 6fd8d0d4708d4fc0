"""More tiny models, as in benchmarks/tiny_models.py: the rest of transformers' mapping that works."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.smoke.models import (
    LLAMA,
    MROPE,
    QWEN25_VL,
    QWEN_IDS,
    QWEN_NAMED,
    TOWER,
    Tiny,
)
from benchmarks.tiny_models import GLM, MODELS, QWEN3_VL, SIGLIP

KNOWN = {tiny.name: tiny for tiny in MODELS}
IMAGE = (("image_token", "<image>"),)
PINPOINTS = [[32, 32], [32, 64], [64, 32], [64, 64]]
IMAGE_AND_VIDEO = {"image_token_id": "id:<|image_pad|>", "video_token_id": "id:<|video_pad|>"}
HALF_MROPE = {**MROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
GROUPED_EXPERTS = {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}

LLAVA_NEXT = replace(
    KNOWN["LLaVA"],
    name="LLaVA-NeXT",
    model_type="llava_next",
    config_class="LlavaNextConfig",
    config={"image_token_index": "id:<image>", "image_grid_pinpoints": PINPOINTS},
    image_processor=(
        "LlavaNextImageProcessor",
        {
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
            "image_grid_pinpoints": PINPOINTS,
        },
    ),
)

MORE: tuple[Tiny, ...] = (
    replace(
        QWEN25_VL,
        name="EXAONE 4.5",
        model_type="exaone4_5",
        config_class="Exaone4_5_Config",
        text={"model_type": "exaone4", **LLAMA, "sliding_window": 16, "sliding_window_pattern": 2},
        vision={**QWEN25_VL.vision, "num_key_value_heads": 1},
        config=IMAGE_AND_VIDEO,
    ),
    replace(
        QWEN25_VL,
        name="HyperCLOVA X Vision",
        model_type="hyperclovax_vision_v2",
        config_class="HyperCLOVAXVisionV2Config",
        text={"model_type": "hyperclovax", **LLAMA},
        vision={**QWEN25_VL.vision, "model_type": "qwen2_5_vl_vision"},
        config=IMAGE_AND_VIDEO,
    ),
    replace(
        QWEN3_VL,
        name="Cosmos 3 Omni",
        model_type="cosmos3_omni",
        config_class="Cosmos3OmniConfig",
        text={**QWEN3_VL.text, "model_type": "qwen3_vl_text"},
        vision={**QWEN3_VL.vision, "model_type": "qwen3_vl_vision"},
        processor=(("class", "Qwen3VLProcessor"),),
    ),
    replace(
        QWEN3_VL,
        name="Command Compass",
        model_type="cohere_compass",
        config_class="CohereCompassConfig",
        text={
            **LLAMA,
            "layer_types": ["full_attention"] * 2,
            "rope_parameters": {"full_attention": {**MROPE, "mrope_interleaved": True}},
        },
        config={**QWEN_IDS, "image_token_id": "id:<|IMAGE_PAD|>"},
        image_processor=("CohereCompassImageProcessor", QWEN3_VL.image_processor[1]),
        image_mark="<|vision_start|><|IMAGE_PAD|><|vision_end|>",
        named=(("image_token", "<|IMAGE_PAD|>"), QWEN_NAMED[1]),
    ),
    replace(
        GLM,
        name="GLM-4.5V",
        model_type="glm4v_moe",
        config_class="Glm4vMoeConfig",
        text={**LLAMA, **GROUPED_EXPERTS, "rope_parameters": HALF_MROPE},
        targets=("q_proj", "v_proj"),
    ),
    replace(
        GLM,
        name="GLM-GA",
        model_type="glmga",
        config_class="GlmgaConfig",
        text={**LLAMA, "model_type": "glm4v_text", "rope_parameters": HALF_MROPE},
        vision={**GLM.vision, "model_type": "glm4v_vision"},
        image_processor=("GlmgaImageProcessor", {}),
        processor=(("class", "Glm46VProcessor"),),
    ),
    LLAVA_NEXT,
    replace(
        LLAVA_NEXT,
        name="LLaVA-NeXT-Video",
        model_type="llava_next_video",
        config_class="LlavaNextVideoConfig",
        config={**LLAVA_NEXT.config, "video_token_index": "id:<video>"},
        named=(*IMAGE, ("video_token", "<video>")),
    ),
    replace(
        KNOWN["LLaVA"],
        name="ViP-LLaVA",
        model_type="vipllava",
        config_class="VipLlavaConfig",
        config={"image_token_index": "id:<image>", "vision_feature_layers": [-1, -2], "vision_feature_layer": [-1, -2]},
    ),
    Tiny(
        "Aya Vision",
        "aya_vision",
        "AyaVisionConfig",
        {
            "model_type": "cohere2",
            **LLAMA,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        SIGLIP,
        {"image_token_index": "id:<|IMG_PATCH|>"},
        ("GotOcr2ImageProcessor", {"size": {"height": 32, "width": 32}, "crop_to_patches": True, "max_patches": 4}),
        "<image>",
        ("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "<|IMG_PATCH|>"),
        (),
        (("patch_size", 8), ("img_size", 32), ("downsample_factor", 2)),
    ),
    Tiny(
        "PP-Chart2Table",
        "pp_chart2table",
        "PPChart2TableConfig",
        {"model_type": "qwen2", **LLAMA},
        {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64}
        | {"image_size": 64, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1]},
        {"image_token_index": "id:<imgpad>", "image_seq_length": 1},
        ("PPChart2TableImageProcessor", {"size": {"height": 64, "width": 64}}),
        "<img><imgpad></img>",
        ("<img>", "</img>"),
        (("image_token", "<imgpad>"),),
    ),
    Tiny(
        "Qianfan-OCR",
        "qianfan_ocr",
        "QianfanOCRConfig",
        {"model_type": "qwen3", **LLAMA},
        {**TOWER, "image_size": [32, 32], "patch_size": [8, 8], "drop_path_rate": 0.0},
        {"image_token_id": "id:<IMG_CONTEXT>", "image_seq_length": 4},
        ("GotOcr2ImageProcessor", {"size": {"height": 32, "width": 32}, "crop_to_patches": True, "max_patches": 4}),
        "<image>",
        ("<image>", "<img>", "</img>"),
        (
            ("image_token", "<IMG_CONTEXT>"),
            ("context_image_token", "<IMG_CONTEXT>"),
            ("start_image_token", "<img>"),
            ("end_image_token", "</img>"),
        ),
        (("image_seq_length", 4),),
    ),
    Tiny(
        "Aria",
        "aria",
        "AriaConfig",
        {**LLAMA, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
        {**TOWER, "image_size": 980, "patch_size": 70},
        {"image_token_index": "id:<image>", "projector_patch_to_query_dict": {"196": 4}},
        ("AriaImageProcessor", {"max_image_size": 980}),
        "<image>",
        (),
        IMAGE,
        (("size_conversion", {980: 4}),),
        targets=("q_proj", "v_proj"),
    ),
)
"""Each of these works, as docs/models.md says; the others are refused (`vlmft/models/support.py`)."""
