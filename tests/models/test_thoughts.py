"""Chat templates of models that think: what is asked in generation is what training's answers stand behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.smoke.models import CHATML
from benchmarks.tiny_models import MODELS, save
from vlmft.config.check import ConfigError
from vlmft.config.schema import Init, ModelConfig
from vlmft.models.family import Family, make_family
from vlmft.models.load import load_source
from vlmft.sample import Message, Prompt, Sample

HEADER = "<|im_start|>assistant\n"
EMPTY = "<thought>\n</thought>\n\n"
ASKED = CHATML.replace("IMAGE", "<image>")
LIKE_GEMMA_4 = ASKED.replace(HEADER + "{% endif %}", HEADER + EMPTY + "{% endif %}")
"""The empty thought stands in the prompt for an answer alone."""
LIKE_QWEN_35 = LIKE_GEMMA_4.replace(
    "<|im_start|>{{ m['role'] }}\n",
    "<|im_start|>{{ m['role'] }}\n{% if loop.last and m['role'] == 'assistant' %}" + EMPTY + "{% endif %}",
)
"""And before the last answer of a conversation, too."""
THINKS = LIKE_QWEN_35.replace(HEADER + EMPTY + "{% endif %}", HEADER + "<thought>\n{% endif %}")
"""The prompt only begins the thought, which an answer without one ends."""
TEMPLATES = {"plain": ASKED, "Gemma 4": LIKE_GEMMA_4, "Qwen3.5": LIKE_QWEN_35, "thinks": THINKS}


def family_of(folder: Path, template: str) -> Family:
    save(next(tiny for tiny in MODELS if tiny.name == "LLaVA"), folder)
    config = ModelConfig(name="x", path=str(folder), init=Init.random, template=template)
    return make_family(config, *load_source(config))


def sample(answer: str, *earlier: Message) -> Sample:
    return Sample("row", Prompt((*earlier, Message("user", ("How many items are there?",)))), answer, (answer,))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", ["7", "<thoughts> of 4", "<|", "</thought>"])
def test_an_answer_stands_behind_the_prompt_that_asks_for_it(tmp_path: Path, name: str, answer: str) -> None:
    """Also one that begins as the thought does."""
    family = family_of(tmp_path, TEMPLATES[name])
    row, asked = family.encode(sample(answer)), family.encode_prompt("row", sample(answer).prompt)
    assert row.input_ids[: asked.length].tolist() == asked.input_ids.tolist()
    completion = family.show(row.input_ids[row.supervised].tolist())
    assert completion == ("</thought>\n\n" if name == "thinks" else "") + answer + "<|im_end|>"
    prompt = family.show(asked.input_ids.tolist())
    assert prompt.endswith({"plain": HEADER, "thinks": HEADER + "<thought>\n"}.get(name, HEADER + EMPTY))


def test_earlier_answers_are_as_the_template_has_them(tmp_path: Path) -> None:
    earlier = (Message("user", ("Which has more?",)), Message("assistant", ("red",)))
    family = family_of(tmp_path, LIKE_GEMMA_4)
    text = family.show(family.encode(sample("7", *earlier)).input_ids.tolist())
    assert text.count("<thought>") == 1 and f"{HEADER}red<|im_end|>" in text
    assert text.endswith(f"{HEADER}{EMPTY}7<|im_end|>")


def test_another_header_before_answers_is_still_refused(tmp_path: Path) -> None:
    """There is no saying what generation would be asked."""
    family = family_of(tmp_path, ASKED.replace(HEADER + "{% endif %}", "<|im_start|>model\n{% endif %}"))
    with pytest.raises(ConfigError, match=r"model\.template: the text before an answer differs"):
        family.encode(sample("7"))
