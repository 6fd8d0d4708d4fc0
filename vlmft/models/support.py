"""Which models can be tuned here, told from config.json alone: nothing else has been downloaded yet."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import transformers
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

FAMILIES: Mapping[str, str] = {
    "idefics": "vlmft.models.families.idefics:IdeficsFamily",
    "moondream1": "vlmft.models.families.moondream2.family:Moondream2Family",
    "paligemma": "vlmft.models.families.paligemma:PaliGemmaFamily",
}
"""model_type -> its own family; every other has the generic one."""

TORCHVISION = "its processor needs torchvision, and pixels come from PIL here, so that they are the same everywhere"
PROCESSOR_NEEDS_TORCHVISION = ("mistral3", "mistral_large4")


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
    model_class = getattr(transformers, class_name)
    door = "mm_encoder_outputs" in inspect.signature(model_class.forward).parameters
    if not door or not hasattr(model_class, "get_image_features"):
        return "offers no way in for image features (get_image_features, mm_encoder_outputs); use a newer architecture"
    return None
