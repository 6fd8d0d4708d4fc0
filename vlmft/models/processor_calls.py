"""A processor's calls for one row: its texts to ids, and each of its images alone to pixels, or to what is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from jinja2 import TemplateError

from vlmft.models.feature_cache import FeatureCache
from vlmft.models.placeholders import placeholders, placeholders_known
from vlmft.models.refusals import processor_refusals
from vlmft.sample import BadRowError, EncodedImage, Image

NO_PICTURE = PIL.Image.new("RGB", (1, 1))
"""Where the processor is not to look at a picture."""


class ProcessorCalls:
    """What a family asks of its processor."""

    processor: Any
    cache: FeatureCache | None = None
    """Features of frozen images; None where vision or connector is trained."""

    def _template(self, messages: list[dict[str, Any]], *, generation: bool) -> str:
        try:
            return str(self.processor.apply_chat_template(messages, add_generation_prompt=generation, tokenize=False))
        except TemplateError as error:  # a template may refuse roles, or their order
            raise BadRowError(f"Expected turns that the chat template takes, got {error}; change the turns") from error

    def _with_images(
        self, text: str, images: Sequence[Image]
    ) -> tuple[Mapping[str, np.ndarray], tuple[EncodedImage, ...]]:
        """The processor's arrays of ids for one text, and its images, each processed alone, so that its pixels do not
        depend on its neighbours. One whose features are stored is not decoded."""
        pixels = [None if image.is_hashed else image.pixels for image in images]  # the hash comes with the pixels
        found = [self._stored(image) for image in images]

        def picture(place: int) -> PIL.Image.Image:
            known = pixels[place]
            return PIL.Image.fromarray(images[place].pixels if known is None else known)

        if (len(images) == 1 and found[0] is None) or not placeholders_known(self.processor):
            pictures = [picture(place) for place in range(len(images))]
            with placeholders(self.processor) as written:
                inputs = self._process(text, pictures)
            if len(images) > 1:
                return inputs, tuple(map(self._alone, images, pictures))
            return inputs, tuple(self._encoded(image, inputs, written) for image in images)
        encoded = [known or self._alone(images[i], picture(i)) for i, known in enumerate(found)]
        with placeholders(self.processor, [image.placeholder for image in encoded]):
            return self._process(text, [NO_PICTURE] * len(encoded)), tuple(encoded)

    def _stored(self, image: Image) -> EncodedImage | None:
        """The image without pixels, where its features are in the cache."""
        if self.cache is None or not placeholders_known(self.processor):
            return None
        facts = self.cache.facts(image.sha256)
        return EncodedImage(image.sha256, *facts, image, features_stored=True) if facts is not None else None

    def _encoded(self, image: Image, inputs: Mapping[str, np.ndarray], written: Sequence[str]) -> EncodedImage:
        arrays = {k: v for k, v in inputs.items() if k != "input_ids" and not k.endswith("type_ids")}
        return EncodedImage(image.sha256, arrays, "".join(written), image if self.cache is not None else None)

    def _alone(self, image: Image, picture: PIL.Image.Image) -> EncodedImage:
        chat = [{"role": "user", "content": [{"type": "image"}]}]
        with placeholders(self.processor) as written:
            inputs = self._process(self._template(chat, generation=True), [picture])
        return self._encoded(image, inputs, written)

    def _process(self, text: str, pictures: list[PIL.Image.Image]) -> dict[str, np.ndarray]:
        """The processor's arrays for one text. Pictures, not arrays: three rows of pixels would pass for channels."""
        images = [pictures] if pictures else None
        with processor_refusals():
            inputs = self.processor(text=[text], images=images, return_tensors="np", **self._start(text))
        return {name: np.asarray(value) for name, value in inputs.items() if name != "attention_mask"}

    def _start(self, text: str) -> dict[str, bool]:
        """As a keyword, whether the tokenizer writes the start token: not where the template has done so."""
        start = self.processor.tokenizer.bos_token
        return {"add_special_tokens": False} if start is not None and text.startswith(start) else {}

    def with_pixels(self, image: EncodedImage) -> EncodedImage:
        """The image, decoded again where it came without pixels because its features were stored."""
        if not image.features_stored:
            return image
        assert image.image is not None, "an image whose features are stored comes with its source"
        return self._alone(image.image, PIL.Image.fromarray(image.image.pixels))
