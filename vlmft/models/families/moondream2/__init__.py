"""moondream2 without its Hub code, which does not load in transformers 5. Importing this tells the Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from vlmft.models.families.moondream2.architecture import Moondream2Config, Moondream2ForConditionalGeneration
from vlmft.models.families.moondream2.processing import Moondream2Processor

AutoConfig.register(Moondream2Config.model_type, Moondream2Config, exist_ok=True)
AutoModelForImageTextToText.register(Moondream2Config, Moondream2ForConditionalGeneration, exist_ok=True)
AutoProcessor.register(Moondream2Config, Moondream2Processor, exist_ok=True)
