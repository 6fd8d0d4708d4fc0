"""How many tokens an image may take: one number, whatever a model's own settings for it are called.

Counted are the tokens that stand for image features, not the marks around them.
"""

from __future__ import annotations

import math
from typing import Any

from transformers.image_utils import SizeDict

from vlmft.config.check import ConfigError

KEY = "model.max_visual_tokens_per_image"


def by_pixels(processor: Any) -> int | None:
    """Pixels of one token, where an image processor counts pixels (Qwen)."""
    images = processor.image_processor
    if getattr(images, "merge_size", None) is None or images.size.longest_edge is None:
        return None
    # Trap: GLM's processors count the pixels of all frames, and an image is as many as one temporal patch has
    frames = images.temporal_patch_size if type(images).__name__.startswith("Glm") else 1
    return (int(images.patch_size) * int(images.merge_size)) ** 2 * int(frames)


def by_tiles(processor: Any) -> tuple[int, int] | None:
    """(tokens a tile, most tiles without the overview), where an image is cut into tiles and shown whole, too."""
    images = processor.image_processor
    if getattr(processor, "image_seq_len", None) and getattr(images, "max_image_size", None):  # Idefics3, SmolVLM
        side = math.ceil(images.size.longest_edge / images.max_image_size["longest_edge"])
        return int(processor.image_seq_len), side**2 if images.do_image_splitting else 1
    if getattr(processor, "image_seq_len", None) and hasattr(images, "do_image_splitting"):  # Idefics2
        return int(processor.image_seq_len), 4 if images.do_image_splitting else 1
    per_tile = getattr(processor, "image_seq_length", None) or getattr(processor, "image_seq_len", None)
    if getattr(images, "max_patches", None) and per_tile:  # InternVL, Granite Docling
        return int(per_tile), int(images.max_patches)
    return None


SOFT_TOKENS = (70, 140, 280, 560, 1120)
"""What Gemma 4's processor takes as the most of an image."""


def most_visual_tokens(processor: Any) -> int | None:
    """What an image takes at most by the processor's settings; None where those do not say."""
    if (pixels := by_pixels(processor)) is not None:
        return int(processor.image_processor.size.longest_edge) // pixels
    if (found := by_tiles(processor)) is not None:
        per_tile, tiles = found
        return per_tile * (tiles + 1 if tiles > 1 else 1)
    return getattr(processor.image_processor, "max_soft_tokens", None)


def limit_visual_tokens(processor: Any, most: int) -> None:
    """Sets the processor to at most `most` tokens an image; never to more than it has now.

    Raises:
        ConfigError: not even one tile, or the model's least, fits.
    """
    images, now = processor.image_processor, most_visual_tokens(processor)
    if now is None or now <= most:
        return
    if (pixels := by_pixels(processor)) is not None:
        longest = most * pixels
        images.size = SizeDict(shortest_edge=min(images.size.shortest_edge, longest), longest_edge=longest)
        return
    if (found := by_tiles(processor)) is None:
        if most < SOFT_TOKENS[0]:
            raise ConfigError(f"{KEY}: Expected at least {SOFT_TOKENS[0]} for this model, got {most}")
        images.max_soft_tokens = max(number for number in SOFT_TOKENS if number <= most)
        return
    per_tile = found[0]
    if most < per_tile:
        raise ConfigError(f"{KEY}: Expected at least {per_tile}, the tokens of one tile of this model, got {most}")
    tiles = max(1, most // per_tile - 1)  # one is the overview
    if getattr(images, "max_image_size", None):
        images.size = SizeDict(longest_edge=math.isqrt(tiles) * images.max_image_size["longest_edge"])
    elif hasattr(images, "do_image_splitting"):
        images.do_image_splitting = tiles >= 4
    else:
        images.max_patches = tiles
        images.min_patches = min(images.min_patches, tiles)


def settings_of(processor: Any) -> str:
    """The processor's own settings behind the number, as `name=value`."""
    images = processor.image_processor
    edges = {name: getattr(images.size, name, None) for name in ("shortest_edge", "longest_edge")}
    told = [f"size.{name}={value}" for name, value in edges.items() if value is not None]
    names = ("do_image_splitting", "max_patches", "max_soft_tokens")
    told += [f"{name}={getattr(images, name)}" for name in names if getattr(images, name, None) is not None]
    return ", ".join(told)
