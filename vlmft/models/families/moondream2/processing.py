"""What goes into moondream2: overlapping crops of an image, and text between fixed ids.

The ids around a question are fixed in the model, whatever its tokenizer would make of a text. So the chat template
writes marks, and each mark stands for ids. Source of the crops: `moondream/torch/image_crops.py` of
github.com/vikhyat/moondream.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

IMAGE = "<image>"
"""Stands in an image's place in a text."""


def tiling_of(height: int, width: int, window: int, most: int) -> tuple[int, int]:
    """Rows and columns of windows (pixels a side) for height x width pixels; `most` holds but for extreme strips."""
    if min(height, width) <= window:
        return 1, 1
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    if rows * columns > most:
        shrink = math.sqrt(most / (rows * columns))
        return max(1, math.floor(rows * shrink)), max(1, math.floor(columns * shrink))
    rows = max(rows, math.floor(math.sqrt(most * height / width)))
    columns = max(columns, math.floor(math.sqrt(most * width / height)))
    if rows * columns > most:
        rows, columns = (rows, most // rows) if columns > rows else (most // columns, columns)
    return max(1, rows), max(1, columns)


@dataclasses.dataclass(frozen=True)
class Moondream2ImageProcessor:
    """The whole image and overlapping windows of it, each `crop_size` pixels a side."""

    crop_size: int = 378
    enc_patch_size: int = 14
    overlap_margin: int = 4
    max_crops: int = 12

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    def crops(self, picture: PIL.Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """(1 + rows * columns, side, side, 3) uint8, the whole picture first, and (rows, columns)."""
        overlap = 2 * self.overlap_margin * self.enc_patch_size
        side, window = self.crop_size, self.crop_size - overlap
        rows, columns = tiling_of(picture.height - overlap, picture.width - overlap, window, self.max_crops)
        lanczos = PIL.Image.Resampling.LANCZOS
        whole = np.asarray(picture.resize((side, side), lanczos))
        large = np.asarray(picture.resize((columns * window + overlap, rows * window + overlap), lanczos))
        corners = [(y * window, x * window) for y in range(rows) for x in range(columns)]
        return np.stack([whole, *(large[y : y + side, x : x + side] for y, x in corners)]), (rows, columns)

    def __call__(self, pictures: Sequence[PIL.Image.Image]) -> dict[str, np.ndarray]:
        """pixel_values (n, most crops, 3, side, side) float32 in -1..1, zeros behind; pixel_tilings (n, 2) int64."""
        cut = [self.crops(picture.convert("RGB")) for picture in pictures]
        shape = (len(cut), max(len(crops) for crops, _ in cut), 3, self.crop_size, self.crop_size)
        pixels = np.zeros(shape, np.float32)
        for padded, (crops, _) in zip(pixels, cut, strict=True):
            padded[: len(crops)] = (crops.transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.5) / 0.5
        return {"pixel_values": pixels, "pixel_tilings": np.asarray([tiling for _, tiling in cut], np.int64)}


class Moondream2Processor(ProcessorMixin):  # type: ignore[misc]
    """Text with marks, and images, to ids and pixels; `settle` comes before the first use."""

    image_token = IMAGE
    chat_template: str | None

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        marks: dict[str, list[int]] | None = None,
        image_settings: dict[str, int] | None = None,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template)
        self.marks = marks or {}
        self.image_settings = image_settings or {}
        self.image_processor = Moondream2ImageProcessor(**self.image_settings)

    def settle(self, marks: dict[str, list[int]], end_id: int, template: str, image_settings: dict[str, int]) -> None:
        """Fixes what the template's marks stand for, the id that starts and ends a sequence, and the sizes of crops."""
        self.marks, self.image_settings = marks, image_settings
        self.image_processor = Moondream2ImageProcessor(**image_settings)
        end = self.tokenizer.convert_ids_to_tokens(end_id)
        self.tokenizer.bos_token = self.tokenizer.eos_token = self.tokenizer.pad_token = end
        self.tokenizer.clean_up_tokenization_spaces = False  # the published setting would take spaces out of answers
        self.chat_template = self.chat_template or template

    def ids(self, text: str) -> list[int]:
        """Marks become their ids; what stands between two marks is tokenised alone."""
        made: list[int] = []
        for piece in re.split("(" + "|".join(map(re.escape, self.marks)) + ")", text):
            made += self.marks[piece] if piece in self.marks else self._text_ids(piece)
        return made

    def _text_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def __call__(
        self,
        images: Sequence[Any] | None = None,
        text: str | Sequence[str] = "",
        videos: None = None,
        audio: None = None,
        padding: bool = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = False,
    ) -> BatchFeature:
        """`images` in reading order, nested by text or not. The template writes the start token, so none is added.

        Raises:
            ValueError: images and their marks differ in number, or a text with more than one image.
        """
        texts = [text] if isinstance(text, str) else list(text)
        nested = [image if isinstance(image, (list, tuple)) else [image] for image in images or []]
        pictures = [picture for row in nested for picture in row]
        places = [one.count(IMAGE) for one in texts]
        if sum(places) != len(pictures) or max(places) > 1:
            raise ValueError(
                f"Expected one image for each {IMAGE}, and at most one a text, got {len(pictures)}, {places}"
            )
        rows: dict[str, list[list[int]]] = {"input_ids": [self.ids(one) for one in texts]}
        rows["attention_mask"] = [[1] * len(row) for row in rows["input_ids"]]
        if padding:
            rows = dict(self.tokenizer.pad(rows, padding=True, padding_side=padding_side))
        seen = self.image_processor(pictures) if pictures else {}
        return BatchFeature({**rows, **seen}, tensor_type=return_tensors)

    def _get_num_multimodal_tokens(self, image_sizes: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
        return {"num_image_tokens": [len(self.marks[IMAGE])] * len(image_sizes)}
