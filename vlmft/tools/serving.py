"""How an export is served: the commands for vLLM and `transformers serve`, and what stands in their way.

vLLM's conditions on an adapter are those of its `PEFTHelper` and `LoRAModel`: no DoRA, no modules trained in full, a
rank of at most 512, and `--enable-tower-connector-lora` for layers outside the language part. transformers serve loads
whole models alone.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from safetensors import safe_open

from vlmft.config.schema import QuantizationMode, TrainConfig, Tuning
from vlmft.config.tool_schema import ExportConfig, ExportForm
from vlmft.models.lora import part_of, tuned_parts
from vlmft.run.weights import FULL_PARTS_FILE

ADDRESS = "http://localhost:8000/v1"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM's --max-lora-rank takes."""
OURS_ALONE = "{} is no architecture of transformers; vlmft ask and vlmft evaluate answer from it"
QUANTIZED_BASE = {QuantizationMode.nf4: "--quantization bitsandbytes"}


@dataclass(frozen=True)
class Serving:
    """Commands, or the reasons why there are none."""

    commands: tuple[str, ...]
    """Any one of them."""
    model: str
    """The name that a request has to ask for."""
    obstacles: tuple[str, ...] = ()
    """Why no server answers as this run does."""
    notes: tuple[str, ...] = ()
    """What makes a server's answers other ones."""

    def comparison(self, run: str) -> str:
        """The command that puts the server beside the tuned model."""
        setting = f"evaluation.servers.served={{base_url: {ADDRESS}, model: {self.model}}}"
        return f"python evaluate.py run={shlex.quote(run)} {shlex.quote(setting)}"

    @property
    def warning(self) -> str:
        """Why nothing serves it; "" where something does."""
        return f"no server loads this export: {'; '.join(self.obstacles)}" if self.obstacles else ""


def serving(config: ExportConfig, run: TrainConfig, folder: Path, left_out: Mapping[str, Any]) -> Serving:
    """Of the export in `folder`, which becomes `config.to`; `left_out`: what its generation_config.json lacks."""
    to = shlex.quote(config.to)
    if config.form == ExportForm.merged:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or ["none"]
        if not hasattr(transformers, named[0]):
            return Serving((), config.to, (OURS_ALONE.format(named[0]),))
        said = ", ".join(f"{name}={value}" for name, value in left_out.items())
        note = f"generation_config.json is greedy, as the evaluation was; the base's own says {said}"
        return Serving((f"vllm serve {to}", f"transformers serve {to}"), config.to, (), (note,) if said else ())
    return adapter_serving(config, run, folder)


def adapter_serving(config: ExportConfig, run: TrainConfig, folder: Path) -> Serving:
    said: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base, name = str(said["base_model_name_or_path"]), f"{run.model.name}-{run.data.name}"
    with safe_open(folder / "adapter_model.safetensors", "pt") as stored:
        parts = {part_of(tensor.removeprefix("base_model.model.")) for tensor in stored.keys()}  # noqa: SIM118 - no dict
    parts -= {"language"}
    if ".moondream2." in run.model.family:
        return Serving((), name, (OURS_ALONE.format("this moondream2"),))
    full, mode = tuned_parts(run.model.train, Tuning.full), run.model.quantization.mode
    obstacles = {
        f"{', '.join(full)} trained in full, which is not in the adapter": (folder / FULL_PARTS_FILE).is_file() or full,
        "vLLM does not load DoRA": said.get("use_dora"),
        f"vLLM loads a rank of {RANKS[-1]} at most, not {said['r']}": said["r"] > RANKS[-1],
        f"{base} is no model on the Hub and no folder": base.startswith("package:"),
        "model.max_visual_tokens_per_image is not a setting of the base's own processor, which a server takes": (
            run.model.max_visual_tokens_per_image is not None
        ),
    }
    if found := tuple(reason for reason, is_so in obstacles.items() if is_so):
        return Serving((), name, (*found, "form=merged is what a server loads"))
    rank = next(rank for rank in RANKS if rank >= said["r"])
    options = ["--generation-config vllm", "--enable-lora", f"--max-lora-rank {rank}"]
    options += ["--enable-tower-connector-lora"] if parts else []
    options += [f"--revision {run.model.revision}"] if run.model.revision is not None else []
    options += [QUANTIZED_BASE[mode]] if mode in QUANTIZED_BASE else []
    template = f"--chat-template {shlex.quote(f'{config.to}/chat_template.jinja')}"
    options += [template] if (folder / "chat_template.jinja").is_file() else []
    command = f"vllm serve {shlex.quote(base)} {' '.join(options)} --lora-modules {shlex.quote(f'{name}={config.to}')}"
    notes = {
        f"the adapter is on {' and '.join(sorted(parts))}, too, which vLLM loads for some architectures alone": parts,
        f"the adapter was trained beside a base in {mode.name}; on another one it answers otherwise": (
            mode != QuantizationMode.none
        ),
        "transformers serve loads no adapters": True,
    }
    return Serving((command,), name, (), tuple(note for note, is_so in notes.items() if is_so))
