"""Which models can be tuned here, told from config.json alone: nothing else has been downloaded yet."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import transformers
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import is_timm_available

FAMILIES: Mapping[str, str] = {
    "idefics": "vlmft.models.families.idefics:IdeficsFamily",
    "moondream1": "vlmft.models.families.moondream2.family:Moondream2Family",
    "paligemma": "vlmft.models.families.paligemma:PaliGemmaFamily",
}
"""model_type -> its own family; every other has the generic one."""

TORCHVISION = "its processor needs torchvision, and pixels come from PIL here, so that they are the same everywhere"
PROCESSOR_NEEDS_TORCHVISION = ("mistral3", "mistral_large4")
NEEDS_TIMM = ("timm_wrapper", "gemma3n_vision")
BLOCKS = "picks tokens by blocks that padding shifts, so that an answer would depend on its neighbours"
UNLIKE: Mapping[str, str] = {
    "chameleon": "reads images as tokens of its vocabulary, and its config names no image token",
    "cosmos3_edge": "has a processor that does not mark image tokens (mm_token_type_ids), which its positions need",
    "deepseek_ocr2": "makes features of an image and of its tiles apart, in a form of its own",
    "ernie4_5_vl_moe": f"cannot be fed: {TORCHVISION}",
    "glm5_next": BLOCKS,
    "got_ocr2": "reads pages: its processor writes the prompt itself and takes no list of images in a conversation",
    "granite4_vision": "hands image features to several layers in a form of its own",
    "granite_docling": "chooses tokens by a router of its own, whose outputs cannot be handed in with features",
    "hunyuan_vl": "numbers the images of a whole batch, so that a row's positions would depend on its neighbours",
    "ovis2": "adds features of marks around an image to those of the image, in a form of its own",
    "qwen4_exp": BLOCKS,
    "shieldgemma2": "says yes or no to policies that its processor writes, and holds no conversation; take Gemma 3",
    "video_llava": "is fed pixels under a name that its own processor does not give them",
}
"""model_type -> what is different about an architecture that has all the doors, found by feeding it."""


def refusal(model_config: Any) -> str | None:
    """Why this model cannot be tuned or asked here, to follow "this model"; None where nothing is against it."""
    kind = model_config.model_type
    if kind in FAMILIES:
        return None
    text = model_config.get_text_config()
    if getattr(model_config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        return "is an encoder-decoder, whose answers are no continuation of the prompt; take a decoder model"
    class_name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    if class_name is None:
        return "is none that answers in text about images in transformers; use a vision-language model"
    pixtral = getattr(getattr(model_config, "vision_config", None), "model_type", None) == "pixtral"
    backends = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind)  # None: the processor's own file names its class
    if pixtral or kind in PROCESSOR_NEEDS_TORCHVISION or (backends is not None and "pil" not in backends):
        return f"cannot be fed: {TORCHVISION}"
    if kind in UNLIKE:
        return UNLIKE[kind]
    vision = getattr(getattr(model_config, "vision_config", None), "model_type", None)
    if vision in NEEDS_TIMM and not is_timm_available():
        return "sees through timm, a library that is not installed: pip install timm"
    model_class = getattr(transformers, class_name)
    doors = inspect.signature(model_class.forward).parameters
    features = getattr(model_class, "get_image_features", None)
    if "logits_to_keep" not in doors and "mm_encoder_outputs" in doors:
        return "gives logits of all tokens only (no logits_to_keep); use another architecture"
    if "mm_encoder_outputs" not in doors or "pixel_values" not in inspect.signature(features or refusal).parameters:
        return "offers no way in for image features (get_image_features, mm_encoder_outputs); use a newer architecture"
    return None
