"""moondream2's files as they lie on the Hub: which generation they are is said in the config, and checked."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models.conftest import MOONDREAM2_SIZES
from vlmft.config.check import ConfigError
from vlmft.config.schema import Init, ModelConfig
from vlmft.models.families.moondream2.processing import Moondream2Processor, tiling_of
from vlmft.models.family import Family, make_family
from vlmft.models.load import load_source
from vlmft.models.loaded import fingerprint
from vlmft.models.processor import load_processor
from vlmft.sample import Image, Message, Prompt, Sample

REFERENCE = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared")
ARCHIVE = REFERENCE / "fixtures" / "processors.tar.xz"
needs_archive = pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"no {ARCHIVE}; set VLMFT_REFERENCE_DATA")
CLASSES = "vlmft.models.families.moondream2.family:Moondream2"
FULL_VOCABULARY = {**MOONDREAM2_SIZES, "text": {**MOONDREAM2_SIZES["text"], "vocab_size": 51200}}
IMAGE = [51200] * 25
Write = Callable[..., None]


def family_of(folder: Path, which: str) -> Family:
    config = ModelConfig(name="moondream2", path=str(folder), init=Init.random, family=f"{CLASSES}{which}Family")
    return make_family(config, *load_source(config))


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory, write_moondream2: Write) -> Path:
    """The real tokenizer of 2025-01-09 beside sizes that a test can hold."""
    folder = tmp_path_factory.mktemp("gpt2")
    with tarfile.open(ARCHIVE) as archive:
        members = [
            member for member in archive if "moondream2" in member.name and "config.json" not in member.name[-12:]
        ]
        assert members
        archive.extractall(folder, members=members, filter="data")
    (tokenizer,) = folder.rglob("tokenizer.json")
    write_moondream2(tokenizer.parent, FULL_VOCABULARY)
    return tokenizer.parent


@pytest.fixture(scope="module")
def starmie_folder(tmp_path_factory: pytest.TempPathFactory, write_moondream2: Write) -> Path:
    """A stand-in for starmie: 51200 words, the control tokens and `query` under the published ids."""
    folder = tmp_path_factory.mktemp("starmie")
    write_moondream2(folder, FULL_VOCABULARY)
    words = {f"w{i}": i for i in range(51200)}
    said = {"<|endoftext|>": 0, **{f"<|md_reserved_{i}|>": i + 1 for i in range(3)}, "query": 15381, "How": 7, "7": 9}
    words = {word: i for word, i in words.items() if i not in said.values()} | said
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w5"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    made.add_special_tokens({"additional_special_tokens": [word for word in said if word.startswith("<|")]})
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def sample(make_image: Callable[..., Image]) -> Sample:
    return Sample("row", Prompt((Message("user", (make_image(90, 90), "How many?")),)), "7", ("7",))


@needs_archive
def test_gpt2_generation_on_its_real_tokenizer(gpt2_folder: Path, sample: Sample) -> None:
    """2025-01-09 to 2025-04-14: the ids of the vendor's config, and the very text that its prompt spells."""
    family = family_of(gpt2_folder, "Gpt2")
    row = family.encode(sample)
    question = [198, 198, 24361, 25, 1374, 867, 30, 198, 198, 33706, 25]
    assert row.input_ids[: row.prompt_length].tolist() == [50256, *IMAGE, *question]
    assert row.input_ids[row.supervised].tolist() == [767, 50256]
    assert family.show(row.input_ids[26:].tolist()) == "\n\nQuestion: How many?\n\nAnswer: 7<|endoftext|>"
    spaced = family.processor.tokenizer(" 3 , 4 . isn 't")["input_ids"]  # type: ignore[attr-defined]
    assert family.decode([*spaced, 50256]) == "3 , 4 . isn 't"
    assert family.end_id == family.pad_id == 50256 and family.image_tokens(90, 90) == 25


def test_starmie_generation_on_a_stand_in(starmie_folder: Path, sample: Sample) -> None:
    """2025-06-21: the answer token stands twice and is never generated. The real tokenizer could not be had."""
    family = family_of(starmie_folder, "")
    row = family.encode(sample)
    assert row.input_ids[: row.prompt_length].tolist() == [0, *IMAGE, 1, 15381, 2, 7, 5, 3, 3]
    assert row.input_ids[row.supervised].tolist() == [9, 0]
    assert family.suppressed_ids == (3,)  # type: ignore[attr-defined]
    assert family.end_id == 0


