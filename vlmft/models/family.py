"""What differs between vision-language models, behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from vlmft.config.check import import_allowed
from vlmft.config.schema import CoordinatesName, ModelConfig
from vlmft.models.coordinates import Coordinates, coordinates_of
from vlmft.models.feature_cache import FeatureCache
from vlmft.models.features import Features
from vlmft.models.generic import GenericFamily
from vlmft.models.load import Source
from vlmft.models.processor import load_processor
from vlmft.models.resolution import limit_visual_tokens
from vlmft.models.shared_images import SharedRow
from vlmft.models.support import FAMILIES
from vlmft.sample import Batch, EncodedImage, EncodedRow, Layout, Prompt, Sample


class Family(Protocol):
    """One object per architecture. `encode` and `encode_prompt` run in workers, the rest in the main process."""

    cache: FeatureCache | None
    """Features of frozen images, filled and read by `image_features`; None where nothing is stored."""
    seeing: PreTrainedModel | None
    """Whose features of frozen images workers make, too, each as the main process would."""
    max_images: int | None
    """Most images in one row; None is no limit."""
    capabilities: frozenset[str]
    """Of: text_only, multi_image, multi_turn, prefix (its prompts can go on from a cache), and its layouts."""
    end_id: int
    pad_id: int
    allowed_ids: frozenset[int]
    """Of special tokens that texts may hold."""
    fingerprint_parts: Mapping[str, Any]
    """What a fingerprint is the hash of: prompt format and processor."""
    resolution: str
    """What an image costs, in words."""
    max_length_tokens: int
    """Longest row."""
    control_texts: Sequence[str]
    """The model's own tokens, which no text of a row may hold."""
    coordinates: Coordinates | None
    """How it writes boxes and points; None where it has no text for them."""

    @property
    def processor_key(self) -> str: ...
    def limit_images(self, most: int | None) -> None: ...
    def allow(self, tokens: Sequence[str]) -> None: ...
    def image_tokens(self, width: int, height: int) -> int: ...
    def text_tokens(self, sample: Sample) -> int: ...
    def prompt_tokens(self, prompt: Prompt) -> int: ...
    def encode(self, sample: Sample) -> EncodedRow: ...
    def encode_prompt(self, row_id: str, prompt: Prompt) -> EncodedRow: ...
    def share(
        self, rows: Sequence[EncodedRow], model: PreTrainedModel, most_rows: int, most_tokens: int
    ) -> tuple[list[EncodedRow], list[SharedRow]]: ...
    def collate_shared(self, units: Sequence[SharedRow], model: PreTrainedModel) -> Batch: ...
    def collate(self, rows: Sequence[EncodedRow], layout: Layout, model: PreTrainedModel) -> Batch: ...
    def image_features(self, model: PreTrainedModel, images: Sequence[EncodedImage], *, grad: bool) -> Features: ...
    def forward(self, model: PreTrainedModel, batch: Batch, features: Features, keep: torch.Tensor) -> torch.Tensor: ...
    def prefill(self, model: PreTrainedModel, batch: Batch, features: Features) -> Any: ...
    def generate(
        self, model: PreTrainedModel, batch: Batch, features: Features, max_new_tokens: int, past: Any = None
    ) -> torch.Tensor: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def decode_marks(self, ids: Sequence[int], size: tuple[int, int]) -> tuple[str, str]: ...
    def show(self, ids: Sequence[int]) -> str: ...


def make_family(config: ModelConfig, source: Source, model_config: Any) -> Family:
    """The family that `model.family` names: `generic`, which is the architecture's own where it has one, or
    module.path:ClassName with the same constructor."""
    processor = load_processor(source, model_config.model_type)
    if config.template is not None:
        processor.chat_template = config.template
    named = FAMILIES.get(model_config.model_type, "generic") if config.family == "generic" else config.family
    cls = GenericFamily if named == "generic" else import_allowed("model.family", named)
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None) or 1 << 20
    if (most := config.max_visual_tokens_per_image) is not None:
        limit_visual_tokens(processor, most)  # before the family: it fingerprints the processor
    family: Family = cls(processor, model_config, config.max_length_tokens or positions)
    family.limit_images(most)
    if config.coordinates != CoordinatesName.auto:
        family.coordinates = coordinates_of(config.coordinates.value, model_config.model_type, processor)
    return family
