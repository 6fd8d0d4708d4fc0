"""The commands that serve an export, and the runs that no server answers for."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlmft.config.schema import TrainConfig, Tuning
from vlmft.config.tool_schema import ExportConfig, ExportForm
from vlmft.tools.model_card import serving_text
from vlmft.tools.serving import Serving, serving

LANGUAGE = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
VISION = "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight"


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """adapter(tensors, r=..., ...): a PEFT folder."""

    def made(*tensors: str, **said: Any) -> Path:
        config = {"base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct", "r": 12, "lora_alpha": 24, **said}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        save_file({name: torch.zeros(1) for name in tensors or (LANGUAGE,)}, tmp_path / "adapter_model.safetensors")
        return tmp_path

    return made


def served(run: TrainConfig, folder: Path, form: ExportForm = ExportForm.adapter, to: str = "my model") -> Serving:
    return serving(ExportConfig(run="outputs/r", to=to, form=form), run, folder, {})


def options(found: Serving) -> dict[str, str]:
    """`--name value` of the one command."""
    (command,) = found.commands
    words = shlex.split(command)
    assert words[:3] == ["vllm", "serve", "Qwen/Qwen2-VL-2B-Instruct"]
    flags = [place for place, word in enumerate(words) if word.startswith("--")]
    ends = [*flags[1:], len(words)]
    return {words[start]: " ".join(words[start + 1 : end]) for start, end in zip(flags, ends, strict=True)}


def test_a_merged_model(compose: Any, compose_evaluate: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2VLForConditionalGeneration"]}')
    found = served(compose("model=tiny_qwen2vl"), tmp_path, ExportForm.merged, "exports/mine")
    assert found.commands == ("vllm serve exports/mine", "transformers serve exports/mine") and not found.warning
    program, script, *overrides = shlex.split(found.comparison(str(tmp_path)))
    assert (program, script) == ("python", "evaluate.py")
    server = compose_evaluate(*overrides).evaluation.servers["served"]
    assert (server.base_url, server.model) == ("http://localhost:8000/v1", "exports/mine"), "both name it by its folder"
    (block,) = serving_text(found)
    assert block.startswith("```bash\nvllm serve exports/mine\n") and "run=RUN_FOLDER" in block


def test_what_the_base_likes_is_told(compose: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2VLForConditionalGeneration"]}')
    config = ExportConfig(run="outputs/r", to="mine")
    found = serving(config, compose("model=tiny_qwen2vl"), tmp_path, {"repetition_penalty": 1.05, "top_k": 1})
    assert found.notes == (
        "generation_config.json is greedy, as the evaluation was; the base's own says repetition_penalty=1.05, top_k=1",
    )


def test_an_architecture_of_ours(compose: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Moondream2ForConditionalGeneration"]}')
    found = served(compose("model=tiny_qwen2vl"), tmp_path, ExportForm.merged)
    assert found.commands == ()
    assert found.warning.startswith(
        "no server loads this export: Moondream2ForConditionalGeneration is no architecture"
    )
    assert serving_text(found) == [f"N{found.warning[1:]}."]


def test_an_adapter(compose: Any, adapter: Callable[..., Path]) -> None:
    run = compose("model=qwen2vl", "data=shapes", "model.quantization.mode=none", "model.revision=abc")
    found = served(run, adapter())
    assert options(found) == {
        "--generation-config": "vllm",  # or the base's own sampling and penalties apply
        "--enable-lora": "",
        "--max-lora-rank": "16",
        "--revision": "abc",
        "--lora-modules": "qwen2vl-shapes=my model",
    }
    assert found.model == "qwen2vl-shapes" and found.notes == ("transformers serve loads no adapters",)


def test_an_adapter_on_vision_and_a_quantised_base(compose: Any, adapter: Callable[..., Path]) -> None:
    run = compose("model=qwen2vl", "data=shapes", "model.quantization.mode=nf4", "model.revision=null")
    folder = adapter(LANGUAGE, VISION, r=64)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    found = served(run, folder, to="mine")
    assert options(found) == {
        "--generation-config": "vllm",  # or the base's own sampling and penalties apply
        "--enable-lora": "",
        "--max-lora-rank": "64",
        "--enable-tower-connector-lora": "",
        "--quantization": "bitsandbytes",
        "--chat-template": "mine/chat_template.jinja",
        "--lora-modules": "qwen2vl-shapes=mine",
    }
    assert found.notes[:2] == (
        "the adapter is on vision, too, which vLLM loads for some architectures alone",
        "the adapter was trained beside a base in nf4; on another one it answers otherwise",
    )


@pytest.mark.parametrize(
    ("said", "model", "reason"),
    [
        ({"use_dora": True}, {}, "vLLM does not load DoRA"),
        ({"r": 1024}, {}, "vLLM loads a rank of 512 at most, not 1024"),
        ({"base_model_name_or_path": "package:tiny"}, {}, "package:tiny is no model on the Hub and no folder"),
        (
            {},
            {"max_visual_tokens_per_image": 64},
            "model.max_visual_tokens_per_image is not a setting of the base's own",
        ),
        ({}, {"connector": Tuning.full}, "connector trained in full, which is not in the adapter"),
    ],
)
def test_an_adapter_that_no_server_loads(
    compose: Any, adapter: Callable[..., Path], said: dict[str, Any], model: dict[str, Any], reason: str
) -> None:
    run = compose("model=qwen2vl", "data=shapes")
    if "connector" in model:
        model = {"train": dataclasses.replace(run.model.train, **model)}
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, **model))
    found = served(run, adapter(**said))
    assert found.commands == () and reason in found.warning
    assert found.warning.endswith("form=merged is what a server loads")


def test_an_adapter_of_moondream2(compose: Any, adapter: Callable[..., Path]) -> None:
    found = served(compose("model=moondream2", "data=shapes"), adapter())
    assert found.obstacles == (
        "this moondream2 is no architecture of transformers; vlmft ask and vlmft evaluate answer from it",
    )
