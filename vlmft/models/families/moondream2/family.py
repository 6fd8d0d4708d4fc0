"""moondream2 as a family: which generation of token ids its weights were trained with, and what it cannot take.

The files of the two generations look alike, so the config says which: `Moondream2Family` is for 2025-06-21,
`Moondream2Gpt2Family` for 2025-01-09 to 2025-04-14.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vlmft.config.check import ConfigError
from vlmft.models.families.moondream2.architecture import Moondream2Config
from vlmft.models.families.moondream2.processing import IMAGE, Moondream2ImageProcessor
from vlmft.models.generic import GenericFamily

QUESTION, ANSWER = "<|md_question|>", "<|md_answer|>"
"""Marks of the template: what stands before a question, and between it and its answer."""

TEMPLATE = (
    "{% if messages[0]['role'] != 'user' or messages | length > 2 %}"
    "{{ raise_exception('turns that moondream2 was not trained on: it answers one question of a user') }}{% endif %}"
    "{{ bos_token }}{% for piece in messages[0]['content'] if piece['type'] == 'image' %}<image>{% endfor %}"
    "<|md_question|>LEAD{% for piece in messages[0]['content'] if piece['type'] == 'text' %}{{ piece['text'] }}"
    "{% endfor %}{% if messages | length == 2 or add_generation_prompt %}<|md_answer|>{% endif %}"
    "{% if messages | length == 2 %}LEAD{% for piece in messages[1]['content'] %}{{ piece['text'] }}{% endfor %}"
    "{{ eos_token }}{% endif %}"
)
"""The image always comes first: there is no other place for it. LEAD is the generation's."""


@dataclasses.dataclass(frozen=True)
class TokenGeneration:
    """Ids that a generation of moondream2's weights was trained with."""

    name: str
    end_id: int
    """Start and end of a sequence."""
    question_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    suppressed_ids: tuple[int, ...]
    """Never chosen inside an answer."""
    lead: str
    """Stands before question and answer."""
    landmarks: Mapping[str, int]
    """Tokens by which its tokenizer is known."""
    tokenizer_path: str | None
    """Hub id of the tokenizer where the one beside the weights is not theirs."""

    @property
    def template(self) -> str:
        return TEMPLATE.replace("LEAD", self.lead)

    def fits(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        return all(tokenizer.convert_tokens_to_ids(text) == id_ for text, id_ in self.landmarks.items())


GPT2 = TokenGeneration(
    name="gpt2",
    end_id=50256,
    question_ids=(198, 198, 24361, 25),
    answer_ids=(198, 198, 33706, 25),
    suppressed_ids=(),
    lead=" ",
    landmarks={"<|endoftext|>": 50256, "Question": 24361, "Answer": 33706},
    tokenizer_path=None,
)
"""Weights of 2025-01-09, 2025-03-27 and 2025-04-14."""

STARMIE = TokenGeneration(
    name="starmie",
    end_id=0,
    question_ids=(1, 15381, 2),
    answer_ids=(3, 3),
    suppressed_ids=(3,),
    lead="",
    landmarks={"<|md_reserved_2|>": 3},
    tokenizer_path="moondream/starmie-v1",
)
"""Weights of 2025-06-21. Trap: the tokenizer in the same repository is the older generation's. The answer token stands
twice, as in training."""


class Moondream2Family(GenericFamily):
    """One question of a user, about one image or none: the prompt that moondream2 was trained on."""

    generation: ClassVar[TokenGeneration] = STARMIE
    max_images = 1
    capabilities = frozenset({"text_only", "right", "left"})
    shares = frozenset()  # what stands before the question sees all of itself

    def __init__(self, processor: Any, model_config: Any, max_length_tokens: int) -> None:
        if not isinstance(model_config, Moondream2Config):
            raise ConfigError(
                f"model.family: Expected moondream2's files, got {model_config.model_type!r}; use generic"
            )
        processor.tokenizer = _tokenizer_of(self.generation, processor.tokenizer)
        sizes = dataclasses.asdict(model_config.vision)
        settings = {field.name: sizes[field.name] for field in dataclasses.fields(Moondream2ImageProcessor)}
        marks = {
            QUESTION: list(self.generation.question_ids),
            ANSWER: list(self.generation.answer_ids),
            IMAGE: [model_config.image_token_id] * model_config.vision.grid**2,
        }
        processor.settle(marks, self.generation.end_id, self.generation.template, settings)
        super().__init__(processor, model_config, max_length_tokens)
        self.control_texts = sorted({*self.control_texts, *processor.marks})
        self.suppressed_ids = self.generation.suppressed_ids
        vocabulary = processor.tokenizer.backend_tokenizer.to_str()
        self.fingerprint_parts = {
            **self.fingerprint_parts,
            "marks": processor.marks,
            "suppressed_ids": self.suppressed_ids,
            "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
        }

    def marked_tokens(self, text: str) -> int:
        """With what the template's marks stand for."""
        return len(self.processor.ids(text)) - text.count(IMAGE) * (len(self.processor.marks[IMAGE]) - 1)


class Moondream2Gpt2Family(Moondream2Family):
    """Weights of 2025-01-09, 2025-03-27 and 2025-04-14: GPT-2's ids, "Question:" and "Answer:" around the text."""

    generation = GPT2


def _tokenizer_of(generation: TokenGeneration, beside: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights where it is the generation's, else the generation's own from the Hub.

    Raises:
        ConfigError: neither is at hand.
    """
    if generation.fits(beside):
        return beside
    problem = f"model.family: the tokenizer in model.path is not that of moondream2's {generation.name!r} generation"
    if generation.tokenizer_path is None:
        raise ConfigError(f"{problem}; take Moondream2Family for weights of 2025-06-21")
    try:
        found = PreTrainedTokenizerFast.from_pretrained(generation.tokenizer_path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{problem}, and {generation.tokenizer_path} cannot be read; check the network, put its tokenizer files "
            "into model.path, or take Moondream2Gpt2Family for weights of 2025-04-14 and before"
        ) from error
    if not generation.fits(found):
        raise ConfigError(f"{problem}, nor is {generation.tokenizer_path} any more; put the right one into model.path")
    return found  # type: ignore[no-any-return]
