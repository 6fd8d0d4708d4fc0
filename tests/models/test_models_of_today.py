"""Each model of conf/model is of an architecture that docs/models.md says works, and has as many parameters as said."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import is_timm_available

from benchmarks.coverage import COLUMNS, PAGE, TRIED, count, mapping
from vlmft.config.entry import conf_dir
from vlmft.config.schema import TrainConfig
from vlmft.models.support import UNLIKE, refusal

KINDS: Mapping[str, str] = {
    "gemma3_4b": "gemma3",
    "gemma4_e2b": "gemma4",
    "granite_vision33_2b": "llava_next",
    "idefics9b": "idefics",
    "internvl35_1b": "internvl",
    "internvl35_2b": "internvl",
    "internvl35_4b": "internvl",
    "internvl35_8b": "internvl",
    "moondream2": "moondream1",
    "paligemma2_3b": "paligemma",
    "qwen25vl": "qwen2_5_vl",
    "qwen2vl": "qwen2_vl",
    "qwen35_08b": "qwen3_5",
    "qwen3vl2b": "qwen3_vl",
    "qwen3vl4b": "qwen3_vl",
    "qwen3vl8b": "qwen3_vl",
    "smolvlm": "idefics3",
    "smolvlm256m": "idefics3",
    "smolvlm2_256m": "smolvlm",
    "smolvlm2_2b": "smolvlm",
    "smolvlm2_500m": "smolvlm",
}
"""Choice in conf/model -> the model_type of its config.json."""
OWN = {"auto", "tiny", "tiny_qwen2vl"}
NEEDED = ("loss", "lora", "qlora", "generate", "feature path", "export")
SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "vision_use_head": False}
SIGLIP |= {"num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14}


def marks_of(page: str) -> dict[str, dict[str, str]]:
    """model_type -> column -> mark, of the page's table."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    names = next(row for row in rows if row[:2] == ["model", "`model_type`"])
    return {
        row[1].strip("`"): dict(zip(names, row, strict=True))
        for row in rows
        if len(row) == len(names) and row is not names
    }


@pytest.mark.parametrize("name", sorted(KINDS))
def test_it_composes_and_its_architecture_works(name: str, compose: Callable[..., TrainConfig]) -> None:
    model = compose(f"model={name}").model
    assert "/" in model.path and model.revision in (None, "2025-06-21")
    marks = marks_of(PAGE.read_text(encoding="utf-8"))[KINDS[name]]
    assert {column: marks[column] for column in NEEDED} == dict.fromkeys(NEEDED, "yes")
    assert f"| `{name}` | {model.path} |" in PAGE.read_text(encoding="utf-8")


def test_every_choice_is_looked_at() -> None:
    assert {file.stem for file in (conf_dir() / "model").glob("*.yaml")} == {*KINDS, *OWN}


def test_every_architecture_of_the_library_is_accounted_for() -> None:
    """The page's own table says how many work, are refused and why, as the installed library and this code have it."""
    page = PAGE.read_text(encoding="utf-8")
    if f"of transformers {transformers.__version__}," not in page or is_timm_available():
        pytest.skip("the page is of another version, or of a machine without timm")
    assert count() in page
    works = {kind for kind, reason in mapping().items() if not reason}
    assert works <= marks_of(page).keys() == {*TRIED, "moondream1"}
    assert {*COLUMNS, "boxes"} <= marks_of(page)["qwen3_vl"].keys()


@pytest.mark.parametrize("kind", sorted(UNLIKE))
def test_what_has_the_doors_and_is_different_is_refused(kind: str) -> None:
    """Fed, each of these failed in the middle or answered otherwise beside other rows."""
    assert refusal(AutoConfig.for_model(kind)) == UNLIKE[kind]


@pytest.mark.parametrize(("kind", "words"), [("video_llama_3", "no logits_to_keep"), ("minicpmv4_7", "no way in")])
def test_missing_doors_are_named(kind: str, words: str) -> None:
    """Without logits_to_keep a model hands back logits of every token; without names nobody can feed it pixels."""
    assert words in str(refusal(AutoConfig.for_model(kind)))


def qwen3_vl(hidden: int, inner: int, layers: int, heads: int, tied: bool, tower: dict[str, Any]) -> Any:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = {"vocab_size": 151936, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    text |= {"num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128, "rope_parameters": rope}
    tower = {**tower, "num_heads": 16, "patch_size": 16, "out_hidden_size": hidden, "num_position_embeddings": 2304}
    return transformers.Qwen3VLConfig(
        text_config={**text, "tie_word_embeddings": tied}, vision_config=tower, tie_word_embeddings=tied
    )


def smolvlm2(vision: dict[str, int], hidden: int, inner: int, layers: int, heads: tuple[int, int], factor: int) -> Any:
    text = {"model_type": "llama", "vocab_size": 49280, "hidden_size": hidden, "intermediate_size": inner}
    text |= {"num_hidden_layers": layers, "num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    return transformers.SmolVLMConfig(
        vision_config=vision,
        text_config={**text, "tie_word_embeddings": False},
        scale_factor=factor,
        tie_word_embeddings=False,
    )


def config_of(name: str) -> Any:
    """The vendors' config.json, written down from the architectures."""
    if name.startswith("qwen3vl"):
        small = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
        large = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
        sizes = {"qwen3vl2b": (2048, 6144, 28, 16, True, small), "qwen3vl4b": (2560, 9728, 36, 32, True, small)}
        return qwen3_vl(*(sizes | {"qwen3vl8b": (4096, 12288, 36, 32, False, large)})[name])
    if name.startswith("smolvlm2"):
        vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        vision |= {"image_size": 512, "patch_size": 16}
        if name == "smolvlm2_2b":
            tower = {key: value for key, value in SIGLIP.items() if isinstance(value, int) and key != "vision_use_head"}
            return smolvlm2({**tower, "image_size": 384}, 2048, 8192, 24, (32, 32), 3)
        hidden, inner, layers, heads = (576, 1536, 30, (9, 3)) if name == "smolvlm2_256m" else (960, 2560, 32, (15, 5))
        return smolvlm2(vision, hidden, inner, layers, heads, 4)
    text = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
    if name == "gemma3_4b":
        text |= {"vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
        return transformers.Gemma3Config(text_config=text, vision_config={**SIGLIP, "image_size": 896})
    text |= {"vocab_size": 257216, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
    return transformers.PaliGemmaConfig(
        text_config={**text, "model_type": "gemma2"},
        vision_config={**SIGLIP, "image_size": 224},
        projection_dim=2304,
        tie_word_embeddings=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in KINDS if name.startswith(("qwen3vl", "smolvlm2_", "gemma3", "paligemma2"))]
)
def test_exact_counts_are_those_of_the_architecture(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(name))
    model.tie_weights()
    said = re.search(r"([\d,]{9,}) parameters", (conf_dir() / f"model/{name}.yaml").read_text(encoding="utf-8"))
    assert said is not None and int(said[1].replace(",", "")) == sum(p.numel() for p in model.parameters())
