"""What is not encoded: refused with a sentence that says what to do, never cut or bent into shape."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from transformers import AddedToken

from vlmft.config.check import ConfigError
from vlmft.config.schema import ModelConfig
from vlmft.models.family import GenericFamily, make_family
from vlmft.models.load import load_source
from vlmft.sample import BadRowError, Image, Message, Prompt, Sample

LEAST_CONTROLS = {
    "tiny": {"<image>", "<end_of_utterance>", "<|im_start|>", "<fake_token_around_image>", "<global-img>", "<pad>"},
    "tiny_qwen2vl": {"<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"},
}


def with_limit(family: GenericFamily, model_config: Any, limit: int) -> GenericFamily:
    return GenericFamily(family.processor, model_config, limit)


def with_template(family: GenericFamily, model_config: Any, template: str | None) -> GenericFamily:
    processor = copy.deepcopy(family.processor)
    processor.chat_template = template
    return GenericFamily(processor, model_config, family.max_length_tokens)


def test_every_control_token_is_refused_wherever_it_stands(
    family: GenericFamily, name: str, samples: dict[str, Sample]
) -> None:
    assert set(family.control_texts) >= LEAST_CONTROLS[name]
    good = samples["one_image"]
    image = good.prompt.images[0]
    for control in family.control_texts:
        message = "own token " + re.escape(repr(control)) + " in it; remove it"
        text = f"What does {control} mean?"
        for prompt in (
            Prompt((Message("user", (image, text)),)),
            Prompt((Message("system", (text,)), *good.prompt.messages)),
            Prompt((*good.prompt.messages, Message("assistant", (text,)), *good.prompt.messages)),
            Prompt((Message("user", ("What does ", control[:3], control[3:], " mean?", image)),)),
        ):
            with pytest.raises(BadRowError, match=message):
                family.encode_prompt("row", prompt)
        with pytest.raises(BadRowError, match=message):
            family.encode(dataclasses.replace(good, answer=text))


def test_added_words_that_control_nothing_are_text(family: GenericFamily, model_config: Any) -> None:
    """Gemma's tokenizer holds line breaks among its added tokens: a question of two lines is still a question."""
    processor = copy.deepcopy(family.processor)
    processor.tokenizer.add_tokens([AddedToken("\n\n", special=False)])
    lenient = GenericFamily(processor, model_config, family.max_length_tokens)
    row = lenient.encode_prompt("row", Prompt((Message("user", ("First.\n\nSecond?",)),)))
    assert "First.\n\nSecond?" in lenient.show(row.input_ids.tolist())


class OneImage(GenericFamily):
    max_images = 1


def test_too_many_images(family: GenericFamily, model_config: Any, samples: dict[str, Sample]) -> None:
    single = OneImage(family.processor, model_config, family.max_length_tokens)
    assert len(single.encode(samples["one_image"]).images) == 1
    with pytest.raises(BadRowError, match="at most 1 images, got 2; leave some out"):
        single.encode(samples["two_images"])


def test_over_long_row_is_refused_and_a_fitting_one_is_whole(
    family: GenericFamily, model_config: Any, sample: Sample
) -> None:
    row = family.encode(sample)
    fitting = with_limit(family, model_config, row.length).encode(sample)
    np.testing.assert_array_equal(fitting.input_ids, row.input_ids)
    np.testing.assert_array_equal(fitting.supervised, row.supervised)
    short = with_limit(family, model_config, row.length - 1)
    with pytest.raises(BadRowError, match=f"at most {row.length - 1} tokens .*got {row.length}; shorten the row, or"):
        short.encode(sample)


def test_prompt_that_leaves_no_room_for_an_answer(family: GenericFamily, model_config: Any, sample: Sample) -> None:
    length = family.encode_prompt("row", sample.prompt).length
    assert with_limit(family, model_config, length + 1).encode_prompt("row", sample.prompt).length == length
    with pytest.raises(BadRowError, match=f"at most {length} tokens with room for an answer.*max_length_tokens"):
        with_limit(family, model_config, length).encode_prompt("row", sample.prompt)


@pytest.mark.parametrize("name", ["tiny_qwen2vl"], indirect=True)
def test_image_that_the_processor_refuses_is_a_bad_row(family: GenericFamily, make_image: Callable[..., Image]) -> None:
    """Not a crash: Qwen takes no picture 200 times as long as wide."""
    strip = Prompt((Message("user", (make_image(300, 1), "How many?")),))
    with pytest.raises(BadRowError, match=r"aspect ratio.*; mend or drop it"):
        family.encode_prompt("row", strip)
    with pytest.raises(BadRowError, match=r"aspect ratio.*; mend or drop it"):
        family.image_tokens(300, 1)


def test_no_template(family: GenericFamily, model_config: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.template.*no chat template; give one"):
        with_template(family, model_config, None)


PLAIN = "{% for m in messages %}{{ m['role'] }}:{% for p in m['content'] %}{{ p['text'] }}{% endfor %}@{% endfor %}"


@pytest.mark.parametrize("end", ["", "\n", " ", "END\n"])
def test_template_without_an_end_token(family: GenericFamily, model_config: Any, end: str) -> None:
    """A line break is no end token: it stands in answers too."""
    message = r"model\.template: Expected an end token after the assistant's text, got .*; let it write '<.*end"
    with pytest.raises(ConfigError, match=message):
        with_template(family, model_config, PLAIN.replace("@", end))


@pytest.mark.parametrize("before_end", ["", " ", "\n"])
def test_end_token_is_found_behind_white_space(family: GenericFamily, model_config: Any, before_end: str) -> None:
    made = with_template(family, model_config, PLAIN.replace("@", before_end + family.end_text))
    assert made.end_id == family.end_id


def test_broken_template_is_a_config_error(family: GenericFamily, model_config: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.template: .*endfor"):
        with_template(family, model_config, "{% for m in messages %}")


def test_turns_that_the_template_refuses_are_a_bad_row(
    family: GenericFamily, model_config: Any, samples: dict[str, Sample]
) -> None:
    """Gemma's template takes no system turn, Mistral's wants strict alternation: those rows are bad, others are not."""
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    strict = with_template(family, model_config, refusal + family.processor.chat_template)
    assert strict.encode(samples["one_image"]).n_supervised > 1
    with pytest.raises(BadRowError, match="got no system turn; change the turns"):
        strict.encode(samples["few_shot"])


def test_template_that_changes_the_past(family: GenericFamily, model_config: Any, samples: dict[str, Sample]) -> None:
    """Training and generation would see different prompts."""
    changing = "{% if add_generation_prompt %}Q{% else %}A{% endif %}" + family.processor.chat_template
    with pytest.raises(ConfigError, match="differs with and without it; fix the template"):
        with_template(family, model_config, changing).encode(samples["text_only"])


def test_template_from_the_config(make_config: Callable[..., ModelConfig], samples: dict[str, Sample]) -> None:
    config = make_config()
    source, model_config = load_source(config)
    own = make_family(config, source, model_config)
    assert isinstance(own, GenericFamily)
    config.template = "Hello. " + own.processor.chat_template
    told = make_family(config, source, model_config)
    row = told.encode(samples["text_only"])
    assert told.show(row.input_ids.tolist()).startswith("Hello. ")
    assert told.fingerprint_parts["template"] != own.fingerprint_parts["template"]


def test_text_model_is_refused(family: GenericFamily, model_config: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.path: .*no image token; choose a vision-language model"):
        GenericFamily(family.processor, model_config.get_text_config(), 100)
