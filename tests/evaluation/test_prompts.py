"""Controls and other wordings change what they are to change and nothing else."""

from __future__ import annotations

from functools import partial

import PIL.Image
import pytest

from vlmft.evaluation.prompts import blanked, shuffled, styled, textless
from vlmft.sample import Image, Message, Prompt, Sample

COLOURS = ("red", "green", "blue", "white")


def image(colour: str) -> Image:
    return Image(partial(PIL.Image.new, "RGB", (4, 3), colour), colour)


def row(name: str, *colours: str, question: str = "How many?") -> Sample:
    content = (*map(image, colours), "How many?\nAnswer briefly.")
    messages = (Message("system", ("You count.",)), Message("user", content))
    return Sample(name, Prompt(messages), "3", ("3",), question=question)


def test_black_images_keep_text_and_size() -> None:
    (black,) = blanked(row("a", "red").prompt).images
    assert black.pixels.shape == (3, 4, 3) and not black.pixels.any()
    assert [m.text for m in blanked(row("a", "red").prompt).messages] == ["You count.", "How many?\nAnswer briefly."]


def test_text_alone() -> None:
    prompt = textless(row("a", "red", "blue").prompt)
    assert prompt.images == () and prompt.messages[1].content == ("How many?\nAnswer briefly.",)


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_images_are_never_ones_own(seed: int) -> None:
    rows = [row(f"one {i}", colour) for i, colour in enumerate((*COLOURS, "red", "red"))]  # three rows show one image
    rows += [row("two", "red", "blue"), row("too", "blue", "green")]
    found = shuffled(rows, seed)
    assert found.keys() == {sample.id for sample in rows} and found == shuffled(rows, seed)
    for sample in rows:
        mine, theirs = sample.prompt.images, found[sample.id].images
        assert len(theirs) == len(mine) and [i.sha256 for i in theirs] != [i.sha256 for i in mine]
        assert found[sample.id].messages[1].text == sample.prompt.messages[1].text


def test_a_row_without_a_lender_is_left_out() -> None:
    assert shuffled([row("a", "red"), row("b", "red")], 0) == {}
    assert shuffled([row("a", "red"), row("b", "blue"), row("c", "red", "blue")], 0).keys() == {"a", "b"}


def test_bare_and_vendor_prompts_have_no_instruction_of_the_dataset() -> None:
    sample = row("a", "red")
    bare = styled(sample, "{question}")
    assert [message.role for message in bare.messages] == ["user"]
    assert bare.messages[0].content[1:] == ("How many?",) and bare.images == sample.prompt.images
    vendor = styled(sample, "Q: {question}\nShort answer:")
    assert vendor.messages[0].text == "Q: How many?\nShort answer:"
    unset = row("a", "red", question="")  # the dataset writes no instruction
    assert styled(unset, "{question}").messages[0].text == "How many?\nAnswer briefly."
    braces = row("a", "red", question="What is {x}?")
    assert styled(braces, "{question}").messages[0].text == "What is {x}?"