@needs_archive
def test_stale_tokenizer_is_not_taken_for_starmie(gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository of 2025-06-21 holds the older generation's tokenizer: training on its ids would be silent."""
    tokenizer = family_of(gpt2_folder, "Gpt2").processor.tokenizer  # type: ignore[attr-defined]
    asked: list[str] = []

    def unreachable(path: str) -> Any:
        asked.append(path)
        raise OSError("no network")

    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", unreachable)
    monkeypatch.setattr(Moondream2Processor, "from_pretrained", lambda *_, **__: Moondream2Processor(tokenizer))
    with pytest.raises(ConfigError, match=r"not that of moondream2's 'starmie' generation, and moondream/starmie-v1"):
        family_of(gpt2_folder, "")
    assert asked == ["moondream/starmie-v1"]
    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", lambda _: tokenizer)
    with pytest.raises(ConfigError, match=r"nor is moondream/starmie-v1 any more"):
        family_of(gpt2_folder, "")


def test_starmie_weights_are_not_taken_for_the_older(starmie_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"not that of moondream2's 'gpt2' generation; take Moondream2Family"):
        family_of(starmie_folder, "Gpt2")


def test_phi_generation_is_refused(starmie_folder: Path, tmp_path: Path) -> None:
    """2024's config.json: the same model type, another architecture."""
    old = {"architectures": ["Moondream"], "model_type": "moondream1", "text_config": {"model_type": "phi"}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ConfigError, match=r"got the 2024 generation on Phi; take revision 2025-06-21"):
        load_source(ModelConfig(name="x", path=str(tmp_path)))


def test_empty_config_is_the_published_size(write_moondream2: Write, tmp_path: Path) -> None:
    """On the Hub `config` is empty; auto_map is there and its code is not asked for."""
    write_moondream2(tmp_path, {})
    _, config = load_source(ModelConfig(name="x", path=str(tmp_path)))
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (2048, 24, 51200)
    assert config.vision.grid**2 == 729 and config.max_position_embeddings == 2048
    assert config.image_token_id == 51200 and config.get_text_config() is config


def test_other_models_are_refused(starmie_folder: Path) -> None:
    config = ModelConfig(name="x", path="package:tiny", init=Init.random, family=f"{CLASSES}Family")
    with pytest.raises(ConfigError, match=r"model\.family: Expected moondream2's files, got 'idefics3'"):
        make_family(config, *load_source(config))


def test_fingerprint_tells_tokenizers_apart(starmie_folder: Path) -> None:
    one, other = family_of(starmie_folder, ""), family_of(starmie_folder, "")
    assert fingerprint(one, "x") == fingerprint(other, "x")
    other.processor.tokenizer.add_tokens(["new"])  # type: ignore[attr-defined]
    again = type(other)(other.processor, load_source(ModelConfig("x", str(starmie_folder)))[1], 99)  # type: ignore
    assert fingerprint(one, "x") != fingerprint(again, "x")


def test_saved_processor_comes_back(starmie_folder: Path, sample: Sample, tmp_path: Path) -> None:
    """As it is stored beside an adapter: marks and sizes of crops with it, whatever class reads it."""
    family = family_of(starmie_folder, "")
    processor = family.processor  # type: ignore[attr-defined]
    processor.save_pretrained(tmp_path)
    config = ModelConfig(name="x", path=str(starmie_folder))
    again = load_processor(type(load_source(config)[0])(str(tmp_path), None, "x"), "moondream1")
    assert again.marks == processor.marks and again.image_processor == processor.image_processor
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "How"}]}])
    assert again.ids(text) == processor.ids(text) == [0, 1, 15381, 2, 7]


@pytest.mark.parametrize(
    ("height", "width", "tiling"),
    [
        (-50, -50, (1, 1)),
        (266, 5000, (1, 1)),
        (267, 267, (3, 3)),
        (388, 588, (2, 4)),
        (1088, 288, (6, 2)),
        (9000, 9000, (3, 3)),
        (9000, 300, (14, 1)),
    ],
)
def test_tilings(height: int, width: int, tiling: tuple[int, int]) -> None:
    """By hand from the vendor's rule: none for a picture that is narrow in either direction, and a long strip that is
    shrunk to less than one column gets a few more than twelve. The weights have seen it so."""
    assert tiling_of(height, width, 266, 12) == tiling
