"""The tiny models: what is in the package is what `tiny.py` builds, small, and able to write both alphabets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from benchmarks.tiny.models import VOCABULARY, build_tiny, build_tiny_qwen2vl
from benchmarks.tiny.shapes_pretrain import tokenizer_texts
from vlmft.config.schema import ModelConfig
from vlmft.models.family import GenericFamily
from vlmft.models.locate import locate

FILES = {
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "generation_config.json",
}
BUILDERS: dict[str, Callable[..., None]] = {"tiny": build_tiny, "tiny_qwen2vl": build_tiny_qwen2vl}
MOST_BYTES = 12_000_000
DIGITS = set("0123456789")


def package_folder(name: str) -> Path:
    return Path(locate(ModelConfig(name=name, path=f"package:{name}")))


def content(file: Path) -> Any:
    """JSON but for the version of transformers that wrote it, or text."""
    if file.suffix != ".json":
        return file.read_text(encoding="utf-8")
    values = json.loads(file.read_text(encoding="utf-8"))
    values.pop("transformers_version", None)
    return values


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """What the tokenizers were trained on."""
    return list(tokenizer_texts())


def test_package_holds_what_is_built(name: str, texts: list[str], tmp_path: Path) -> None:
    BUILDERS[name](tmp_path, texts)
    assert {file.name for file in tmp_path.iterdir()} == FILES
    there = package_folder(name)
    assert {file.name for file in there.iterdir()} - {"model.safetensors"} == FILES
    for file in sorted(FILES):
        assert content(there / file) == content(tmp_path / file), file


def test_no_path_of_a_machine_is_in_the_package(name: str) -> None:
    found = [file for file in package_folder(name).iterdir() if file.suffix in (".json", ".jinja")]
    assert len(found) == len(FILES)
    for file in found:
        text = file.read_text(encoding="utf-8")
        assert "/work" not in text and "/tmp" not in text and "_name_or_path" not in text


def test_weights_in_the_package(name: str, model_config: Any) -> None:
    file = package_folder(name) / "model.safetensors"
    if name == "tiny_qwen2vl":
        assert not file.exists(), "random weights are made on the fly"
        return
    if not file.is_file():
        pytest.skip("model.safetensors of tiny is not there: it is made by train.py experiment=pretrain_tiny")
    assert file.stat().st_size <= MOST_BYTES
    with torch.device("meta"):
        expected = AutoModelForImageTextToText.from_config(model_config).state_dict()
    with safe_open(file, "pt") as weights:
        keys = set(weights.keys())
        assert keys | {"lm_head.weight"} == set(expected) | {"lm_head.weight"}
        for key in keys:
            tensor = weights.get_tensor(key)
            assert tensor.dtype == torch.bfloat16 and tensor.shape == expected[key].shape
            assert tensor.isfinite().all()


def test_digits_stand_alone(family: GenericFamily) -> None:
    tokenizer = family.processor.tokenizer
    assert len(tokenizer) == VOCABULARY
    ids = tokenizer("2026: 10 or 137.5", add_special_tokens=False)["input_ids"]
    pieces = [tokenizer.decode([i]) for i in ids]
    assert [piece for piece in pieces if set(piece) & DIGITS] == list("2026101375")
    several = [token for token in tokenizer.get_vocab() if sum(c in DIGITS for c in token) > 1]
    assert several == []


@pytest.mark.parametrize(
    "text",
    [
        "How many items are there in the image?",
        "Сколько предметов на картинке? Съешь ещё этих мягких французских булок, ЁЖ!",
        "  spaces   and\ttabs\nand lines\r\n",
        "naïve café — “quotes” … 数 🙂",
        "<tag> & [list] {x} 1.5e-3 $%",
        "",
    ],
)
def test_text_comes_back(family: GenericFamily, text: str) -> None:
    ids = family.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert family.show(ids) == text
    assert family.processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_cyrillic_is_not_spelled_in_bytes(family: GenericFamily) -> None:
    """Two bytes a letter would make Russian text twice as long as it need be."""
    ids = family.processor.tokenizer("Сколько предметов на картинке?", add_special_tokens=False)["input_ids"]
    assert len(ids) < len("Сколько предметов на картинке?")


def test_control_tokens_are_single_ids(family: GenericFamily) -> None:
    tokenizer = family.processor.tokenizer
    assert len(family.control_texts) == 7
    for control in family.control_texts:
        assert len(tokenizer(control, add_special_tokens=False)["input_ids"]) == 1
    assert family.end_id == tokenizer.eos_token_id != family.pad_id == tokenizer.pad_token_id
